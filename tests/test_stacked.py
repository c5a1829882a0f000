"""Evaluations in one batch: the same estimates as one by one, in every kind of layer, and the model left as it was."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import localplug


class Convolves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.Linear(36, 3),
        )

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1)).square().mean()


class Attends(nn.Module):
    """Reads another module's weights: out_proj's, and an embedding's for the logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids):
        x = self.embed(ids)
        logits = self.attention(x, x, x, need_weights=False)[0] @ self.embed.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x).square().mean()


MODELS = {
    "convolution": (Convolves, lambda: torch.randn(2, 1, 8, 8)),
    "reads outside": (Attends, lambda: torch.randint(0, 9, (2, 5))),
    "dropout": (Dropped, lambda: torch.randn(4, 6)),
}


@pytest.mark.parametrize(
    "method, stack, forwards", [("mezo", 2, 2), ("mezo", 4, 1), ("es", 3, 2), ("fzoo", 5, 1), ("1.5-spsa", 5, 1)]
)
@pytest.mark.parametrize("directions", ["rank-1", "gaussian"])
@pytest.mark.parametrize("name", MODELS)
def test_estimates_are_those_of_one_evaluation_at_a_time(name, directions, method, stack, forwards):
    q = {"mezo": 2, "es": 4, "fzoo": 4, "1.5-spsa": 2}[method]
    found = []
    for backend in ("auto", f"stacked:{stack}"):
        torch.manual_seed(0)
        make, inputs = MODELS[name]
        model, x = make().train(), inputs()
        before = [p.detach().clone() for p in model.parameters()]
        made = localplug.method(method, eps=1e-2, num_directions=q, directions=directions, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = localplug.Engine(model, made, optimizer, seed=1)
        loss = engine.step(lambda model=model, x=x: model(x), optimizer)
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert all(type(p) is nn.Parameter for p in model.parameters())
        assert not any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        found.append((float(loss), engine.gradient_norm))
    assert engine.run.num_forwards == forwards
    assert found[0] == pytest.approx(found[1], rel=2e-3, abs=1e-4)


def test_an_unchanged_trainers_own_forward_call_is_the_stacked_one():
    """Loss and logits that the loop sees are single; the model's cache and other outputs are, too."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    weights = []
    for backend in ("auto", "stacked"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        ids = torch.randint(0, 50, (2, 7))
        with localplug.attach(model, "mezo", optimizer, directions="rank-1", backend=backend, eps=1e-2) as plug:
            for _ in range(3):
                out = model(input_ids=ids, labels=ids)
                assert out.loss.dim() == 0 and out.logits.shape == (2, 7, 50)
                out.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        assert plug.engine.run.num_forwards == (6 if backend == "auto" else 3)
        assert "forward" not in model.__dict__
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, atol=2e-4, rtol=1e-2)


def test_a_fault_in_a_stacked_evaluation_leaves_the_model_as_it_was():
    model = Dropped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    with localplug.attach(model, "mezo", optimizer, directions="rank-1", backend="stacked"):
        broken = model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.randn(4, 6))
        broken.remove()
        assert all(type(p) is nn.Parameter for p in model.parameters())
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        model(torch.randn(4, 6)).backward()
        optimizer.step()
    assert not torch.equal(before[0], model.layers[0].weight)


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ValueError, match="follow from each other"):
        localplug.method("residual-zo", backend="stacked")
    for wrong in ("stacked:1", "stacked:", "stacked:x", "scratch:2", "cuda", None):
        with pytest.raises(ValueError, match=f"backend must be one of .*got {wrong!r}"):
            localplug.method("mezo", backend=wrong)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(localplug.Unsupported, match="running statistics.*\n.*select by name"):
        localplug.Engine(model, localplug.method("mezo", backend="stacked", parameters="random:0.5"))
