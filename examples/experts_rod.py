"""Heat in a rod of four materials: one network gives functions, an expert for each material makes the equation hold.

    pip install localplug-experts && python examples/experts_rod.py

-(k u')' = 1 on [0, 1] with u(0) = u(1) = 0 and another conductivity k in each quarter. The network gives eight functions; each
expert combines them so that the equation holds in its quarter, with the temperatures at its two ends given. Those three inner
temperatures are what training looks for: the heat that leaves a quarter must enter the next. They learn by mezo, without a
gradient, since the layer is a module like any other.
"""

import torch
from torch import nn

import localplug
from localplug_experts import HardConstraint, derivative

CONDUCTIVITY = torch.tensor([1.0, 0.2, 2.0, 0.5], dtype=torch.float64)
EDGES = torch.linspace(0, 1, 5, dtype=torch.float64)
ENDS_EPD = torch.stack([EDGES[:-1], EDGES[1:]], 1)[..., None]


def exact(x):
    """u at the edges: -k u' = x + c, with c from u(1) = 0."""
    upper, lower = EDGES[1:], EDGES[:-1]
    c = -((upper**2 - lower**2) / 2 / CONDUCTIVITY).sum() / ((upper - lower) / CONDUCTIVITY).sum()
    steps = -((upper**2 - lower**2) / 2 + c * (upper - lower)) / CONDUCTIVITY
    return torch.cat([x.new_zeros(1), steps.cumsum(0)])


class Rod(nn.Module):
    """The temperatures between the materials, and the layer that solves for all others."""

    def __init__(self):
        super().__init__()
        self.between = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        functions = nn.Sequential(nn.Linear(1, 8), nn.Tanh()).double().requires_grad_(False)
        nn.init.normal_(functions[0].weight, std=4.0)
        nn.init.uniform_(functions[0].bias, -4.0, 4.0)
        inner = torch.linspace(0, 1, 12, dtype=torch.float64)
        points = (EDGES[:-1, None] + (EDGES[1:] - EDGES[:-1])[:, None] * inner)[..., None]
        self.layer = HardConstraint(functions, self.rows, EDGES.tolist(), points, ridge=1e-10)

    def rows(self, basis, points):
        zero = self.between.new_zeros(1)
        at_edges = torch.cat([zero, self.between, zero])
        temperatures = torch.stack([at_edges[:-1], at_edges[1:]], 1)
        heat = -CONDUCTIVITY[:, None, None] * derivative(basis, points, order=2)
        A = torch.cat([heat, 100 * basis(ENDS_EPD)], 1)
        return A, torch.cat([torch.ones_like(points[..., 0]), 100 * temperatures], 1)

    def forward(self):
        """How unequal the heat is that leaves a quarter and enters the next."""
        w = self.layer.coefficients()
        slopes = derivative(self.layer.basis, ENDS_EPD)
        flow = -CONDUCTIVITY[:, None] * (slopes @ w[..., None])[..., 0]
        return (flow[:-1, 1] - flow[1:, 0]).square().mean()


def main():
    torch.manual_seed(0)
    rod = Rod()
    optimizer = torch.optim.Adam([rod.between], lr=0.01)
    truth = exact(EDGES)[1:-1]
    print(f"error before {float((rod.between.detach() - truth).abs().max()):.4f}")
    with localplug.attach(rod, "mezo", optimizer, eps=1e-3, num_directions=3, update="trainer"):
        for _ in range(200):
            rod().backward()  # stops at the model's output
            optimizer.step()
            optimizer.zero_grad()
    print(f"error after  {float((rod.between.detach() - truth).abs().max()):.4f}")
    print("temperatures between the materials", [round(float(u), 3) for u in rod.between.detach()])


if __name__ == "__main__":
    main()
