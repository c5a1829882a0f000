"""Distributions of directions: their moments, their independence of the cutting, and that what moves is what was evaluated."""

import math

import pytest
import torch
from torch import nn

import localplug
from localplug import Directions, Run, Term
from localplug_zo.low_rank import LOZO, LowRank, SubZero, TeZO
from localplug_zo.sparse import Coordinates, Layers, Sphere


class Weights(nn.Module):
    """One matrix, one vector."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))


DISTRIBUTIONS = {
    "gaussian": localplug.Gaussian,
    "rademacher": localplug.Rademacher,
    "sphere": Sphere,
    "rank-1 signs": LowRank,
    "rank-1 gaussian": lambda: LowRank(noise="gaussian"),
    "rank-2 signs": lambda: LowRank(2),
    "rank-2 gaussian": lambda: LowRank(2, "gaussian"),
    "lozo": lambda: LOZO(2, refresh=1),
    "subzero": lambda: SubZero(2, refresh=1),
    "tezo": lambda: TeZO(2, refresh=1),
    "coordinates": lambda: Coordinates(1),
}


def drawn(distribution, model, num):
    """(num, d) directions, one from each step."""
    run = Run(model, list(model.named_parameters()), seed=7)
    directions = Directions(run, distribution)
    rows = []
    for run.step in range(num):
        rows.append(torch.cat([directions.values(i, 0).flatten() for i in directions.indices]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_second_moment_is_the_identity_and_kappa_is_as_said(name):
    torch.manual_seed(0)
    model, distribution = Weights(), DISTRIBUTIONS[name]()
    z_NE = drawn(distribution, model, 3000)
    num, d = z_NE.shape
    outer = torch.einsum("ni,nj->nij", z_NE, z_NE)
    error = (outer.mean(0) - torch.eye(d)).abs()
    assert (error < 5 * outer.std(0) / math.sqrt(num) + 1e-6).all()
    g = torch.zeros(d)
    g[:12] = torch.randn(12)  # all of the gradient in the matrix, for which kappa is said exactly
    samples = (z_NE @ g).square() * z_NE.square().sum(1) / g.square().sum()
    kappa = distribution.kappa(d)
    assert abs(float(samples.mean()) - kappa) < 4 * float(samples.std()) / math.sqrt(num) + 1e-3 * kappa


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "layers"])
def test_any_cutting_gives_the_same_elements(name):
    model = nn.Sequential(nn.Linear(37, 53), nn.Linear(53, 11))
    run = Run(model, list(model.named_parameters()), seed=1, step=2)
    made = {"layers": Layers}.get(name) or DISTRIBUTIONS[name]
    directions = Directions(run, made())
    for index in directions.indices:
        whole = directions.values(index, 0).flatten()
        for size in (1, 64, 100, 333):
            pieces = [
                directions.add_(torch.zeros(min(size, len(whole) - start)), index, [Term(0, 1.0)], offset=start)
                for start in range(0, len(whole), size)
            ]
            got = torch.cat(pieces)
            assert torch.equal(got, whole)


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "layers"])
def test_a_whole_parameter_at_once_gives_the_bits_of_its_chunks(name, monkeypatch):
    """Compiled loops take a parameter as a whole: for an evaluation into a new tensor, for an update in place."""
    made = DISTRIBUTIONS.get(name, lambda: Layers(0.5, "cyclic", False))
    layered = nn.ModuleList(nn.Linear(300, 301, bias=False) for _ in range(2))
    run = Run(layered, list(layered.named_parameters()), seed=7)
    directions = Directions(run, made())
    for index, (_, parameter) in enumerate(run.parameters):
        before = parameter.detach().clone()
        at_once = directions.added(parameter.data, index, [Term(0, 0.25)])
        assert torch.equal(parameter, before) and at_once.data_ptr() != parameter.data_ptr()
        by_chunks = directions.add_(before.clone(), index, [Term(0, 0.25)])
        assert torch.equal(at_once, by_chunks)
        assert torch.equal(directions.update_(before.clone(), index, [Term(0, 0.25)], decay=0.0), by_chunks)
        part = directions.added(parameter.data[7:200], index, [Term(0, 0.25)], offset=7 * 300)
        assert torch.equal(part, by_chunks[7:200])
    assert not torch.equal(directions.values(0, 0), directions.values(1, 0))


def test_a_rank_that_is_left_to_the_matrix_product_is_the_same_up_to_rounding():
    model = nn.Linear(37, 53)
    directions = Directions(Run(model, list(model.named_parameters()), seed=1), SubZero(8))
    whole = directions.values(0, 0).flatten()
    pieces = [directions.add_(torch.zeros(53), 0, [Term(0, 1.0)], offset=start) for start in range(0, 37 * 53, 53)]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "scratch", "copy"])
@pytest.mark.parametrize(
    "make",
    [lambda: LOZO(2, refresh=2), lambda: SubZero(2, refresh=2), lambda: TeZO(2, refresh=2), LowRank, Layers, Sphere],
    ids=["lozo", "subzero", "tezo", "rank-1", "layers", "sphere"],
)
def test_the_weights_move_along_the_direction_that_was_evaluated_also_when_it_is_drawn_anew(make, backend):
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    method = localplug.method("mezo", eps=1e-2, directions=make(), backend=backend)
    engine = localplug.Engine(model, method, optimizer)
    x = torch.randn(8, 6)
    for _ in range(5):
        before = [p.detach().clone() for p in model.parameters()]
        z = [method.directions.values(i, 0) for i in range(2)]
        losses = []
        for sign in (1, -1):
            a, b = (w + sign * 1e-2 * d for w, d in zip(before, z, strict=True))
            losses.append((x @ a.T @ b.T).square().mean())
        slope = float(losses[0] - losses[1]) / 2e-2
        engine.step(lambda: model(x).square().mean(), optimizer)
        for p, w, d in zip(model.parameters(), before, z, strict=True):
            torch.testing.assert_close(p.detach(), w - 1e-2 * slope * d, atol=2e-5, rtol=1e-3)


def test_lazy_subspaces_stay_for_the_refresh_and_then_change():
    model = nn.Linear(6, 5, bias=False)
    run = Run(model, list(model.named_parameters()), seed=1)
    for distribution in (LOZO(2, refresh=3), SubZero(2, refresh=3), TeZO(2, refresh=3)):
        directions = Directions(run, distribution)
        rows = [directions.factors(0, 0, step)[1] for step in range(6)]
        assert torch.equal(rows[0], rows[2]) and torch.equal(rows[3], rows[5]) and not torch.equal(rows[2], rows[3])


def test_layers_are_drawn_anew_or_taken_in_turn_and_the_rest_takes_part():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(6))})
    run = Run(model, list(model.named_parameters()), seed=1)
    random, cyclic = Layers(0.5), Layers(2, "cyclic", with_rest=False)
    for distribution in (random, cyclic):
        distribution.setup(run, range(len(run.parameters)))
    assert [len(random.kept(step)) for step in range(4)] == [3] * 4 and random.kept(0) != random.kept(1)
    assert sorted(name for step in range(3) for name in cyclic.kept(step)) == [f"layers.{i}" for i in range(6)]
    assert 0 in random.reached(0, 0) and 0 not in cyclic.reached(0, 0)
    assert random.kappa(0) == 2 + sum(run.parameters[i][1].numel() for i in random.reached(0, 0))


def test_coordinates_of_a_step_are_all_different_and_reach_everything():
    model = Weights()
    run = Run(model, list(model.named_parameters()), seed=1)
    distribution = Coordinates(17)
    distribution.setup(run, [0, 1])
    assert sorted(distribution.place(3, j) for j in range(17)) == [
        *((0, e) for e in range(12)),
        *((1, e) for e in range(5)),
    ]
    with pytest.raises(ValueError, match="18 directions are more than the 17 elements"):
        Coordinates(18).setup(run, [0, 1])


def test_options_out_of_range_are_all_named():
    with pytest.raises(ValueError, match="rank must be .* got 0; refresh must be .* got -1"):
        LOZO(0, -1)
    with pytest.raises(ValueError, match='noise must be "rademacher" or "gaussian", got \'uniform\''):
        LowRank(noise="uniform")
    with pytest.raises(ValueError, match="keep must be a share"):
        Layers(1.5)
