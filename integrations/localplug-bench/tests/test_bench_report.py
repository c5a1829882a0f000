"""`localplug report`: the page says what the lines say and fetches nothing, and what a file of others holds is text in it."""

import base64
import hashlib
import html.parser
import json
import random
import re
from xml.etree import ElementTree

import pytest

from localplug.cli import main
from localplug_bench.performance_profile import scores, times_to_targets
from localplug_bench.report import drawing, figures, lines, page, panels, tables

EVIL = "<script>alert(1)</script>\"'&$\\frac{x^2$_\x1b[31m\u202e\u65e5"


def run(way="mezo", seed=0, task="vowels", quality=0.5, **more):
    """A line as the bench writes it: three measurements, the second of which was the best."""
    curve = [
        {
            "step": s,
            "forward_passes": 2 * s,
            "seconds": 0.1 * s,
            "quality": q,
            "loss": 1.0,
            "observed": {"alignment": 0.1 * q},
        }
        for s, q in ((0, 0.1), (50, quality), (100, quality - 0.05))
    ]
    return {
        "schema": 1, "kind": "run", "key": f"{task} {way} {seed}", "task": task, "way": way, "method": way, "spec": way,
        "is_backprop": way.startswith("backprop"), "seed": seed, "metric": "accuracy", "higher_is_better": True, "perfect": 1.0,
        "budget": 200, "batch_size": 8, "evaluations": 2, "patience": None, "keep": "best", "count": "passes",
        "protocol": "each", "trials": 0, "device": "cpu", "status": "done", "reason": "", "quality_start": 0.1,
        "quality_validation": quality, "quality_test": quality, "best_step": 50, "steps": 100, "budget_used": 200,
        "test_looks": 1, "seconds": 10.0 + seed, "seconds_forward": 5.0, "seconds_perturbation": 1.0, "seconds_backward": 0.0,
        "seconds_update": 2.0, "seconds_data": 1.0, "seconds_framework": 1.0, "time_over_backprop": 1.5 + seed,
        "step_time_over_backprop": 1.0, "peak_bytes": 2_000_000, "saved_bytes": 1000, "stored_bytes": 500,
        "energy_joules": 3.0, "energy_kind": "estimated", "flops_forward": 10, "flops_step": 20, "curve": curve,
        "machine": "x86_64", "torch": "2.13.0", "date": "2026-11-28", **more,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(*rows, end="\n", name="runs.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end)
        return path

    return write


class Page(html.parser.HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], {}, []
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if self._open and self._open[-1] in ("script", "style", "title"):
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data
        if self.rows and set(self._open) & {"td", "th"}:
            self.rows[-1][-1] += data

    def all(self, name, tag=None):
        return [value for t, n, value in self.attributes if n == name and tag in (None, t)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(lines, page, folder) of a task with two seeds, and of one with names that mean no good."""
    folder = tmp_path_factory.mktemp("report")
    rows = []
    for seed in (0, 1):
        rows.append(run("backprop:lr=0.003", seed, quality=0.8 + 0.1 * seed, protocol="fixed", time_over_backprop=1.0))
        rows.append(run("mezo", seed, quality=0.4, protocol="fixed"))
        rows.append(run(f"_{EVIL}", seed, status="refused", reason=EVIL, curve=None, protocol="fixed"))
    rows.append(run(EVIL, 0, EVIL, 0.3, metric=EVIL, energy_joules=None))
    path = folder / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"schema": 1, "ki')
    assert main(["report", str(path), "--out", str(folder / "out")]) == 0
    return rows, Page((folder / "out" / "index.html").read_text(encoding="utf-8")), folder / "out"


# ---- the page ---------------------------------------------------------------------------------------------------------------


def test_the_overview_has_means_and_spreads_of_the_runs(made):
    _, seen, _ = made
    (row,) = (row for row in seen.rows if row[:3] == ["vowels", "mezo", "2"])
    assert row[3:] == [
        *("done", "accuracy", "0.1000", "0.4000", "0.0000", "200", "200", "10.5", "2 (1.5 to 2.5)", "2.0 MB", "1.0 kB"),
        *("500 B", "3"),
    ]
    (row,) = (row for row in seen.rows if row[:2] == ["vowels", "backprop:lr=0.003"])
    assert row[6:8] == ["0.8500", "0.1000"]


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own(made):
    _, seen, _ = made
    assert not seen.all("src") and seen.all("href", "link") == ["data:,"]
    links = [*seen.all("href", "a"), *seen.all("xlink:href")]
    assert links and all(link.startswith("#") and link[1:] in seen.all("id") for link in links)
    assert not re.findall(r"url\((?!#)|@import", seen.texts["style"] + " ".join(v or "" for v in seen.all("style")))
    assert seen.tags.count("script") == 1 and not [name for _, name, _ in seen.attributes if name.startswith("on")]
    (policy,) = [v for v in seen.all("content", "meta") if "default-src 'none'" in v]
    expected = base64.b64encode(hashlib.sha256(seen.texts["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{expected}'" in policy


def test_text_of_others_is_text(made):
    _, seen, folder = made
    assert set(seen.tags) & {"img", "iframe", "b", "script"} == {"b", "script"}
    text = (folder / "index.html").read_text()
    assert "&lt;script&gt;alert(1)" in text and "\x1b" not in text and "\u202e" not in text
    assert any("<script>alert(1)</script>" in cell and "\\u202e" in cell for row in seen.rows for cell in row)
    for path in (folder / "plots").glob("*.svg"):
        assert not {e.tag.split("}")[1] for e in ElementTree.parse(path).iter()} & {"script", "foreignObject"}


def test_every_plot_is_described_and_comes_as_svg_and_png(made):
    _, seen, folder = made
    labels = [v for t, n, v in seen.attributes if n == "aria-label" and t == "div" and not v.startswith("Numbers")]
    plots = sorted(path.name for path in (folder / "plots").iterdir())
    assert seen.tags.count("figure") == len(labels) == len(plots) / 2 == seen.all("role", "div").count("img")
    assert all(len(label) > 60 for label in labels)
    assert {name.rsplit(".", 1)[1] for name in plots} == {"svg", "png"}
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png)", name) for name in plots)
    assert all((folder / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots if name.endswith("png"))
    ids = seen.all("id")
    assert len(ids) == len(set(ids))


def test_colours_follow_the_theme_and_names_are_in_the_plots(made):
    _, seen, folder = made
    assert "prefers-color-scheme: dark" in seen.texts["style"]
    styles = " ".join(value for value in seen.all("style") if value)
    assert "var(--ink)" in styles and "var(--line)" in styles and "#1b1c1d" not in styles
    drawn = (folder / "plots" / "01-learning-seconds.svg").read_text()
    assert "mezo" in drawn and "backprop:lr=0.003" in drawn and "var(" not in drawn
    assert "vowels" in drawn and "accuracy, higher is better" in drawn


def test_the_same_lines_give_the_same_page(made, tmp_path):
    _, _, folder = made
    shown = panels.panels(lines.read([folder.parent / "runs.jsonl"]).runs)
    style = drawing.Style([way for panel in shown for way in panel.ways])
    figure = figures.of_panel(shown[0], 1)[0]
    assert drawing.save(figure, style, tmp_path) in (folder / "index.html").read_text(encoding="utf-8")
    name = f"{figure.name}.svg"
    assert (tmp_path / name).read_bytes() == (folder / "plots" / name).read_bytes()


def test_tables_sort_by_numbers_and_not_by_their_text(made):
    """The script reads data-v of the columns whose head says that they are numbers."""
    _, seen, folder = made
    text = (folder / "index.html").read_text()
    (row,) = re.findall(r'<th scope="row" class="w">vowels</th><td class="w">mezo</td>.*?</tr>', text)[:1]
    assert '<td class="n" data-v="2000000.0">2.0 MB</td>' in row and "dataset.v" in seen.texts["script"]


# ---- figures -----------------------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_beats():
    generator = random.Random(0)
    for upwards in (True, False):
        for _ in range(200):
            points = {
                str(i): (generator.randrange(5), generator.randrange(5)) for i in range(generator.randrange(1, 8))
            }
            sign = 1 if upwards else -1

            def beaten(name, points=points, sign=sign):
                c, q = points[name]
                return any(
                    d <= c and sign * p >= sign * q and (d, p) != (c, q)
                    for other, (d, p) in points.items()
                    if other != name
                )

            assert set(panels.front(points, upwards)) == {name for name in points if not beaten(name)}


def test_cost_is_counted_until_the_weights_that_were_tested(write):
    (panel,) = panels.panels(lines.read([write(run(), run(seed=1, best_step=0))]).runs)
    by_name = {figure.name: figure for figure in figures.of_panel(panel, 1)}
    (series,) = by_name["01-quality-passes"].series
    assert series.points == [(150.0, 0.5)] and series.x_spread == [
        (100.0, 200.0)
    ]  # 50 steps of 2; the whole of the other
    (series,) = by_name["01-quality-seconds"].series
    assert series.x_spread == [(5.0, 11.0)]
    (series,) = by_name["01-quality-memory"].series
    assert series.points == [(2e6, 0.5)]
    (series,) = by_name["01-time-ratios"].series
    assert series.points == [(2.0, 0.0), (1.0, 0.0)] and series.x_spread == [(1.5, 2.5), (1.0, 1.0)]


def test_a_learning_curve_is_the_mean_as_far_as_all_seeds_go(write):
    short = run(seed=1, quality=0.3)
    short["curve"] = short["curve"][:2]
    (panel,) = panels.panels(lines.read([write(run(), short)]).runs)
    figure = next(f for f in figures.of_panel(panel, 1) if f.name == "01-learning-forward-passes")
    (series,) = figure.series
    assert series.points == [(0.0, 0.1), (100.0, pytest.approx(0.4))] and [len(t) for t in series.threads] == [3, 2]


def test_memory_is_shown_by_depth_where_there_are_several(write):
    rows = [run("tpsgd", 0, f"mnist:depth={d},width=8", saved_bytes=10 * d, peak_bytes=None) for d in (8, 2)]
    found = figures.by_depth(panels.panels(lines.read([write(*rows, run(task="vowels:depth=3"))]).runs))
    assert [figure.name for figure in found] == ["depth-1-saved-bytes"]
    assert found[0].series[0].points == [(2.0, 20.0), (8.0, 80.0)] and found[0].heading == "mnist:width=8"


def test_the_profile_is_that_of_the_bench(write):
    rows = [run("backprop", 0, t, 0.9, protocol="fixed") for t in "ab"]
    late = run("mezo", 0, "a", 0.9, protocol="fixed")
    late["curve"][1]["quality"] = 0.2
    late["curve"][2]["quality"] = 0.9
    rows += [late, run("mezo", 0, "b", 0.2, protocol="fixed"), run("tpsgd", 0, "a", protocol="fixed")]
    read = lines.read([write(*rows)]).runs
    drawn, scored, remarks = figures.profiles(read, 0.9)
    assert not remarks and [f.name for f in drawn] == ["profile-forward-passes", "profile-seconds"]
    assert scored["forward_passes"] == scores(times_to_targets(rows, 0.9)) and set(scored["seconds"]) == {
        "backprop",
        "mezo",
    }
    by_way = {series.way: series.points for series in drawn[0].series}
    assert by_way["mezo"] == [(1.0, 0.0), (2.0, 0.5), (4.0, 0.5)] and by_way["backprop"] == [(1.0, 1.0), (4.0, 1.0)]
    assert figures.profiles([{**r, "protocol": "each"} for r in read], 0.9) == ([], {}, [])


def test_runs_of_other_budgets_are_not_compared_and_of_a_run_made_again_the_last_counts(write):
    rows = [run(quality=0.2), run(quality=0.6), run("tpsgd", budget=400)]
    one, other = panels.panels(lines.read([write(*rows)]).runs)
    assert list(one.ways) == ["mezo"] and list(other.ways) == ["tpsgd"]
    assert one.spread("mezo", "quality_test") == panels.Spread(0.6, 0.6, 0.6, 1)


# ---- files of others ---------------------------------------------------------------------------------------------------------


def test_a_line_that_is_cut_off_is_left_out_with_a_remark_and_nan_is_null(write):
    text = json.dumps(run(seed=1, seconds=float("nan"), time_over_backprop=float("inf")))
    found = lines.read([write(run(), '{"schema": 1, "kind": "r', text, "[1]", json.dumps(run(kind="later")), end="")])
    assert [r["seed"] for r in found.runs] == [0, 1]
    assert found.runs[1]["seconds"] is None and found.runs[1]["time_over_backprop"] is None
    assert [re.search(r"line (\d)", remark)[1] for remark in found.remarks] == ["2", "4", "5"]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"schema": 2}, "line 1 is of schema 2, and this version of localplug-bench reads schema 1"),
        ({"schema": True}, "line 1 is of schema True"),
        ({"task": None}, "line 1: task is missing"),
        ({"seed": -1}, "line 1: seed must be a number of at least 0, got -1"),
        ({"seed": "0"}, "line 1: seed must be a number, got '0'"),
        ({"status": "fine"}, "line 1: status must be one of done, diverged, refused, failed, got 'fine'"),
        ({"quality_test": True}, "line 1: quality_test must be a number, got True"),
        ({"peak_bytes": 10**400}, "line 1: peak_bytes must be a number below 1e+30, got 1000"),
        ({"curve": [{"step": 0}]}, "line 1: curve must be a list of points whose forward_passes is a number (point 0)"),
        ({"curve": "x" * 500}, "got '" + "x" * 59 + "..."),
        ({"higher_is_better": 1}, "line 1: higher_is_better must be true or false, got 1"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(write, row, said):
    with pytest.raises(ValueError, match=r"^no report can be made:\n  - ") as error:
        lines.read([write({**run(), **row})])
    assert said in str(error.value)


def test_all_faults_of_all_files_are_told_at_once(write, tmp_path, capsys):
    empty, other = write(end="", name="empty.jsonl"), write({"schema": 1, "kind": "trial"}, name="trials.jsonl")
    bad = write({**run(), "seed": "a", "way": 1}, run(), name="bad.jsonl")
    words = ["report", str(empty), str(other), str(bad), str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr().err
    for what in ("empty.jsonl: it is empty", "trials.jsonl, line 1: key is missing", "way must be a text, got 1",
                 "seed must be a number, got 'a'", "none.jsonl: No such file"):  # fmt: skip
        assert what in said
    assert said.count("\n  - ") == 9 and not (tmp_path / "out").exists()
    many = write(*[{**run(), "seed": "a"}] * 30, name="many.jsonl")
    with pytest.raises(ValueError, match="and 10 more"):
        lines.read([many])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "9" * 5000, '{"a": 1, "a": 2}', "\x00\xff"])
def test_a_file_without_a_run_is_refused_whatever_else_is_in_it(write, text):
    with pytest.raises(ValueError, match="it has no line about a run"):
        lines.read([write(text)])


def test_whatever_a_file_holds_gives_a_page_or_an_error(write):
    """Bytes are flipped, cut, doubled and put elsewhere in a file of three runs."""
    generator, numbers = random.Random(0), {"pages": 0, "errors": 0}
    whole = b"\n".join(json.dumps(r).encode() for r in (run("backprop"), run(), run(seed=1))) + b"\n"
    path = write(run())
    bits = [b"1e999", b"-1", b"null", b"{", b"]", b'"', b"\xff", b"true", b"[]", b'"x"', b"1e29"]
    values = [m.span(1) for m in re.finditer(rb": ([^,\]}]+)", whole)]
    for _ in range(250):
        data = bytearray(whole)
        start, end = generator.choice(values)
        if generator.random() < 0.3:
            start = generator.randrange(len(data))
            end = start + generator.randrange(9)
        data[start:end] = generator.choice(bits)
        path.write_bytes(data)
        try:
            found = lines.read([path])
        except ValueError:
            numbers["errors"] += 1
            continue
        shown = panels.panels(found.runs)
        several = [figure for panel in shown for figure in figures.of_panel(panel, 1)] + figures.by_depth(shown)
        section = page.Section("a", "b", found.remarks, [(f, "") for f in several], [tables.overview(shown)])
        assert page.page("t", "s", [section])
        numbers["pages"] += 1
    assert min(numbers.values()) > 30


def test_wrong_use_and_the_list_of_files(write, tmp_path, capsys):
    path = write(run(test_looks=2))
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(path), "--target", "0"])
    assert stopped.value.code == 2
    capsys.readouterr()
    assert main(["report", str(path), "--out", str(tmp_path / "o"), "--json"]) == 0
    out, err = capsys.readouterr()
    written = json.loads(out)
    assert written["page"].endswith("index.html") and len(written["plots"]) > 8
    assert "1 run(s) looked at their test examples more than once" in err
