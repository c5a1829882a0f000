"""tpSGD on full MNIST against its backprop twin: same network, data order, optimizer, learning rate and epochs.

    python tests/benchmarks/mnist_tpsgd.py [--epochs 3] [--seed 0] [--only mlp cnn gru]

MLP 784-256-256-10 (tanh), CNN conv16-conv32-fc64-10 (ReLU, max pooling), GRU over the 28 rows (64 hidden) and a linear
read-out of its last step. Adam, learning rate 1e-3, batch 128, 60,000 training images, tpsgd with its default options;
the 10,000 test images are looked at once, after the last epoch. `last layer` trains the output layer alone, on the random
features below it: what a local method must beat. Saved memory is the largest number of elements that autograd holds, in
an MLP of 2, 4, 8, 16 layers.
"""

import argparse
import gzip
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

DATA = pathlib.Path(__file__).parents[3] / "shared/data/mnist"


def read(split):
    with gzip.open(DATA / f"{split}-images-idx3-ubyte.gz") as f:
        x = torch.frombuffer(bytearray(f.read()[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    with gzip.open(DATA / f"{split}-labels-idx1-ubyte.gz") as f:
        y = torch.frombuffer(bytearray(f.read()[8:]), dtype=torch.uint8)
    return (x.float() / 255 - 0.1307) / 0.3081, y.long()


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(28, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(self.rnn(x.squeeze(1))[0][:, -1])


def mlp(depth=2, width=256):
    layers = [nn.Flatten(), nn.Linear(784, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "cnn": cnn, "gru": Rows}


def train(network, how, epochs, seed, lr=1e-3):
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    (x, y), (x_test, y_test) = read("train"), read("t10k")
    if how == "last layer":
        for p in model.parameters():
            p.requires_grad_(False)
        for p in list(model.modules())[-1].parameters():
            p.requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    labels = [None]
    plug = (
        localplug.attach(model, "tpsgd", optimizer, seed=seed, targets=lambda args, kwargs: labels[0])
        if how == "tpsgd"
        else None
    )
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for chosen in order.split(128):
            labels[0] = y[chosen]
            loss = F.cross_entropy(model(x[chosen]), labels[0])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if plug is not None:
        plug.close()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(x_test.split(1000), y_test.split(1000), strict=True)
        )
    return {"test_accuracy": right / len(y_test)}


def saved_elements(depth, how):
    """Largest number of elements that autograd holds at one time in one step of batch 128, weights left out."""
    torch.manual_seed(0)
    model, x, y = mlp(depth), torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    own, live, peak = {p.data_ptr() for p in model.parameters()} | {x.data_ptr()}, [0], [0]

    class Kept:
        def __init__(self, t):
            self.t = t
            live[0] += t.numel()
            peak[0] = max(peak[0], live[0])

        def __del__(self):
            live[0] -= self.t.numel()

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t if t.data_ptr() in own else Kept(t), lambda k: k.t if isinstance(k, Kept) else k
    ):
        if how == "backprop":
            F.cross_entropy(model(x), y).backward()
        else:
            engine = localplug.Engine(model, localplug.method("tpsgd"))
            engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    return peak[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    result = {}
    for network in options.only:
        for how in ("backprop", "tpsgd", "last layer"):
            result[f"{network}, {how}"] = found = train(network, how, options.epochs, options.seed)
            print(network, how, found, flush=True)
    for how in ("backprop", "tpsgd"):
        result[f"saved elements, {how}"] = {depth: saved_elements(depth, how) for depth in (2, 4, 8, 16)}
    save("mnist_tpsgd", {"epochs": options.epochs, "seed": options.seed, **result})
