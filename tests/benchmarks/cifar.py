"""The images of CIFAR-10 that are there without loss: 4,000 for training, 1,000 for testing."""

import pathlib

import numpy
import torch
from PIL import Image

DATA = pathlib.Path(__file__).parents[3] / "shared/data"


def images(split, data=DATA):
    """(x (N, 3, 32, 32) in [0, 1], labels (N,)) of "train" or "test"."""
    labels = numpy.load(data / "cifar10/cifar10_lossless_labels.npz")[split]
    names = [f"train_{i}" for i in range(4)] if split == "train" else ["test_0"]
    sheets = [Image.open(data / f"cifar10/cifar10_lossless_{name}.png").convert("RGB") for name in names]
    pixels = numpy.concatenate([numpy.asarray(sheet).reshape(-1, 32, 32, 3) for sheet in sheets])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels).long()
