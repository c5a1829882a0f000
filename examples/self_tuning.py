"""How much weight decay does this model want? One training run that finds it, instead of a run for each guess.

Forty features, sixty noisy measurements: without weight decay the model learns the noise. `SelfTuning` lets the weights respond
to the decay, watches the validation loss by two forward passes now and then, and moves the decay while the loop trains as ever.

    python examples/self_tuning.py
"""

import torch
from torch import nn

from localplug_updates.self_tuning import HyperParameter, SelfTuning


class Decay:
    weight = 1e-3


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x, true = torch.randn(120, 40, generator=generator), 0.5 * torch.randn(40, generator=generator)
    y = x @ true + 2 * torch.randn(120, generator=generator)
    x, x_held, y, y_held = x[:60], x[60:], y[:60], y[60:]

    def train(tune: bool) -> float:
        """The loss on held-out rows, with the decay as it is or tuned."""
        model, decay = nn.Sequential(nn.Linear(40, 1, bias=False)), Decay()
        nn.init.zeros_(model[0].weight)

        def held_out(step: int = 0) -> torch.Tensor:
            return (model(x_held)[:, 0] - y_held).square().mean()

        tuner = None
        if tune:
            tuned = HyperParameter("decay", [(decay, "weight")], start=decay.weight)
            tuner = SelfTuning(model, [tuned], held_out, warmup=100, lr=0.05)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        if tuner is not None:
            tuner.attach(optimizer)
        for _ in range(1000):
            penalty = decay.weight * model[0].weight.square().sum()
            loss = (model(x)[:, 0] - y).square().mean() + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if tuner is not None:
            print(f"found a decay of {tuner.fold()['decay']:.3f}, from {Decay.weight}")
        with torch.no_grad():
            return float(held_out())

    print(f"held-out loss before {train(tune=False):.3f}")
    print(f"held-out loss after {train(tune=True):.3f}")


if __name__ == "__main__":
    main()
