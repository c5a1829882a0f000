"""MNIST, Fashion-MNIST and CIFAR-10 as tensors, under one name each.

Fashion-MNIST is Debian's package dataset-fashion-mnist; CIFAR-10 are the 4,000 + 1,000 images that are there without loss.
"""

import pathlib

import cifar
import mnist

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "cifar": (3, 32, 32)}


def read(name, split, fashion=FASHION):
    """(images (N, C, H, W), normalised; labels (N,)) of "train" or "test"."""
    if name == "cifar":
        x, y = cifar.images(split)
        return (x - 0.473) / 0.252, y  # mean and deviation of the 4,000 training images, over all channels
    return mnist.read("t10k" if split == "test" else split, mnist.DATA if name == "mnist" else fashion)
