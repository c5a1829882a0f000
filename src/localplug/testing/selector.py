"""Checks that every selector of trained elements must pass: localplug.Selector, the hook `localplug_selectors`."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from localplug.contract import Run
from localplug.directions import Directions
from localplug.selection import Selection
from localplug.selectors import Selector
from localplug.testing.bowl import elements, reloaded, run_of
from localplug.testing.conformance import Documented, in_one_line, pickled

Make = Callable[[], Selector]
STEPS = 9


class SelectorTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your selector.

    It chooses among 254 weights of four matrices and their biases. One that chooses anew should do so within nine steps.
    """

    most_kept = 1.0
    """Elements that it may keep for each weight that it chooses among, in memory and in its state; packed bits need 1/8."""

    def test_chooses_some_elements_and_not_all(self, make: Make) -> None:
        """At least one; and none is left out by an answer that all are in."""
        run = _layers()
        total = sum(p.numel() for _, p in run.parameters)
        assert 0 < int(_chosen(_set_up(make(), run), run).sum()) < total

    def test_a_mask_is_boolean_and_shaped_like_the_values(self, make: Make) -> None:
        run = _layers()
        selection = _set_up(make(), run)
        for i in selection.indices:
            values = run.parameters[i][1].data.reshape(-1)
            mask = selection.mask(i, values, 0, 0)
            assert mask is None or (mask.dtype == torch.bool and mask.shape == values.shape)

    def test_counts_what_it_chooses(self, make: Make) -> None:
        """`num_elements` of each parameter, to a tenth of it: estimators' variances rest on it."""
        run = _layers()
        selector = make()
        selection = _set_up(selector, run)
        for i in selection.indices:
            name, parameter = run.parameters[i]
            counted = int(_mask(selection, run, i).sum())
            slack = 0.1 * parameter.numel() + 4
            assert abs(selector.num_elements(i) - counted) <= slack, f"of {name} it says {selector.num_elements(i)}"

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_any_cutting_gives_the_same_elements(self, make: Make, size: int) -> None:
        run = _layers()
        selection = _set_up(make(), run)
        for i in selection.indices:
            flat = run.parameters[i][1].data.reshape(-1)
            starts = range(0, flat.numel(), size)
            pieces = [_of(selection.mask(i, flat[s : s + size], s, 0), flat[s : s + size]) for s in reversed(starts)]
            assert torch.equal(torch.cat(pieces[::-1]), _mask(selection, run, i)), f"in pieces of {size}"

    def test_the_same_weights_and_seed_give_the_same_choice(self, make: Make) -> None:
        """In another process, and after another run of the same object."""
        one, two = _layers(), _layers()
        selector = make()
        first = _chosen(_set_up(selector, one), one)
        assert torch.equal(_chosen(_set_up(make(), two), two), first)
        _rolled(selector, _layers(seed=9))
        again = _layers()
        assert torch.equal(_chosen(_set_up(selector, again), again), first)

    def test_a_step_has_one_choice(self, make: Make) -> None:
        """However often the step begins: before each micro-batch, and before the update."""
        run = _layers()
        selection = _set_up(make(), run)
        for step in range(STEPS):
            run.step = step
            selection.begin(run)
            first = _chosen(selection, run)
            selection.begin(run)
            assert torch.equal(_chosen(selection, run), first)
            _move(run)

    def test_says_whether_its_choice_changes(self, make: Make) -> None:
        """Where `changes` is false, updates add up directions of many steps, and their elements must stay the same."""
        run = _layers()
        selector = make()
        choices = _rolled(selector, run)
        assert selector.changes or all(torch.equal(c, choices[0]) for c in choices), (
            "`changes` is False, and it changes"
        )

    def test_a_step_that_was_left_out_changes_nothing(self, make: Make) -> None:
        """A log's replay knows nothing of a step whose estimate was not finite; weights did not move in it."""
        every = _rolled(make(), _layers(), still=(3, 4))
        without = _rolled(make(), _layers(), still=(3, 4), skipped=(3, 4))
        assert all(torch.equal(a, b) for a, b in zip(every[5:], without[3:], strict=True)), (
            "it had to hear of that step"
        )

    def test_writes_no_weight(self, make: Make) -> None:
        run = _layers()
        before = [p.detach().clone() for _, p in run.parameters]
        selection = _set_up(make(), run)
        for step in range(STEPS):
            run.step = step
            selection.begin(run)
            _chosen(selection, run)
        assert all(torch.equal(p, b) for (_, p), b in zip(run.parameters, before, strict=True))

    def test_directions_and_updates_keep_to_its_choice(self, make: Make) -> None:
        """z is zero elsewhere, and what is not chosen stays to the bit."""
        run = _layers()
        directions = Directions(run, selection=(selection := Selection(make())))
        for i in directions.indices:
            mask = _mask(selection, run, i).view_as(run.parameters[i][1])
            z = directions.values(i, 0)
            assert not z[~mask].any() and z[mask].all()
            weights = run.parameters[i][1].data
            before = weights.clone()
            directions.rewrite_(weights, i, lambda value, offset: value + 1)
            assert torch.equal(weights[~mask], before[~mask]) and (weights[mask] != before[mask]).all()

    def test_resumes_from_its_state_dict(self, make: Make) -> None:
        """On weights that have moved, in a process that began with another seed: now, and when it chooses anew."""
        for stop in range(1, STEPS):
            whole = _layers(seed=3)
            selection = _set_up(make(), whole)
            resumed = _layers(seed=4)
            for step in range(STEPS):
                whole.step = step
                selection.begin(whole)
                if step == stop:
                    again = _set_up(make(), _copied(whole, resumed))
                    again.load_state_dict(reloaded(selection.state_dict()))
                    resumed.seed = whole.seed
                if step >= stop:
                    resumed.step = step
                    again.begin(_copied(whole, resumed))
                    assert torch.equal(_chosen(again, resumed), _chosen(selection, whole)), f"saved in step {stop}"
                _move(whole)

    def test_a_damaged_state_is_refused(self, make: Make) -> None:
        """By a ValueError or its like, and not later in a step."""
        run = _layers()
        selection = _set_up(make(), run)
        for key in (saved := reloaded(selection.state_dict())):
            if isinstance(saved[key], int | float):
                continue
            other = _set_up(make(), _layers())
            with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
                other.load_state_dict({**saved, key: {"no": torch.zeros(3)}})
                pytest.fail(f"a state with something else under {key!r} is taken")

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        before = torch.get_rng_state()
        _rolled(make(), _layers())
        assert torch.equal(before, torch.get_rng_state())

    def test_memory_does_not_grow(self, make: Make) -> None:
        """A number for each weight at most, and no more after many steps than after a few."""
        run, selector, sizes = _layers(width=100), make(), []
        selection = _set_up(selector, run)
        for step in range(2 * STEPS):
            run.step = step
            selection.begin(run)
            sizes.append(_kept(selector, run))
            _move(run)
        total = sum(p.numel() for _, p in run.parameters)
        assert max(sizes) <= self.most_kept * total + 100, f"it keeps {max(sizes):,} elements for {total:,} weights"
        assert max(sizes[STEPS:]) <= max(sizes[:STEPS]), "it keeps more and more"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_weights_of_any_precision_are_chosen_among(self, make: Make, dtype: torch.dtype) -> None:
        run = _layers(dtype=dtype)
        selection = _set_up(make(), run)
        total = sum(p.numel() for _, p in run.parameters)
        assert 0 < int(_chosen(selection, run).sum()) < total

    def test_can_be_pickled(self, make: Make) -> None:
        one, two = _layers(), _layers()
        assert torch.equal(_chosen(_set_up(pickled(make()), one), one), _chosen(_set_up(make(), two), two))

    def test_describes_itself_in_one_line(self, make: Make) -> None:
        assert in_one_line(make().describe())


def _layers(seed: int = 1, dtype: torch.dtype = torch.float32, width: int = 7) -> Run:
    """Four layers; all magnitudes differ, and a layer's are larger than those of the one before."""
    sizes = [5, width, width, 9, 3]
    with torch.device("meta"):
        model: nn.Module = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * (1 + number / 4))
    return run_of(model, seed=seed)


@torch.no_grad()
def _move(run: Run) -> None:
    """What a step does to the weights: a function of the step alone."""
    generator = torch.Generator().manual_seed(100 + run.step)
    for _, p in run.parameters:
        p.add_(torch.randn(p.shape, generator=generator).to(p.dtype), alpha=0.3)


@torch.no_grad()
def _copied(source: Run, target: Run) -> Run:
    """The target, with the source's weights and step."""
    for (_, p), (_, q) in zip(source.parameters, target.parameters, strict=True):
        q.copy_(p)
    target.step = source.step
    return target


def _set_up(selector: Selector, run: Run) -> Selection:
    selection = Selection(selector)
    selection.setup(run)
    return selection


def _of(mask: Tensor | None, values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool) if mask is None else mask


def _mask(selection: Selection, run: Run, index: int) -> Tensor:
    flat = run.parameters[index][1].data.reshape(-1)
    return _of(selection.mask(index, flat, 0, run.step), flat)


def _chosen(selection: Selection, run: Run) -> Tensor:
    """Of all parameters, those that it does not look at among them. bool, one-dimensional."""
    return torch.cat(
        [
            _mask(selection, run, i) if i in selection.indices else torch.zeros(p.numel(), dtype=torch.bool)
            for i, (_, p) in enumerate(run.parameters)
        ]
    )


def _rolled(selector: Selector, run: Run, *, still: Sequence[int] = (), skipped: Sequence[int] = ()) -> list[Tensor]:
    """The choices of some steps.

    Args:
        still: steps that move no weight.
        skipped: steps that the selector does not hear of.
    """
    selection, found = _set_up(selector, run), []
    for step in range(STEPS):
        run.step = step
        if step not in skipped:
            selection.begin(run)
            found.append(_chosen(selection, run))
        if step not in still:
            _move(run)
    return found


def _kept(selector: Selector, run: Run) -> int:
    """Elements in its attributes, one level of objects deep, and in its state; the run's own are not its."""
    held = [v for v in vars(selector).values() if v is not run]
    inside = [list(vars(v).values()) for v in held if hasattr(v, "__dict__") and not isinstance(v, torch.Tensor)]
    inside = [[w for w in values if w is not run] for values in inside]
    return max(elements(held) + elements(inside), elements(selector.state_dict()))
