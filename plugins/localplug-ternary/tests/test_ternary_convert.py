"""ternarize_, freeze_ and report on plain torch models and small transformers."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import localplug
from localplug_ternary import (
    PackedTernaryLinear,
    TernaryConfig,
    TernaryLinear,
    freeze_,
    report,
    set_progress_,
    ternarize_,
    train_scales_,
    unfreeze_,
)


@contextlib.contextmanager
def from_seed(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def net(width=64, seed=0):
    with from_seed(seed):
        return nn.Sequential(nn.Linear(width, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))


def llama(tied=False, **more):
    config = dict(vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    with from_seed(0):
        return LlamaForCausalLM(
            LlamaConfig(**{**config, **more}, num_key_value_heads=1, tie_word_embeddings=tied)
        ).eval()


def kinds(model, kind=TernaryLinear):
    return [name for name, m in model.named_modules() if isinstance(m, kind)]


def test_layers_are_converted_in_place_and_the_head_is_left():
    model = net()
    weight = model[0].weight
    assert ternarize_(model, TernaryConfig(group_size=64)) is model
    assert kinds(model) == ["0", "3"] and type(model[4]) is nn.Linear
    assert model[0].weight is weight  # an optimizer that holds it still trains the model


def test_what_a_ternary_model_computes():
    model, x = net(), torch.ones(2, 64)
    first = copy.deepcopy(model[0])
    ternarize_(model, TernaryConfig("absmean", group_size=None))
    s = first.weight.abs().mean(1, keepdim=True)
    A = torch.where(first.weight.abs() > s / 2, first.weight.sign() * s.half().float(), 0.0)
    torch.testing.assert_close(model[0](x), x @ A.T + first.bias)


@pytest.mark.parametrize("tied", [True, False])
def test_heads_of_transformers_are_left(tied):
    model = ternarize_(llama(tied), TernaryConfig(group_size=64))
    assert len(kinds(model)) == 7 and type(model.lm_head) is nn.Linear
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_head_tied_by_hand_in_the_middle_of_a_plain_model_is_left():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(8, 64), nn.Linear(64, 8, bias=False)
            self.head.weight = self.embedding.weight
            self.body, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, x):
            return self.head(self.norm(self.body(self.embedding(x))))

    assert kinds(ternarize_(Tied(), TernaryConfig(group_size=64))) == ["body"]


def test_names_given_are_left_besides_the_head_not_in_its_place():
    model = ternarize_(llama(), TernaryConfig(group_size=64, modules_to_not_convert=["mlp.*", "q_proj"]))
    assert [n.rpartition(".")[2] for n in kinds(model)] == [
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    model = ternarize_(llama(), TernaryConfig(group_size=64, modules_to_not_convert=[r"model\.layers\.0\.mlp"]))
    assert [n.rpartition(".")[2] for n in kinds(model)] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert type(model.lm_head) is nn.Linear


def test_a_filter_decides():
    model = ternarize_(net(), TernaryConfig(group_size=64), filter_fn=lambda layer, name: name == "3")
    assert kinds(model) == ["3"]


def test_conv1d_of_gpt2_is_turned_round():
    with from_seed(0):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=64, n_layer=1, n_head=2, n_positions=16)).eval()
    before = model.transformer.h[0].mlp.c_fc
    ternarize_(model, TernaryConfig("twn", group_size=64))
    layer = model.transformer.h[0].mlp.c_fc
    assert isinstance(layer, TernaryLinear) and (layer.in_features, layer.out_features) == (64, 256)
    assert torch.equal(layer.weight, before.weight.T) and len(kinds(model)) == 4
    x = torch.tensor([[1, 2, 3]])
    expected = model(x).logits
    freeze_(model)
    assert torch.equal(model(x).logits, expected)


def test_weights_that_are_read_round_their_layer_are_left():
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(64, 2), "body": nn.Linear(64, 64), "head": nn.Linear(64, 2)}
    )
    assert kinds(ternarize_(model, TernaryConfig(group_size=64))) == ["body"]


def test_everything_wrong_is_listed_at_once_and_nothing_is_changed():
    model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 6), nn.Linear(6, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    before = list(model.children())
    with pytest.raises(ValueError) as error:
        ternarize_(model, TernaryConfig(group_size=64))
    for words in (
        "'0' has 96 inputs, no multiple of group_size=64",
        "'2' has 6 inputs; they must",
        "'3' has weights that are not",
    ):
        assert words in str(error.value)
    assert all(a is b for a, b in zip(model.children(), before, strict=True))


def test_further_refusals():
    model = ternarize_(net(), TernaryConfig(group_size=64))
    with pytest.raises(ValueError, match="2 layers are ternary already, such as '0'"):
        ternarize_(model, TernaryConfig(group_size=64))
    with pytest.raises(ValueError, match="no Linear to convert"):
        ternarize_(nn.Sequential(nn.Linear(4, 4)), TernaryConfig())
    twins = net()
    twins[3].weight = twins[0].weight
    with pytest.raises(ValueError, match="'0' and '3' share one weight"):
        ternarize_(twins, TernaryConfig(group_size=64))
    with pytest.raises(ValueError, match="no latent ternary layer"):
        freeze_(net())
    with pytest.raises(ValueError, match="no packed layer"):
        train_scales_(net())
    with pytest.raises(ValueError, match="no ternary layer"):
        report(net())
    with pytest.raises(localplug.Unsupported, match="latent weights, which training moves, are gone"):
        unfreeze_(freeze_(model))
    with pytest.raises(ValueError, match="progress must be in"):
        set_progress_(net(), 1.5)


@pytest.mark.parametrize("method", ["tequila", "absmean", "twn", "sherry", "annealed"])
def test_frozen_outputs_are_those_of_the_latent_model(method):
    model = ternarize_(llama(), TernaryConfig(method, group_size=64))
    x = torch.arange(12).reshape(2, 6)
    if method in ("sherry", "annealed"):
        with pytest.raises(ValueError, match=r"training ends at progress 0.*set_progress_\(model, 1.0\)"):
            freeze_(model)
        assert len(kinds(model)) == 7
        set_progress_(model, 1.0)
    expected = model(x).logits
    freeze_(model)
    assert not kinds(model) and len(kinds(model, PackedTernaryLinear)) == 7
    assert torch.equal(model(x).logits, expected)


@pytest.mark.parametrize("method", ["tequila", "absmean", "twn", "sherry", "annealed"])
def test_packed_at_once_if_the_configuration_says_so(method):
    for make in (net, llama):
        model = ternarize_(make(), TernaryConfig(method, group_size=64, packed=True))
        assert kinds(model, PackedTernaryLinear) and not kinds(model)
        assert not any(
            p.requires_grad for m in model.modules() if isinstance(m, PackedTernaryLinear) for p in m.parameters()
        )


def test_what_transformers_keeps_in_float32_is_left():
    model = llama()
    model._keep_in_fp32_modules = ["down_proj"]
    assert len(kinds(ternarize_(model, TernaryConfig(group_size=64)))) == 6


def test_freezing_a_layer_without_float16_scales_names_it_and_changes_nothing():
    model = ternarize_(net(), TernaryConfig(group_size=64))
    with torch.no_grad():
        model[3].weight.mul_(1e7)
    with pytest.raises(ValueError, match="cannot be packed: nothing was changed, because '3': weights are too large"):
        freeze_(model)
    assert kinds(model) == ["0", "3"]


def test_the_report_counts_what_is_stored():
    model = ternarize_(net(), TernaryConfig("tequila", group_size=64, lam=0.5))
    latent = report(model)
    freeze_(model)
    packed = report(model)
    stored = sum(t.numel() * t.element_size() for m in (model[0], model[3]) for t in m.state_dict().values())
    assert packed.bits_per_weight == 8 * stored / (2 * 64 * 64) == 2 + 16 / 64 + 32 / 64
    assert latent.bits_per_weight == packed.bits_per_weight and latent.dead_fraction == packed.dead_fraction
    assert packed.num_other == 2 * 64 + 64 * 3 + 3
    layer = packed.layers[0]
    zeros = (model[0].dequantized(torch.float32) == 0).float().mean().item()
    assert layer.dead_fraction == pytest.approx(zeros)
    # the ratio against outputs for random inputs
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    y = x @ model[0].dequantized(torch.float32).T
    measured = model[0].bias.norm() / y.square().mean(0).sum().sqrt()
    assert layer.bias_ratio == pytest.approx(measured.item(), rel=0.05)
    assert "bits/weight" in str(packed) and "together" in str(packed)


def test_sherry_leaves_a_quarter_dead():
    assert report(ternarize_(net(), TernaryConfig("sherry", group_size=64))).dead_fraction == 0.25


def test_latent_training_lowers_the_loss():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    for method in ("tequila", "sherry"):
        model = ternarize_(net(), TernaryConfig(method, group_size=64))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for step in range(30):
            set_progress_(model, step / 30)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]


def test_the_layers_take_a_dfa_step():
    model = ternarize_(net(), TernaryConfig(group_size=64))
    before = model[3].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = localplug.Engine(model, localplug.method("dfa"), optimizer)
    x, y = torch.ones(6, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    engine.step(lambda: nn.functional.cross_entropy(model(x), y), optimizer, targets=y)
    assert not torch.equal(model[3].weight, before)


@pytest.mark.parametrize("method", ["mezo", "forward-grad", "lozo"])
@pytest.mark.parametrize("kind", ["tequila", "sherry", "annealed"])
def test_latent_layers_take_steps_without_a_backward_pass(kind, method):
    model = ternarize_(net(), TernaryConfig(kind, group_size=64))
    set_progress_(model, 0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.ones(6, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    with localplug.attach(model, method, optimizer):
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(p.isfinite().all() and not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_forward_gradient_is_that_of_the_straight_through_estimator():
    model = ternarize_(net(), TernaryConfig("tequila", group_size=64, lam=0.1))
    x, w = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)), model[0].weight.detach()
    v = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    _, tangent = torch.func.jvp(lambda u: torch.func.functional_call(model[0], {"weight": u}, (x,)).sum(), (w,), (v,))
    model[0](x).sum().backward()
    torch.testing.assert_close(tangent, (model[0].weight.grad * v).sum(), rtol=1e-4, atol=1e-3)
