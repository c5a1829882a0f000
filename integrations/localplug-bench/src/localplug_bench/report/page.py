"""The report as one HTML file, which fetches nothing: style, script and plots are in it.

All text that comes from the files is escaped; a policy in the page's head lets no script run but its own, known by its hash.
"""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
from collections.abc import Sequence
from typing import final

from localplug.printable import printable
from localplug_bench.report.figures import Figure
from localplug_bench.report.tables import Table

WIDE = ("task", "way", "reason", "tasks", "its options")
"""Columns of long texts."""
MAX_NAME = 120  # characters of a name
MAX_TEXT = 1000  # characters of one text
MAX_DESCRIBED = 12  # series in the description of a plot; the rest is in its numbers


@final
@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Args:
        anchor: letters, digits and dashes.
        title: its heading.
        texts: paragraphs below it.
        figures: plots, each as inline SVG.
        tables: below the plots.
    """

    anchor: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[Table] = ()


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    links = "".join(f'<li><a href="#{s.anchor}">{_safe(_name(s.title))}</a></li>' for s in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{_safe(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">To the content</a>\n'
        f"<header>\n<h1>{_safe(title)}</h1>\n<p>{_safe(summary)}</p>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main id="content">\n'
        + "\n".join(map(_section, sections))
        + '\n</main>\n<footer><p class="soft">Made by localplug report.</p></footer>\n'
        + f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _part(name: str) -> str:
    return (importlib.resources.files("localplug_bench.report") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _safe(text: str) -> str:
    """Text of others, for a page: nothing in it is markup, nothing in it is invisible, and it is not endless."""
    text = printable(text)
    return html.escape(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…")


def _name(text: str) -> str:
    """A name, at most as long as a heading may be."""
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"


def _section(section: Section) -> str:
    parts = [
        f'<section aria-labelledby="{section.anchor}">',
        f'<h2 id="{section.anchor}">{_safe(_name(section.title))}</h2>',
    ]
    parts += [f'<p class="soft">{_safe(text)}</p>' for text in section.texts]
    if section.figures:
        parts.append('<div class="figures">')
        parts += [_figure(figure, svg) for figure, svg in section.figures]
        parts.append("</div>")
    parts += [_table(table, f"{section.anchor}-{number}") for number, table in enumerate(section.tables)]
    return "\n".join([*parts, "</section>"])


def _figure(figure: Figure, svg: str) -> str:
    rows = [(_name(way), x, y) for way, x, y in figure.rows()]
    what = "; ".join(f"{way}: {y or ''} at {x}" for way, x, y in rows[:MAX_DESCRIBED])
    more = f"; and {len(rows) - MAX_DESCRIBED} more" if len(rows) > MAX_DESCRIBED else ""
    alt = f"{figure.title}, {figure.heading}. {figure.x} against {figure.y or 'way of training'}. {what}{more}."
    body = "".join(
        f'<tr><th scope="row">{_safe(way)}</th><td class="n">{_safe(x)}</td><td class="n">{_safe(y)}</td></tr>'
        for way, x, y in rows
    )
    return (
        f'<figure><div role="img" aria-label="{_safe(alt)}">{svg}</div>\n'
        f"<figcaption><b>{_safe(figure.title)}</b><p>{_safe(figure.about)}</p></figcaption>\n"
        f"<details><summary>Numbers of this plot</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_safe(f"Numbers: {figure.title}, {figure.heading}")}">'
        f'<table><thead><tr><th scope="col">way</th><th scope="col" class="n">{_safe(figure.x)}</th>'
        f'<th scope="col" class="n">{_safe(figure.y or "way")}</th></tr></thead><tbody>{body}</tbody></table></div>'
        "</details></figure>"
    )


def _table(table: Table, anchor: str) -> str:
    kinds = ["n" if is_number else "w" if name in WIDE else "t" for name, is_number in table.columns]
    heads = "".join(
        f'<th scope="col" class="{kind}">{_safe(name)}</th>'
        for (name, _), kind in zip(table.columns, kinds, strict=True)
    )
    body = []
    for row in table.rows:
        cells = []
        for place, (cell, kind, (name, _)) in enumerate(zip(row, kinds, table.columns, strict=True)):
            value = "" if cell.number is None or kind != "n" else f' data-v="{cell.number!r}"'
            tag, scope = ("td", "") if place else ("th", ' scope="row"')
            text = _name(cell.text) if kind == "w" and name != "reason" else cell.text
            cells.append(f'<{tag}{scope} class="{kind}"{value}>{_safe(text)}</{tag}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    about = f'<p class="soft">{_safe(table.about)}</p>\n' if table.about else ""
    return (
        f'<h3 id="{anchor}">{_safe(_name(table.title))}</h3>\n{about}'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{anchor}">'
        f'<table class="sorts"><thead><tr>{heads}</tr></thead><tbody>\n' + "\n".join(body) + "\n</tbody></table></div>"
    )
