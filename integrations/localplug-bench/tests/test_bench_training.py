"""One run: the same weights as a loop written by hand, a budget that is kept, one look at the test examples."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Parts, Task, Tensors
from localplug_bench.pairing import alternate, ratios
from localplug_bench.specs import parsed
from localplug_bench.training import Plan, Training
from localplug_bench.ways import ByMethod, Passes, way


class Points(Task):
    """Is the sum of the first two of four numbers positive?"""

    batch_size, budget = 16, 120

    def __init__(self):
        self.num_scored = 0

    def model(self):
        return nn.Sequential(
            nn.Linear(4, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
        )

    def parts(self, seed):
        x = torch.randn(160, 4, generator=torch.Generator().manual_seed(seed))
        y = (x[:, 0] + x[:, 1] > 0).long()
        return Parts(*(Tensors(x[a:b], y[a:b]) for a, b in ((0, 96), (96, 128), (128, 160))))


def trained(spec, plan=None, task=None, seed=0):
    training = Training(task or Points(), parsed(spec), seed, plan or Plan(evaluations=3))
    for _ in alternate([training], training.plan):
        pass
    return training


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def order(num, size, seed, steps):
    epoch, found = 0, []
    while len(found) < steps:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        found += torch.randperm(num, generator=generator).split(size)
        epoch += 1
    return found[:steps]


def test_backprop_is_a_loop_written_by_hand():
    task, steps = Points(), 120 // 3
    found = trained("backprop:lr=0.01", Plan(evaluations=3, keep="last"), task)
    model = task.fresh_model(0).train()
    x, y = task.parts(0).train.columns
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(0)
    task.fresh_model(0)
    for number, rows in enumerate(order(96, 16, 0, steps)):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - 3 * number / 120)
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found.way.num_steps == steps
    assert torch.equal(weights(found.way.model), weights(model))


@pytest.mark.parametrize("name", ["mezo", "tpsgd"])
def test_a_method_is_an_engine_driven_by_hand(name):
    task = Points()
    found = trained(f"{name}:lr=0.01,schedule=constant", Plan(evaluations=3, keep="last"), task)
    model = task.fresh_model(0).train()
    x, y = task.parts(0).train.columns
    optimizer = (torch.optim.SGD if name == "mezo" else torch.optim.Adam)(model.parameters(), lr=0.01)
    torch.manual_seed(0)
    engine = localplug.Engine(model, localplug.method(name), optimizer, seed=0)
    for rows in order(96, 16, 0, found.way.num_steps):
        engine.step(lambda a=x[rows], b=y[rows]: F.cross_entropy(model(a), b), optimizer, targets=y[rows])
    assert torch.equal(weights(found.way.model), weights(model))


@pytest.mark.parametrize(
    ("spec", "a_step"),
    [
        ("backprop", Passes(1, 1)),
        ("mezo", Passes(2)),
        ("mezo:num_directions=3", Passes(6)),
        ("tpsgd", Passes(1, 0, 1)),
        ("tpsgd:units=('0','5')", Passes(1, 1)),  # the first unit has two layers, and a backward pass through both
        ("dfa", Passes(2, 0, 1)),
        ("fa", Passes(1, 1)),
        ("forward-grad", Passes(1, 0, 0, 1)),
    ],
)
def test_passes_are_counted_by_one_rule_and_the_budget_is_never_passed(spec, a_step):
    found = trained(spec)
    steps = found.way.num_steps
    assert found.way.passes == Passes(
        *(steps * n for n in (a_step.forward, a_step.backward, a_step.local_backward, a_step.tangent))
    )
    assert found.way.passes.counted <= 120 < found.way.passes.counted + found.way.price
    assert a_step.counted == found.way.price


@pytest.mark.parametrize("spec", ["backprop", "mezo", "tpsgd"])
def test_a_budget_of_operations_charges_a_step_what_it_was_measured_to_be(spec):
    """An MLP 4-16-16-2: a product of every layer forward and of every weight's gradient, and of inputs but the first one's."""
    first, second, last = 4 * 16, 16 * 16, 16 * 2
    forward = first + second + last
    priced = {"backprop": 1 + 1 + (second + last) / forward, "mezo": 2.0}
    found = trained(spec, Plan(evaluations=3, count="operations"))
    assert found.price == pytest.approx(priced.get(spec, found.price)) and (spec != "tpsgd" or 2 < found.price < 3)
    assert found.used == pytest.approx(found.price * found.way.num_steps)
    assert found.used <= 120 < found.used + found.price
    plan = Plan(evaluations=3, budget=found.way.passes.counted, keep="last")
    if spec == "mezo":  # the same price by the rule, and so the same run
        assert torch.equal(weights(found.way.model), weights(trained(spec, plan).way.model))


def test_what_trains_beside_a_run_changes_nothing_in_it():
    """Random numbers too: dropout draws from the global state, which every run has for itself."""
    alone = trained("mezo:lr=0.01", Plan(evaluations=3, keep="last"))
    plan = Plan(evaluations=3, laps=5, keep="last")
    together = [Training(Points(), parsed(spec), 0, plan) for spec in ("backprop", "mezo:lr=0.01", "tpsgd")]
    state = torch.get_rng_state()
    for _ in alternate(together, plan):
        pass
    assert torch.equal(weights(together[1].way.model), weights(alone.way.model))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is not ours"


def test_every_way_begins_with_the_same_weights_and_sees_the_same_examples():
    seen = {}
    for spec in ("backprop", "mezo", "tpsgd"):
        training = Training(Points(), parsed(spec), 3, Plan())
        seen[spec] = (weights(training.way.model), [next(training._batches)[0] for _ in range(8)])
    first, batches = seen["backprop"]
    for other, others in seen.values():
        assert torch.equal(first, other) and all(map(torch.equal, batches, others))


def test_the_test_examples_are_looked_at_once_and_not_by_a_trial():
    training = trained("backprop")
    assert training.parts.test.num_looks == 0
    assert training.finished()["test_looks"] == 1
    with pytest.raises(RuntimeError, match="looked at before"):
        training.parts.test.look()
    trial = trained("backprop").finished(with_test=False)
    assert trial["quality_test"] is None and trial["test_looks"] == 0


def test_the_best_weights_are_tested_and_not_the_last_ones():
    """A learning rate that spoils everything after the first measurement."""
    training = Training(Points(), parsed("backprop:lr=0.02,schedule=constant"), 0, Plan(evaluations=2, budget=240))
    training.lap(120)
    training.measure()
    good, kept = training.best_quality, weights(training.way.model).clone()
    with torch.no_grad():
        for p in training.way.model.parameters():
            p.neg_()
        training.way.model[-1].bias.copy_(torch.tensor([9.0, -9.0]))
    training.measure()
    found = training.finished()
    assert training.curve[-1]["quality"] < good == found["quality_validation"]
    assert torch.equal(weights(training.way.model), kept) and found["best_step"] == 40


def test_a_run_without_progress_stops_by_the_same_rule_for_all():
    for spec in ("backprop:lr=0", "mezo:lr=0"):
        training = trained(spec, Plan(evaluations=10, patience=3))
        found = training.finished()
        assert found["stopped_early"] and len(found["curve"]) == 1 + 3, spec


def test_a_loss_that_is_not_finite_ends_the_run_and_what_was_best_counts():
    task = Points()
    task.loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]) * (math.nan if model.training else 1)
    for spec in ("backprop", "mezo"):
        found = trained(spec, Plan(evaluations=3, budget=400), task).finished()
        assert found["status"] == "diverged" and found["reason"] and found["steps"] <= 20, spec
        assert math.isfinite(found["quality_test"])


def test_a_method_that_breaks_takes_no_other_run_with_it():
    plan = Plan(evaluations=2)
    broken, fine = (Training(Points(), parsed("mezo"), 0, plan) for _ in range(2))
    broken.way.engine.apply = lambda optimizer: 1 / 0
    for _ in alternate([broken, fine], plan):
        pass
    assert broken.status == "failed" and "ZeroDivisionError" in broken.reason
    assert fine.status == "running" and fine.way.num_steps == 60


def test_a_method_that_predicts_in_its_own_way_is_judged_by_it():
    made = way(Points(), parsed("mono-forward:predict=sum"), 0)
    assert isinstance(made, ByMethod) and isinstance(made.predictor, localplug.Predictor)
    assert way(Points(), parsed("mono-forward"), 0).predictor is not None


def test_state_goes_back_as_it_was():
    for spec in ("backprop", "mono-forward:predict=sum"):
        training = trained(spec)
        state = training.way.state()
        before = copy.deepcopy(state)
        quality = training.task.quality(training.way.predictor, training.parts.validation)
        with torch.no_grad():
            for p in training.way.model.parameters():
                p.zero_()
        training.way.load(before)
        assert training.task.quality(training.way.predictor, training.parts.validation) == quality


def test_ratios_are_medians_of_neighbouring_laps_and_the_first_is_left_out():
    a, b = (trained("mezo"), trained("backprop"))
    a.laps, b.laps = [(10, 100.0), (10, 2.0), (10, 4.0), (10, 30.0)], [(10, 1.0), (10, 1.0), (20, 2.0), (10, 10.0)]
    found = ratios(a, b)
    assert found["time_over_backprop"] == 3.0 and found["paired_laps"] == 3
    assert found["step_time_over_backprop"] == pytest.approx(3.0 * 2 / 3)


@pytest.mark.parametrize("spec", ["backprop:lr=0.01", "mezo:lr=0.01", "tpsgd", "mono-forward:predict=sum"])
def test_a_run_that_is_observed_is_the_same_run_and_says_what_its_estimates_are_worth(spec):
    alone, watched = (trained(spec, Plan(evaluations=3, observe=every)) for every in (None, 2))
    assert torch.equal(weights(alone.way.model), weights(watched.way.model))
    first, *points = watched.curve
    assert first["observed"] == {} and watched.clock.seconds["observation"] > 0 == alone.clock.seconds["observation"]
    for point in points:
        if spec.startswith("mono-forward"):
            assert point["observed"]["loss/0"] > 0 and "alignment" not in point["observed"]
        else:
            assert -1 <= point["observed"]["alignment"] <= 1
            assert spec != "mezo:lr=0.01" or point["observed"]["projected_gradient"] > 0
    assert "observed" not in alone.curve[0]
    assert watched.finished()["budget_used"] == alone.finished()["budget_used"]


def test_a_plan_says_all_that_is_wrong():
    with pytest.raises(ValueError, match="budget must.*got 0; evaluations must.*got -1; keep must.*got 'worst'"):
        Plan(budget=0, evaluations=-1, keep="worst")


def test_ranges_without_a_search_are_refused():
    with pytest.raises(ValueError, match="leaves lr to a search; pass --tune N"):
        way(Points(), parsed("mezo:lr=1e-3..1e-1"), 0)


def test_backprop_says_loudly_what_it_is():
    assert "BACKPROPAGATION through the whole model" in trained("backprop").finished()["describes"]
    assert "BACKPROPAGATION" in trained("fa").finished()["describes"]
    assert "BACKPROPAGATION" not in trained("mezo").finished()["describes"]
