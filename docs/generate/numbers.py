"""Measured numbers in pages that are written by hand: taken from tests/benchmarks/results, written by `make numbers`.

A claim is a piece of a page with a {} for each number, and those numbers as the files of results have them. It is found in the
page by its words, so that a page reads as if nobody had made it; a sentence that changes needs its claim to change. Between
`<!-- made: NAME -->` and `<!-- /made -->` a page has a whole table that is made.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from generate import claims_of_guides, claims_of_readme, reproductions, results
from generate.claims import Claim
from generate.repository import ROOT

CLAIMS: dict[str, Callable[[], list[Claim]]] = {
    "README.md": claims_of_readme.claims,
    "docs/bench.md": claims_of_guides.bench,
    "docs/local.md": claims_of_guides.local,
    "docs/many-machines.md": claims_of_guides.many_machines,
    "docs/methods.md": claims_of_guides.methods,
    "docs/reproductions.md": claims_of_guides.reproductions,
    "docs/ternary.md": claims_of_guides.ternary,
}
"""{page: what it claims}."""
MADE: dict[str, Callable[[], str]] = {
    "energy": reproductions.energy,
    "zo-bench": reproductions.zo_bench,
    "shallow": reproductions.shallow,
}
"""What stands between `<!-- made: NAME -->` and `<!-- /made -->`."""
FACTS: dict[str, Sequence[str]] = {
    "README.md": ("1,000 training sentences", "| 2,048 |", "up to 32 MB"),
    "docs/bench.md": ("0.9 (`--target`)", "5,000 images"),
    "docs/compatibility.md": ("",),  # versions
    "docs/local.md": (
        "reports 1.45 %, 1,000 wide",
        "(its paper: 99.5 % with 10 blocks and 100 epochs)",
        "3,500 training images",
        "(4.1 %)",
    ),
    "docs/methods.md": (
        "up to 4 MB",
        "one tile of 4 MB",
        "the 20 % of smallest",
        "a random 20 %",
        "0.01; with 0.001",
        "the 10 %",
        "the same 10 %",
        "1.5 to 3 %",
    ),
    "docs/reproductions.md": ("[2511.01061]", "within about 5 %", "for 20,000 steps"),
    "docs/select.md": ("the 10 % quantile", "the same 10 %", "(weight 0.05)"),
    "docs/ternary.md": (
        *(
            "2.0625 |",
            "1.6875 |",
            "2.25; blocks",
            "gguf 0.19",
            "0.7 mean",
            "llama-cpp-python 0.3.36",
            "1/8.7 of",
            "1/1.7 (AVX",
        ),
        *("Llama-3.2-1B", "128,256"),
    ),
}
"""{page: its words with numbers that nobody here measured: of papers, of settings, versions}; "" for all of the page."""
MEASURED = re.compile(
    r"(?<![\w.,:-])\d[\d,]*\.\d+(?!\w|\.\d|-\w)|\d\s?%|(?<![\w.,-])\d{1,3}(?:,\d{3})+(?![\w,])|\d\s(?:[kMG]B)\b"
)
"""What looks like a measured number: a decimal, a share, thousands, bytes."""
_CODE = re.compile(r"^(```|~~~).*?^\1[ \t]*$|`(?:[^`\n]|\n(?!\n))+`|\]\([^)\s]*\)|<!--.*?-->", re.M | re.S)
_MADE = re.compile(r"(<!-- made: ([\w-]+) -->\n)((?:(?!<!-- ).)*)(<!-- /made -->)", re.S)
_ASIDE = re.compile(r"<!-- not measured here: (.*?) -->", re.S)
_HEADING = re.compile(r"^#{1,6} ", re.M)
_PARAGRAPH = re.compile(r"^#{1,6} |^\*\*[^*\n]+\*\*", re.M)  # one that begins with bold words has a subject of its own
_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_POWER = re.compile("·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_NUMBER = r"(?<![\d.,])\d[\d,]*(?:\.\d+)?(?!\d|[.,]\d)"  # the whole of it


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a page: where, what is there, what should be."""

    start: int
    end: int
    there: str
    right: str


def pages() -> list[str]:
    """Every page whose numbers are looked at, by its path."""
    found = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/first-steps/*.md")]
    found += [*ROOT.glob("plugins/*/README.md"), *ROOT.glob("integrations/*/README.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def numbers(text: str, claims: Iterable[Claim]) -> list[Number]:
    """The numbers of the claims, as they stand in a page.

    Raises:
        ValueError: a claim is not in the page, or is there twice, or does not hold; lists all of them.
    """
    found, wrong = [], []
    for claim in claims:
        parts = [
            re.sub(r"\s+", lambda _: r"\s+", re.escape(part).replace(r"\ ", " ")) for part in claim.template.split("{}")
        ]
        there = list(re.finditer(f"({_NUMBER})".join(parts), text))
        if len(there) != 1:
            wrong.append(
                f"{f'{len(there)} places in the page are' if there else 'nothing in the page is'} like: {claim.template!r}"
            )
        elif len(parts) - 1 != len(claim.values):
            wrong.append(f"{len(claim.values)} numbers for {claim.template!r}")
        elif not claim.holds:
            wrong.append(f"it is no longer so: {claim.template!r}")
        else:
            (match,) = there
            found += [Number(*match.span(i), match[i], value) for i, value in enumerate(claim.values, 1)]
            if not claim.values:
                found.append(Number(*match.span(), match[0], match[0]))
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def written(page: str, text: str) -> str:
    """A page with the numbers that the files of results have.

    Raises:
        ValueError: see `numbers`.
        KeyError: it asks for a table that there is not.
    """
    text = _MADE.sub(lambda match: f"{match[1]}{MADE[match[2]]()}\n{match[4]}", text)
    claims = CLAIMS.get(page, list)()
    for number in sorted(numbers(text, claims), key=lambda n: -n.start):
        text = text[: number.start] + number.right + text[number.end :]
    return text


def facts_of(page: str, text: str) -> list[str]:
    """Its words with numbers that nobody here measured: `FACTS`, and `<!-- not measured here: 0.05; 90 % -->` in the page."""
    own = [fact.strip() for match in _ASIDE.finditer(text) for fact in match[1].split(";")]
    return [*FACTS.get(page, ()), *own]


def unclaimed(page: str, text: str) -> list[str]:
    """What looks like a measured number in a page and comes from no file of results: with the words around it.

    A number comes from one if a claim says so, or if its section names a file that has it.
    """
    facts = facts_of(page, text)
    if "" in facts:
        return []
    hidden = [match.span() for match in _CODE.finditer(text)] + [match.span() for match in _MADE.finditer(text)]
    hidden += [(n.start, n.end) for n in numbers(text, CLAIMS.get(page, list)())]
    for fact in facts:
        hidden += [match.span() for match in re.finditer(re.sub(r"(\\ )+", r"\\s+", re.escape(fact)), text)]
    found = []
    for match in MEASURED.finditer(text):
        if not any(start < match.end() and match.start() < end for start, end in hidden):
            if _is_in_a_named_file(text, match):
                continue
            found.append(" ".join(text[max(match.start() - 40, 0) : match.end() + 30].split()))
    return found


def _is_in_a_named_file(text: str, match: re.Match[str]) -> bool:
    """Whether its section names a file of results that has it: as it is, as a share or what lacks to 1, in k, M or G."""
    section = _section(text, match, _PARAGRAPH)
    if "tests/benchmarks/results/" not in section:
        section = _section(text, match, _HEADING)
    token = re.search(rf"{_NUMBER}$", text[: _end_of_number(text, match)])
    if token is None:
        return False
    shown = token[0].replace(",", "")
    power = _POWER.match(text, _end_of_number(text, match))
    exponent = int(power[1].translate(_SUPERSCRIPT)) if power else 0
    number, digits = float(f"{shown}e{exponent}"), len(shown.partition(".")[2]) - exponent
    for name in set(re.findall(r"tests/benchmarks/results/([\w-]+)\.json", section)) & set(results.names()):
        for value in _values(results.result(name)):
            several = (abs(value), 100 * abs(value), 100 * (1 - value), value / 1e3, value / 1e6, value / 1e9)
            if any(abs(number - x) <= (0.5 + 1e-6) * 10.0**-digits for x in several):
                return True
    return False


def _section(text: str, match: re.Match[str], begins: re.Pattern[str]) -> str:
    start = max((m.start() for m in begins.finditer(text, 0, match.start())), default=0)
    after = begins.search(text, match.end())
    return text[start : after.start() if after else len(text)]


def _end_of_number(text: str, match: re.Match[str]) -> int:
    """Where the digits of what looks like a measurement end, its unit left out."""
    whole = re.compile(r"[\d,.]*\d").match(text, match.start())
    return whole.end() if whole else match.end()


def _values(value: object) -> Iterable[float]:
    """Every number in a file of results, and the means of its lists and over its seeds."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _values(inner)
        if len(value) > 1 and all(key.isdigit() for key in value):  # a seed each
            yield from _values(_mean(list(value.values())))
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
        if value and all(isinstance(inner, int | float) for inner in value):
            yield sum(value) / len(value)


def _mean(runs: list[object]) -> object:
    """Of numbers, or of what tables of numbers have at the same place; nothing of anything else."""
    if all(isinstance(run, int | float) for run in runs):
        return sum(map(float, cast("list[float]", runs))) / len(runs)
    tables = [run for run in runs if isinstance(run, dict)]
    if len(tables) < len(runs):
        return None
    return {key: _mean([table[key] for table in tables]) for key in tables[0] if all(key in table for table in tables)}


def main() -> int:
    """Write all pages; gives the exit status."""
    status = 0
    for page in pages():
        path = pathlib.Path(ROOT / page)
        before = path.read_text(encoding="utf-8")
        try:
            after = written(page, before)
        except ValueError as error:
            sys.stderr.write(f"{page}: {error}\n")
            status = 1
            continue
        if after != before:
            path.write_text(after, encoding="utf-8")
            sys.stdout.write(f"{page}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
