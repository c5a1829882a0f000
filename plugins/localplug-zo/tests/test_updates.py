"""Updates without buffers against torch's optimizers on materialised estimates, and selections of what is trained."""

import pytest
import torch
from torch import nn

import localplug
from localplug.testing.problem import Problem
from localplug_zo.two_sided import TwoSided
from localplug_zo.updates import Adam, Materialized, Momentum, Scalar, Sign, Streamed


def trained(update, optimizer, steps=6, dtype=torch.float32, **options):
    """The weights after some steps of one network, by an update of ours or by torch's optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 300), nn.Linear(300, 130)).to(dtype)
    x = torch.randn(9, 5, dtype=dtype)
    groups = [{"params": model[0].parameters(), "lr": 3e-3}, {"params": [p for m in model[2:] for p in m.parameters()]}]
    steps_by = optimizer(groups)
    method = localplug.ZerothOrder(TwoSided(1e-3, 2), update, **options)
    engine = localplug.Engine(model, method, steps_by, seed=2)
    for _ in range(steps):
        engine.step(lambda: model(x).float().square().mean(), steps_by)
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def test_momentum_without_a_buffer_is_torchs_momentum():
    ours = trained(Momentum(0.9, window=6), lambda g: torch.optim.SGD(g, lr=1e-3))
    theirs = trained(Materialized(), lambda g: torch.optim.SGD(g, lr=1e-3, momentum=0.9))
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)
    short = trained(Momentum(0.9, window=2), lambda g: torch.optim.SGD(g, lr=1e-3))
    assert not torch.allclose(short, theirs, atol=1e-4)


def test_adam_without_buffers_is_torchs_adam_for_as_long_as_the_window():
    """Bias correction divides by 1 - beta^t, which is the sum of the weights (1 - beta) beta^k."""
    ours = trained(Adam((0.9, 0.99), window=6), lambda g: torch.optim.SGD(g, lr=1e-3, weight_decay=0.1))
    theirs = trained(Materialized(), lambda g: torch.optim.AdamW(g, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1))
    # the first slopes differ by the losses' rounding, and Adam's step is as long whatever its gradient is
    assert (ours - theirs).abs().mean() < 1e-5 and (ours - theirs).abs().max() < 1e-3


def test_sign_is_the_sign_of_the_materialised_estimate():
    ours = trained(Sign(), lambda g: torch.optim.SGD(g, lr=1e-3, weight_decay=0.1))
    theirs = trained(Materialized(), lambda g: localplug.update_rule("zo-sgd-sign")(g, lr=1e-3, weight_decay=0.1))
    assert ((ours - theirs).abs() > 1e-6).float().mean() < 1e-3  # an element of no size may fall on either side


def test_a_scalar_second_moment_in_closed_form():
    rule = Scalar(beta=0.9)
    problem = Problem(localplug.ZerothOrder(TwoSided(1e-3, 2), rule), lr=1e-2)
    groups = {p: group for group in problem.optimizer.param_groups for p in group["params"]}
    z = [[problem.engine.method.directions.values(i, j) for j in range(2)] for i in range(4)]
    second = 0.0
    for count, slopes in enumerate(([3.0, -4.0], [1.0, 2.0]), 1):
        second = 0.9 * second + 0.1 * sum(c * c for c in slopes) / 2
        before = [p.detach().clone() for p in problem.model.parameters()]
        with torch.no_grad():
            problem.engine.method.update(problem.engine.run, slopes, groups)
        for p, b, d in zip(problem.model.parameters(), before, z, strict=True):
            step = sum(c * v for c, v in zip(slopes, d, strict=True)) / 2 / (second / (1 - 0.9**count)) ** 0.5
            torch.testing.assert_close(p.detach(), b - 1e-2 * step, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda g: torch.optim.AdamW(g, lr=1e-3, weight_decay=0.1),
        lambda g: torch.optim.SGD(g, lr=1e-3, momentum=0.9, nesterov=True),
        lambda g: torch.optim.Adagrad(g, lr=1e-2),
        lambda g: torch.optim.RMSprop(g, lr=1e-3),
    ],
    ids=["adamw", "nesterov", "adagrad", "rmsprop"],
)
def test_streaming_the_trainers_optimizer_gives_the_same_bits_and_holds_one_gradient(optimizer):
    whole = trained(Materialized(), optimizer)
    held = []

    def watched(groups):
        made = optimizer(groups)
        parameters = [p for group in made.param_groups for p in group["params"]]
        made.register_step_pre_hook(lambda *_: held.append(sum(p.grad is not None for p in parameters)))
        return made

    assert torch.equal(trained(Streamed(), watched), whole)
    assert held == [0] * 6  # the trainer's own calls of step(), which find nothing left to do


@pytest.mark.parametrize("update", [Momentum(0.5, 3), Adam(window=3)])
@pytest.mark.parametrize("parameters", ["smallest:0.5", "random:0.5:2"])
def test_moments_refuse_a_selection_that_changes(update, parameters):
    with pytest.raises(ValueError, match="select by name or by a mask"):
        trained(update, lambda g: torch.optim.SGD(g, lr=1e-3), parameters=parameters)


# ---- which parameters --------------------------------------------------------------------------------------------------


def moved(parameters, steps=3, dtype=torch.float32, backend="auto", **method):
    """(before, after) of each parameter, by name."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)).to(dtype)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    made = localplug.method("mezo", parameters=parameters, backend=backend, **method)
    engine = localplug.Engine(model, made, optimizer)
    x = torch.randn(5, 6, dtype=dtype)
    for _ in range(steps):
        engine.step(lambda: model(x).float().square().mean(), optimizer)
    return {n: (before[n], p.detach()) for n, p in model.named_parameters()}


@pytest.mark.parametrize("backend", ["scratch", "copy"])
@pytest.mark.parametrize("directions", ["gaussian", "rank-1", "rademacher"])
def test_what_is_not_selected_by_name_stays(directions, backend):
    found = moved(["2.*", "3.bias"], directions=directions, backend=backend)
    still = {name for name, (before, after) in found.items() if torch.equal(before, after)}
    assert still == {"0.weight", "0.bias", "3.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_mask_leaves_out_stays_to_the_bit(dtype):
    mask = torch.rand(8, 8) < 0.3
    before, after = moved({"2.weight": mask}, dtype=dtype)["2.weight"]
    assert torch.equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).any() and (dtype != torch.float32 or (before[mask] != after[mask]).all())


def test_the_smallest_are_chosen_by_matrix_and_the_others_stay():
    found = moved("smallest:0.25", steps=1)
    for name in ("0.weight", "2.weight", "3.weight"):
        before, after = found[name]
        threshold = before.abs().flatten().kthvalue(round(0.25 * before.numel())).values
        assert torch.equal(before != after, before.abs() <= threshold)
    assert (found["0.bias"][0] != found["0.bias"][1]).all()


@pytest.mark.parametrize("given", ["random:0.5", "random:0.5:1"])
def test_a_random_share_is_drawn_once_or_anew(given):
    before, after = moved(given, steps=8)["2.weight"]
    share = float((before != after).float().mean())
    assert share < 0.75 if given.count(":") == 1 else share > 0.9


def test_an_estimate_under_a_mask_is_the_gradient_there():
    w = nn.Linear(4, 3, bias=False)
    mask = torch.tensor([[True, False, True, False]] * 3)
    optimizer = torch.optim.SGD(w.parameters(), lr=0.0)
    method = localplug.method("mezo", num_directions=4, update="trainer", parameters={"weight": mask}, eps=1e-2)
    engine = localplug.Engine(w, method, optimizer)
    x, total = torch.randn(5, 4), torch.zeros(3, 4)
    for _ in range(1500):
        engine.evaluate(lambda: w(x).square().mean())
        engine.apply(optimizer)
        assert not w.weight.grad[~mask].any()
        total += w.weight.grad
        w.weight.grad = None
    gradient = torch.autograd.grad(w(x).square().mean(), w.weight)[0] * mask
    assert (total / 1500 - gradient).norm() < 4 * (8 / 4 / 1500) ** 0.5 * gradient.norm()


@pytest.mark.parametrize(
    "parameters, words",
    [
        ("*.nowhere", "no trainable parameter matches '\\*.nowhere'; the model has 0.weight"),
        ({"2.weight": torch.ones(3, dtype=torch.bool)}, r"mask for '2.weight' has shape \(3,\), unlike \['2.weight'\]"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_at_the_door(parameters, words):
    with pytest.raises(localplug.Unsupported, match=words):
        moved(parameters)


@pytest.mark.parametrize(
    "parameters", ["smallest", "smallest:0", "random:2", "smallest:0.1:5", "random:a", [], [3], {"a": 1}]
)
def test_a_selection_that_is_none_is_refused_when_made(parameters):
    with pytest.raises(ValueError, match="parameters: "):
        localplug.method("mezo", parameters=parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", ["scratch", "copy", "low-rank"])
@pytest.mark.parametrize("directions", ["gaussian", "rademacher", "rank-1", "sphere"])
def test_a_thousand_evaluations_at_learning_rate_0_leave_every_bit(directions, backend, dtype):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = localplug.Engine(
        model, localplug.method("mezo", directions=directions, backend=backend, eps=1e-2), optimizer
    )
    x = torch.randn(3, 4, dtype=dtype)
    for _ in range(500):
        engine.step(lambda: model(x).float().square().mean(), optimizer)
    assert engine.run.num_forwards == 1000
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
