"""Train a generator towards a distribution by its optimal-transport cost alone: no gradient of it, and none of the generator.

pip install localplug-rewards localplug-zo;  python examples/ot_reward.py
"""

import torch
from torch import nn

import localplug
from localplug_rewards.distribution import SampleTransport


class Generator(nn.Module):
    """From noise to points of the plane; its own loss is a placeholder, which the objective replaces."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, noise):
        samples = self.net(noise)
        return {"loss": samples.sum(), "samples": samples}


def ring(num):
    """What samples should be like: points on a circle."""
    angle = torch.arange(num) * (2 * torch.pi / num)
    return torch.stack([angle.cos(), angle.sin()], 1)


torch.manual_seed(0)
model, reward = Generator(), SampleTransport(ring(32))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
held_out = torch.randn(32, 2)
print(f"loss before {-reward(model(held_out), {}):.3f}  (squared Wasserstein distance, on noise of its own)")
with localplug.attach(model, "mezo", optimizer, objective=reward, num_directions=4, eps=1e-2):
    for _ in range(100):
        model(torch.randn(32, 2))["loss"].backward()
        optimizer.step()
print(f"loss after {-reward(model(held_out), {}):.3f}")
