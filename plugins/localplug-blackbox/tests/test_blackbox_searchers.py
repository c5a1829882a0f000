"""The contract of ask and tell, kept by every searcher: points, counts, values that are not finite, and exact resuming."""

import io
import logging
import random

import numpy as np
import pytest
import torch

from localplug_blackbox import Box, minimize, searcher
from localplug_blackbox.search import SEARCHERS

BOX = Box([-1.0, 0.0, -2.0], [1.0, 2.0, 2.0])
SMALL = {  # options that make each one fast
    "root": dict(num_rounds=1, num_functions=1, num_updates=3, num_gradient_steps=5, width=16, num_sampling_steps=5),
    "bayesian": dict(num_initial=4),
    "cma": dict(sigma=0.4),
    "nevergrad": dict(num_workers=3),
    "directional-attacks": dict(step=0.5, covering_radius=0.3),
}
NEEDS_VALUES = ("mean-descent", "root")  # before the first ask
every = pytest.mark.parametrize("name", SEARCHERS)


def make(name, seed=0, box=BOX, known=True):
    options = {} if name == "mean-descent" else {"seed": seed}
    made = searcher(name, box, **SMALL.get(name, {}), **options)
    if known and name in NEEDS_VALUES:
        X = box.from_unit(torch.rand(8, box.num, generator=torch.Generator().manual_seed(seed)).double())
        made.fit(X, bowl(X))
    return made


def bowl(X):
    return (X - torch.tensor([0.3, 1.0, -0.5])).square().sum(1)


@every
def test_points_are_inside_and_no_more_than_asked_for(name):
    search = make(name)
    for num in (1, 5, 3):
        X = search.ask(num)
        assert X.dtype == torch.float64 and 1 <= len(X) <= num and X.shape[1] == 3
        assert bool(BOX.contains(X).all())
        search.tell(X, bowl(X))


@every
def test_evaluations_are_counted_and_the_best_is_kept(name):
    search = make(name)
    given = search.num_given
    seen = [search.best] if search.best else []
    values = [s.value for s in seen]
    for _ in range(4):
        X = search.ask(2)
        values += bowl(X).tolist()
        search.tell(X, bowl(X))
    assert search.num_evaluations == len(values) - len(seen) and search.num_given == given
    assert search.best.value == min(values) == float(bowl(search.best.x.unsqueeze(0)))


@every
def test_what_was_not_asked_for_is_refused_and_learns_nothing(name):
    search = make(name)
    with pytest.raises(ValueError, match="nothing was asked for"):
        search.tell(torch.zeros(1, 3) + 0.5, [0.0])
    X = search.ask(2)
    before = search.state_dict()
    for wrong, values, said in (
        (X + 1e-9, [0.0] * len(X), "the points that `ask` gave"),
        (X, [0.0] * (len(X) + 1), "a value for each point"),
        (X[:, :2], [0.0] * len(X), r"X must be \(N, 3\)"),
    ):
        with pytest.raises(ValueError, match=said):
            search.tell(wrong, values)
    with pytest.raises(ValueError, match=r"num must be at least 1, got 0; tell the values of the"):
        search.ask(0)
    with pytest.raises(ValueError, match="pending"):
        search.fit(X, [0.0] * len(X))
    assert same(before, search.state_dict())
    search.tell(X, bowl(X))
    assert search.pending is None


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_said_counted_and_never_best(name, bad, caplog):
    caplog.set_level(logging.WARNING, "localplug")
    search = make(name)
    at_first = search.best
    for turn in range(4):
        X = search.ask(2)
        y = bowl(X)
        y[0] = bad
        search.tell(X, y if turn else torch.full_like(y, bad))
        if not turn:
            assert search.best == at_first and search.num_not_finite == len(X)
    assert search.num_not_finite >= 4 and torch.isfinite(torch.tensor(search.best.value))
    assert next(r.getMessage() for r in caplog.records if "not finite" in r.getMessage()).startswith(
        type(search).__name__
    )
    assert sum("not finite" in r.getMessage() for r in caplog.records) == 1


@every
@pytest.mark.parametrize("num_before, pending", [(0, False), (1, True), (3, False), (4, True)])
def test_a_search_that_is_saved_and_loaded_goes_on_bit_by_bit(name, num_before, pending):
    search = make(name, seed=3)
    for _ in range(num_before):
        X = search.ask(2)
        search.tell(X, bowl(X))
    if pending:
        search.ask(2)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    file.seek(0)
    again = make(name, seed=3, known=False)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.num_evaluations == search.num_evaluations and same(again.state_dict(), search.state_dict())
    for _ in range(2):
        points = []
        for one in (search, again):
            X = one.pending if one.pending is not None else one.ask(2)
            one.tell(X, bowl(X))
            points.append(X)
        assert torch.equal(*points)
    assert same(again.state_dict(), search.state_dict())


@every
def test_the_global_random_states_are_left_alone_and_mean_nothing(name):
    points = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        search = make(name)
        for _ in range(4):
            X = search.ask(2)
            search.tell(X, bowl(X))
        points.append(X)
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
        assert before[2] == random.getstate()
    assert torch.equal(*points)


@every
def test_the_state_of_another_searcher_or_box_is_refused(name):
    state = make(name).state_dict()
    other = make("sobol" if name != "sobol" else "zeroth-order", box=Box([0, 0, 0], [1, 1, 1]))
    with pytest.raises(ValueError, match="the state is one of .*; the state is one of another box"):
        other.load_state_dict(state)
    del state["own"], state["best"]
    with pytest.raises(ValueError, match="the state has no best, own"):
        make(name).load_state_dict(state)


@every
def test_values_known_beforehand_count_as_given_and_may_be_best(name):
    search = make(name, known=False)
    X = torch.tensor([[0.3, 1.0, -0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).double()
    search.fit(X, bowl(X))
    assert (search.num_given, search.num_evaluations) == (3, 0) and search.best.value < 1e-12
    with pytest.raises(ValueError, match=r"not inside the box: \[1\]"):
        search.fit(torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), [1.0, 1.0])
    assert search.num_given == 3


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in ("sobol", "root")])
def test_a_searcher_finds_the_bottom_of_a_bowl(name):
    num = 12 if name in ("bayesian", "mean-descent") else 600
    found = minimize(bowl, make(name), num, batch=3).value
    assert found < (0.2 if name == "bayesian" else 0.05) and found < minimize(bowl, make("sobol"), num).value


@pytest.mark.parametrize("name", NEEDS_VALUES)
def test_an_offline_search_asks_for_values_first(name):
    with pytest.raises(ValueError, match="at least two finite values first; 0 are known"):
        make(name, known=False).ask()


def test_minimize_stops_at_the_budget_goes_on_and_finishes_what_is_pending():
    search = make("zeroth-order")
    search.ask(2)
    asked = []
    minimize(lambda X: asked.append(len(X)) or bowl(X), search, 10, batch=4)
    assert sum(asked) == search.num_evaluations == 10 and max(asked) <= 4
    with pytest.raises(ValueError, match="max_evaluations must be at least 1, got 0; batch must be at least 1, got 0"):
        minimize(bowl, search, 0, batch=0)
    assert minimize(lambda X: X[:, 0] * float("nan"), make("sobol"), 3) is None


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("directional-attacks", dict(attack="x", poll="3n", step=0, smallest_step=2, attack_radius=0, covering_radius=-1,
                                     num_line=-1, num_probes=0, probe_share=2, start=[9, 9, 9]), 10),
        ("zeroth-order", dict(sigma=0, num_directions=0, lr=-1, betas=(1, 0), clip=0, start=[0]), 6),
        ("bayesian", dict(kernel="rbf", num_initial=0, depth=0), 3),
        ("mean-descent", dict(num_steps=0, lr=0, num_starts=0), 3),
        ("root", dict(wanted=-1, guidance=float("inf"), num_rounds=0, num_functions=0, num_starts=0, num_gradient_steps=0,
                      gradient_lr=0, width=0, lr=0, num_sampling_steps=0, num_updates=0), 11),
        ("cma", dict(sigma=0, population=1, start=[1]), 3),
        ("nevergrad", dict(max_evaluations=0, num_workers=0, sigma=0, optimizer="no"), 4),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_all_at_once(name, options, said):
    with pytest.raises(ValueError) as error:
        searcher(name, BOX, **options)
    assert len(str(error.value).split("; ")) == said, error.value


@pytest.mark.parametrize("name", ["sobol", "bayesian", "mean-descent", "root"])
def test_a_box_without_bounds_is_refused_where_they_are_needed(name):
    with pytest.raises(ValueError, match="finite bounds"):
        searcher(name, Box.free(3))


def test_names_and_options_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="no searcher 'annealing'; there are directional-attacks"):
        searcher("annealing", BOX)
    with pytest.raises(TypeError, match="sobol has no option lr, but seed"):
        searcher("sobol", BOX, lr=1)
    with pytest.raises(ValueError, match=r"these are not: numbers \[1\]"):
        Box([0.0, 1.0], [1.0, 1.0])


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
