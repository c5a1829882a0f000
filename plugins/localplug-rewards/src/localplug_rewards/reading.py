"""From a model's text to a program: a small language of lines, or JSON. Parsed by hand; nothing in it is ever run.

    max 3 x + 2 y              or min; one of them, once
    x + y <= 4                 <=, >=, =, expressions on both sides
    2 x >= y - 1
    int y                      whole numbers
    free z                     may be negative; all others may not
    answer trips = x + y       a number that the problem asks for, by its name
    # a remark

A term is a number, a name, or both with * or nothing between. Lines may be separated by ; as well. The same in JSON:

    {"max": {"x": 3, "y": 2}, "constraints": [{"terms": {"x": 1, "y": 1}, "<=": 4}], "int": ["y"],
     "answers": {"trips": {"x": 1, "y": 1}}}

with "constant" in the place of a name for a number that stands alone.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from localplug.strict_json import parse
from localplug_rewards.program import Comparison, Constraint, Expression, Limits, Program, ProgramError, checked

_NUMBER = r"(\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE]([+-]?\d{1,3}))?"
_TERM = re.compile(rf"([+-]?)\s*(?:{_NUMBER})?\s*(\*?)\s*([A-Za-z_]\w{{0,31}})?\s*")
_NAME = re.compile(r"[A-Za-z_]\w{0,31}")
_COMPARISON = re.compile(r"<=|>=|==|=|<|>")
_WORDS = {"max": True, "maximize": True, "maximise": True, "min": False, "minimize": False, "minimise": False}
_DEFAULT = Limits()


def program(text: str, limits: Limits = _DEFAULT) -> Program:
    """The program that a text says; JSON if it begins with a brace.

    Raises:
        ProgramError: it is none, or one beyond the limits; says why.

    Example:
        >>> found = program("max 3 x + 2 y; x + y <= 4; int y")
        >>> found.is_max, dict(found.objective.terms), found.constraints[0].bound, sorted(found.whole)
        (True, {'x': 3.0, 'y': 2.0}, 4.0, ['y'])
    """
    if len(text) > limits.characters:
        raise ProgramError(f"it has {len(text)} characters, at most {limits.characters} are allowed")
    return checked(_of_json(text) if text.lstrip().startswith("{") else _of_lines(text, limits), limits)


def _of_lines(text: str, limits: Limits) -> Program:
    goal: tuple[bool, Expression] | None = None
    constraints: list[Constraint] = []
    whole: set[str] = set()
    free: set[str] = set()
    answers: dict[str, Expression] = {}
    for number, whole_line in enumerate(re.split(r"[;\n]", text), 1):
        line = whole_line.split("#", 1)[0].strip()
        if not line:
            continue
        if len(constraints) > limits.constraints:
            raise ProgramError(f"at most {limits.constraints} constraints are allowed")
        word, _, rest = line.partition(" ")
        word = word.lower()
        try:
            if word in _WORDS:
                if goal is not None:
                    raise ProgramError("a second objective")
                goal = _WORDS[word], _expression(rest)
            elif word in ("int", "free"):
                (whole if word == "int" else free).update(_names(rest))
            elif word == "answer":
                title, equals, expression = rest.partition("=")
                if not (equals and title.strip()):
                    raise ProgramError("an answer is NAME = EXPRESSION")
                _put(answers, title.strip(), _expression(expression))
            else:
                constraints.append(_constraint(line))
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from None
    if goal is None:
        raise ProgramError("it has no objective, a line that begins with max or min")
    return Program(*goal, tuple(constraints), frozenset(whole), frozenset(free), answers)


def _expression(text: str) -> Expression:
    """Terms from left to right, each read once."""
    terms: dict[str, float] = {}
    constant, at, text = 0.0, 0, text.strip()
    if not text:
        raise ProgramError("an expression is empty")
    while at < len(text):
        match = cast(re.Match[str], _TERM.match(text, at))
        sign, digits, exponent, times, name = match.groups()
        is_term = bool(digits and name) if times else bool(digits or name)
        if not is_term or (at > 0 and not sign):
            raise ProgramError(f"a term, such as + 2 x, was expected at {text[at : at + 20]!r}")
        value = (-1.0 if sign == "-" else 1.0) * (float(f"{digits}e{exponent or 0}") if digits is not None else 1.0)
        if name is None:
            constant += value
        else:
            terms[name] = terms.get(name, 0.0) + value
        at = match.end()
    return Expression(terms, constant)


def _constraint(line: str) -> Constraint:
    found = _COMPARISON.findall(line)
    if len(found) != 1:
        raise ProgramError(f"a constraint compares once, by <=, >= or =, got {line[:60]!r}")
    left, right = (_expression(side) for side in _COMPARISON.split(line))
    terms = dict(left.terms)
    for name, value in right.terms.items():
        terms[name] = terms.get(name, 0.0) - value
    comparison = {"<": "<=", ">": ">=", "==": "="}.get(found[0], found[0])
    return Constraint(terms, cast(Comparison, comparison), right.constant - left.constant)


def _names(text: str) -> list[str]:
    found = text.replace(",", " ").split()
    if wrong := [name for name in found if not _NAME.fullmatch(name)]:
        raise ProgramError(f"{wrong[0][:40]!r} is no name")
    return found


def _of_json(text: str) -> Program:
    try:
        whole = parse(text, "it")
    except ValueError as error:
        raise ProgramError(str(error)[:200]) from None
    known = {"max", "min", "constraints", "int", "free", "answers"}
    if unknown := sorted(set(whole) - known):
        raise ProgramError(f"it has {unknown[0][:40]!r}, which is none of {', '.join(sorted(known))}")
    goals = [key for key in ("max", "min") if key in whole]
    if len(goals) != 1:
        raise ProgramError(f"it has {len(goals)} objectives, max or min is wanted once")
    constraints = []
    for number, row in enumerate(_list(whole.get("constraints", []), "constraints"), 1):
        where = f"constraint {number}"
        comparisons = [c for c in ("<=", ">=", "=") if isinstance(row, dict) and c in row]
        if len(comparisons) != 1 or set(row) != {"terms", comparisons[0]}:
            raise ProgramError(f'{where}: {{"terms": {{...}}, "<=": NUMBER}} is wanted, or >= or =')
        left = _json_expression(row["terms"], where)
        bound = _number(row[comparisons[0]], where) - left.constant
        constraints.append(Constraint(left.terms, cast(Comparison, comparisons[0]), bound))
    answers: dict[str, Expression] = {}
    for title, expression in _mapping(whole.get("answers", {}), "answers").items():
        _put(answers, title.strip(), _json_expression(expression, f"answer {title[:40]!r}"))
    integer, free = (frozenset(_json_names(whole.get(key, []), key)) for key in ("int", "free"))
    objective = _json_expression(whole[goals[0]], "the objective")
    return Program(goals[0] == "max", objective, tuple(constraints), integer, free, answers)


def _put(answers: dict[str, Expression], title: str, expression: Expression) -> None:
    if title in answers:
        raise ProgramError(f"the answer {title[:40]!r} is given twice")
    answers[title] = expression


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProgramError(f"{what} must be a list")
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProgramError(f"{what} must be an object")
    return value


def _json_names(value: Any, what: str) -> list[str]:
    found = _list(value, what)
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in found):
        raise ProgramError(f"{what} must be a list of names")
    return found


def _json_expression(value: Any, where: str) -> Expression:
    terms = {key: _number(number, where) for key, number in _mapping(value, where).items()}
    constant = terms.pop("constant", 0.0)
    if wrong := [name for name in terms if not _NAME.fullmatch(name)]:
        raise ProgramError(f"{where}: {wrong[0][:40]!r} is no name")
    return Expression(terms, constant)


def _number(value: Any, where: str) -> float:
    """A finite number: JSON's own NaN, Infinity and integers of thousands of digits are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProgramError(f"{where}: a number is wanted")
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ProgramError(f"{where}: an integer of {value.bit_length()} bits")
    if not math.isfinite(value):
        raise ProgramError(f"{where}: a finite number is wanted, got {value}")
    return float(value)
