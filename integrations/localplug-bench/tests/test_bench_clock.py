"""Where time and energy go: each second in one kind, by a clock that the test turns by hand."""

import pathlib

import pytest
import torch

import localplug
from localplug_bench import clock as clock_module
from localplug_bench.clock import Clock
from localplug_bench.energy import Estimated, PackageCounters, meter
from localplug_bench.specs import parsed
from localplug_bench.ways import way


@pytest.fixture
def hand(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def test_an_inner_context_takes_its_time_from_the_outer_one(hand):
    clock = Clock()
    hand(5)
    with clock("framework"):
        hand(1)
        with clock("forward"):
            hand(2)
            with clock("perturbation"):
                hand(4)
            hand(8)
        hand(16)
    hand(32)
    assert {kind: s for kind, s in clock.seconds.items() if s} == {"framework": 17, "forward": 10, "perturbation": 4}
    assert clock.total == 31


def test_what_raises_is_measured_too_and_leaves_no_context_open(hand):
    clock = Clock()
    with pytest.raises(KeyError), clock("forward"):
        hand(3)
        raise KeyError
    with clock("data"):
        hand(1)
    assert (clock.seconds["forward"], clock.seconds["data"]) == (3, 1)


def test_a_device_is_waited_for_before_each_reading():
    calls = []
    with Clock(lambda: calls.append(1))("forward"):
        assert len(calls) == 1
    assert len(calls) == 2


def seconds_of(name):
    task = localplug.task("permutation")
    trained, clock = way(task, parsed(name), 0), Clock()
    batch = task.parts(0).train.batch(torch.arange(8))
    with clock.watching(), clock("framework"):
        for _ in range(3):
            trained.step(batch, clock)
    return {kind for kind, seconds in clock.seconds.items() if seconds}


def test_a_step_is_split_by_what_the_way_of_training_does():
    assert seconds_of("mezo") == {"forward", "perturbation", "update", "framework"}
    assert seconds_of("tpsgd") == {"forward", "backward", "update", "framework"}
    assert seconds_of("backprop") == {"forward", "backward", "update", "framework"}


def test_watching_leaves_everything_as_it_was():
    before = torch.autograd.grad, dict(vars(localplug.Directions))
    with pytest.raises(KeyError), Clock().watching():
        assert torch.autograd.grad is not before[0]
        raise KeyError
    assert (torch.autograd.grad, dict(vars(localplug.Directions))) == before


def test_energy_without_a_counter_is_unknown_or_an_estimate_that_says_so(monkeypatch):
    monkeypatch.setattr("localplug_bench.energy.RAPL", pathlib.Path("nowhere"))
    monkeypatch.setattr(PackageCounters.__init__, "__defaults__", (pathlib.Path("nowhere"),))
    assert meter("cpu") is None
    estimated = meter("cpu", watts=10.0)
    assert isinstance(estimated, Estimated) and estimated.kind == "estimated"
    monkeypatch.setattr("localplug_bench.energy.time.process_time", lambda: 3.0)
    assert estimated.joules() == 30.0


def test_package_counters_are_added_and_start_again_at_the_end_of_their_range(tmp_path):
    for number, start in ((0, 900_000), (1, 10)):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "energy_uj").write_text(str(start))
        (zone / "max_energy_range_uj").write_text("999999")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the first package, counted in it
    counters = PackageCounters(tmp_path)
    assert counters.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000")  # 200,000 microjoules later
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("300010")
    assert counters.joules() == pytest.approx(0.5)
