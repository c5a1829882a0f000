"""Relevance against zennit's, and LFP's changes of the weights against lfprop's, on small networks in float64.

    pip install --no-deps --target DIR zennit==0.5.1 lfprop==1.0.0 lxt==0.6.1
    python tests/benchmarks/credit_references.py DIR

The packages are only called, one rule each: zennit.rules.Epsilon and lfprop's epsilon_lfp_fn. What they import beside that and
do not use here (torchvision, snntorch, lxt's model code) is replaced by empty modules. Numbers are the largest differences.
"""

import pathlib
import sys
import types

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_credit import LFP, Rules, relevance

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save


class Empty(types.ModuleType):
    """A module in which every name is `object`."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def stand_in(*names, folder=None):
    for name in names:
        module = types.ModuleType(name) if folder else Empty(name)
        module.__path__ = [str(folder / name.replace(".", "/"))] if folder else []
        module.__file__ = f"{name}.py"
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).double()


class PassedOn(torch.autograd.Function):
    """ReLU that hands a reward on as it is."""

    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, reward):
        return reward


class Applied(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def of_zennit(eps):
    from zennit.rules import Epsilon, Pass

    net, x = network(), torch.randn(4, 1, 12, 12, dtype=torch.float64)
    weighty = (nn.Conv2d, nn.Linear)
    rules = [(m, Epsilon(eps) if isinstance(m, weighty) else Pass()) for m in net if isinstance(m, (*weighty, nn.ReLU))]
    handles = [rule.register(module) for module, rule in rules]
    at = x.clone().requires_grad_()
    out = net(at)
    top = out.max(-1)
    start = torch.zeros_like(out).scatter_(1, top.indices[:, None], top.values[:, None].detach())
    (expected,) = torch.autograd.grad(out, at, start)
    for handle in handles:
        handle.remove()
    found = relevance(net, x, rules=Rules(eps=eps)).inputs[0]
    return {"difference": float((found - expected).abs().max()), "largest": float(expected.abs().max())}


def of_lfprop():
    from lfprop.propagation.propagator_lxt import epsilon_lfp_fn

    net, x, y = network(), torch.randn(4, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def stage(module):
        if isinstance(module, nn.ReLU):
            return Applied(PassedOn.apply)
        if isinstance(module, nn.Conv2d | nn.Linear):
            return Applied(lambda x: epsilon_lfp_fn.apply(module, 1e-6, False, False, False, False, False, x))
        return module

    out = nn.Sequential(*map(stage, net))(x.clone().requires_grad_())
    reward = out.detach() * (F.one_hot(y, 3) - out.detach().softmax(1)) / len(y)
    out.backward(reward)
    expected = {name: p.feedback.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    engine = localplug.Engine(net, LFP(), torch.optim.SGD(net.parameters(), lr=1.0))
    engine.evaluate(lambda: F.cross_entropy(net(x), y))
    pairs = [(-p.grad, expected[name]) for name, p in net.named_parameters()]
    return {
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "largest": max(float(b.abs().max()) for _, b in pairs),
    }


if __name__ == "__main__":
    packages = pathlib.Path(sys.argv[1])
    sys.argv[1] = "DIR"
    sys.path.append(str(packages))
    before = set(sys.modules)
    stand_in("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg", "snntorch")
    stand_in("lfprop", "lfprop.propagation", "lxt", folder=packages)
    stand_in("lfprop.model", "lfprop.model.activations", "lfprop.model.custom_resnet", "lxt.core", "lxt.modules")
    result = {f"zennit, eps {eps:g}": of_zennit(eps) for eps in (1e-6, 0.1)} | {"lfprop": of_lfprop()}
    for name in set(sys.modules) - before:  # transformers, which is asked for its version, would look at torchvision
        del sys.modules[name]
    save("credit_references", result)
