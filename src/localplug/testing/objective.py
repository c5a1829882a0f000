"""Checks that every objective must pass: a score of a batch that has no gradient, of the hook `localplug_objectives`."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localplug.objectives import Objective
from localplug.testing.conformance import Documented, pickled

Make = Callable[[], Callable[..., Any]]


class ModelOutput(OrderedDict[str, Tensor]):
    """What a model's forward returns: by key, and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class ObjectiveTests(Documented):
    """Subclass it, and give the fixture `make`: a function that gives your objective.

    By default it is tried on the logits of a classifier, (B, K), and on labels (B,). Write `example` for one that reads
    something else.
    """

    @pytest.fixture
    def documented(self, make: Make) -> Any:
        found = make()
        return found if hasattr(found, "__qualname__") else type(found)

    def example(self, quality: float) -> tuple[Any, dict[str, Any], nn.Module]:
        """(outputs, batch, model) of a batch whose answers are as good as said.

        Args:
            quality: from 0, all answers wrong, to 1, all right.
        """
        labels = torch.arange(12) % 3
        answers = torch.where(torch.arange(12) < round(12 * quality), labels, (labels + 1) % 3)
        logits = nn.functional.one_hot(answers, 3).float() * 4
        loss = nn.functional.cross_entropy(logits, labels)
        with torch.device("meta"):
            model = nn.Linear(3, 3)
        return ModelOutput(loss=loss, logits=logits), {"input_ids": torch.eye(3)[labels], "labels": labels}, model

    def test_is_one_finite_number_for_a_batch(self, make: Make) -> None:
        """And takes `outputs`, `batch` and `model` by name, one or more of them."""
        for quality in (0.0, 0.5, 1.0):
            try:
                score = self._score(make(), quality)
            except TypeError as error:
                pytest.fail(str(error))
            assert -float("inf") < score < float("inf")

    def test_is_higher_for_better_answers(self, make: Make) -> None:
        scores = [self._score(make(), quality) for quality in (0.0, 0.5, 1.0)]
        assert scores[0] < scores[1] < scores[2], f"scores of bad, middling and good answers: {scores}"

    def test_is_the_same_each_time(self, make: Make) -> None:
        """On its own, and between others: nothing of a batch is kept."""
        one = make()
        first = self._score(one, 0.5)
        self._score(one, 1.0)
        assert self._score(one, 0.5) == first == self._score(make(), 0.5)

    def test_does_not_change_what_it_is_given(self, make: Make) -> None:
        outputs, batch, model = self.example(0.5)
        before, mode = copy.deepcopy((outputs, batch)), [m.training for m in model.modules()]
        Objective(make()).loss(outputs, batch, model)
        assert _equal(outputs, before[0]) and _equal(batch, before[1])
        assert [m.training for m in model.modules()] == mode

    def test_needs_no_gradient_and_leaves_none(self, make: Make) -> None:
        """It is scored while no graph is made; and where there is one, what it gives has none."""
        outputs, batch, model = self.example(0.5)
        with torch.no_grad():
            value = Objective(make()).loss(outputs, batch, model)
        assert not value.requires_grad
        if isinstance(outputs, ModelOutput):
            graph = ModelOutput({name: leaf.clone().requires_grad_() for name, leaf in outputs.items()})
            assert float(Objective(make()).loss(graph, batch, model)) == float(value)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_outputs_of_half_precision_are_scored_alike(self, make: Make, dtype: torch.dtype) -> None:
        outputs, batch, model = self.example(0.5)
        if not isinstance(outputs, ModelOutput):
            pytest.skip("its example has no ModelOutput whose leaves could be of another dtype")
        half = ModelOutput({name: leaf.to(dtype) for name, leaf in outputs.items()})
        found = -float(Objective(make()).loss(half, batch, model))
        assert found == pytest.approx(self._score(make(), 0.5), rel=0.02, abs=1e-3)

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        before = torch.get_rng_state()
        self._score(make(), 0.5)
        assert torch.equal(before, torch.get_rng_state())

    def test_can_be_pickled(self, make: Make) -> None:
        assert self._score(pickled(make()), 0.5) == self._score(make(), 0.5)

    def _score(self, objective: Callable[..., Any], quality: float) -> float:
        return -float(Objective(objective).loss(*self.example(quality)))


def _equal(tree: Any, other: Any) -> bool:
    one, two = torch.utils._pytree.tree_leaves(dict(tree)), torch.utils._pytree.tree_leaves(dict(other))
    return len(one) == len(two) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
        for a, b in zip(one, two, strict=True)
    )
