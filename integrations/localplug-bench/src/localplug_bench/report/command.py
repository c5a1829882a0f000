"""`localplug report`: the file of runs as a page and as plots."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from localplug.commands import terminal
from localplug_bench import performance_profile

EXAMPLES = """\
examples:
  localplug report runs.jsonl                            report/index.html, and report/plots/*.svg and *.png
  localplug report monday.jsonl tuesday.jsonl --out DIR  several files as one
  localplug report runs.jsonl --title "Zeroth order on SST-2"

The page is one file that fetches nothing: send it, or open it from the disk. Plots show means over seeds and their spread.
"""
PAGE = "index.html"


def main(argv: Sequence[str]) -> int:
    """Run `localplug report` with these arguments; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="localplug report",
        description="Make a page and plots of the runs that `localplug bench` wrote down: quality against forward passes, "
        "time, memory and energy, learning curves, time over backpropagation's, tables that sort.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUNS", help="files that `localplug bench` wrote")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("report"), help="folder to write into (report)"
    )
    parser.add_argument("--title", default="Ways to train, compared", help="of the page")
    parser.add_argument(
        "--target",
        type=float,
        default=performance_profile.TARGET,
        help=f"share of the way to backpropagation's quality, for the performance profile ({performance_profile.TARGET})",
    )
    parser.add_argument("--json", action="store_true", help="print the files that were written as JSON")
    options = parser.parse_args(argv)
    if not 0 < options.target <= 1:
        parser.error(f"--target must be in (0, 1], got {options.target}")
    written, remarks = _report(options)
    for remark in remarks:
        terminal.complain(remark)
    if options.json:
        terminal.as_json(written)
    else:
        terminal.say(f"{written['page']}, and {len(written['plots'])} files in {options.out / 'plots'}")
    return 0


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from localplug_bench.report import drawing, figures, lines, page, panels, tables

    found = lines.read(options.runs)
    shown = panels.panels(found.runs)
    runs = [run for panel in shown for run in panel.runs]
    style = drawing.Style([way for panel in shown for way in panel.ways])
    folder = options.out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    profiled, scores, remarks = figures.profiles(runs, options.target)
    remarks = [*found.remarks, *remarks]
    plans = [(_anchor(number), panel, figures.of_panel(panel, number)) for number, panel in enumerate(shown, 1)]
    deep = figures.by_depth(shown)
    every = [figure for _, _, several in plans for figure in several] + deep + profiled
    drawings = {
        figure.name: drawing.save(figure, style, folder)
        for figure in terminal.progress(every, "drawing", total=len(every))
    }

    def drawn(several: Sequence[figures.Figure]) -> list[tuple[figures.Figure, str]]:
        return [(figure, drawings[figure.name]) for figure in several]

    sections = [page.Section("overview", "Overview", tables=[tables.overview(shown)])]
    for anchor, panel, several in plans:
        setting = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in panel.setting.items() if value is not None
        )
        sections.append(page.Section(anchor, panel.task, [setting], drawn(several), [tables.runs_of(panel)]))
    if deep:
        sections.append(page.Section("depth", "Memory against depth", figures=drawn(deep)))
    if profiled:
        scored = tables.profile_scores(scores)
        text = f"One setting for all tasks. The target of a task is {options.target:g} of the way from the untrained model to "
        text += "what backpropagation reaches on validation examples. Ways that lack one of the tasks are left out."
        sections.append(
            page.Section("profile", "Performance profile", [text], drawn(profiled), [scored] if scored else [])
        )
    seeds = len({run["seed"] for run in runs})
    looks = sum(run["test_looks"] is not None and run["test_looks"] > 1 for run in runs)
    remarks += (
        [f"{looks} run(s) looked at their test examples more than once: their test quality is no test"] if looks else []
    )
    more = [tables.untrained(runs), tables.searches(found.trials), tables.made_on(runs)]
    notes = [f"{remark}." for remark in remarks]
    sections.append(page.Section("notes", "Notes", notes, tables=[table for table in more if table is not None]))
    summary = (
        f"{len(runs)} runs: {len({panel.task for panel in shown})} task(s), {len({run['way'] for run in runs})} way(s) of "
        f"training, {seeds} seed(s). Points are means over seeds."
    )
    path = options.out / PAGE
    path.write_text(page.page(options.title, summary, sections), encoding="utf-8")
    plots = [str(folder / f"{figure.name}.{kind}") for figure in every for kind in ("svg", "png")]
    return {"page": str(path), "plots": plots}, remarks


def _anchor(number: int) -> str:
    return f"task-{number}"
