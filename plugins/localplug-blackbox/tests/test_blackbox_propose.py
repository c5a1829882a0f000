"""`localplug propose` on tables of runs: what it reads, what it proposes, and what it refuses."""

import json
import math

import pytest
import torch

from localplug.cli import main
from localplug_blackbox.past_runs import Column, read


@pytest.fixture
def table(tmp_path):
    """Thirty runs whose loss is least at lr = 1e-3 and four layers; one failed, and one line is no run."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(30):
        exponent, layers = (torch.rand(2, generator=generator) * torch.tensor([4.0, 9.0])).tolist()
        lr, layers = 10 ** (exponent - 5), 1 + round(layers)
        loss = (math.log10(lr) + 3) ** 2 + 0.1 * (layers - 4) ** 2
        lines.append(json.dumps({"options": {"lr": lr, "layers": layers}, "loss": loss, "quality": -loss}))
    lines += [json.dumps({"options": {"lr": 0.09, "layers": 9}, "loss": math.nan, "quality": math.nan}), "{cut off"]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = ["--column", "options.lr=1e-5..1e-1:log", "--column", "options.layers=1..10:int"]


@pytest.mark.parametrize("by", ["mean-descent", "bayesian"])
@pytest.mark.parametrize("value", [["--value", "loss"], ["--value", "quality", "--maximize"]])
def test_the_next_run_is_near_the_best(table, capsys, by, value):
    assert main(["propose", str(table), *value, *COLUMNS, "--by", by, "--json"]) == 0
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert 10**-4 < row["options.lr"] < 10**-2 and row["options.layers"] in range(2, 7)
    assert isinstance(row["options.layers"], int) and "1 row(s) without a number in every column" in shown.err


def test_a_csv_file_and_several_proposals_as_a_table(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text("lr,loss\n" + "".join(f"{x},{(x - 0.3) ** 2}\n" for x in (0.1, 0.2, 0.5, 0.6, 0.9)) + "0.7,\nx,1\n")
    assert main(["propose", str(path), "--value", "loss", "--column", "lr", "--num", "3"]) == 0
    rows = [float(line) for line in capsys.readouterr().out.split()]
    assert 1 <= len(rows) <= 3 and abs(rows[0] - 0.3) < 0.1 and all(0.1 <= row <= 0.9 for row in rows)


def test_the_range_is_the_tables_where_none_is_given_and_runs_outside_one_are_left_out(table):
    runs = read(table, [Column("options.lr", log=True), Column("options.layers")], "loss")
    assert len(runs.values) == 31 and runs.num_skipped == 1 and int(torch.isnan(runs.values).sum()) == 1
    torch.testing.assert_close(runs.box.lower_D, runs.points.amin(0))
    inside = read(table, [Column("options.lr", 1e-4, 1e-2, log=True)], "loss")
    assert inside.num_skipped > 5 and float(inside.points.max()) <= math.log(1e-2)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--column", "lr=1..0"], "the range of 'lr=1..0' must go from a number up to a greater one"),
        (["--column", "lr=0..1:log"], "must be above 0 for a logarithm"),
        (["--column", "lr=a..b:ln"], "'ln' of 'lr=a..b:ln' is neither log nor int; the range of"),
        (["--column", "momentum"], "no row of"),
        ([*COLUMNS, "--option", "seed"], "--option takes KEY=VALUE"),
        ([*COLUMNS, "--option", "seed=1"], "mean-descent has no option seed"),
        ([*COLUMNS, "--option", "lr=-1"], "lr must be positive"),
        ([*COLUMNS, "--num", "0"], "num must be at least 1"),
    ],
)
def test_wrong_use_is_said_and_exits_with_2(table, capsys, arguments, said):
    assert main(["propose", str(table), "--value", "loss", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_column_with_one_value_and_a_file_that_is_not_there_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("lr,wd,loss\n1,1,2\n1,1,3\n")
    with pytest.raises(ValueError, match=r"lr has one value only.*; column wd has one value only"):
        read(path, [Column("lr"), Column("wd")], "loss")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "none.csv", [Column("lr")], "loss")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"lr": 1e999, "loss": 1}', "[1, 2]", '{"lr": {"lr": 1}, "loss": [1]}', '{"lr": true, "loss": 1}'],
    ids=["deep", "huge", "list", "nested", "bool"],
)
def test_lines_that_are_no_runs_are_left_out(tmp_path, text):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"lr": 1, "loss": 2}}\n{text}\n{{"lr": 2, "loss": 3}}\n')
    runs = read(path, [Column("lr")], "loss")
    assert len(runs.values) == 2 and runs.num_skipped == 1
