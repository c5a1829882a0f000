"""FlowOpt on a flow model of handwritten digits: inputs found by the residual alone, and what the step may be.

    python tests/benchmarks/blackbox_flow.py [--quick]

The flow is an MLP of 64 + 1 -> 256 -> 256 -> 64 with SiLU, trained by flow matching (Adam, 1e-3) on 1,500 of scikit-learn's
digits, pixels scaled to [-1, 1]; the process is Euler's method with 10 steps. Sought are the inputs of 32 digits that it was
not trained on, together, with 30 evaluations of the process; all start from Euler's method backwards. Recorded: the mean square
error at the start, after 10 and after 30 evaluations, for the estimated step, for fixed ones (none was chosen), and for
descent by pairs of random directions on the same error (`ZerothOrderSearch`, rates as given, all of them shown). `bound` is the
smallest of 2 <dz, df> / |df|^2 over 16 pairs round the start, for one digit at a time and for all together.
"""

import argparse
import pathlib
import sys

import torch
from torch import nn

from localplug_blackbox import Box, FlowOpt, ZerothOrderSearch, euler_inversion, euler_process, step_bound

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

TIMES = [1 - i / 10 for i in range(11)]
NUM = 32


def digits():
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    return x[:1500], x[1500 : 1500 + NUM]


def trained(x, num_steps):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)]
    network = nn.Sequential(*layers)
    for layer in network[::2]:
        nn.init.normal_(layer.weight, 0, layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(num_steps):
        data = x[torch.randint(len(x), (128,), generator=generator)]
        z, t = torch.randn(128, 64, generator=generator), torch.rand(128, 1, generator=generator)
        loss = (network(torch.cat([t * z + (1 - t) * data, t], 1)) - (z - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)
    return lambda x, t: network(torch.cat([x, torch.full((len(x), 1), t)], 1))


def by_directions(process, y, start, lr, num):
    """Error after 10 and 30 evaluations of one digit after another; of the iterate, which costs no evaluation here."""
    found = []
    for i in range(len(y)):
        objective = lambda X, i=i: (process(X.float()) - y[i]).square().mean(1).double()  # noqa: E731
        search = ZerothOrderSearch(Box.free(64), start[i].double(), num_directions=2, lr=lr, seed=i)
        errors = []
        for limit in (10, num):
            while search.num_evaluations < limit:
                X = search.ask(1)
                search.tell(X, objective(X))
            errors.append(float(objective(search.iterate[None])))
        found.append(errors)
    return torch.tensor(found).mean(0).tolist()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="200 steps of training, not recorded")
    options = parser.parse_args()
    num_steps = 200 if options.quick else 6000
    result = earlier("blackbox_flow", {"training steps": num_steps, "evaluations": 30}, quick=options.quick)
    x, y = digits()
    velocity = trained(x, num_steps)
    process = euler_process(velocity, TIMES)
    start = euler_inversion(velocity, TIMES, y)
    result["start"] = float((process(start) - y).square().mean())
    singly = [step_bound(process, start[i : i + 1], num_pairs=16, seed=i) for i in range(NUM)]
    result["bound"] = {
        "least": min(singly),
        "median": sorted(singly)[NUM // 2],
        "together": step_bound(process, start, num_pairs=16),
    }
    for eta in (None, 0.1, 0.25, 0.5, 1.0, 2.0):
        run = FlowOpt(process, step_size=eta).run(y, start, max_evaluations=30, tolerance=0.0)
        spent = 3 if eta is None else 1  # evaluations when the first error is known
        name = "estimated" if eta is None else str(eta)
        result.setdefault("step", {})[name] = {
            "after 10": run.errors[10 - spent] if len(run.errors) > 10 - spent else None,
            "after 30": run.errors[-1],
            "best": run.best.error,
            "last step": run.best.step_size,
        }
    for lr in (0.01, 0.03, 0.1):
        result.setdefault("zeroth order, lr", {})[str(lr)] = by_directions(process, y, start, lr, 30)
    if options.quick:
        print(result)
    else:
        save("blackbox_flow", result)


if __name__ == "__main__":
    main()
