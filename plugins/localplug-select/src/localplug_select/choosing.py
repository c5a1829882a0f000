"""Which units should be trained? A choice by scores, with or without a few trials."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

import localplug
from localplug import Unit
from localplug_select.chosen import ChosenUnits
from localplug_select.combination import combine
from localplug_select.scores import SCORES, Score, Scoring

MOST = 100_000  # sets of units that are compared


def choose(
    model: nn.Module,
    loss: Callable[[], Tensor],
    num: int = 1,
    *,
    scores: Sequence[str | Score] = ("gradient",),
    observe: Callable[[Sequence[str]], float] | None = None,
    budget: int = 10,
    kind: Literal["layer", "block"] = "block",
    units: Sequence[str] | None = None,
    eps: float = 1e-3,
    num_probes: int = 8,
    seed: int = 0,
) -> ChosenUnits:
    """Choose the units that are worth training, by forward passes alone.

    Without `observe` there is one score, and the units that have the most of it are chosen. With it several scores are
    combined: a set's score is the sum of its units', and the weights of the scores are searched for with `budget` observations
    (RoBoT). Units without trainable weights (pooling, activations, frozen layers) are never among them. The weights are not
    written.

    Args:
        model: whose trainable parameters can be chosen.
        loss: () -> the loss of one fixed batch, a scalar; some dozens of representative examples.
        num: of the units to choose, >= 1.
        scores: names of localplug_select.SCORES, or callables of a localplug_select.Scoring that give a number for each unit.
        observe: names of parameters -> what their training alone gains, higher is better, such as localplug_select.Trial.
        budget: sets of units that may be observed, >= 1; without effect where there are fewer sets.
        kind: what a unit is; see localplug.partition.
        units: names of the modules that start a unit, in the place of `kind`.
        eps, num_probes, seed: see localplug_select.Scoring.

    Raises:
        ValueError: an option is out of range, or there are several scores and nothing to weigh them by; lists all reasons.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
        >>> chosen = choose(model, lambda: torch.nn.functional.cross_entropy(model(x), y), kind="layer")
        >>> method = localplug.method("mezo", parameters=chosen.parameters)

    Reference: He, Dai, Bansal, Low: Robustifying and Boosting Training-Free Neural Architecture Search, ICLR 2024,
        arXiv:2403.07591; there the candidates are architectures.
    """
    found = candidates(model, kind=kind, units=units)
    functions = {s if isinstance(s, str) else s.__name__: SCORES.get(s) if isinstance(s, str) else s for s in scores}
    wrong = [f"there is no score {name!r}; there are {', '.join(SCORES)}" for name, s in functions.items() if s is None]
    if not 1 <= num <= len(found):
        wrong.append(f"num must be in [1, {len(found)}], the number of units that can be trained, got {num!r}")
    elif observe is not None and math.comb(len(found), num) > MOST:
        wrong.append(f"{len(found)} units have more than {MOST:,} sets of {num}; choose fewer, or larger units")
    if not scores or (len(functions) > 1 and observe is None):
        wrong.append(f"give one score, or observe= to weigh several by, got scores={list(functions)}")
    if not (eps > 0 and num_probes >= 1 and budget >= 1):
        wrong.append(f"eps must be positive, num_probes and budget at least 1, got {eps!r}, {num_probes!r}, {budget!r}")
    if wrong:
        raise ValueError("choose: " + "; ".join(wrong))
    scoring = Scoring(model, found, loss, eps=eps, num_probes=num_probes, seed=seed)
    values = {name: [float(v) for v in score(scoring)] for name, score in functions.items() if score is not None}
    sets = list(itertools.combinations(range(len(found)), num)) if observe is not None else []
    if observe is None:
        (row,) = values.values()
        order = sorted(range(len(found)), key=lambda k: (-row[k] if row[k] == row[k] else math.inf, k))
        best, weights, observed = tuple(sorted(order[:num])), dict.fromkeys(values, 1.0), {}
    else:
        seen = observe
        normal = [_normalised(row) for row in values.values()]
        outcome = combine(
            [[sum(row[k] for k in some) for some in sets] for row in normal],
            lambda number: seen(_parameters(scoring, [found[k] for k in sets[number]])),
            budget=budget,
            seed=seed,
        )
        best, weights = sets[outcome.best], dict(zip(values, outcome.weights, strict=True))
        observed = {tuple(found[k].name for k in sets[c]): value for c, value in outcome.observed.items()}
    chosen = [found[k] for k in best]
    return ChosenUnits(
        tuple(unit.name for unit in chosen),
        tuple(_parameters(scoring, chosen)),
        {name: dict(zip((u.name for u in found), row, strict=True)) for name, row in values.items()},
        weights,
        observed,
    )


def candidates(
    model: nn.Module, *, kind: Literal["layer", "block"] = "block", units: Sequence[str] | None = None
) -> list[Unit]:
    """The units that have trainable weights, in the order of the model; of a tied weight the first that has it."""
    found, taken = [], set[nn.Parameter]()
    for unit in localplug.partition(model, units, kind=kind):
        if any(p not in taken for p in unit.parameters):
            found.append(unit)
        taken.update(unit.parameters)
    return found


def _parameters(scoring: Scoring, units: Sequence[Unit]) -> list[str]:
    return list(dict.fromkeys(name for unit in units for name in scoring.names(unit)))


def _normalised(row: Sequence[float]) -> list[float]:
    """To [0, 1] over the units, so that a set's sum has no unit that outweighs the others by its scale alone."""
    values = torch.tensor(row, dtype=torch.float64)
    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    return [(v - low) / (high - low) if math.isfinite(v) and high > low else 0.0 for v in row]
