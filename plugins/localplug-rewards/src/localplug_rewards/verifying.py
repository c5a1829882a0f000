"""Is a written program right? A solver says: its optimum is compared with the one that is known.

    Tolerance(relative=0.05)           |v - v*| <= 0.05 |v*|    of the objective; as OptMATH judges (arXiv:2502.11102)
    Tolerance(absolute=1e-4)           every number that is asked for; as OptiBench judges (arXiv:2407.09887)

The optimum alone is compared: a program that has it for another reason, "max x; x <= 1160", passes too, as it does in
both papers. Whoever trains for this reward should look at what is written, and keep another loss beside it.
"""

import dataclasses
from collections.abc import Mapping
from typing import final

from localplug_rewards import reading
from localplug_rewards.program import Limits, Program, ProgramError
from localplug_rewards.solving import Solution, solve

Wanted = float | Mapping[str, float]


@final
@dataclasses.dataclass(frozen=True)
class Tolerance:
    """|v - v*| <= relative |v*| + absolute."""

    relative: float = 0.0
    absolute: float = 1e-6

    def holds(self, value: float, wanted: float) -> bool:
        """Whether a number is near enough."""
        return abs(value - wanted) <= self.relative * abs(wanted) + self.absolute


OPTMATH = Tolerance(relative=0.05)
OPTIBENCH = Tolerance(absolute=1e-4)


@final
@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a text is worth.

    Args:
        reward: 1 if it is right, else 0, or the credit for what it is at least.
        reason: in words.
        value: the optimum of the text's program, if it has one.
    """

    reward: float
    reason: str
    value: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether it is."""
        return self.reason == "right"


@final
class Verifier:
    """From a text and the known answer to a reward in [0, 1], with the reason; it never raises for a text, and runs
    nothing in it.

    A text that is no program, beyond the limits, infeasible, unbounded or not solved within the limits has a reward of 0.

    Args:
        tolerance: of every number that is compared. conversions: whether it is also right if it would be with all
        variables whole numbers, or with none (OptMATH does that). credit: (a text that is a program, a program that has
        an optimum): what each is worth, 0 <= first <= second < 1. Steps on
            the way for training, which a score of right and wrong alone hardly moves; 0 for judging.
        limits: of the text and the solver.

    Raises:
        ValueError: credit is out of its range.

    Example:
        >>> verify = Verifier()
        >>> verify("max 3 x; x <= 4", 12.0)
        Verdict(reward=1.0, reason='right', value=12.0)
        >>> verify("max 3 x; x >= 4", 12.0).reason
        'it has no optimum: unbounded'
        >>> verify("__import__('os').abort()", 12.0).reason[:38]
        'it is no program: line 1: a constraint'
    """

    def __init__(
        self,
        tolerance: Tolerance = OPTMATH,
        *,
        conversions: bool = False,
        credit: tuple[float, float] = (0.0, 0.0),
        limits: Limits | None = None,
    ) -> None:
        if not 0 <= credit[0] <= credit[1] < 1:
            raise ValueError(f"credit must be two numbers, 0 <= first <= second < 1, got {credit}")
        self.tolerance, self.conversions, self.credit = tolerance, conversions, credit
        self.limits = Limits() if limits is None else limits

    def __call__(self, text: str, wanted: Wanted) -> Verdict:
        """
        Args:
            wanted: the optimum of the objective; or {name: number} of all that is asked for, where the text has to give each
                by a line `answer NAME = ...` (capitals and spaces at the ends do not count).
        """
        try:
            program = reading.program(text, self.limits)
        except ProgramError as error:
            return Verdict(0.0, f"it is no program: {error}")
        solution = solve(program, self.limits)
        if (reason := self._wrong(program, solution, wanted)) is None:
            return Verdict(1.0, "right", solution.value)
        if self.conversions:
            for whole in (frozenset(program.variables), frozenset[str]()):
                if whole != program.whole:
                    other = solve(program, self.limits, whole)
                    if self._wrong(program, other, wanted) is None:
                        return Verdict(1.0, "right", other.value)
        return Verdict(self.credit[solution.status == "optimal"], reason, solution.value)

    def _wrong(self, program: Program, solution: Solution, wanted: Wanted) -> str | None:
        if solution.status != "optimal" or solution.value is None:
            return f"it has no optimum: {solution.status}"
        if not isinstance(wanted, Mapping):
            if self.tolerance.holds(solution.value, wanted):
                return None
            return f"its optimum is {solution.value:g} instead of {wanted:g}"
        given = {title.lower(): answer for title, answer in program.answers.items()}
        for name, number in wanted.items():
            answer = given.get(name.strip().lower())
            if answer is None:
                return f"it gives no answer {name!r}"
            if not self.tolerance.holds(value := answer.value(solution.values), number):
                return f"{name} is {value:g} instead of {number:g}"
        return None
