"""The table: a row for each task and way, backpropagation first, means over seeds."""

from localplug_bench.table import COLUMNS, rows


def line(task, way, seed, test, **more):
    known = {
        "kind": "run",
        "task": task,
        "way": way,
        "seed": seed,
        "is_backprop": way.startswith("backprop"),
        "reason": "",
    }
    return {**known, "status": "done", "quality_test": test, "budget_used": 300, **more}


def cells(row):
    return dict(zip(COLUMNS, row, strict=True))


def test_seeds_become_a_mean_and_a_spread_and_backprop_comes_first_and_is_loud():
    found = list(map(cells, rows([
        line("x", "mezo", 0, 0.5, time_over_backprop=2.0, saved_bytes=0, peak_bytes=2_000_000, steps=150, flops_step=50,
             flops_forward=20), line("x", "mezo", 1, 0.75),
        line("x", "backprop:lr=0.1", 0, 0.9), line("y", "tpsgd", 0, 1.0), {"kind": "trial", "task": "x"},
    ])))  # fmt: skip
    assert [(row["task"], row["way"]) for row in found] == [("x", "BACKPROP:lr=0.1"), ("x", "mezo"), ("y", "tpsgd")]
    assert found[1] == {
        "task": "x", "way": "mezo", "seeds": "2", "quality": "0.6250", "spread": "0.2500", "passes": "300", "measured": "375",
        "time": "2.00",
        "peak": "2.0 MB", "saved": "0.0 kB", "status": "done",
    }  # fmt: skip


def test_what_failed_and_was_made_again_counts_once():
    (found,) = map(cells, rows([line("x", "mezo", 0, None, status="failed", reason="oh"), line("x", "mezo", 0, 0.5)]))
    assert (found["seeds"], found["quality"], found["status"]) == ("1", "0.5000", "done")


def test_a_refusal_says_why_in_one_line():
    (found,) = map(
        cells, rows([line("x", "dgl", 0, None, status="refused", reason="no:\n  - units", budget_used=None)])
    )
    assert found["quality"] == found["passes"] == "-" and found["status"] == "refused: no: - units"
