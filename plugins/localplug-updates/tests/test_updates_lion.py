"""Lion is the library's, and its form without a momentum buffer is Lion while the window reaches back to the first step."""

import itertools
import math
import pathlib

import lion_pytorch
import pytest
import torch
from torch import nn

import localplug

STEPS = 12


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
        self.b = nn.Parameter(torch.ones(3))

    def forward(self):
        return self.w.square().sum() + (self.b - 2).square().sum()


def train(method, optimizer_of, steps=STEPS, log=None, model=None):
    model = Bowl() if model is None else model
    optimizer = optimizer_of(model.parameters())
    with localplug.attach(model, method, optimizer, seed=5, log=log) as attached:
        for _ in range(steps):
            model().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, attached.engine


def sgd(params):
    return torch.optim.SGD(params, lr=0.01, weight_decay=0.1)


def zo(update, num_directions=3):
    estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=num_directions)
    return localplug.method("zo", estimator=estimator, update=update)


def test_lion_takes_the_equations_steps_bit_for_bit():
    """Against the equations in float64, over gradients that change their sign; and against the library in float32."""
    g = torch.randn(100, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w, start = nn.Parameter(torch.ones(9, dtype=torch.float64)), torch.ones(9, dtype=torch.float64)
    rule = localplug.update_rule("lion")([w], lr=0.01, betas=(0.95, 0.98), weight_decay=0.1)
    m = torch.zeros(9, dtype=torch.float64)
    for row in g:
        w.grad = row.clone()
        rule.step()
        start = start * (1 - 0.01 * 0.1) - 0.01 * torch.sign(0.95 * m + (1 - 0.95) * row)
        m = 0.98 * m + (1 - 0.98) * row
    torch.testing.assert_close(w.detach(), start, rtol=0, atol=1e-14)
    one, two = nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(9))
    rules = localplug.update_rule("lion")([one]), lion_pytorch.Lion([two])
    for row in g.float():
        for p, r in zip((one, two), rules, strict=True):
            p.grad = row.clone()
            r.step()
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"betas": (0.9, 1.1), "weight_decay": -1.0}, r"betas must be in \[0, 1\].*weight_decay must not be negative"),
    ],
)
def test_lion_refuses_what_is_out_of_range_all_at_once(options, says):
    with pytest.raises(ValueError, match=says):
        localplug.update_rule("lion")([nn.Parameter(torch.zeros(1))], **options)


def test_lion_from_seeds_is_lion_while_nothing_is_forgotten():
    """The same directions, once with a dense momentum by the library and once from seeds: the same weights."""
    dense, _ = train(zo("trainer"), lambda p: lion_pytorch.Lion(p, lr=0.01, weight_decay=0.1))
    seeds, _ = train(zo(localplug.update("lion-seeds", window=STEPS)), sgd)
    for one, two in zip(dense.parameters(), seeds.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    short, _ = train(zo(localplug.update("lion-seeds", window=3)), sgd)
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(dense.parameters(), short.parameters(), strict=True))


def test_a_short_window_weighs_the_past_as_the_whole_past_would_be():
    """s: the weights of the past add up to beta1 (1 - beta2^(t-1)), however much of it is forgotten."""
    update = localplug.update("lion-seeds", betas=(0.9, 0.99), window=4)
    train(zo(update), sgd, steps=9)
    now, *past = update._weights()
    assert now == pytest.approx(0.1) and len(past) == 3
    assert sum(past) == pytest.approx(0.9 * (1 - 0.99**8))
    assert [b / a for a, b in itertools.pairwise(past)] == pytest.approx([0.99, 0.99])


def test_a_window_of_one_step_is_the_sign_of_the_estimate():
    lion, _ = train(zo(localplug.update("lion-seeds", window=1)), sgd)
    sign, _ = train(zo("sign"), sgd)
    assert all(torch.equal(a, b) for a, b in zip(lion.parameters(), sign.parameters(), strict=True))


def test_its_checkpoint_is_a_few_numbers_for_each_step_of_the_window():
    update = localplug.update("lion-seeds", window=5)
    train(zo(update, num_directions=2), sgd)
    state = update.state_dict()
    assert [len(row) for row in state["past"]] == [3] * 5 and state["count"] == STEPS


def test_a_log_of_seeds_and_scalars_replays_it(tmp_path):
    path = tmp_path / "run.log"
    trained, _ = train(zo(localplug.update("lion-seeds", window=4)), sgd, log=path)
    again = Bowl()
    localplug.replay_log(again, path, method=zo(localplug.update("lion-seeds", window=4)))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert pathlib.Path(path).stat().st_size < 4096


@pytest.mark.parametrize(
    "options, says",
    [
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"window": 0, "betas": (math.nan, 0.5)}, "betas .*window must be an integer of at least 1, got 0"),
    ],
)
def test_lion_from_seeds_refuses_what_is_out_of_range_all_at_once(options, says):
    with pytest.raises(ValueError, match=says):
        localplug.update("lion-seeds", **options)


def test_lion_from_seeds_refuses_a_selection_that_changes():
    method = localplug.method("zo", update=localplug.update("lion-seeds"), parameters="random:0.5:10")
    model = Bowl()
    with pytest.raises(ValueError, match="select by name or by a mask, or set window=1"):
        localplug.attach(model, method, sgd(model.parameters()))
