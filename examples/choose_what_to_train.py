"""Which layers should I train? A model meets a new sensor; forward passes say which part of it has to learn.

The model knows four kinds of signals. The new sensor has its channels in another order and half of them upside down, so that
its inputs look different while everything behind them is as ever. Three scores of each layer, by forward passes alone, say
what to train; then `mezo` trains what they chose, and all layers for comparison. After the model is made, nothing makes a
backward pass.

The scores disagree: a large gradient (here the last layer's) is not a large gain. With a few training runs to spare, let them
decide: `choose(model, loss, scores=[...], observe=Trial(model, loss, lr=...), budget=...)`.
"""

import torch
from torch import Tensor, nn

import localplug
from localplug_select import choose

NUM_STEPS, BATCH, LR = 400, 64, 3e-2


def signals(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (num, 6) of four kinds, by the signs of two of their sums."""
    x = torch.randn(num, 6, generator=torch.Generator().manual_seed(seed))
    return x, 2 * (x[:, :3].sum(1) > 0).long() + (x[:, 3:].sum(1) > 0).long()


def new_sensor(x: Tensor) -> Tensor:
    return x[:, [3, 0, 5, 2, 1, 4]] * torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])


def known_model() -> nn.Module:
    """What you have: a model that works with the old sensor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model.append(nn.Linear(32, 4))
    x, y = signals(2000, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def train(model: nn.Module, parameters: tuple[str, ...] | None) -> None:
    x, y = signals(2000, seed=1)
    x = new_sensor(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    rows = torch.Generator().manual_seed(2)
    with localplug.attach(model, "mezo", optimizer, parameters=parameters, num_directions=4):
        for _ in range(NUM_STEPS):
            some = torch.randint(len(x), (BATCH,), generator=rows)
            loss = nn.functional.cross_entropy(model(x[some]), y[some])
            loss.backward()  # stops at the model's output
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def tested(model: nn.Module) -> float:
    x, y = signals(2000, seed=3)
    return float(nn.functional.cross_entropy(model(new_sensor(x)), y))


def main() -> None:
    model = known_model()
    before = tested(model)
    x, y = signals(128, seed=4)
    x = new_sensor(x)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    ways: dict[str, tuple[str, ...] | None] = {"all layers": None}
    for score in ("gradient", "newton", "ray"):
        chosen = choose(model, loss, scores=[score], kind="layer")
        values = "  ".join(f"layer {unit}: {value:.3g}" for unit, value in chosen.table[score].items())
        print(f"{score:8s}  {values}  -> layer {chosen.units[0]}")
        ways[f"layer {chosen.units[0]} alone"] = chosen.parameters

    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for what, parameters in ways.items():
        model.load_state_dict(kept)
        train(model, parameters)
        num = sum(p.numel() for n, p in model.named_parameters() if parameters is None or n in parameters)
        print(f"{what}, {num} weights: loss before {before:.4f}, loss after {tested(model):.4f}")


if __name__ == "__main__":
    main()
