"""AlgoPerf's performance profile and its integral, against numbers made by hand."""

import math

import pytest

from localplug_bench.performance_profile import profile, ratios, scores, times_to_targets

# times to target on three tasks; the best are 10 (b), 20 (a), 30 (a and c)
TIMES = {
    "a": {"x": 20.0, "y": 20.0, "z": 30.0},
    "b": {"x": 10.0, "y": 50.0, "z": math.inf},
    "c": {"x": 60.0, "y": 40.0, "z": 30.0},
}


def test_ratios_are_to_the_best_on_each_task():
    assert ratios(TIMES) == {
        "a": {"x": 2.0, "y": 1.0, "z": 1.0},
        "b": {"x": 1.0, "y": 2.5, "z": math.inf},
        "c": {"x": 6.0, "y": 2.0, "z": 1.0},
    }


def test_the_score_is_the_integral_made_by_hand():
    """a: rho is 2/3 on [1, 2), 1 on [2, 4]: (2/3 + 2) / 3. b: 1/3 on [1, 2.5), 2/3 on [2.5, 4]: (0.5 + 1) / 3.
    c: 1/3 on [1, 2), 2/3 on [2, 4], its 6 is beyond r_max: (1/3 + 4/3) / 3."""
    assert scores(TIMES) == pytest.approx({"a": 8 / 9, "b": 0.5, "c": 5 / 9})


def test_the_score_is_the_integral_of_the_profile():
    num = 30_000
    for method, by_task in ratios(TIMES).items():
        middles = [1 + 3 * (i + 0.5) / num for i in range(num)]
        integral = sum(profile(by_task.values(), r) for r in middles) / num
        assert scores(TIMES)[method] == pytest.approx(integral, abs=1e-4)


def test_the_best_on_all_tasks_has_one_and_who_reaches_nothing_has_zero():
    assert scores({"a": {"x": 1.0}, "b": {"x": math.inf}}) == {"a": 1.0, "b": 0.0}
    assert scores({"a": {"x": math.inf}, "b": {"x": math.inf}}) == {"a": 0.0, "b": 0.0}


def test_r_max_and_times_are_checked():
    with pytest.raises(ValueError, match="r_max must be above 1, got 1"):
        scores(TIMES, r_max=1)
    with pytest.raises(ValueError, match="a time on every task"):
        scores({"a": {"x": 1.0}, "b": {"y": 1.0}})
    with pytest.raises(ValueError, match="positive"):
        scores({"a": {"x": 0.0}})


def line(task, way, seed, qualities, *, up=True):
    curve = [{"step": i, "forward_passes": 100 * i, "seconds": i / 2, "quality": q} for i, q in enumerate(qualities)]
    best = max(qualities) if up else min(qualities)
    return {
        "kind": "run", "status": "done", "task": task, "way": way, "seed": seed, "is_backprop": way == "backprop",
        "higher_is_better": up, "quality_start": qualities[0], "quality_validation": best, "curve": curve,
    }  # fmt: skip


def test_of_several_settings_of_backprop_the_best_one_sets_the_target():
    lines = [
        line("x", "backprop", 0, [0.0, 0.2, 0.2]),
        line("x", "backprop:lr=0.1", 0, [0.0, 0.5, 1.0]),
        line("x", "mezo", 0, [0.0, 0.3, 0.95]),
    ]
    lines[1]["is_backprop"] = True
    assert times_to_targets(lines) == {
        "backprop": {"x": math.inf},
        "backprop:lr=0.1": {"x": 200.0},
        "mezo": {"x": 200.0},
    }


def test_a_target_is_a_share_of_what_backprop_gains_and_times_are_medians_over_seeds():
    lines = [
        line("x", "backprop", 0, [0.0, 0.5, 1.0]),
        line("x", "mezo", 0, [0.0, 0.9, 0.9]),  # reaches 0.9 after 100
        line("x", "mezo", 1, [0.0, 0.1, 0.95]),  # after 200
        line("x", "mezo", 2, [0.0, 0.1, 0.95]),
        line("y", "backprop", 0, [5.0, 4.0, 1.0], up=False),
        line("y", "mezo", 0, [5.0, 4.5, 4.4], up=False),  # never at 1.4
        line("x", "tpsgd", 0, [0.0, 1.0, 1.0]),  # not on y: left out
    ]
    assert times_to_targets(lines) == {"backprop": {"x": 200.0, "y": 200.0}, "mezo": {"x": 200.0, "y": math.inf}}
    assert times_to_targets(lines, unit="seconds")["mezo"]["x"] == 1.0
    assert times_to_targets(lines, target=0.1)["mezo"] == {"x": 100.0, "y": 100.0}
