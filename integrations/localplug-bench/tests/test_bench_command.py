"""The command from end to end, on tasks of milliseconds: what is compared, what is written, and how it goes on after a kill."""

import json
import pathlib
import subprocess
import sys

import pytest

from localplug.cli import main
from localplug_bench import bench as bench_module
from localplug_bench.records import Records
from localplug_bench.training import Training
from localplug_bench.tuning import SEED, Search

RING = f"{pathlib.Path(__file__).parents[3] / 'examples' / 'own_task.py'}:Ring"
SMALL = ["--budget", "60", "--evaluations", "2", "--laps", "1", "--no-costs"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs.jsonl"


def bench(out, *words, status=0):
    assert main(["bench", *words, "--out", str(out), *SMALL]) == status
    return list(Records(out))


@pytest.fixture
def trained(monkeypatch):
    """[(way, seed)] of every run and trial that is begun."""
    seen, begin = [], Training.__init__

    def begun(self, task, spec, seed, *more):
        seen.append((spec.name, seed))
        begin(self, task, spec, seed, *more)

    monkeypatch.setattr(Training, "__init__", begun)
    return seen


def test_every_method_has_backprop_beside_it_for_every_task_and_seed(out, capsys):
    lines = bench(out, "permutation:num_bits=4,width=8", RING, "mezo:lr=0.05", "tpsgd", "--seeds", "0,2-3")
    told = [(line["task"].split(":")[0].rpartition("/")[2], line["method"], line["seed"]) for line in lines]
    assert told == [
        (task, way, seed)
        for task in ("permutation", "own_task.py")
        for seed in (0, 2, 3)
        for way in ("backprop", "mezo", "tpsgd")
    ]
    assert {line["budget"] for line in lines} == {60} and all(line["budget_used"] <= 60 for line in lines)
    assert all(line["status"] == "done" and line["test_looks"] == 1 for line in lines)
    assert {line["is_backprop"] for line in lines if line["method"] == "backprop"} == {True}
    shown = capsys.readouterr()
    rows = [line.split("  ") for line in shown.out.splitlines()[1:7]]
    assert [next(cell.strip() for cell in row[1:] if cell.strip()) for row in rows] == [
        "BACKPROP",
        "mezo:lr=0.05",
        "tpsgd",
    ] * 2
    assert shown.err.count("seed") == len(lines)


def test_a_line_has_the_fields_that_the_documentation_lists(out):
    page = (pathlib.Path(__file__).parents[3] / "docs" / "bench.md").read_text()
    lines = bench(out, RING, "mezo", "--observe", "1")
    listed = page.split("## The file of runs")[1]
    for field in {name for line in lines for name in line} | {*bench_module.COSTS, "peak_bytes_inference", "log_bytes"}:
        assert f"`{field}`" in listed, field
    assert {name for line in lines for point in line["curve"] for name in point} == {
        "step", "forward_passes", "seconds", "quality", "loss", "observed",
    }  # fmt: skip


def test_what_is_done_is_not_done_again(out, trained):
    first = bench(out, RING, "mezo", "--seeds", "0,1")
    trained.clear()
    assert bench(out, RING, "mezo", "--seeds", "0,1") == first and trained == []
    assert len(bench(out, RING, "mezo", "--seeds", "0-2")) == len(first) + 2
    assert trained == [("backprop", 2), ("mezo", 2)]


def test_a_method_that_comes_later_is_timed_beside_backprop_whose_run_counts_once(out, trained):
    bench(out, RING, "mezo")
    trained.clear()
    lines = bench(out, RING, "mezo", "tpsgd")
    assert trained == [("backprop", 0), ("tpsgd", 0)]
    assert [line["method"] for line in lines] == ["backprop", "mezo", "tpsgd"] and lines[-1]["time_over_backprop"] > 0


def test_an_interrupt_loses_what_was_in_work_and_nothing_else(out, monkeypatch, capsys):
    whole = bench(out, RING, "mezo", "--seeds", "0,1")
    out.unlink()
    lap, count = Training.lap, [0]

    def interrupted(self, until):
        count[0] += 1
        if count[0] == 6:  # two ways, two laps each: in the second seed
            raise KeyboardInterrupt
        lap(self, until)

    monkeypatch.setattr(Training, "lap", interrupted)
    assert main(["bench", RING, "mezo", "--seeds", "0,1", "--out", str(out), *SMALL]) == 130
    assert "the same line goes on" in capsys.readouterr().err
    assert [line["seed"] for line in Records(out)] == [0, 0]
    monkeypatch.undo()
    again = bench(out, RING, "mezo", "--seeds", "0,1")
    same = ("key", "quality_test", "quality_validation", "steps", "best_step")
    assert [[line[n] for n in same] for line in again] == [[line[n] for n in same] for line in whole]


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(out):
    words = [RING, "mezo", "--seeds", "0-30", "--out", str(out), *SMALL, "--budget", "600"]
    start = "import sys; from localplug.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "bench", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "seed 1:" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    before = out.read_bytes()
    out.write_bytes(before + b'{"schema": 1, "kind": "run", "key"')  # as if the kill had come within a write
    assert main(["bench", RING, "mezo", "--seeds", "0-3", "--out", str(out), *SMALL, "--budget", "600"]) == 0
    assert out.read_bytes().startswith(before)
    seeds = [(line["method"], line["seed"]) for line in Records(out)]
    assert sorted(set(seeds)) == sorted(seeds) and {(m, s) for m in ("backprop", "mezo") for s in range(4)} <= set(
        seeds
    )


def test_a_method_that_cannot_train_the_model_is_one_line_with_the_reason(out, capsys):
    lines = bench(out, RING, "noprop-dt")
    (refused,) = [line for line in lines if line["method"] == "noprop-dt"]
    assert refused["status"] == "refused" and refused["reason"]
    assert "refused" in capsys.readouterr().out


def test_the_list_says_what_is_left_and_does_nothing(out, trained, capsys):
    bench(out, RING, "mezo")
    trained.clear()
    capsys.readouterr()
    assert main(["bench", RING, "mezo", "tpsgd", "--list", "--out", str(out), *SMALL]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{RING}, tpsgd, seed 0"] and trained == []


def test_what_is_typed_twice_is_trained_once(out):
    lines = bench(out, RING, RING, "mezo:lr=0.1,eps=1e-3", "mezo:eps=0.001,lr=1e-1", "backprop", "backprop:lr=0.1")
    assert [line["way"] for line in lines] == ["backprop", "backprop:lr=0.1", "mezo:eps=0.001,lr=0.1"]


def test_json_prints_the_new_lines(out, capsys):
    bench(out, RING, "mezo")
    capsys.readouterr()
    lines = bench(out, RING, "tpsgd", "--json")
    assert json.loads(capsys.readouterr().out) == lines[-1:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mezo"], "name at least one task"),
        ([RING, "mezzo"], "no task or method named 'mezzo'; tasks: .*; methods: .*mezo"),
        ([RING, "mezo:epsilon=1"], "mezo:epsilon=1: mezo has no option 'epsilon'"),
        ([RING, "mezo:eps=-1", "tpsgd:scale=x"], "mezo:eps=-1: .*tpsgd:scale=x: "),
        ([RING, "mezo:lr=1e-3..1e-1"], "ranges are for a search; pass --tune N"),
        (["permutation:width=4..8", "mezo", "--tune", "2"], "a task's options are not searched for"),
        ([RING, "mezo", "--seeds", "a"], "--seeds must be like 0,1,2 or 0-4, got 'a'"),
        (["mnist", "mezo"], "pass --data DIR"),
        ([RING, "mezo", "--evaluations", "0"], "evaluations must be a whole number of at least 1, got 0"),
        (["permutation:num_bits=99", "nothing"], "no task or method named 'nothing'"),
        (["permutation:num_bits=99", "mezo"], "num_bits must be in"),
    ],
)
def test_what_is_wrong_is_said_at_the_door_all_at_once(words, said, out, capsys):
    import re

    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words, "--out", str(out)])
    assert stopped.value.code == 2 and not out.exists()
    assert re.search(said, " ".join(capsys.readouterr().err.split()))


# ---- searches -------------------------------------------------------------------------------------------------------------


def test_every_way_has_the_same_number_of_trials_of_the_same_budget_and_none_sees_the_test(out, trained):
    lines = bench(out, RING, "mezo:lr=1e-3..1e-1,eps=1e-3", "tpsgd", "--tune", "4")
    trials = [line for line in lines if line["kind"] == "trial"]
    runs = {line["method"]: line for line in lines if line["kind"] == "run"}
    for method in ("backprop", "mezo", "tpsgd"):
        mine = [line for line in trials if line["method"] == method]
        assert [line["number"] for line in mine] == [0, 1, 2, 3]
        assert trained.count((method, SEED)) == 4 and trained.count((method, 0)) == 1
        best = max(mine, key=lambda line: line["value"])
        assert runs[method]["options"]["lr"] == best["chosen"]["lr"] and runs[method]["trials"] == 4
    assert all(
        1e-3 <= line["chosen"]["lr"] <= 1e-1 and set(line["chosen"]) == {"lr"}
        for line in trials
        if line["method"] == "mezo"
    )
    assert all("quality_test" not in line for line in trials)


def test_a_search_that_was_cut_off_finds_what_it_would_have_found(out, monkeypatch):
    words = (RING, "mezo", "--tune", "5")
    whole = [(line["method"], line["chosen"]) for line in bench(out, *words) if line["kind"] == "trial"]
    kept = out.read_text().splitlines(keepends=True)[:7]  # all of backprop's, two of mezo's
    out.write_text("".join(kept))
    asked, counts = Search._asked, []
    monkeypatch.setattr(Search, "_asked", lambda self, past, number: counts.append(number) or asked(self, past, number))
    again = [(line["method"], line["chosen"]) for line in bench(out, *words) if line["kind"] == "trial"]
    assert again == whole and counts == [2, 3, 4]


def test_the_fixed_protocol_chooses_one_setting_for_all_tasks_and_scores_it(out, capsys):
    lines = bench(out, RING, "permutation:num_bits=4,width=8", "mezo", "--tune", "3", "--protocol", "fixed")
    trials = [line for line in lines if line["kind"] == "trial"]
    assert len(trials) == 2 * 3 and all(len(line["qualities"]) == 2 for line in trials)
    for method in ("backprop", "mezo"):
        assert len({str(line["options"]) for line in lines if line["kind"] == "run" and line["method"] == method}) == 1
    assert "integrated performance profile by forward passes: backprop" in capsys.readouterr().out


def test_options_without_a_range_are_left_alone(out, trained):
    lines = bench(out, RING, "mezo:lr=0.05", "--tune", "2")
    assert [line["method"] for line in lines if line["kind"] == "trial"] == ["backprop"] * 2
    assert trained.count(("mezo", SEED)) == 0


def test_a_method_that_no_search_can_train_is_refused_and_the_others_go_on(out):
    lines = bench(out, RING, "noprop-dt", "mezo", "--tune", "2")
    assert {line["method"]: line["status"] for line in lines if line["kind"] == "run"} == {
        "backprop": "done", "noprop-dt": "refused", "mezo": "done",
    }  # fmt: skip
