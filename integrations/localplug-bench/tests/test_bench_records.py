"""The file of runs: added to, never rewritten; a line that a kill has cut off costs that line alone."""

import json

import pytest

from localplug_bench.records import Records, key_of


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "some" / "runs.jsonl")


def test_every_cut_of_the_last_line_leaves_the_others_and_the_next_line_readable(records):
    records.add({"key": "a", "status": "done"})
    first = records.path.read_bytes()
    records.add({"key": "b", "status": "done"})
    whole = records.path.read_bytes()
    for end in range(len(first), len(whole) - 1):
        records.path.write_bytes(whole[:end])
        records.add({"key": "c", "status": "done"})
        assert [line["key"] for line in records] == ["a", "c"], end
        assert records.num_ignored == (end > len(first))


def test_what_is_there_is_never_rewritten(records):
    for key in "abc":
        before = records.path.read_bytes() if records.path.exists() else b""
        records.add({"key": key})
        assert records.path.read_bytes().startswith(before)


def test_a_line_says_its_schema_and_holds_strict_json(records):
    records.add(
        {"quality": float("nan"), "curve": [{"loss": float("inf")}], "shape": (1, 2), "thing": {1, 2}.__class__}
    )
    (line,) = records.path.read_text().splitlines()
    value = json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert value["schema"] == 1 and value["quality"] is None and value["curve"] == [{"loss": None}]


def test_a_failed_run_is_made_again_and_others_are_not(records):
    for status in ("done", "diverged", "refused", "failed"):
        records.add({"kind": "run", "key": status, "status": status})
    assert [records.is_done(key) for key in ("done", "diverged", "refused", "failed", "other")] == [True] * 3 + [
        False
    ] * 2


def test_a_key_is_of_all_that_makes_a_run():
    assert key_of(task="a", seed=0) == key_of(seed=0, task="a") != key_of(seed=1, task="a")
