"""MNIST as tensors, and the networks that several benchmarks train on it."""

import gzip
import pathlib

import torch
from torch import nn

DATA = pathlib.Path(__file__).parents[3] / "shared/data/mnist"


def read(split, data=DATA):
    """(images (N, 1, 28, 28), normalised; labels (N,)) of "train" or "t10k"."""
    with gzip.open(data / f"{split}-images-idx3-ubyte.gz") as f:
        x = torch.frombuffer(bytearray(f.read()[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    with gzip.open(data / f"{split}-labels-idx1-ubyte.gz") as f:
        y = torch.frombuffer(bytearray(f.read()[8:]), dtype=torch.uint8)
    return (x.float() / 255 - 0.1307) / 0.3081, y.long()


class Rows(nn.Module):
    """A GRU over the 28 rows of an image, and a linear read-out of its last step."""

    def __init__(self, layers=1):
        super().__init__()
        self.rnn, self.out = nn.GRU(28, 64, layers, batch_first=True), nn.Linear(64, 10)

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


NETWORKS = {"mlp": mlp, "cnn": cnn, "gru": Rows, "two-layer gru": lambda: Rows(2)}


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    model.train()
    return right / len(y)
