"""The optimum of a program by HiGHS (Huangfu, Hall, 2018), through scipy.optimize.milp, within limits."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, final

import numpy

from localplug_rewards.program import Limits, Program

Status = Literal["optimal", "infeasible", "unbounded", "limit", "failed"]
_STATUS: dict[int, Status] = {0: "optimal", 1: "limit", 2: "infeasible", 3: "unbounded"}


@final
@dataclasses.dataclass(frozen=True)
class Solution:
    """What the solver found.

    Args:
        status: "optimal"; "infeasible"; "unbounded"; "limit", nodes or seconds ran out; "failed".
        value: of the objective, if it is optimal.
        values: of the variables, then; of whole numbers, rounded.
    """

    status: Status
    value: float | None = None
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)


_DEFAULT = Limits()


def solve(program: Program, limits: Limits = _DEFAULT, whole: frozenset[str] | None = None) -> Solution:
    """The optimum; its gap is closed to 0.

    Args:
        program: within the limits, as `reading.program` gives it.
        whole: other variables that take whole numbers than the program says.

    Example:
        >>> from localplug_rewards import reading
        >>> solve(reading.program("max 3 x + 2 y; x + y <= 4.5; x + 3 y <= 6; int x")).value
        13.0
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]

    names = program.variables
    place = {name: i for i, name in enumerate(names)}
    sign = -1.0 if program.is_max else 1.0
    c, A = numpy.zeros(len(names)), numpy.zeros((len(program.constraints), len(names)))
    for name, number in program.objective.terms.items():
        c[place[name]] = sign * number
    low, high = numpy.full(len(A), -numpy.inf), numpy.full(len(A), numpy.inf)
    for row, constraint in enumerate(program.constraints):
        for name, number in constraint.terms.items():
            A[row, place[name]] = number
        if constraint.comparison in ("<=", "="):
            high[row] = constraint.bound
        if constraint.comparison in (">=", "="):
            low[row] = constraint.bound
    whole = program.whole if whole is None else whole
    least = numpy.array([-numpy.inf if name in program.free else 0.0 for name in names])

    def found(objective: numpy.ndarray) -> tuple[Status, Any]:
        try:
            result = milp(
                objective,
                integrality=numpy.array([int(name in whole) for name in names]),
                bounds=Bounds(least, numpy.inf),
                constraints=LinearConstraint(A, low, high) if len(A) else None,
                options={"time_limit": limits.seconds, "node_limit": limits.nodes, "mip_rel_gap": 0.0},
            )
        except ValueError:  # scipy refuses what it does not understand; nothing that `checked` lets pass is known to
            return "failed", None
        if result.status == 4 and "limit" in result.message:  # of nodes; scipy knows that of time alone
            return "limit", None
        if result.status == 4 and "unbounded or infeasible" in result.message:
            is_feasible = objective.any() and found(numpy.zeros_like(objective))[0] == "optimal"
            return ("unbounded" if is_feasible else "infeasible"), None
        return _STATUS.get(result.status, "failed"), result.x

    status, at = found(c)
    if status != "optimal" or at is None:
        return Solution("failed" if status == "optimal" else status)
    values = {name: float(x) for name, x in zip(names, at, strict=True)}
    values |= {name: float(round(values[name])) for name in whole if name in values}
    return Solution("optimal", program.objective.value(values), values)
