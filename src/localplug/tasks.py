"""What is trained on: a task has a model, examples in three parts, a loss, and a quality that is measured on held-out examples.

The bench trains every method on the same tasks. Plugins give tasks by the hook localplug_tasks; a task of your own is a class
in a file, `localplug bench ring.py:Ring mezo`.
"""

import abc
import contextlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from localplug.plugins import get
from localplug.replay import random_state, restore_random_state


class Part(abc.ABC):
    """Some of a task's examples."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def batch(self, chosen: Tensor) -> Any:
        """The examples of these numbers, as the task's `loss` and `score` take them.

        Args:
            chosen: int64, in [0, len(self)).
        """


@final
class Tensors(Part):
    """Examples that are the rows of tensors; a batch is a tuple of their rows.

    Args:
        *columns: tensors of equal length, such as inputs and labels.

    Raises:
        ValueError: they are of unequal length, or there are none.

    Example:
        >>> import torch, localplug
        >>> part = localplug.Tensors(torch.arange(6).view(3, 2), torch.tensor([0, 1, 0]))
        >>> part.batch(torch.tensor([2]))
        (tensor([[4, 5]]), tensor([0]))
    """

    def __init__(self, *columns: Tensor) -> None:
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise ValueError(f"the columns of a part must be of one length, got {lengths}")
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def batch(self, chosen: Tensor) -> tuple[Tensor, ...]:
        return tuple(column[chosen] for column in self.columns)


@final
class Sealed:
    """The test examples of one run: they are handed out once, when the run is over.

    Args:
        part: the examples.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self.num_looks = 0
        """How often they were asked for."""

    def __len__(self) -> int:
        return len(self._part)

    def look(self) -> Part:
        """The examples.

        Raises:
            RuntimeError: they were handed out before.
        """
        self.num_looks += 1
        if self.num_looks > 1:
            raise RuntimeError(
                "the test examples were looked at before; a run looks once, and chooses on validation examples"
            )
        return self._part


@final
class Parts:
    """The examples of one run.

    Args:
        train: what the model learns from.
        validation: what options and the best step are chosen by.
        test: what is looked at once; sealed here.
    """

    def __init__(self, train: Part, validation: Part, test: Part) -> None:
        self.train, self.validation, self.test = train, validation, Sealed(test)


class Task(abc.ABC):
    """A model, its examples, and how good it is at them.

    A task writes `model` and `parts`. What else it has is for classifiers whose batches are (inputs, labels): cross-entropy,
    and the share of right answers. Tasks that the bench makes by name may take `data`, the folder of data sets, and options of
    their own in `__init__`; what they read they should read once.

    Attributes:
        metric: the quality in a word, with its unit.
        higher_is_better: whether more of it is better.
        perfect: the best quality there can be.
        batch_size: examples of a training step.
        budget: forward passes over a batch that a training takes if the user does not say; a backward pass counts as two.
        optimizer: of methods that leave the update to an optimizer, and of backpropagation: "adam", "adamw" or "sgd".
        evaluation_batch: examples of a forward pass where quality is measured.
    """

    metric: str = "accuracy"
    higher_is_better: bool = True
    perfect: float = 1.0
    batch_size: int = 32
    budget: int = 3000
    optimizer: str = "adam"
    evaluation_batch: int = 512

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """A new model, as a training begins; the global random state is seeded for it, and put back afterwards."""

    @abc.abstractmethod
    def parts(self, seed: int) -> Parts:
        """The examples of a run.

        Args:
            seed: of the run, for tasks that split anew for each.

        Raises:
            FileNotFoundError: data is missing; says which, and what to fetch.
            ImportError: a package is missing; carries the line that installs it.
        """

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, scalar; it must call the model itself, once."""
        x, labels_B = batch
        return F.cross_entropy(model(x), labels_B)

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        """(the sum of what is measured, over how many); their ratio over a part is its quality."""
        x, labels_B = batch
        return float((model(x).argmax(-1) == labels_B).sum()), len(labels_B)

    def targets(self, batch: Any) -> Any:
        """The labels of a batch, for methods that need them."""
        return batch[1]

    @final
    def fresh_model(self, seed: int) -> nn.Module:
        """`model()`, a function of the seed alone."""
        with seeded_state(seed):
            return self.model()

    @final
    @torch.no_grad()
    def quality(self, model: nn.Module, part: Part, device: str | torch.device = "cpu") -> float:
        """What `score` finds over a whole part, the model in evaluation mode."""
        was_training, total, count = model.training, 0.0, 0
        model.eval()
        try:
            for chosen in torch.arange(len(part)).split(self.evaluation_batch):
                found, over = self.score(model, moved(part.batch(chosen), device))
                total, count = total + found, count + over
        finally:
            model.train(was_training)
        return total / max(count, 1)


def moved(batch: Any, device: str | torch.device) -> Any:
    """A batch with its tensors on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)


@contextlib.contextmanager
def seeded_state(seed: int) -> Iterator[None]:
    """A context in which torch's global random state begins at a seed; afterwards it is what it was before."""
    before = random_state()
    start = torch.Generator().manual_seed(seed).get_state()
    restore_random_state((start, []))
    try:
        yield
    finally:
        restore_random_state(before)


def task(name: str, *, data: str | pathlib.Path | None = None, **options: Any) -> Task:
    """A task by the name that a plugin gives it, or by FILE.py:CLASS, made with its options.

    Args:
        data: the folder of data sets, for tasks that read files.
        **options: the task's own.

    Raises:
        UnknownName, DuplicateName, PluginFailed: see `localplug.get`.
        FileNotFoundError: there is no such file.
        TypeError: it has no such option, or is no localplug.Task.

    Example:
        >>> import localplug
        >>> localplug.task("permutation", num_bits=4).metric
        'exact share'
    """
    found = _of_file(name) if ".py:" in name else get(name, "tasks")
    takes = inspect.signature(found).parameters
    if unknown := [option for option in options if option not in takes]:
        raise TypeError(
            f"task {name} has no option {', '.join(map(repr, unknown))}; it has: {', '.join(takes) or 'none'}"
        )
    if "data" in takes:
        options["data"] = None if data is None else pathlib.Path(data)
    made = found(**options)
    if not isinstance(made, Task):
        raise TypeError(f"{name} made {made!r}, which is not a localplug.Task")
    return made


def _of_file(spec: str) -> Any:
    path, _, attribute = spec.rpartition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no file; a task of your own is given as FILE.py:CLASS")
    name = f"localplug_task_{file.stem}"
    spec_of_file = importlib.util.spec_from_file_location(name, file)
    assert spec_of_file is not None and spec_of_file.loader is not None
    module = importlib.util.module_from_spec(spec_of_file)
    sys.modules[name] = module
    spec_of_file.loader.exec_module(module)
    if not callable(made := getattr(module, attribute, None)):
        raise TypeError(f"{path} has no class {attribute!r}")
    return made


def located(data: str | pathlib.Path | None, folder: str, files: Sequence[str], *, get_it: str) -> pathlib.Path:
    """The folder of a data set: DATA/FOLDER, or DATA itself, whichever has all the files.

    Args:
        data: what the user gave, if anything.
        get_it: where the files come from, in a sentence.

    Raises:
        FileNotFoundError: a file is missing; the message says which, and what to fetch.
    """
    if data is not None:
        for place in (pathlib.Path(data) / folder, pathlib.Path(data)):
            if all((place / file).is_file() for file in files):
                return place
    where = (
        "no folder of data sets was given" if data is None else f"not in {pathlib.Path(data) / folder} nor in {data}"
    )
    raise FileNotFoundError(
        f"{', '.join(files)}: {where}; put them into DIR/{folder} and pass --data DIR (in Python data=DIR). {get_it}"
    )
