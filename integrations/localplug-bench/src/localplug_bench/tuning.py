"""Options by Optuna: every way of training, backpropagation among them, gets as many trials of the same budget.

A trial is a whole run, judged on validation examples by the same rule of early stopping, with a seed of its own. Trials are
lines in the file of runs, so that a search that was cut off goes on where it was, and finds what it would have found: the
sampler of each trial is seeded by the search and the trial's number, and sees the trials before it.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import optuna

from localplug import Task
from localplug_bench.pairing import alternate
from localplug_bench.records import Records, key_of
from localplug_bench.specs import Choice, Range, Spec
from localplug_bench.training import Plan, Training

SEED = 10_000  # of all trials
LR = Range(1e-5, 1e-1)  # of every way of training, where the user says nothing about lr


def space(spec: Spec) -> dict[str, Range | Choice]:
    """What a search chooses: the ranges that were given, and lr if it was not."""
    return {**({} if "lr" in spec.options else {"lr": LR}), **spec.ranges}


def share(task: Task, quality: float, start: float) -> float:
    """How much of the way from an untrained model's quality to a perfect one was made; at most 1."""
    return (quality - start) / (task.perfect - start) if task.perfect != start else 0.0


@final
class Search:
    """A search for the options of one way of training, on one task, or on several for one setting that serves all.

    Args:
        tasks: {what the user typed: the task}.
        spec: with ranges.
        trials: how many settings are tried.
        records: of the runs; trials are lines in it, too.
    """

    def __init__(self, tasks: Mapping[str, Task], spec: Spec, trials: int, plan: Plan, records: Records) -> None:
        self.tasks, self.spec, self.trials, self.records = tasks, spec, trials, records
        self.plan = plan = dataclasses.replace(plan, observe=None)
        budgets = [(plan.budget_of(task), plan.batch_size_of(task)) for task in tasks.values()]
        self.key = key_of(tasks=list(tasks), spec=str(spec), trials=trials, plan=str(plan), budgets=budgets)
        self.space = space(spec)

    @property
    def past(self) -> list[dict[str, Any]]:
        """The trials that are done, in order."""
        found = {
            line["number"]: line for line in self.records if line.get("kind") == "trial" and line["key"] == self.key
        }
        return [found[number] for number in range(len(found)) if number in found]

    def best(self) -> Spec:
        """The spec with the options of the best trial.

        Raises:
            ValueError: no trial came to a finite quality.
        """
        done = [line for line in self.past if line["value"] is not None]
        if not done:
            raise ValueError(f"none of {self.trials} trials of {self.spec} came to a finite quality")
        return self.spec.chosen(max(done, key=lambda line: line["value"])["chosen"])

    def run(self) -> Iterator[None]:
        """Make the trials that are not done; yields after each lap.

        Raises:
            Unsupported, TypeError, ValueError: this way cannot train the task.
        """
        past = self.past if self.space else []
        for number in range(len(past), self.trials if self.space else 0):
            chosen = self._asked(self.past, number)
            values, qualities = [], {}
            for name, task in self.tasks.items():
                training = Training(task, self.spec.chosen(chosen), SEED, self.plan)
                for _ in alternate([training], self.plan):
                    yield
                found = training.finished(with_test=False)
                qualities[name] = found["quality_validation"]
                values.append(share(task, found["quality_validation"], found["quality_start"]))
            value = sum(values) / len(values)
            self.records.add(
                {
                    "kind": "trial",
                    "key": self.key,
                    "number": number,
                    "tasks": list(self.tasks),
                    "method": self.spec.name,
                    "spec": str(self.spec),
                    "chosen": chosen,
                    "value": value,
                    "qualities": qualities,
                }
            )

    def _asked(self, past: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
        """What the sampler tries after these trials."""
        sampler = optuna.samplers.TPESampler(
            seed=zlib.crc32(f"{self.key} {number}".encode()), n_startup_trials=min(10, math.ceil(self.trials / 3))
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = {name: _distribution(value) for name, value in self.space.items()}
        for line in past:
            is_fine = line["value"] is not None
            study.add_trial(
                optuna.trial.create_trial(
                    params=line["chosen"],
                    distributions=distributions,
                    value=line["value"],
                    state=optuna.trial.TrialState.COMPLETE if is_fine else optuna.trial.TrialState.FAIL,
                )
            )
        return dict(study.ask(distributions).params)


def _distribution(value: Range | Choice) -> optuna.distributions.BaseDistribution:
    if isinstance(value, Choice):
        return optuna.distributions.CategoricalDistribution(value.values)
    if value.is_whole:
        return optuna.distributions.IntDistribution(int(value.low), int(value.high), log=value.low > 0)
    return optuna.distributions.FloatDistribution(value.low, value.high, log=value.is_log)
