"""A linear or mixed-integer program as data: what a model's text is read into, and what a solver is given.

    maximise or minimise   c x + c_0    so that   A x <= / >= / = b,   x >= 0 unless free,   some x whole numbers

Nothing here runs what it is given. Whatever could cost more than a moment is limited before it is built: `Limits`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, final

Comparison = Literal["<=", ">=", "="]


@final
@dataclasses.dataclass(frozen=True)
class Limits:
    """How large a program may be, and how long it may be worked on.

    Args:
        characters: of the text.
        variables, constraints: how many.
        number: no number's absolute value is larger, and none but 0 is smaller than its inverse: what a solver does with
            numbers of very different size is not to be relied on.
        nodes: of the search tree of whole numbers; the limit that is meant, as it gives the same verdict on every machine.
        seconds: of the solver; the limit for the case that nodes take long.
    """

    characters: int = 20_000
    variables: int = 200
    constraints: int = 400
    number: float = 1e7
    nodes: int = 10_000
    seconds: float = 5.0


class ProgramError(ValueError):
    """A text is no program, or one beyond the limits; says why, and where."""


@final
@dataclasses.dataclass(frozen=True)
class Expression:
    """sum of coefficient times variable, and a constant."""

    terms: Mapping[str, float]
    constant: float = 0.0

    def value(self, values: Mapping[str, float]) -> float:
        """At these values of the variables."""
        return self.constant + sum(number * values[name] for name, number in self.terms.items())


@final
@dataclasses.dataclass(frozen=True)
class Constraint:
    """sum of terms, compared with a number."""

    terms: Mapping[str, float]
    comparison: Comparison
    bound: float


@final
@dataclasses.dataclass(frozen=True)
class Program:
    """The whole of it.

    Args:
        is_max: whether the objective is maximised.
        objective: what is.
        constraints: in their order.
        whole: variables that take whole numbers.
        free: variables that may be negative.
        answers: {what it is called: an expression}, numbers that the problem asks for.
    """

    is_max: bool
    objective: Expression
    constraints: tuple[Constraint, ...]
    whole: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    answers: Mapping[str, Expression] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> list[str]:
        """Every name in it, in the order in which it comes first."""
        found = dict.fromkeys(self.objective.terms)
        for terms in [c.terms for c in self.constraints] + [e.terms for e in self.answers.values()]:
            found |= dict.fromkeys(terms)
        return list(found | dict.fromkeys(sorted(self.whole | self.free)))


def checked(program: Program, limits: Limits) -> Program:
    """The program itself.

    Raises:
        ProgramError: it is beyond the limits, or has no variable.
    """
    variables = program.variables
    for what, num, most in (
        ("variables", len(variables), limits.variables),
        ("constraints", len(program.constraints), limits.constraints),
        ("answers", len(program.answers), limits.variables),
    ):
        if num > most:
            raise ProgramError(f"it has {num} {what}, at most {most} are allowed")
    if not variables:
        raise ProgramError("it has no variable")
    numbers = [(program.objective.constant, "the objective")]
    numbers += [(v, f"the objective, at {name}") for name, v in program.objective.terms.items()]
    for i, c in enumerate(program.constraints, 1):
        numbers += [(c.bound, f"constraint {i}"), *((v, f"constraint {i}, at {name}") for name, v in c.terms.items())]
    for title, answer in program.answers.items():
        numbers += [(v, f"answer {title!r}") for v in (answer.constant, *answer.terms.values())]
    for number, where in numbers:
        if number != 0 and not 1 / limits.number <= abs(number) <= limits.number:
            raise ProgramError(
                f"{where}: numbers are 0, or from {1 / limits.number:g} to {limits.number:g} in size, got {number:g}"
            )
    return program
