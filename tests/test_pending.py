"""Updates that wait: the weights that eager steps give, bit for bit, for whoever reads them and whenever."""

import copy
import io
import logging

import pytest
import torch
from torch import nn

import localplug
from localplug import Perturbation, kernels
from localplug.pending import Pending

IDS = torch.arange(12).view(2, 6) % 11


class Tied(nn.Module):
    """An embedding whose weight is the head's, a convolution, and layers of which one is small and one has no matrix."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(11, 16), nn.Conv1d(16, 16, 3, padding=1), nn.LayerNorm(16)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.mix(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        logits = self.head(self.norm(torch.tanh(self.hidden(x))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def make(lr=0.05, weight_decay=0.0):
    torch.manual_seed(0)
    model = Tied().train()
    groups = [
        {"params": [*model.embed.parameters(), *model.mix.parameters()], "lr": lr},
        {"params": [*model.norm.parameters(), *model.hidden.parameters()], "lr": lr / 3, "weight_decay": weight_decay},
    ]
    return model, torch.optim.SGD(groups)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def method(backend, directions="rank-1", q=1, **options):
    return localplug.method(
        "mezo", eps=1e-2, num_directions=q, backend=backend, directions=localplug.distribution(directions, **options)
    )


class Recorder:
    """Repeats on a model of its own, without waiting, what another run's method was given to update."""

    def __init__(self, engine, weight_decay, **options):
        self.model, optimizer = make(weight_decay=weight_decay)
        self.engine = localplug.Engine(self.model, method("low-rank", **options), optimizer, seed=engine.run.seed)
        theirs, mine = dict(engine.run.parameters), dict(self.engine.run.parameters)
        update = engine.method.update

        def recorded(run, coefficients, groups):
            update(run, coefficients, groups)
            self.engine.run.step = run.step
            here = {mine[n]: dict(groups[p]) for n, p in theirs.items()}
            self.engine.method.update(self.engine.run, coefficients, here)

        engine.method.update = recorded


def waiting(engine):
    pending = engine.method.directions.pending
    return [] if pending is None else pending.indices()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled loops", "torch"])
@pytest.mark.parametrize(
    "options, weight_decay",
    [({}, 0.0), ({}, 0.1), ({"q": 3}, 0.1), ({"rank": 2}, 0.0), ({"directions": "lozo", "rank": 2}, 0.1)],
    ids=str,
)
def test_thirty_steps_give_the_bits_of_eager_ones(options, weight_decay, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(kernels, "AVAILABLE", False)
    model, optimizer = make(weight_decay=weight_decay)
    start = weights(model)
    engine = localplug.Engine(model, method("deferred:8", **options), optimizer, seed=3)
    eager = Recorder(engine, weight_decay, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / 40)
    waited = 0
    for _ in range(30):
        engine.step(lambda: model(IDS), optimizer)
        schedule.step()
        waited += bool(waiting(engine))
    assert waited >= 15
    engine.close()
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert torch.equal(weights(model), weights(eager.model)) and not torch.equal(weights(model), start)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(
    "name, q, lr", [("mezo", 2, 2e-3), ("residual-zo", 1, 2e-4), ("fzoo", 2, 1e-2), ("lozo", 1, 2e-3)]
)
def test_an_evaluation_counts_what_waits(name, q, lr, weight_decay):
    """Far enough from the weights in memory that leaving it out, or counting it twice, would show."""
    losses = []
    for backend in ("low-rank", "deferred"):
        model, optimizer = make(lr, weight_decay / lr / 20)
        options = {} if name == "lozo" else {"directions": "rank-1"}
        options |= {} if name == "residual-zo" else {"num_directions": q}
        made = localplug.method(name, eps=1e-2, backend=backend, **options)
        engine = localplug.Engine(model, made, optimizer, seed=1)
        losses.append([float(engine.step(lambda model=model: model(IDS), optimizer)) for _ in range(12)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert max(losses[0]) > 1.02 * min(losses[0])


READERS = {
    "a forward pass": lambda m: (m(IDS), None)[1],
    "the model's state dict": lambda m: m.state_dict()["hidden.weight"],
    "a layer's state dict": lambda m: m.hidden.state_dict()["weight"],
    "a norm": lambda m: m.hidden.weight.norm(),
    "data": lambda m: m.hidden.weight.data,
    "NumPy": lambda m: torch.from_numpy(m.hidden.weight.detach().numpy()),
    "a copy": lambda m: copy.deepcopy(m).hidden.weight,
    "a copy of the parameter": lambda m: copy.deepcopy(m.hidden.weight),
    "a file": lambda m: saved(m.hidden.weight),
    "a list of parameters": lambda m: torch._foreach_norm(list(m.parameters()))[-2],
    "an operator": lambda m: torch.ops.aten.sum(m.hidden.weight),
    "another dtype": lambda m: copy.deepcopy(m).to(torch.float64).hidden.weight,
}


def saved(parameter):
    file = io.BytesIO()
    torch.save(parameter, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_a_weight_finds_it_as_it_is(reader):
    model, optimizer = make()
    engine = localplug.Engine(model, method("deferred"), optimizer)
    eager = Recorder(engine, 0.0)
    for _ in range(3):
        engine.step(lambda: model(IDS), optimizer)
    assert {i for i, (n, _) in enumerate(engine.run.parameters) if n.endswith("hidden.weight")} <= set(waiting(engine))
    stale = model.hidden.weight.shape, model.hidden.weight.grad, model.hidden.weight.requires_grad
    assert stale == ((16, 16), None, True) and waiting(engine)  # its form is no reason to add anything
    with torch.no_grad():
        got, wanted = READERS[reader](model), READERS[reader](eager.model)
    assert got is None or (torch.equal(got, wanted) and type(got) in (torch.Tensor, nn.Parameter))
    assert type(model.hidden.weight) is nn.Parameter
    assert torch.equal(weights(model), weights(eager.model))
    engine.step(lambda: model(IDS), optimizer)
    assert waiting(engine)
    engine.close()
    assert torch.equal(weights(model), weights(eager.model))


def test_memory_that_was_shared_before_changes_at_the_end():
    model, optimizer = make()
    engine = localplug.Engine(model, method("deferred:16"), optimizer)
    before = model.state_dict()
    for _ in range(5):
        engine.step(lambda: model(IDS), optimizer)
    engine.close()
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_fault_in_an_evaluation_loses_nothing_that_waits():
    model, optimizer = make()
    engine = localplug.Engine(model, method("deferred"), optimizer)
    eager = Recorder(engine, 0.0)
    for _ in range(2):
        engine.step(lambda: model(IDS), optimizer)
    broken = model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step(lambda: model(IDS), optimizer)
    broken.remove()
    assert waiting(engine) and not any("forward" in m.__dict__ for m in model.modules())
    engine.step(lambda: model(IDS), optimizer)
    engine.close()
    assert torch.equal(weights(model), weights(eager.model))


@pytest.mark.parametrize("name, lr", [("mezo", 2e-3), ("residual-zo", 1e-4)])
def test_a_reader_inside_an_evaluation_has_nothing_counted_twice(name, lr):
    """Between two layers with the same weight, and not before all seems to be known of who reads what: the first layer has
    counted what waits, and the second finds it in memory."""

    class Reads(Tied):
        def forward(self, ids):
            self.num = getattr(self, "num", 0) + 1
            x = self.hidden(self.embed(ids))
            norm = self.embed.weight.detach().norm() if self.num % 5 == 0 else 0
            return nn.functional.cross_entropy(self.head(x).flatten(0, 1), ids.flatten()) + 0 * norm

    losses = []
    for backend in ("low-rank", "deferred"):
        torch.manual_seed(0)
        model = Reads()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.05 / lr)
        made = localplug.method(name, eps=1e-2, directions="rank-1", backend=backend)
        engine = localplug.Engine(model, made, optimizer)
        losses.append([float(engine.step(lambda model=model: model(IDS), optimizer)) for _ in range(12)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_run_that_was_saved_and_one_that_goes_on_from_there_are_the_same():
    model, optimizer = make()
    engine = localplug.Engine(model, method("deferred:4"), optimizer)
    for _ in range(6):
        engine.step(lambda: model(IDS), optimizer)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), engine.state_dict()))
    for _ in range(7):
        engine.step(lambda: model(IDS), optimizer)
    resumed, other = make()
    again = localplug.Engine(resumed, method("deferred:4"), other)
    resumed.load_state_dict(state[0])
    other.load_state_dict(state[1])
    again.load_state_dict(state[2])
    for _ in range(7):
        again.step(lambda: resumed(IDS), other)
    assert torch.equal(weights(model), weights(resumed))


@pytest.mark.parametrize("backend", ["deferred", "low-rank", "auto"])
def test_the_log_gives_the_trained_weights(backend, tmp_path, monkeypatch):
    model, optimizer = make(weight_decay=0.1)
    held = []
    with localplug.attach(
        model, "mezo", optimizer, eps=1e-2, directions="rank-1", backend=backend, log=tmp_path / "a.lplog"
    ):
        for _ in range(11):
            model(IDS).backward()
            optimizer.step()
            optimizer.zero_grad()
    base, _ = make()
    held = {n: p.data for n, p in base.named_parameters()}  # as files do that are written after a replay
    folds = []
    monkeypatch.setattr(Pending, "take", lambda *a, _take=Pending.take, **k: folds.append(_take(*a, **k)) or folds[-1])
    localplug.replay_log(base, tmp_path / "a.lplog")
    assert all(torch.equal(held[n], p) for n, p in model.named_parameters())
    assert any(folds) == (backend != "low-rank")  # several steps a sweep


def test_weights_that_share_memory_do_not_wait():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight.data = model[0].weight.data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = localplug.Engine(model, method("deferred"), optimizer)
    engine.step(lambda: model(torch.ones(2, 8)).square().mean(), optimizer)
    assert not waiting(engine)


def test_what_cannot_wait_is_refused():
    with pytest.raises(ValueError, match="'deferred' adds directions.*the sign in place do more.*'stacked'"):
        localplug.method("zo-sgd-sign", directions="rank-1", backend="deferred")
    for wrong in ("deferred:1", "deferred:", "deferred:x"):
        with pytest.raises(ValueError, match=f"'deferred:K' with K >= 2.*got '{wrong}'"):
            localplug.method("mezo", backend=wrong)
    model = nn.Linear(8, 8).to(torch.bfloat16)
    with pytest.raises(localplug.Unsupported, match="Gaussian directions have none.*\n.*half precision are rounded"):
        localplug.Engine(model, localplug.method("mezo", backend="deferred"))


# ---- the choice of the host -------------------------------------------------------------------------------------------


def attached(model, ids, steps=3, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with localplug.attach(model, "mezo", optimizer, eps=1e-2, directions="rank-1", **options) as plug:
        waited = False
        for _ in range(steps):
            model(ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            waited |= bool(waiting(plug.engine))
    return plug.engine.run.num_forwards / steps, waited, weights(model)


def test_few_tokens_of_a_large_model_are_stacked_and_deferred(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "localplug")
    small = attached(make()[0], IDS)
    assert small[:2] == (2, False)
    monkeypatch.setattr(Perturbation, "LARGE", 100)
    large = attached(make()[0], IDS)
    assert large[:2] == (1, True) and torch.allclose(large[2], small[2], atol=1e-3)
    said = [r.message for r in caplog.records]
    assert "back-end low-rank; 2 forward passes" in said[0] and "back-end deferred; 1 forward pass" in said[1]
    assert attached(make()[0], IDS.repeat(10, 1))[:2] == (2, False)
    assert attached(make()[0], IDS, backend="low-rank")[:2] == (2, False)
    assert attached(make()[0], IDS, objective=lambda outputs, batch, model: 1 - outputs)[:2] == (2, False)
    model, optimizer = make()
    engine = localplug.Engine(model, method("auto"), optimizer)
    engine.step(lambda: model(IDS), optimizer)  # a closure's batch is not known before
    assert engine.run.num_forwards == 2 and not waiting(engine)


def test_a_model_that_cannot_be_stacked_is_evaluated_one_by_one(monkeypatch, caplog):
    class Branches(Tied):
        def forward(self, ids):
            loss = super().forward(nn.functional.dropout(ids.float(), 0.3).long() % 11)
            return loss if float(loss) > 0 else -loss

    caplog.set_level(logging.INFO, "localplug")
    found = []
    for large in (1 << 40, 100):
        monkeypatch.setattr(Perturbation, "LARGE", large)
        torch.manual_seed(0)
        model = Branches()
        torch.manual_seed(5)
        found.append((attached(model, IDS, steps=4), torch.rand(1)))
    (one, after), (other, later) = found
    assert torch.allclose(one[2], other[2], atol=1e-4) and torch.equal(after, later)
    assert one[0] == 2 and other[0] == 1.75  # the first estimate was promised as one pass
    assert sum("one at a time" in r.message for r in caplog.records) == 1
