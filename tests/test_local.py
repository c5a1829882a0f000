"""What the layer-local mechanism gives an algorithm: views, modules of its own, predictions, closures, block units."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine, LocalMethod, Predictor, Signal, View, partition, seeded


class Heads(LocalMethod):
    """A linear head for each hidden unit; predicts by the sum of all heads' probabilities."""

    prediction = (View("all heads", learns=False),)

    def describe(self):
        return "heads"

    def owns(self, unit, output, run):
        return seeded(lambda: nn.Linear(output.shape[-1], self.K, bias=False), output, seed=run.seed, name=unit.key)

    def signal(self, activity, run):
        labels = self.class_labels(run, activity.output.device)
        return Signal(loss=F.cross_entropy(activity.unit.owned(activity.output), labels))

    def observe(self, activity, run):
        if activity.unit.index == 0:
            self.total = 0
        self.total = self.total + activity.unit.owned(activity.output).softmax(-1)

    def scores(self, output, run):
        return self.total + output.softmax(-1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def data(n=60):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


def trained(steps=5):
    net, (x, y) = network(), data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    engine = Engine(net, Heads(), optimizer)
    for _ in range(steps):
        engine.step(lambda: F.cross_entropy(net(x), y), optimizer, targets=y)
    return net, engine, optimizer, x, y


def test_owned_modules_follow_the_trainers_optimizer():
    """One AdamW step by hand on a head equals the host's."""
    net, (x, y) = network(), data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    method = Heads()
    engine = Engine(net, method, optimizer)
    h = net[1](net[0](x)).detach()
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    head = nn.Linear(12, 3, bias=False)
    head.load_state_dict(method.owned_modules.modules["0"].state_dict())
    own = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.1)
    F.cross_entropy(head(h), y).backward()
    own.step()
    engine.apply(optimizer)
    torch.testing.assert_close(method.owned_modules.modules["0"].weight, head.weight)


def test_a_prediction_sums_the_heads_in_any_evaluation_loop():
    net, engine, _, x, _ = trained()
    method = engine.method
    heads = method.owned_modules.modules
    with torch.no_grad():
        first = net[1](net[0](x))
        second = net[3](net[2](first))
        expected = heads["0"](first).softmax(-1) + heads["2"](second).softmax(-1) + net[4](second).softmax(-1)
    detach = engine.attach()
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)
    detach()
    engine.close()
    torch.testing.assert_close(Predictor(net, method)(x), expected)
    fresh = Predictor(network(), Heads())
    fresh.load_state_dict(Predictor(net, method).state_dict())
    torch.testing.assert_close(fresh(x), expected)


def test_a_resumed_run_has_its_heads_and_their_optimizer():
    net, engine, optimizer, x, y = trained(3)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
    other = network()
    other.load_state_dict(saved[0])
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    other_optimizer.load_state_dict(saved[1])
    resumed = Engine(other, Heads(), other_optimizer)
    resumed.load_state_dict(saved[2])
    for e, n, o in ((engine, net, optimizer), (resumed, other, other_optimizer)):
        for _ in range(2):
            e.step(lambda n=n: F.cross_entropy(n(x), y), o, targets=y)
    for name, module in engine.method.owned_modules.modules.items():
        assert torch.equal(module.weight, resumed.method.owned_modules.modules[name].weight)


class TwoViews(LocalMethod):
    """The first view sees twice the batch and breaks off before the head; what entered is checked from outside."""

    views = (View("doubled", ends="hidden"), View("clean", learns=False))
    needs_targets = False

    def __init__(self):
        super().__init__()
        self.seen = []

    def describe(self):
        return "two views"

    def local_input(self, unit, x, view, run):
        return torch.cat([x, -x]) if unit.index == 0 and view.name == "doubled" else x

    def signal(self, activity, run):
        self.seen.append((activity.view.name, activity.unit.index, len(activity.output)))
        return Signal(loss=activity.output.square().mean())

    def observe(self, activity, run):
        self.seen.append((activity.view.name, activity.unit.index, len(activity.output)))


def test_views_may_see_more_examples_than_the_batch_has():
    net, (x, y) = network(), data()
    method = TwoViews()
    engine = Engine(net, method)
    engine.evaluate(lambda: F.cross_entropy(net(x), y))
    assert method.seen == [("doubled", 0, 120), ("doubled", 1, 120), ("clean", 0, 60), ("clean", 1, 60)]
    assert engine.run.num_forwards == method.num_evaluations == 2
    doubled = torch.cat([x, -x])
    (expected,) = torch.autograd.grad(net[1](net[0](doubled)).square().mean(), [net[0].weight])
    torch.testing.assert_close(net[0].weight.grad, expected)


class Probed(Heads):
    prediction = ()

    def needs_graph(self, unit, view):
        return False

    def signal(self, activity, run):
        labels, unit = self.class_labels(run, activity.output.device), activity.unit

        def closure():
            return F.cross_entropy(unit.owned(torch.relu(unit.module(*activity.inputs))), labels)

        return Signal(closure=closure, eps=1e-3, num_directions=2000)


def test_a_closure_estimates_the_units_gradient():
    net, (x, y) = network(), data()
    before = net[0].weight.detach().clone()
    method = Probed()
    engine = Engine(net, method)
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    assert torch.equal(net[0].weight, before)
    J = F.cross_entropy(method.owned_modules.modules["0"](torch.relu(net[0](x))), y)
    (expected,) = torch.autograd.grad(J, [net[0].weight])
    assert F.cosine_similarity(net[0].weight.grad.flatten(), expected.flatten(), dim=0) > 0.9


def test_a_signal_is_exactly_one_thing():
    with pytest.raises(ValueError, match="exactly one"):
        Signal()
    with pytest.raises(ValueError, match="eps must be positive"):
        Signal(closure=lambda: 0.0, eps=0.0)


def test_block_units_of_a_language_model():
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    )
    names = [u.name for u in partition(llama, kind="block")]
    assert names == ["model.embed_tokens", "model.layers.1", "lm_head"]  # the embedding leads the first block
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=20))
    assert [u.name for u in partition(gpt2, kind="block", joins_head=True)] == [
        "transformer.wte",
        "transformer.h.1",
        "transformer.h.2",
    ]


def test_a_frozen_head_is_in_no_unit():
    """With adapters the last block is a unit of its own, whether it would be joined to a head or not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=20)
    )
    for name, p in llama.named_parameters():
        p.requires_grad_("q_proj" in name)
    for joins_head in (False, True):
        names = [u.name for u in partition(llama, kind="block", joins_head=joins_head)]
        assert names == ["model.layers.0", "model.layers.1", "model.layers.2"]


def test_public_names():
    assert localplug.View().ends == "loss" and localplug.Predictor is Predictor


def test_an_optimizer_that_has_no_twin_is_refused_before_training():
    class Named(torch.optim.SGD):
        def __init__(self, parameters, label):
            super().__init__(parameters, lr=0.1)
            self.label = label

    net = network()
    with pytest.raises(localplug.Unsupported, match="a second Named cannot be made"):
        Engine(net, Heads(), Named(net.parameters(), "mine"))
    Engine(net, localplug.method("tpsgd"), Named(net.parameters(), "mine"))  # owns nothing
