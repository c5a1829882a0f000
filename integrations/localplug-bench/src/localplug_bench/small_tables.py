"""Two small classification tables that train in seconds: handwritten digits of 8 x 8 pixels, and vowels by eleven speakers."""

import csv
import functools
import gzip
import importlib.util
import pathlib
from typing import final

import torch
from torch import Tensor, nn

from localplug import Parts, Task, Tensors
from localplug.tasks import located


def mlp(num_inputs: int, width: int, depth: int, num_classes: int) -> nn.Module:
    """`depth` hidden layers of `width` with ReLU."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(num_inputs if number == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


@final
class Digits(Task):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak, 1998).

    The file is read as it is; scikit-learn itself is not imported. In the order of the file, which keeps the writers apart:
    1,097 rows to train, 300 to validate, 400 to test.

    Args:
        data: a folder with digits/digits.csv.gz, where scikit-learn is not installed.
        width, depth: of the network.

    Raises:
        FileNotFoundError: in `parts`: the file is missing; says what to fetch.

    Example:
        >>> import localplug
        >>> localplug.task("digits", width=32).fresh_model(0)[0]
        Linear(in_features=64, out_features=32, bias=True)
    """

    budget = 3000

    def __init__(self, data: pathlib.Path | None = None, width: int = 64, depth: int = 2) -> None:
        self._data, self.width, self.depth = data, width, depth

    def model(self) -> nn.Module:
        return mlp(64, self.width, self.depth, 10)

    @functools.cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        found = importlib.util.find_spec("sklearn")
        places = found.submodule_search_locations if found is not None else None
        file = pathlib.Path(places[0], "datasets/data/digits.csv.gz") if places else None
        if file is None or not file.is_file():
            folder = located(self._data, "digits", ["digits.csv.gz"], get_it="Or run: pip install scikit-learn")
            file = folder / "digits.csv.gz"
        with gzip.open(file, "rt") as lines:
            table = torch.tensor([[float(value) for value in line.split(",")] for line in lines])
        return table[:, :-1] / 16 - 0.5, table[:, -1].long()

    def parts(self, seed: int) -> Parts:
        x, y = self._rows
        return Parts(*(Tensors(x[a:b], y[a:b]) for a, b in ((0, -700), (-700, -400), (-400, len(y)))))


@final
class Vowels(Task):
    """The 990 vowels of UCI's Connectionist Bench (Deterding, 1989): ten numbers each, eleven classes.

    The test rows are those of the seven speakers that the data set sets apart; of the other eight the last two validate.

    Args:
        data: a folder with vowel/uci_vowel.csv, separated by semicolons, with a column is_train.
        width, depth: of the network.

    Raises:
        FileNotFoundError: in `parts`: the file is missing; says what to fetch.

    Example:
        >>> import localplug
        >>> localplug.task("vowels", depth=1).fresh_model(0)[-1]
        Linear(in_features=64, out_features=11, bias=True)
    """

    budget = 3000

    def __init__(self, data: pathlib.Path | None = None, width: int = 64, depth: int = 2) -> None:
        self._data, self.width, self.depth = data, width, depth

    def model(self) -> nn.Module:
        return mlp(10, self.width, self.depth, 11)

    @functools.cached_property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        folder = located(
            self._data,
            "vowel",
            ["uci_vowel.csv"],
            get_it="It is data/vowel.csv of github.com/thibans/ESL, from UCI's Connectionist Bench (CC BY 4.0).",
        )
        lines = (folder / "uci_vowel.csv").read_text().split()
        rows = list(csv.DictReader(lines, delimiter=";"))
        names = [name for name in rows[0] if name.startswith("x.")]
        x = torch.tensor([[float(row[name].replace(",", ".")) for name in names] for row in rows])
        classes = {name: number for number, name in enumerate(sorted({row["y"] for row in rows}))}
        y = torch.tensor([classes[row["y"]] for row in rows])
        return x, y, torch.tensor([row["is_train"].strip().upper() in ("TRUE", "1") for row in rows])

    def parts(self, seed: int) -> Parts:
        x, y, is_train = self._rows
        known, test = is_train.nonzero().flatten(), (~is_train).nonzero().flatten()
        train, validation = known[: len(known) * 3 // 4], known[len(known) * 3 // 4 :]
        mean, deviation = x[train].mean(0), x[train].std(0)
        x = (x - mean) / deviation
        return Parts(*(Tensors(x[rows], y[rows]) for rows in (train, validation, test)))
