"""When a layer learns: all of them in every step, or one after the other."""

from typing import Literal

from localplug import Run, Unit

Schedule = Literal["simultaneous", "sequential"]


def problems(schedule: str, unit_steps: int | None) -> list[str]:
    """What is wrong with these options."""
    wrong = []
    if schedule not in ("simultaneous", "sequential"):
        wrong.append(f'schedule must be "simultaneous" or "sequential", got {schedule!r}')
    if (schedule == "sequential") != (unit_steps is not None):
        wrong.append("unit_steps (optimizer steps of each unit) goes with schedule='sequential', and is needed there")
    if unit_steps is not None and not unit_steps >= 1:
        wrong.append(f"unit_steps must be at least 1, got {unit_steps!r}")
    return wrong


def has_turn(unit: Unit, run: Run, unit_steps: int | None) -> bool:
    """Whether a unit learns in this step; the last one goes on learning when all have had their turn."""
    if unit_steps is None:
        return True
    turn = run.step // unit_steps
    return unit.index == turn or (unit.is_last and turn > unit.index)


def describe(unit_steps: int | None) -> str:
    """The schedule in words."""
    return f"one unit after the other, {unit_steps} steps each" if unit_steps else "all units in every step"
