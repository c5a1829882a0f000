"""Problems in words with the program that states them, from templates and a seed, solved when they are made.

    mix         make products from resources that there is so much of, for the largest profit
    diet        buy foods that have enough of everything, at the least cost
    knapsack    take things or leave them, for the largest value
    transport   ship from stores to shops, at the least cost

Four of the classic families that OptMATH (arXiv:2502.11102) makes its problems from; templates and numbers are this
package's own, and no language model wrote any of them.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import final

from localplug_rewards import reading
from localplug_rewards.solving import solve


@final
@dataclasses.dataclass(frozen=True)
class Problem:
    """A question, a program that states it, and the optimum.

    Args:
        question: in words.
        reference: the program, as `reading` reads it.
        wanted: its optimum.
    """

    question: str
    reference: str
    wanted: float


def problem(family: str, seed: int) -> Problem:
    """One problem of a family; the same for the same seed.

    Raises:
        ValueError: there is no such family.

    Example:
        >>> print(problem("knapsack", 3).reference)
        max 27 a + 12 b + 18 c + 21 d + 7 e
        8 a + 2 b + 3 c + 5 d + 3 e <= 11
        a <= 1
        b <= 1
        c <= 1
        d <= 1
        e <= 1
        int a b c d e
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    draw = random.Random(f"{family} {seed}")
    while True:
        question, lines = FAMILIES[family](draw)
        reference = "\n".join(lines)
        solution = solve(reading.program(reference))
        if solution.value is not None:
            return Problem(question, reference, solution.value)


def _sum(numbers: list[int], names: list[str]) -> str:
    return " + ".join(f"{number} {name}" for number, name in zip(numbers, names, strict=True))


def _several(draw: random.Random, low: int, high: int, num: int) -> list[int]:
    return [draw.randint(low, high) for _ in range(num)]


def _mix(draw: random.Random) -> tuple[str, list[str]]:
    names = ["x", "y", "z"][: draw.randint(2, 3)]
    profit = _several(draw, 2, 30, len(names))
    lines, said = [f"max {_sum(profit, names)}"], []
    for resource in draw.sample(["wood", "steel", "paint", "labour", "space"], draw.randint(2, 3)):
        need, there = _several(draw, 1, 9, len(names)), draw.randint(20, 90)
        lines.append(f"{_sum(need, names)} <= {there}")
        each = ", ".join(f"{number} for each {name}" for number, name in zip(need, names, strict=True))
        said.append(f"There are {there} units of {resource}: it takes {each}.")
    goal = ", ".join(f"{name} earns {number}" for name, number in zip(names, profit, strict=True))
    return f"A workshop makes products, also in part. {goal}. {' '.join(said)} What is the largest profit?", lines


def _diet(draw: random.Random) -> tuple[str, list[str]]:
    names = ["p", "q", "r"][: draw.randint(2, 3)]
    cost = _several(draw, 1, 12, len(names))
    lines, said = [f"min {_sum(cost, names)}"], []
    for nutrient in draw.sample(["iron", "fibre", "protein", "calcium"], draw.randint(2, 3)):
        has, least = _several(draw, 1, 9, len(names)), draw.randint(10, 60)
        lines.append(f"{_sum(has, names)} >= {least}")
        each = ", ".join(f"{name} has {number}" for number, name in zip(has, names, strict=True))
        said.append(f"At least {least} units of {nutrient} are needed; a unit of {each}.")
    goal = ", ".join(f"{name} costs {number}" for name, number in zip(names, cost, strict=True))
    return f"Foods can be bought in any amount. {goal}. {' '.join(said)} What is the least cost?", lines


def _knapsack(draw: random.Random) -> tuple[str, list[str]]:
    names = ["a", "b", "c", "d", "e"][: draw.randint(3, 5)]
    value, weight = (_several(draw, low, high, len(names)) for low, high in ((5, 30), (2, 9)))
    room = draw.randint(max(weight), sum(weight) - 1)
    lines = [f"max {_sum(value, names)}", f"{_sum(weight, names)} <= {room}", *(f"{name} <= 1" for name in names)]
    lines.append(f"int {' '.join(names)}")
    each = ", ".join(f"{n} weighs {w} and is worth {v}" for n, w, v in zip(names, weight, value, strict=True))
    return f"A bag holds {room}. Each thing is taken or left: {each}. What is the largest value?", lines


def _transport(draw: random.Random) -> tuple[str, list[str]]:
    need = _several(draw, 5, 20, 2)
    there = [draw.randint(5, sum(need) - 1)]
    there.append(sum(need) - there[0] + draw.randint(0, 9))
    names = [f"s{i}t{j}" for i in (1, 2) for j in (1, 2)]
    cost = _several(draw, 1, 9, 4)
    lines = [f"min {_sum(cost, names)}"]
    lines += [f"s{i}t1 + s{i}t2 <= {there[i - 1]}" for i in (1, 2)]
    lines += [f"s1t{j} + s2t{j} = {need[j - 1]}" for j in (1, 2)]
    each = ", ".join(f"{number} from store {n[1]} to shop {n[3]}" for number, n in zip(cost, names, strict=True))
    return (
        f"Stores 1 and 2 have {there[0]} and {there[1]} tons; shops 1 and 2 get exactly {need[0]} and {need[1]}. A ton costs "
        f"{each}. What is the least cost?",
        lines,
    )


FAMILIES: dict[str, Callable[[random.Random], tuple[str, list[str]]]] = {
    "mix": _mix,
    "diet": _diet,
    "knapsack": _knapsack,
    "transport": _transport,
}
