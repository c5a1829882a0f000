"""What a page claims, and how numbers of results are written."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """A piece of a page.

    Args:
        template: its words, with {} for each number; white space stands for any.
        values: the numbers, as they are to be written.
        holds: for words that say something about numbers: whether it is so.
    """

    template: str
    values: tuple[str, ...] = ()
    holds: bool = True


def said(template: str, *values: str) -> Claim:
    """Words with numbers in them."""
    return Claim(template, values)


def so(words: str, holds: Any) -> Claim:
    """Words that are true of the numbers, or not."""
    return Claim(words, (), bool(holds))


def percent(share: float, digits: int = 1) -> str:
    """0.9605 -> "96.1", whatever binary fraction that is; without the sign."""
    return f"{100 * share + 1e-9:.{digits}f}"


def ratio(value: float, digits: int = 2) -> str:
    """1.025 -> "1.03"."""
    return f"{value + 1e-9:.{digits}f}"


def whole(value: float) -> str:
    """65536 -> "65,536"."""
    return f"{value:,.0f}"
