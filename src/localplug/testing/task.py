"""Checks that every task must pass: a model, examples in three parts, a loss and a quality, of the hook `localplug_tasks`."""

import contextlib
import inspect
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from localplug.tasks import Part, Parts, Sealed, Task, moved
from localplug.testing.conformance import Documented, in_one_line

Make = Callable[[], Task]


class TaskTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your task, with options that suit small data.

    Checks are skipped, with what is missing as the reason, where the task's data are not there.
    """

    is_pretrained = False
    """Whether a training begins at given weights, the same for every seed."""

    duplicates = 0.0
    """The share of the validation and test examples that may be in another part, too, for data that has some of them twice."""

    def right_answers(self, task: Task, batch: Any) -> Any:
        """What a model gives that is right about the whole batch, for a task with a `score` of its own; None: not checked."""
        if type(task).score is not Task.score:
            return None
        return F.one_hot(batch[1]).float()

    def test_says_how_it_is_trained_and_measured(self, make: Make) -> None:
        """Metric, direction and best quality; positive sizes and budget; a known optimizer."""
        task = make()
        assert isinstance(task, Task), f"{task!r} is no localplug.Task"
        assert in_one_line(task.metric), f"metric is {task.metric!r}"
        assert isinstance(task.higher_is_better, bool), f"higher_is_better is {task.higher_is_better!r}"
        assert math.isfinite(task.perfect), f"perfect is {task.perfect!r}"
        for name in ("batch_size", "budget", "evaluation_batch"):
            value = getattr(task, name)
            assert isinstance(value, int) and value >= 1, f"{name} must be a whole number of at least 1, is {value!r}"
        assert task.optimizer in ("adam", "adamw", "sgd"), f"optimizer is {task.optimizer!r}"

    def test_a_model_is_a_function_of_the_seed(self, make: Make) -> None:
        """Bit for bit, of the same task and of another one; of two seeds they differ, unless `is_pretrained`."""
        task, _ = _ready(make)
        first = _fresh(task, 1).state_dict()
        other = _fresh(task, 2).state_dict()
        for again in (_fresh(task, 1).state_dict(), _fresh(make(), 1).state_dict()):
            assert _key(again) == _key(first), "two models of one seed differ"
        assert self.is_pretrained or _key(other) != _key(first), "models of two seeds are the same"

    def test_a_model_is_new_each_time(self, make: Make) -> None:
        """What is trained in one is not in another."""
        task, _ = _ready(make)
        one, other = ([p for p in _fresh(task, 1).parameters() if p.requires_grad] for _ in range(2))
        assert one, "it has no parameter that can be trained"
        with torch.no_grad():
            for p in one:
                p.fill_(7.0)
        assert not any(bool((p == 7.0).all()) for p in other), "two models share weights"

    def test_has_examples_in_three_parts(self, make: Make) -> None:
        _, parts = _ready(make)
        assert isinstance(parts, Parts), f"`parts` gives {parts!r}, which is no localplug.Parts"
        for name in ("train", "validation", "test"):
            part = getattr(parts, name)
            assert isinstance(part, Sealed if name == "test" else Part), f"{name} is {part!r}"
            assert len(part) >= 1, f"{name} has no examples"

    def test_parts_are_apart(self, make: Make) -> None:
        """No example is in two of them, inputs and labels together."""
        _, parts = _ready(make)
        train, validation, test = (_examples(part) for part in (parts.train, parts.validation, parts.test.look()))
        for name, part, others in (("validation", validation, train), ("test", test, train + validation)):
            share = sum(example in set(others) for example in set(part)) / len(part)
            assert share <= self.duplicates, f"{share:.2%} of the examples of {name} are in another part as well"

    def test_the_same_seed_gives_the_same_parts(self, make: Make) -> None:
        """Of the same task, another seed's made in between, and of another task."""
        task, parts = _ready(make)
        first = _contents(parts)
        task.parts(1)
        assert _contents(task.parts(0)) == first, "a second time, the same task's parts of a seed differ"
        assert _contents(make().parts(0)) == first, "two tasks' parts of one seed differ"

    def test_each_run_looks_at_its_test_examples_once(self, make: Make) -> None:
        """They are sealed anew for each, and nobody has looked."""
        task, parts = _ready(make)
        for run in (parts, task.parts(0)):
            assert run.test.num_looks == 0, "its test examples were looked at before the run began"
            assert isinstance(run.test.look(), Part) and run.test.num_looks == 1
            with pytest.raises(RuntimeError):
                run.test.look()

    def test_a_batch_can_be_moved_to_a_device(self, make: Make) -> None:
        """It is tensors, in tuples, lists and dictionaries; in another object they would stay where they are."""
        task, parts = _ready(make)
        leaves = tree_leaves(moved(_batch(task, parts.train), "meta"))
        strange = [leaf for leaf in leaves if not isinstance(leaf, Tensor | str | bytes | int | float | None)]
        assert any(isinstance(leaf, Tensor) for leaf in leaves), f"there is no tensor in {leaves!r:.200}"
        assert not strange, f"tensors in a {type(strange[0]).__name__} cannot be found"

    def test_the_loss_is_a_finite_scalar_with_a_gradient(self, make: Make) -> None:
        task, parts = _ready(make)
        model = _fresh(task, 0)
        loss = task.loss(model, _batch(task, parts.train))
        assert isinstance(loss, Tensor) and loss.dim() == 0, f"the loss must be a scalar tensor, got {loss!r:.200}"
        assert bool(loss.isfinite()), f"the loss of an untrained model is {float(loss.detach())}"
        assert loss.requires_grad, "the loss has no graph"
        loss.backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert any(bool(g.any()) for g in found) and all(bool(g.isfinite().all()) for g in found), (
            "the gradient of an untrained model is zero or not finite"
        )

    def test_the_loss_calls_the_model_once(self, make: Make) -> None:
        """The model itself, and not a part of it."""
        task, parts = _ready(make)
        model, calls = _fresh(task, 0), []
        model.register_forward_hook(lambda *call: calls.append(1))
        task.loss(model, _batch(task, parts.train))
        assert len(calls) == 1, f"the loss calls the model {len(calls)} times"

    def test_the_loss_is_a_mean_over_the_batch(self, make: Make) -> None:
        """Each example twice gives the same loss."""
        task, parts = _ready(make)
        model = _fresh(task, 0).eval()
        chosen = torch.arange(min(task.batch_size, len(parts.train)))
        with torch.no_grad():
            once, twice = (float(task.loss(model, parts.train.batch(rows))) for rows in (chosen, chosen.repeat(2)))
        assert twice == pytest.approx(once, rel=1e-3, abs=1e-5), f"{once} of a batch, {twice} of the same twice over"

    def test_gives_the_labels_of_a_batch(self, make: Make) -> None:
        task, parts = _ready(make)
        try:
            found = task.targets(_batch(task, parts.train))
        except Exception as error:
            pytest.fail(f"targets: {type(error).__name__}: {error}; it needs a `targets` of its own")
        assert any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)), f"targets are {found!r:.200}"

    def test_quality_is_finite_and_none_is_better_than_perfect(self, make: Make) -> None:
        task, parts = _ready(make)
        quality = task.quality(_fresh(task, 0), First(parts.validation, 64))
        assert math.isfinite(quality), f"the quality of an untrained model is {quality}"
        is_within = quality <= task.perfect if task.higher_is_better else quality >= task.perfect
        assert is_within, (
            f"an untrained model's quality is {quality}, better than the best there can be, {task.perfect}"
        )

    def test_right_answers_are_perfect(self, make: Make) -> None:
        """The quality of a batch's own answers is `perfect`."""
        task, parts = _ready(make)
        batch = _batch(task, parts.validation)
        if (answers := self.right_answers(task, batch)) is None:
            pytest.skip("its score is its own, and nobody wrote `right_answers` for it")
        total, count = task.score(Answering(answers), batch)
        quality = total / max(count, 1)
        assert quality == pytest.approx(task.perfect, abs=1e-3), f"{quality} instead of {task.perfect}"

    def test_quality_does_not_depend_on_how_a_part_is_cut(self, make: Make) -> None:
        """`score` gives a sum, and over how many; a batch has the examples of its numbers."""
        task, parts = _ready(make)
        model, part, found = _fresh(task, 0), First(parts.validation, 50), []
        for size in (50, 7, 1):
            task.evaluation_batch = size
            found.append(task.quality(model, part))
        assert found == pytest.approx([found[0]] * 3, rel=1e-3, abs=1e-6), f"in batches of 50, 7 and 1: {found}"

    def test_measuring_does_not_change_the_model(self, make: Make) -> None:
        task, parts = _ready(make)
        model, part = _fresh(task, 0), First(parts.validation, 64)
        before, first = _key(model.state_dict()), task.quality(model, part)
        assert _key(model.state_dict()) == before, "the model is another one afterwards"
        assert task.quality(model, part) == first, "a second time, its quality differs"

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        """Parts, batches, first weights; loss and quality of a model in evaluation mode."""
        before = torch.get_rng_state()
        task, parts = _ready(make)
        model, batch = _fresh(task, 0).eval(), _batch(task, parts.train)
        task.loss(model, batch)
        task.quality(model, First(parts.validation, 8))
        assert torch.equal(before, torch.get_rng_state())

    def test_what_is_missing_is_told_with_what_to_fetch(self, make: Make, documented: Any) -> None:
        """Without a folder of data sets, and with an empty one: FileNotFoundError in words of the task's own, or ImportError
        with the line that installs a package; or nothing is missing."""
        _say_what_is_missing(make)
        takes = inspect.signature(documented).parameters.values()
        needed = [p.name for p in takes if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if "data" in [p.name for p in takes] and set(needed) <= {"data"}:
            with tempfile.TemporaryDirectory() as empty:
                for data in (None, pathlib.Path(empty)):
                    _say_what_is_missing(lambda given=data: documented(data=given))  # type: ignore[misc]


class First(Part):
    """The first examples of a part, at most so many."""

    def __init__(self, part: Part, num: int) -> None:
        self._part, self._num = part, min(num, len(part))

    def __len__(self) -> int:
        return self._num

    def batch(self, chosen: Tensor) -> Any:
        return self._part.batch(chosen)


class Answering(nn.Module):
    """Gives one answer, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, *asked: Any, **more: Any) -> Any:
        return self._answer


@contextlib.contextmanager
def _skipping_what_is_missing() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(str(error))


def _ready(make: Make) -> tuple[Task, Parts]:
    """A task, and the parts of a run; the check is skipped where data or packages are missing."""
    task = make()
    with _skipping_what_is_missing():
        return task, task.parts(0)


def _fresh(task: Task, seed: int) -> nn.Module:
    with _skipping_what_is_missing():
        return task.fresh_model(seed)


def _batch(task: Task, part: Part) -> Any:
    return part.batch(torch.arange(min(task.batch_size, len(part))))


def _examples(part: Part) -> list[int]:
    """A number for each, equal for equal ones."""
    return [hash(_key(part.batch(torch.tensor([number])))) for number in range(len(part))]


def _contents(parts: Parts) -> list[int]:
    three = parts.train, parts.validation, parts.test.look()
    return [hash(_key(part.batch(chosen))) for part in three for chosen in torch.arange(len(part)).split(512)]


def _key(tree: Any) -> tuple[Any, ...]:
    """Its leaves bit for bit, so that NaN is equal to itself."""

    def bits(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        flat = leaf.detach().cpu().contiguous().flatten()
        return leaf.dtype, tuple(leaf.shape), bytes(flat.view(torch.uint8).tolist())

    return tuple(bits(leaf) for leaf in tree_leaves(dict(tree) if isinstance(tree, dict) else tree))


def _say_what_is_missing(make: Make) -> None:
    try:
        task = make()
        task.parts(0)
        task.fresh_model(0)
    except FileNotFoundError as error:
        assert error.errno is None and len(str(error).split()) > 4, (
            f"say which data are missing and what to fetch, got {str(error)!r}"
        )
    except ImportError as error:
        assert "install" in str(error), f"give the line that installs what is missing, got {str(error)!r}"
    except Exception as error:
        pytest.fail(f"{type(error).__name__} instead of a FileNotFoundError: {error}")
