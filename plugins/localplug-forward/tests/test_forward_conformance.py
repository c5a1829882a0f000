"""Everything of the distribution against the conformance kit, as `localplug check localplug-forward` does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, method
from localplug_forward.conformance import *  # noqa: F403


def test_all_are_found_by_their_names():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for name in ("ff", "mono-forward", "cafo", "pepita", "softhebb", "phyll"):
        assert Engine(net, method(name)).method.describe().startswith(name)


@pytest.mark.parametrize("name", ["ff", "mono-forward", "cafo", "pepita", "softhebb", "phyll"])
@pytest.mark.parametrize("convolutional", [False, True])
def test_they_learn_under_bfloat16_autocast(name, convolutional):
    """Gradients keep their own dtype, and are those of float32 but for rounding; PEPITA's from an input changed enough."""
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        first = (
            [nn.Conv2d(1, 4, 3, stride=2), nn.Tanh()] if convolutional else [nn.Flatten(), nn.Linear(36, 16), nn.Tanh()]
        )
        net = nn.Sequential(*first, nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
        x, y = torch.randn(12, 1, 6, 6), torch.arange(12) % 3
        engine = Engine(net, method(name, **({"scale": 1.0} if name == "pepita" else {})))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            engine.evaluate(lambda net=net, x=x, y=y: F.cross_entropy(net(x), y), targets=y)
        found = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in found)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.95
