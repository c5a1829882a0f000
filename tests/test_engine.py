"""The engine by itself: alarms, buffers, dropout, autocast, tied replays, and what it refuses."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine
from localplug.contract import parameter_names


def classifier(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 2))


X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 2


def test_names_of_parameters_do_not_depend_on_wrappers():
    bare = parameter_names(["embed.weight", "layers.0.weight", "head.bias"])
    for prefix in ("module.", "model.model.", "module._orig_mod."):
        assert parameter_names([prefix + n for n in ("embed.weight", "layers.0.weight", "head.bias")]) == bare
    assert parameter_names(["weight"]) == ["weight"]
    assert parameter_names(["net.weight", "net.bias"]) == ["weight", "bias"]


def test_all_evaluations_of_a_step_draw_the_same_dropout_and_the_stream_goes_on():
    model = classifier(dropout=0.5)
    masks = []
    model[3].register_forward_hook(lambda m, args, out: masks.append(out == 0))
    engine = Engine(model, localplug.method("mezo", num_directions=2, eps=1e-6))
    engine.evaluate(lambda: F.cross_entropy(model(X), Y))
    engine.evaluate(lambda: F.cross_entropy(model(X), Y))
    assert all(torch.equal(masks[0], m) for m in masks[1:4])
    assert not torch.equal(masks[0], masks[4])


def test_buffers_advance_once_a_batch():
    model, plain = classifier(), classifier()
    engine = Engine(model, localplug.method("mezo", num_directions=3, eps=1e-9))
    engine.evaluate(lambda: F.cross_entropy(model(X), Y))
    F.cross_entropy(plain(X), Y)
    assert int(model[1].num_batches_tracked) == 1
    torch.testing.assert_close(model[1].running_mean, plain[1].running_mean)


def test_an_enclosing_autocast_does_not_keep_casts_of_perturbed_weights():
    torch.manual_seed(0)
    model, estimates = nn.Linear(64, 2), []
    for outer in (True, False):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = Engine(model, localplug.method("mezo", eps=0.1), optimizer)
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))

        def closure(x=x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            engine.evaluate(closure)
        engine.apply(optimizer)
        estimates.append(engine.gradient_norm)
    assert estimates[0] == estimates[1] > 0


def test_zero_grad_between_micro_batches_forgets_what_was_gathered():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, localplug.method("mezo"), optimizer)
    loss = lambda: F.cross_entropy(model(X), Y)  # noqa: E731
    engine.evaluate(loss)
    once = engine._carrier._coefficients.clone()
    optimizer.zero_grad()
    engine.evaluate(loss)
    torch.testing.assert_close(engine._carrier._coefficients, once, rtol=1e-2, atol=1e-3)


def test_a_step_whose_estimate_is_not_finite_is_left_out_and_counted(caplog):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, localplug.method("mezo"), optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    with caplog.at_level(logging.WARNING, logger="localplug"):
        engine.evaluate(lambda: F.cross_entropy(model(X), Y) * float("nan"))
        assert engine.apply(optimizer) is False
    assert engine.run.num_dropped == 1 and engine.run.step == 1
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert "its update is left out" in caplog.text


def test_estimates_that_are_always_zero_raise_an_alarm(caplog):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, localplug.method("mezo"), optimizer)
    with caplog.at_level(logging.WARNING, logger="localplug"):
        for _ in range(12):
            engine.step(lambda: (model(X).argmax(-1) == Y).float().mean() * 0 + 1.0, optimizer)
    assert caplog.text.count("exactly zero") == 1 and engine.alarms.num_zero == 12


def test_a_loss_in_half_precision_raises_an_alarm(caplog):
    model = classifier().to(torch.bfloat16)
    engine = Engine(model, localplug.method("mezo"))
    with caplog.at_level(logging.WARNING, logger="localplug"):
        engine.evaluate(lambda: F.cross_entropy(model(X.bfloat16()), Y))
    assert "loss as torch.bfloat16" in caplog.text


def test_everything_that_is_wrong_is_said_at_once():
    model, other = classifier(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(list(model[0].parameters()), lr=0.1)
    with pytest.raises(localplug.Unsupported, match="the optimizer does not hold"):
        Engine(model, localplug.method("mezo"), optimizer)
    with pytest.raises(localplug.Unsupported, match="holds none of the model's trainable parameters"):
        Engine(other, localplug.method("mezo"), optimizer)
    with pytest.raises(localplug.Unsupported) as refused:
        Engine(
            model, localplug.method("mezo", strict="mezo"), torch.optim.LBFGS(model.parameters()), clipping=1.0,
            refusals=["the trainer says no"],
        )  # fmt: skip
    assert str(refused.value).count("\n  - ") == 3
    for p in model.parameters():
        p.requires_grad_(False)
    assert localplug.check(model, localplug.method("mezo")) == [
        "the model has no trainable parameter; set requires_grad=True on what should be trained"
    ]


def test_attach_gives_model_and_optimizer_back_as_they_were():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with localplug.attach(model, "mezo", optimizer):
        F.cross_entropy(model(X), Y).backward()
        with pytest.raises(ValueError, match="evaluates round localplug"):
            optimizer.step(lambda: 0.0)
        optimizer.step()
    F.cross_entropy(model(X), Y).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model._forward_hooks and not optimizer._optimizer_step_pre_hooks


def test_attach_in_accelerates_and_in_a_plain_loop_agree():
    from accelerate import Accelerator

    found = []
    for accelerated in (False, True):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accelerator = Accelerator(cpu=True) if accelerated else None
        trained = model
        if accelerator is not None:
            trained, optimizer = accelerator.prepare(model, optimizer)
        with localplug.attach(model, "mezo", optimizer):
            for _ in range(4):
                loss = F.cross_entropy(trained(X), Y)
                accelerator.backward(loss) if accelerator is not None else loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_an_update_rule_of_a_plugin_steps_on_the_estimate():
    model = classifier()
    rule = localplug.update_rule("zo-sgd-sign")
    optimizer = rule(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    engine = Engine(model, localplug.method("mezo", update="trainer"), optimizer)
    engine.step(lambda: F.cross_entropy(model(X), Y), optimizer)
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close((p - b).abs().detach(), torch.full_like(b, 1e-3), atol=1e-6, rtol=1e-3)


def test_attach_to_a_single_layer_that_owns_its_parameters():
    """The host calls such a model's forward by itself, and no hook of the model runs then."""
    model = nn.Linear(6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with localplug.attach(model, "mezo", optimizer) as plug:
        z = plug.engine.method.directions.values(0, 0)
        model(X).mean().backward()
        optimizer.step()
    assert plug.engine.gradient_norm == pytest.approx(abs(float((X @ z.T).mean())), rel=1e-3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_after_a_backward_that_is_given_up(set_to_none):
    model = nn.Linear(6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with localplug.attach(model, "mezo", optimizer) as plug:
        model(X).mean().backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        model(X).mean().backward()
        z = plug.engine.method.directions.values(0, 0)
        optimizer.step()
    assert plug.engine.gradient_norm == pytest.approx(abs(float((X @ z.T).mean())), rel=1e-3)


def test_what_is_saved_after_a_keyboard_interrupt_is_the_models_own_weights():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    calls = [0]

    def interrupts(*_):
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt

    plug = localplug.attach(model, "mezo", optimizer)
    model[2].register_forward_hook(interrupts)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    saved = model.state_dict()
    assert all(torch.equal(saved[n], v) for n, v in before.items() if "weight" in n or "bias" in n)
    assert torch.is_grad_enabled()
    plug.close()


def test_the_repeated_first_estimate_sees_the_autocast_of_the_forward():
    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.seen = nn.Linear(6, 2), []

        def forward(self, x):
            out = self.net(x)
            self.seen.append(out.dtype)
            return {"loss": out.float().sum(), "logits": out}

    model = TwoOutputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with localplug.attach(model, "mezo", optimizer):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(X)
        F.cross_entropy(out["logits"].float(), Y).backward()
        optimizer.step()
    assert model.seen == [torch.bfloat16] * 4


def test_buffers_that_somebody_replaces_still_advance_once_a_batch():
    """As weight averaging replaces the running statistics of batch norm."""
    model = nn.Sequential(nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, localplug.method("mezo"), optimizer)
    engine.step(lambda: F.cross_entropy(model(X), Y), optimizer)
    model[0].running_mean, model[0].num_batches_tracked = torch.zeros(6), torch.tensor(0)
    for half in (X[:8], X[8:]):
        engine.step(lambda half=half: model(half).mean(), optimizer)
    assert int(model[0].num_batches_tracked) == 2
    torch.testing.assert_close(model[0].running_mean, X.mean(0))


def test_clipping_by_value_acts_on_each_projected_gradient():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, localplug.method("mezo", num_directions=2), optimizer)
    engine.evaluate(lambda: F.cross_entropy(model(X), Y))
    first, second = (engine._carrier._coefficients / 2**0.5).abs().sort().values.tolist()
    torch.nn.utils.clip_grad_value_(model.parameters(), (first + second) / 2)
    engine.apply(optimizer)
    clipped = (first**2 + ((first + second) / 2) ** 2) ** 0.5
    assert first < second and engine.gradient_norm == pytest.approx(clipped, rel=1e-5)


@pytest.mark.parametrize("limit", [1, 3])
def test_estimates_that_stay_infinite_end_the_run(limit):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, localplug.method("mezo"), optimizer, max_bad_steps=limit)
    before = [p.detach().clone() for p in model.parameters()]
    bad = lambda: F.cross_entropy(model(X), Y) * float("inf")  # noqa: E731
    for _ in range(limit - 1):
        engine.step(bad, optimizer)
    if limit > 1:
        engine.step(
            lambda: F.cross_entropy(model(X), Y) * 0.0, optimizer
        )  # a good one in between starts the count anew
        for _ in range(limit - 1):
            engine.step(bad, optimizer)
    with pytest.raises(localplug.EngineError, match=f"the last {limit} steps were not finite"):
        engine.step(bad, optimizer)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="max_bad_steps must be an integer of at least 1, got 0"):
        Engine(model, localplug.method("mezo"), max_bad_steps=0)
    with pytest.raises(ValueError, match="worker_directions must be"):
        Engine(model, localplug.method("mezo"), worker_directions="other")


def test_an_estimate_far_above_its_median_raises_an_alarm(caplog):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, localplug.method("mezo"), optimizer)
    with caplog.at_level(logging.WARNING, logger="localplug"):
        for step in range(60):
            engine.step(lambda step=step: F.cross_entropy(model(X), Y) * (1e6 if step == 55 else 1.0), optimizer)
    assert engine.alarms.num_diverged == 1
    assert "times its running median; the learning rate may be too high" in caplog.text


@pytest.mark.parametrize("eps, coarse", [(1e-6, True), (1e-3, False)])
def test_losses_that_differ_by_no_more_than_their_rounding_raise_an_alarm(eps, coarse, caplog):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, localplug.method("mezo", eps=eps), optimizer)
    with caplog.at_level(logging.WARNING, logger="localplug"):
        for _ in range(40):
            engine.step(lambda: F.cross_entropy(model(X), Y) + 5.0, optimizer)
    assert ("so that the estimates are mostly rounding; raise eps" in caplog.text) == coarse
    assert (engine.alarms.num_coarse > 20) == coarse
