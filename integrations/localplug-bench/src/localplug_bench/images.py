"""Images with ten classes: MNIST, Fashion-MNIST, CIFAR-10, each from local files.

Shapes: N images, C channels, H = W pixels.
"""

import abc
import functools
import gzip
import pathlib
from typing import Literal, final

import torch
from torch import Tensor, nn

from localplug import Parts, Task, Tensors
from localplug.tasks import located
from localplug_bench.small_tables import mlp

Network = Literal["mlp", "cnn"]
IDX = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


def cnn(channels: int, side: int, widths: tuple[int, ...]) -> nn.Module:
    """3 x 3 convolutions with ReLU and pooling by 2, a hidden layer of 64, ten outputs."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, 64), nn.ReLU(), nn.Linear(64, 10))


class Images(Task, abc.ABC):
    """What the three have in common: a network by name, and rows set apart from the training images for validation.

    Args:
        data: the folder of data sets.
        network: "mlp", two hidden layers of 256, or "cnn", two convolutions and a hidden layer.
        depth: hidden layers of the "mlp".
        num_train: training images that are used, the first ones; by default all but those for validation.
        num_validation: of the training images, the last ones.
        num_test: test images that are used, the first ones; by default all.

    Raises:
        ValueError: an option is out of its range.
        FileNotFoundError: in `parts`: a file is missing; says what to fetch.
    """

    batch_size = 128
    shape: tuple[int, int] = (1, 28)

    def __init__(
        self,
        data: pathlib.Path | None = None,
        network: Network = "mlp",
        depth: int = 2,
        num_train: int | None = None,
        num_validation: int = 5000,
        num_test: int | None = None,
    ) -> None:
        if network not in ("mlp", "cnn"):
            raise ValueError(f'network must be "mlp" or "cnn", got {network!r}')
        if depth < 1 or num_validation < 1:
            raise ValueError(f"depth and num_validation must be at least 1, got {depth} and {num_validation}")
        self._data, self.network, self.depth = data, network, depth
        self.num_train, self.num_validation, self.num_test = num_train, num_validation, num_test

    @abc.abstractmethod
    def read(self, data: pathlib.Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(images (N, C, H, W) in [0, 1], labels) for training, and for testing."""

    def model(self) -> nn.Module:
        channels, side = self.shape
        if self.network == "cnn":
            return cnn(channels, side, (16, 32))
        return nn.Sequential(nn.Flatten(), *mlp(channels * side * side, 256, self.depth, 10).children())

    @functools.cached_property
    def _rows(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        (x, y), (x_test, y_test) = self.read(self._data)
        learned = x[: len(x) - self.num_validation][: self.num_train]
        mean, deviation = learned.mean((0, 2, 3), keepdim=True), learned.std((0, 2, 3), keepdim=True)
        return ((x - mean) / deviation, y), ((x_test - mean) / deviation, y_test)

    def parts(self, seed: int) -> Parts:
        (x, y), (x_test, y_test) = self._rows
        last = len(x) - self.num_validation
        train = Tensors(x[:last][: self.num_train], y[:last][: self.num_train])
        return Parts(train, Tensors(x[last:], y[last:]), Tensors(x_test[: self.num_test], y_test[: self.num_test]))


def idx(folder: pathlib.Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1] and labels of a pair of gzipped IDX files."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        x = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        y = torch.frombuffer(bytearray(file.read()[8:]), dtype=torch.uint8)
    return x.float() / 255, y.long()


@final
class MNIST(Images):
    __doc__ = f"""70,000 handwritten digits of 28 x 28 pixels (LeCun et al., 1998), from DATA/mnist.

{Images.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("mnist", network="cnn").batch_size
        128
    """

    def read(self, data: pathlib.Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        hint = "They are at ossci-datasets.s3.amazonaws.com/mnist (torchvision and keras download the same)."
        folder = located(data, "mnist", IDX, get_it=hint)
        return idx(folder, "train"), idx(folder, "t10k")


@final
class FashionMNIST(Images):
    __doc__ = f"""70,000 pieces of clothing of 28 x 28 pixels (arXiv:1708.07747), from DATA/fashion-mnist.

{Images.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("fashion-mnist", network="cnn").batch_size
        128
    """

    def read(self, data: pathlib.Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        hint = (
            "They are in Debian's package dataset-fashion-mnist (--data /usr/share/datasets), "
            "and at github.com/zalandoresearch/fashion-mnist."
        )
        folder = located(data, "fashion-mnist", IDX, get_it=hint)
        return idx(folder, "train"), idx(folder, "t10k")


@final
class CIFAR10(Images):
    __doc__ = f"""Photographs of 32 x 32 pixels (Krizhevsky, 2009), from DATA/cifar10: the 50,000 + 10,000 of
    cifar-10-batches-bin, or, where those are not there, 4,000 + 1,000 of them as five PNG sheets.

{Images.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("cifar10").network
        'cnn'
    """

    shape = (3, 32)

    def __init__(
        self,
        data: pathlib.Path | None = None,
        network: Network = "cnn",
        depth: int = 2,
        num_train: int | None = None,
        num_validation: int = 500,
        num_test: int | None = None,
    ) -> None:
        super().__init__(data, network, depth, num_train, num_validation, num_test)

    def read(self, data: pathlib.Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
        hint = (
            "They are in cifar-10-binary.tar.gz of cs.toronto.edu/~kriz/cifar.html; unpacked, the folder "
            "cifar-10-batches-bin becomes cifar10."
        )
        try:
            folder = located(data, "cifar10", [*batches, "test_batch.bin"], get_it=hint)
        except FileNotFoundError as missing:
            try:
                return _sheets(data)
            except FileNotFoundError:
                raise missing from None
        train = [_binary(folder / name) for name in batches]
        return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), _binary(folder / "test_batch.bin")


def _binary(file: pathlib.Path) -> tuple[Tensor, Tensor]:
    rows = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).view(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255, rows[:, 0].long()


def _sheets(data: pathlib.Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """PNG sheets of 1,000 images, one below the other, and their labels in an .npz file."""
    names = {"train": [f"train_{number}" for number in range(4)], "test": ["test_0"]}
    files = [f"cifar10_lossless_{name}.png" for sheets in names.values() for name in sheets]
    folder = located(data, "cifar10", [*files, "cifar10_lossless_labels.npz"], get_it="")
    try:
        import numpy
        from PIL import Image
    except ImportError as error:
        raise ImportError("CIFAR-10 from PNG sheets needs: pip install 'localplug-bench[tasks]'") from error

    labels = numpy.load(folder / "cifar10_lossless_labels.npz", allow_pickle=False)

    def read(part: str) -> tuple[Tensor, Tensor]:
        sheets = [Image.open(folder / f"cifar10_lossless_{name}.png").convert("RGB") for name in names[part]]
        pixels = numpy.concatenate([numpy.asarray(sheet).reshape(-1, 32, 32, 3) for sheet in sheets])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels[part]).long()

    return read("train"), read("test")
