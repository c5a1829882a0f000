"""Block-wise reconstruction: each block keeps its outputs, and no backward pass crosses a block."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from localplug_ternary import TernaryConfig, TernaryLinear, freeze_, reconstruct_, ternarize_


def llama(layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False, initializer_range=0.2,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def batches(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(40, (4, 16), generator=generator)} for _ in range(count)]


@torch.no_grad()
def distance(model, other, rows):
    """Mean square of what the logits differ by."""
    return sum((model(**b).logits - other(**b).logits).square().mean().item() for b in rows) / len(rows)


@pytest.mark.parametrize(
    "options", [dict(method="tequila"), dict(method="sherry", residual=0), dict(method="annealed")]
)
def test_it_beats_converting_alone_on_text_it_has_not_seen(options):
    original, unseen = llama(), batches(4, seed=9)
    model = copy.deepcopy(original)
    fits = reconstruct_(model, TernaryConfig(group_size=64, **options), batches(), steps=60, lr=3e-3)
    assert [fit.name for fit in fits] == ["model.layers.0", "model.layers.1"]
    assert all(fit.after < 0.8 * fit.before for fit in fits)
    converted = ternarize_(copy.deepcopy(original), TernaryConfig(group_size=64, packed=True, **options))
    assert distance(model, original, unseen) < 0.8 * distance(converted, original, unseen)
    for name in ("lm_head", "model.embed_tokens", "model.norm"):
        assert torch.equal(model.get_submodule(name).weight, original.get_submodule(name).weight)


def test_what_it_makes_saves_packs_and_loads(tmp_path):
    model = llama(1)
    reconstruct_(model, TernaryConfig("sherry", group_size=64), batches(1), steps=3)
    assert not any(p.grad is not None for p in model.parameters()) and not model.training
    ids = batches(1)[0]["input_ids"]
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(isinstance(m, TernaryLinear) for m in again.modules()) == 7
    assert torch.equal(again(ids).logits, expected) and torch.equal(freeze_(model)(ids).logits, expected)


def test_what_autograd_holds_does_not_grow_with_depth():
    most = {}
    for layers in (1, 3):
        held, peak = [0], [0]

        class Kept:
            def __init__(self, tensor, held=held, peak=peak):
                self.tensor, self.held = tensor, held
                held[0] += tensor.numel()
                peak[0] = max(peak[0], held[0])

            def __del__(self):
                self.held[0] -= self.tensor.numel()

        model = llama(layers)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            reconstruct_(model, TernaryConfig(group_size=64), batches(1), steps=2)
        most[layers] = peak[0]
    assert most[3] == most[1] > 0


def test_blocks_of_other_shapes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=64, n_layer=2, n_head=2, n_positions=16))
    fits = reconstruct_(model.eval(), TernaryConfig("twn", group_size=64), batches(2), steps=20)
    assert [fit.name for fit in fits] == ["transformer.h.0", "transformer.h.1"]
    assert all(fit.after < fit.before for fit in fits)


def test_everything_wrong_is_listed_and_nothing_is_changed():
    model = llama(1)
    with pytest.raises(ValueError) as error:
        reconstruct_(model, TernaryConfig(packed=True), [], steps=0, lr=-1)
    for words in (
        "packed layers do not learn",
        "at least one batch",
        "steps must",
        "lr must",
        "no multiple of group_size=256",
    ):
        assert words in str(error.value)
    assert not any(isinstance(m, TernaryLinear) for m in model.modules())
    with pytest.raises(ValueError, match="no ModuleList of blocks"):
        reconstruct_(torch.nn.Sequential(torch.nn.Linear(64, 64)), TernaryConfig(group_size=64), batches(1))
