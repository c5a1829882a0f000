"""Figures by matplotlib, as files and as inline SVG whose colours follow the page.

The palette is Okabe and Ito's, without yellow, which is hard to see on white; ways of training also differ in marker and
dashes. Names come from files of others: no mathematics is parsed in them.
"""

import io
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final
from xml.etree import ElementTree

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from localplug.printable import printable
from localplug_bench.report.figures import BYTES, Figure, Series, number_text

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
INK, SOFT, GRID, PAPER = "#1b1c1d", "#5e5f61", "#d5d6d7", "#fdfefe"  # in the page these become the theme's
THEME = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--paper)"}
WIDTH, HEIGHT, LEGEND = 4.5, 2.9, 0.19  # inches; of a figure without its legend, and of a line of that
MAX_NAME, SHORT = 44, 20  # characters of a name in a legend; of one that shares its line
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "localplug",
    "path.simplify": False,
}


@final
class Style:
    """Colour, marker and dashes of each way of training: the same in all figures.

    Args:
        ways: in the order in which they get them.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        self._number = {way: number for number, way in enumerate(dict.fromkeys(ways))}

    def __getitem__(self, way: str) -> tuple[str, str, Any]:
        number = self._number[way]
        return PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]


def name_text(name: str, most: int = MAX_NAME) -> str:
    """A name made safe to draw, at most so long."""
    text = printable(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def drawn(figure: Figure, style: Style) -> Iterator[Canvas]:
    """A figure, to be saved while the context is open."""
    with matplotlib.rc_context(cast(Any, RC)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # letters that the font lacks, in a name
        handles = [_handle(one, style, is_point=not figure.joined) for one in figure.series]
        is_short = all(len(printable(one.way)) <= SHORT for one in figure.series)
        columns = 2 if is_short and len(handles) > 1 else 1
        height = HEIGHT + LEGEND * -(-len(handles) // columns)
        if figure.categories:
            height = 1.1 + 0.3 * len(figure.categories)
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        axes = canvas.subplots()
        if figure.categories:
            _categories(axes, figure)
        else:
            # a name that begins with "_" would be left out
            names = [f" {name_text(one.way, SHORT if columns > 1 else MAX_NAME)}" for one in figure.series]
            canvas.legend(
                handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5, handlelength=3.2
            )
        for one in figure.series:
            _series(axes, figure, one, style)
        _front(axes, figure)
        axes.set_title(name_text(figure.heading, 58), loc="left", fontsize=8, color=SOFT)
        _axes(axes, figure)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # its layout holds for every format
        yield canvas


def _handle(one: Series, style: Style, *, is_point: bool) -> Line2D:
    colour, marker, dashes = style[one.way]
    return Line2D(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=6,
        markeredgecolor=INK,
        markeredgewidth=0.6,
        linestyle="none" if is_point else dashes,
        linewidth=1.8,
    )


def _series(axes: Axes, figure: Figure, one: Series, style: Style) -> None:
    colour, marker, dashes = style[one.way]
    for thread in one.threads:
        axes.plot(*zip(*thread, strict=True), color=colour, linestyle=dashes, linewidth=0.7, alpha=0.45)
    mark: dict[str, Any] = dict(marker=marker, markersize=6, markeredgecolor=INK, markeredgewidth=0.6, zorder=3)
    if figure.joined:
        axes.plot(
            *zip(*one.points, strict=True),
            color=colour,
            linestyle=dashes,
            linewidth=1.8,
            drawstyle="steps-post" if figure.joined == "steps" else "default",
            **{**mark, "markersize": 4.5},
        )
    for place, (x, y) in enumerate(one.points):
        for low, high, along in (*_bars(one.x_spread, place, "x"), *_bars(one.y_spread, place, "y")):
            if high > low:
                ends = ([low, high], [y, y]) if along == "x" else ([x, x], [low, high])
                axes.plot(*ends, color=colour, linewidth=1.3, marker="|" if along == "x" else "_", markersize=5)
        if not figure.joined:
            hollow: dict[str, Any] = {"markerfacecolor": PAPER} if figure.categories and place == 1 else {}
            axes.plot([x], [y], color=colour, linestyle="none", **mark, **hollow)


def _bars(spread: Sequence[tuple[float, float]], place: int, along: str) -> list[tuple[float, float, str]]:
    return [(*spread[place], along)] if place < len(spread) else []


def _front(axes: Axes, figure: Figure) -> None:
    if len(figure.front) > 1:
        axes.plot(
            *zip(*figure.front, strict=True),
            color=SOFT,
            linewidth=1.2,
            linestyle="solid",
            drawstyle="steps-post",
            zorder=1,
        )
    if figure.at is not None:
        axes.axvline(figure.at, color=SOFT, linewidth=1.2, zorder=1)


def _axes(axes: Axes, figure: Figure) -> None:
    axes.set_xlabel(name_text(figure.x, 62))
    axes.set_ylabel(name_text(figure.y, 36))
    if figure.x_log:
        axes.set_xscale("log")
    elif figure.joined or not figure.categories:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if figure.joined != "steps" else None)
    if figure.y_log:
        axes.set_yscale("log")
    elif figure.from_zero:
        axes.set_ylim(bottom=0)
    for axis, unit, is_log in ((axes.xaxis, figure.x, figure.x_log), (axes.yaxis, figure.y, figure.y_log)):
        if unit:
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _, unit=unit: number_text(value, unit)))
        if is_log:
            few = ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12)
            axis.set_major_locator(few)
            axis.set_minor_formatter(ticker.NullFormatter())
        elif BYTES in unit or axis is axes.xaxis:
            axis.set_major_locator(ticker.MaxNLocator(5))


def _categories(axes: Axes, figure: Figure) -> None:
    axes.set_yticks(range(len(figure.categories)), [name_text(name, 30) for name in figure.categories])
    axes.set_ylim(len(figure.categories) - 0.5, -0.5)


# ---- files and pages ---------------------------------------------------------------------------------------------------------


def save(figure: Figure, style: Style, folder: pathlib.Path, *, dpi: int = 180) -> str:
    """Write NAME.svg and NAME.png; gives the drawing as inline SVG for a page."""
    with drawn(figure, style) as canvas:
        canvas.savefig(folder / f"{figure.name}.png", dpi=dpi, facecolor="white")
        buffer = io.BytesIO()
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    inline = _inline(ElementTree.fromstring(buffer.getvalue()), figure)
    root.insert(0, ElementTree.Element(f"{{{SVG}}}rect", {"width": "100%", "height": "100%", "fill": "white"}))
    ElementTree.ElementTree(root).write(folder / f"{figure.name}.svg", encoding="utf-8", xml_declaration=True)
    return inline


def _inline(root: ElementTree.Element, figure: Figure) -> str:
    """An SVG for a page that has others: names of its own, the theme's colours, no size, nothing for a screen reader."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.set(name, f"{figure.name}-{value}")
            elif name == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(name, f"#{figure.name}-{value[1:]}")
            elif name in ("style", "clip-path", "fill", "stroke"):
                element.set(name, _themed(value).replace("url(#", f"url(#{figure.name}-"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    for colour, variable in THEME.items():
        style = style.replace(colour, variable)
    return style
