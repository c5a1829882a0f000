"""A plain PyTorch loop that trains without backpropagation: one `with` line more, and nothing else changed.

Inside `localplug.attach` every training forward is evaluated as often as the method needs, loss.backward() stops at the
model's output, and the update happens just before optimizer.step(), with the optimizer's own learning rate.

    python examples/bare_loop.py            mezo
    python examples/bare_loop.py spsa       any other installed method that takes the batch as it is
"""

import sys

import torch
from torch import nn

import localplug


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of points in eight dimensions, split by a plane."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, :3].sum(1) > 0).long()


def main(method: str = "mezo") -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x, y = data()

    def loss_of_everything() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y))

    print(f"loss before {loss_of_everything():.4f}")
    with localplug.attach(model, method, optimizer):
        for step in range(400):
            rows = slice(step % 4 * 64, step % 4 * 64 + 64)
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"loss after {loss_of_everything():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
