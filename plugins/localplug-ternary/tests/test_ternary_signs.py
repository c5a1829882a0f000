"""Codes that move by zeroth order, against a step made by hand, and as a run that can be cut off."""

import copy
import io

import pytest
import torch

import localplug
from localplug import noise
from localplug_ternary import PackedTernaryLinear, TernaryConfig, TernarySigns, freeze_, ternarize_, train_scales_
from localplug_ternary.packed import unpack

K, N = 64, 8


def data(num=48):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, K, generator=generator)
    return x, (x[:, :8].sum(1) > 0).long()


def packed_net(dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(K, N), torch.nn.Dropout(dropout), torch.nn.ReLU(), torch.nn.Linear(N, 2)
        )
    return train_scales_(freeze_(ternarize_(net, TernaryConfig("tequila", None))))


class Training:
    def __init__(self, seed=0, lr=1e-3, rate=1.0, dropout=0.0, **options):
        self.net = packed_net(dropout)
        self.method = TernarySigns(rate=rate, **options)
        self.optimizer = torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=lr)
        self.engine = localplug.Engine(self.net, self.method, self.optimizer, seed=seed)
        self.x, self.y = data()

    def loss(self):
        return torch.nn.functional.cross_entropy(self.net(self.x), self.y)

    def steps(self, count):
        return [float(self.engine.step(self.loss, self.optimizer)) for _ in range(count)]

    def everything(self):
        layer = self.net[0]
        return [
            t.detach().clone()
            for t in (layer.codes, layer.scales, layer.bias, *self.method.state_dict()["residual"].values())
        ]


def test_two_steps_are_those_of_the_equations():
    run = Training(seed=5, lr=0.01, rate=2.0, eps=0.05, scale_eps=1e-3, num_directions=2)
    layer, residual = run.net[0], run.method.state_dict()["residual"]
    assert list(residual) == ["codes"]  # the prefix that all names share is left out
    t, s, b = unpack(layer.codes).float(), layer.scales.detach().clone(), layer.bias.detach().clone()
    r = torch.randint(-128, 128, (N, K), generator=torch.Generator().manual_seed(1))
    run.engine.load_state_dict({**run.engine.state_dict(), "method": {"residual": {"codes": r.to(torch.int8)}}})

    def loss(s, t, b):
        return torch.nn.functional.cross_entropy(run.net[3]((run.x @ (s * t).T + b).relu()), run.y)

    def normal(j, name, shape):
        return noise.normal(noise.stream(5, 0, j, name), 0, N, t.device).view(shape)

    run.steps(1)  # scales and biases
    moves = [(normal(j, "scales", (N, 1)), normal(j, "bias", (N,))) for j in (0, 1)]
    with torch.no_grad():
        slopes = [(loss(s + 1e-3 * u, t, b + 1e-3 * v) - loss(s - 1e-3 * u, t, b - 1e-3 * v)) / 2e-3 for u, v in moves]
    assert torch.equal(unpack(layer.codes).float(), t) and run.method.num_moved == 0
    for now, before, i in ((layer.scales, s, 0), (layer.bias, b, 1)):
        drift = -0.01 * sum(c * z[i] for c, z in zip(slopes, moves, strict=True)) / 2
        torch.testing.assert_close(now.detach(), before + drift, atol=1e-5, rtol=1e-3)

    s, b = layer.scales.detach().clone(), layer.bias.detach().clone()
    run.steps(1)  # codes
    z = [noise.signs(noise.stream(5, 1, j, "codes"), 0, N * K, t.device).view(N, K) for j in (0, 1)]
    with torch.no_grad():
        c = [(loss(s, t + 0.05 * z[j], b) - loss(s, t - 0.05 * z[j], b)) / 0.1 for j in (0, 1)]
        step = -256 * 0.01 * 2.0 / s.square().mean() * sum(c[j] * z[j] for j in (0, 1)) / 2
        u = noise.uniform(noise.stream(5, 1, -1, "codes"), 0, N * K, t.device).view(N, K)
        v = (256 * t + r + (step + u).floor()).clamp(-384, 383)
    expected = ((v + 128) / 256).floor()
    assert torch.equal(unpack(layer.codes).float(), expected)
    assert 0 < run.method.num_moved == int((expected != t).sum()) < N * K
    assert torch.equal(run.method.state_dict()["residual"]["codes"].float(), v - 256 * expected)
    assert torch.equal(layer.scales, s) and torch.equal(layer.bias, b)


def test_codes_stay_codes_and_the_ends_hold():
    run = Training(rate=1e4)
    run.steps(6)
    codes = unpack(run.net[0].codes)
    assert set(codes.unique().tolist()) <= {-1, 0, 1} and run.method.num_moved > 0
    residual = next(iter(run.method.state_dict()["residual"].values())).short()
    whole = 256 * codes.short() + residual
    assert whole.min() >= -384 and whole.max() <= 383


def test_what_is_smaller_than_a_code_is_kept_for_later():
    run = Training(rate=0.03)
    before = run.net[0].codes.clone()
    run.steps(2)
    residual = next(iter(run.method.state_dict()["residual"].values()))
    assert torch.equal(run.net[0].codes, before) and residual.any()


def test_it_learns_more_than_scales_alone():
    losses = {}
    for rate in (1e-9, 10.0):  # without and with codes
        run = Training(rate=rate, lr=3e-3)
        losses[rate] = sum(run.steps(400)[-20:]) / 20
    assert losses[10.0] < 0.8 * losses[1e-9]


@pytest.mark.parametrize("steps", [0, 1])  # done before: the next one is of scales, or of codes
def test_an_evaluation_leaves_codes_and_scales_alone_even_if_it_fails(steps):
    run = Training(rate=300.0)
    run.steps(steps)
    before = run.everything()
    calls = []

    def fails():
        calls.append(run.loss())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run.engine.step(fails, run.optimizer)
    run.engine.evaluate(run.loss)
    assert calls and all(torch.equal(a, b) for a, b in zip(run.everything(), before, strict=True))
    assert run.net[0].code_shift is None


def test_the_same_seed_repeats_the_run_and_another_one_does_not():
    runs = [Training(seed=seed, rate=300.0) for seed in (3, 3, 4)]
    for run in runs:
        run.steps(4)
    same = [torch.equal(a, b) for a, b in zip(runs[0].everything(), runs[1].everything(), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(runs[0].everything(), runs[2].everything(), strict=True)]
    assert all(same) and not any(other)


def test_a_resumed_run_is_the_uninterrupted_one():
    whole = Training(seed=7, rate=10.0)
    whole.steps(5)
    model, optimizer, file = copy.deepcopy(whole.net.state_dict()), whole.optimizer.state_dict(), io.BytesIO()
    torch.save(whole.engine.state_dict(), file)
    whole.steps(4)
    resumed = Training(seed=7, rate=10.0)
    resumed.net.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)
    file.seek(0)
    resumed.engine.load_state_dict(torch.load(file, weights_only=True))
    resumed.steps(4)
    assert all(torch.equal(a, b) for a, b in zip(whole.everything(), resumed.everything(), strict=True))


def test_chunks_do_not_matter(monkeypatch):
    runs = []
    for size in (64, 1 << 17):
        monkeypatch.setattr(noise, "chunk_size", lambda device, size=size: size)
        runs.append(Training(rate=300.0))
        runs[-1].steps(2)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].everything(), runs[1].everything(), strict=True))


def test_what_it_needs_is_asked_for_at_the_door():
    net = torch.nn.Sequential(torch.nn.Linear(K, 2))
    assert "no packed layer" in localplug.check(net, TernarySigns())[0]
    packed = freeze_(
        ternarize_(torch.nn.Sequential(torch.nn.Linear(K, 4), torch.nn.Linear(4, 2)), TernaryConfig(group_size=64))
    )
    packed[1].weight.requires_grad_()
    assert "train_scales_" in localplug.check(packed, TernarySigns())[0]
    with pytest.raises(ValueError, match=r"eps must be positive.*rate must be positive.*num_directions must be"):
        TernarySigns(eps=0, rate=float("inf"), num_directions=0)


def test_by_name_in_a_plain_loop():
    net = packed_net()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    before = net[0].codes.clone()
    x, y = data()
    with localplug.attach(net, "ternary-signs", optimizer, rate=300.0):
        for _ in range(3):
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(net[0], PackedTernaryLinear) and not torch.equal(net[0].codes, before)
