"""The audits of layer-local methods can fail: a method that passes all of them, and what each break of it is told."""

import _pytest.outcomes
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import LocalMethod, Signal, View, seeded
from localplug.testing import LocalMethodTests


class Heads(LocalMethod):
    """A linear head for each hidden unit, whose probabilities are summed in a prediction; new here.

    Args:
        units, kind, joins_head, num_classes: as in localplug.LocalMethod.

    Example:
        >>> Heads(num_classes=2).describe()
        'heads'
    """

    prediction = (View("all heads", learns=False),)

    def describe(self):
        return "heads"

    def owns(self, unit, output, run):
        return seeded(lambda: nn.Linear(output.shape[-1], self.K), output, seed=run.seed, name=unit.key)

    def signal(self, activity, run):
        labels = self.class_labels(run, activity.output.device)
        return Signal(loss=F.cross_entropy(activity.unit.owned(activity.output), labels))

    def observe(self, activity, run):
        probabilities = activity.unit.owned(activity.output).softmax(-1)
        self.total = probabilities if activity.unit.index == 0 else self.total + probabilities

    def scores(self, output, run):
        return self.total + output.softmax(-1)


class TestHeads(LocalMethodTests):
    @pytest.fixture
    def make(self):
        return Heads


class ClosedForm(Heads):
    """The same with the gradient of 1/2 |y - W y*|^2 written out."""

    factor = 1.0

    def signal(self, activity, run):
        output = activity.output.detach()
        return Signal(grad_output=self.factor * (output - wanted(self, activity, run)) / len(output))


def wanted(method, activity, run):
    return 0.9 * (2 * (method.class_labels(run, activity.output.device) == 0).float() - 1)[:, None].expand_as(
        activity.output
    )


class ClosedFormTests(LocalMethodTests):
    method = ClosedForm

    @pytest.fixture
    def make(self):
        return self.method

    def local_loss(self, activity, run):
        y = wanted(self.method(num_classes=2), activity, run)
        return 0.5 * (activity.output - y).square().sum() / len(y)


class EndToEnd(Heads):
    """Learns from the loss at the top."""

    def signal(self, activity, run):
        h = activity.output
        for layer in list(run.model)[int(activity.unit.name) + 1 :]:
            h = layer(h)
        return Signal(loss=F.cross_entropy(h, run.targets))


class FalselyDeclared(Heads):
    reads_above = "nothing, in truth"


class Remembers(Heads):
    """The labels of the last batch."""

    def signal(self, activity, run):
        labels, self.last = getattr(self, "last", run.targets), run.targets
        return Signal(loss=F.cross_entropy(activity.unit.owned(activity.output), labels))


class Writes(Heads):
    def signal(self, activity, run):
        with torch.no_grad():
            activity.unit.parameters[0].mul_(1 + 1e-7)
        return super().signal(activity, run)


class Hoards(Heads):
    """Keeps each unit's graph."""

    def signal(self, activity, run):
        signal = super().signal(activity, run)
        self.kept = [*getattr(self, "kept", []), signal.loss]
        return Signal(loss=activity.unit.owned(activity.output.tanh()).square().mean() + signal.loss.detach())

    def own_state(self):
        return {}


class Sums(Heads):
    def signal(self, activity, run):
        return Signal(loss=super().signal(activity, run).loss * len(activity.output))


class Doubled(ClosedForm):
    factor = 2.0


class Aimless(Heads):
    """Hidden units learn nothing that is of use, and a prediction is the model's own."""

    prediction = ()

    def signal(self, activity, run):
        return Signal(loss=activity.output.square().mean())


class ReadsLabels(Heads):
    def scores(self, output, run):
        return output if run.targets is None else F.one_hot(run.targets, 2).float()


class ReadsRows(Heads):
    """Adds something by the number of the example."""

    def scores(self, output, run):
        return output + torch.arange(len(output))[:, None]


class SpoilsTheModel(Heads):
    """Keeps its head in the model."""

    def owns(self, unit, output, run):
        made = super().owns(unit, output, run)
        unit.module.add_module("head", made)
        return made


class Forgets(Heads):
    """Draws new heads wherever it is loaded."""

    def owns(self, unit, output, run):
        made = super().owns(unit, output, run)
        made.load_state_dict = lambda state: None
        return made


class Drifts(Heads):
    """A prediction depends on how many there were."""

    calls = 0

    def scores(self, output, run):
        self.calls += 1
        return super().scores(output, run) + self.calls


@pytest.mark.parametrize(
    "broken, check",
    [
        (EndToEnd, "test_a_unit_learns_without_the_units_above"),
        (FalselyDeclared, "test_a_unit_learns_without_the_units_above"),
        (Remembers, "test_a_step_reads_no_label_of_another_batch"),
        (Writes, "test_an_evaluation_leaves_every_weight_bit_for_bit"),
        (Hoards, "test_saved_tensors_do_not_grow_with_depth"),
        (Sums, "test_a_batch_twice_over_gives_the_gradient_of_its_reduction"),
        (Doubled, "test_a_closed_form_is_the_gradient_of_its_local_loss"),
        (Aimless, "test_beats_training_the_last_layer_alone"),
        (ReadsLabels, "test_prediction_sees_no_label_and_no_other_example"),
        (ReadsRows, "test_prediction_sees_no_label_and_no_other_example"),
        (Drifts, "test_an_evaluation_loop_predicts_by_itself"),
        (SpoilsTheModel, "test_what_is_owned_is_saved_with_the_method_and_not_with_the_model"),
        (Forgets, "test_what_is_owned_is_saved_with_the_method_and_not_with_the_model"),
    ],
)
def test_a_broken_method_is_told(broken, check):
    is_closed = issubclass(broken, ClosedForm)
    tests = type("Tests", (ClosedFormTests if is_closed else LocalMethodTests,), {"method": broken})()
    sound = ClosedForm if is_closed else Heads
    if is_closed:
        type(tests).method = sound
    getattr(tests, check)(sound)  # what it is made of passes
    type(tests).method = broken
    with pytest.raises((AssertionError, _pytest.outcomes.Failed)):
        getattr(tests, check)(broken)


def test_a_closed_form_without_its_loss_is_told():
    with pytest.raises(_pytest.outcomes.Failed, match="write local_loss"):
        LocalMethodTests().test_a_closed_form_is_the_gradient_of_its_local_loss(ClosedForm)
