"""All runs of a bench: for each task and seed, every way of training beside backpropagation, what is done left out."""

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch

from localplug import LocalPlugError, Task, Unsupported
from localplug_bench import peak_memory
from localplug_bench.energy import meter
from localplug_bench.pairing import alternate, ratios
from localplug_bench.records import Records, key_of
from localplug_bench.specs import Spec
from localplug_bench.training import Plan, Training
from localplug_bench.tuning import Search, space
from localplug_bench.ways import BACKPROP


@final
@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compared, and how.

    Args:
        tasks: {what the user typed: the task}.
        specs: ways of training; the first named "backprop" is the twin of all others, and is added if there is none.
        seeds: of the runs.
        trials: settings that a search tries for each way; 0 for no search.
        protocol: "each" lets a search choose for each task, "fixed" one setting for all tasks.
        data: the folder of data sets, for the process that measures memory.
        costs: whether memory and operations are measured, in a process of its own for each way.
        watts: of a core, for an estimate of energy where there is no counter.
        threads: of torch, as they are set.
    """

    tasks: Mapping[str, Task]
    specs: Sequence[Spec]
    seeds: Sequence[int] = (0,)
    plan: Plan = dataclasses.field(default_factory=Plan)
    trials: int = 0
    protocol: Literal["each", "fixed"] = "each"
    data: str | None = None
    costs: bool = True
    watts: float | None = None
    threads: int | None = None

    @property
    def ways(self) -> list[Spec]:
        """The twin first."""
        twins = [spec for spec in self.specs if spec.name == BACKPROP] or [Spec(BACKPROP)]
        return [*twins, *(spec for spec in self.specs if spec.name != BACKPROP)]

    def key(self, task: str, way: Spec, seed: int) -> str:
        """Of one run. How often laps alternate is not a part of it."""
        made, plan = self.tasks[task], self.plan
        tasks = list(self.tasks) if self.trials and self.protocol == "fixed" else [task]
        return key_of(
            task=task,
            way=str(way),
            seed=seed,
            budget=plan.budget_of(made),
            batch_size=plan.batch_size_of(made),
            evaluations=plan.evaluations,
            patience=plan.patience,
            keep=plan.keep,
            device=plan.device,
            trials=self.trials,
            tasks=tasks,
            count=plan.count,
        )


@final
class Bench:
    """Makes the runs of a setting, and writes each into the file when it is over.

    Args:
        setting: what is compared.
        records: the file.
        tell: gets a line about each run that is over, or cannot be.
    """

    def __init__(self, setting: Setting, records: Records, tell: Callable[[str], None] = lambda line: None) -> None:
        self.setting, self.records, self.tell = setting, records, tell
        self._refused: dict[str, str] = {}  # spec -> why no setting could be searched for it

    def left(self) -> list[tuple[str, int, Spec]]:
        """(task, seed, way) of the runs that are not done."""
        s = self.setting
        done = {line["key"] for line in self.records if line.get("kind") == "run" and line.get("status") != "failed"}
        return [
            (task, seed, way)
            for task in s.tasks
            for seed in s.seeds
            for way in s.ways
            if s.key(task, way, seed) not in done
        ]

    @property
    def num_laps(self) -> int:
        """Laps that are left, about: those of runs and of trials."""
        s, left = self.setting, self.left()
        laps = s.plan.evaluations * s.plan.laps
        runs = sum(len(self._group([way for t, z, way in left if (t, z) == group])) for group in {x[:2] for x in left})
        trials = sum(s.trials - len(search.past) for search in self._searches(left) if search.space)
        return laps * (runs + trials)

    def _searches(self, left: Sequence[tuple[str, int, Spec]]) -> list[Search]:
        s = self.setting
        if not s.trials:
            return []
        ways = {str(way): way for _, _, way in left}
        if s.protocol == "fixed":
            return [Search(s.tasks, way, s.trials, s.plan, self.records) for way in ways.values()]
        pairs = {(task, str(way)): way for task, _, way in left}
        return [Search({t: s.tasks[t]}, way, s.trials, s.plan, self.records) for (t, _), way in pairs.items()]

    def _group(self, left: Sequence[Spec]) -> list[Spec]:
        """The twin trains again beside what is left, where its own run is done: time is compared between neighbours."""
        twin = self.setting.ways[0]
        return [twin, *(way for way in left if str(way) != str(twin))]

    def run(self) -> Iterator[None]:
        """Make the searches and the runs that are left; yields after each lap."""
        left = self.left()
        for search in self._searches(left):
            yield from self._searched(search)
        for task, seed in dict.fromkeys((task, seed) for task, seed, _ in left):
            yield from self._together(task, seed, [way for t, z, way in left if (t, z) == (task, seed)])

    def _searched(self, search: Search) -> Iterator[None]:
        try:
            yield from search.run()
        except (LocalPlugError, TypeError, ValueError) as error:
            self._refused[search.key] = str(error)

    def _chosen(self, task: str, way: Spec) -> Spec:
        """The way with what the search has found for it."""
        s = self.setting
        if not s.trials or not space(way):
            return way
        tasks = s.tasks if s.protocol == "fixed" else {task: s.tasks[task]}
        search = Search(tasks, way, s.trials, s.plan, self.records)
        if search.key in self._refused:
            raise Unsupported(self._refused[search.key])
        return search.best()

    def _together(self, task: str, seed: int, left: Sequence[Spec]) -> Iterator[None]:
        s = self.setting
        trainings: dict[str, Training] = {}
        for way in self._group(left):
            try:
                trainings[str(way)] = Training(
                    s.tasks[task], self._chosen(task, way), seed, s.plan, meter(s.plan.device, s.watts)
                )
            except (Unsupported, TypeError, ValueError) as error:
                self._write(task, seed, way, {"status": "refused", "reason": str(error)})
        twin = str(s.ways[0])
        for _ in alternate(list(trainings.values()), s.plan):
            yield
        for way in left:
            if str(way) not in trainings:
                continue
            training = trainings[str(way)]
            if training.status in ("failed", "refused"):
                self._write(task, seed, way, {"status": training.status, "reason": training.reason})
                continue
            paired = ratios(training, trainings[twin]) if twin in trainings else {}
            found = training.finished() | paired | self._costs(task, training.spec)
            self._write(task, seed, way, found, training)

    def _costs(self, task: str, chosen: Spec) -> dict[str, Any]:
        s = self.setting
        if not s.costs:
            return {}
        size = s.plan.batch_size_of(s.tasks[task])
        found: dict[str, Any] = {}
        for spec, names in ((str(chosen), COSTS), (peak_memory.INFERENCE, ("peak_bytes_inference",))):
            for line in self.records:  # an earlier run of the same has measured it
                same = (
                    line.get("task") == task and line.get("batch_size") == size and line.get("device") == s.plan.device
                )
                if same and line.get(names[0]) is not None and (spec in (line.get("spec"), peak_memory.INFERENCE)):
                    found |= {name: line.get(name) for name in names}
                    break
            else:
                try:
                    measured = peak_memory.measured(
                        task, s.data, spec, batch_size=size, device=s.plan.device, threads=s.threads
                    )
                except (RuntimeError, OSError) as error:
                    self.tell(str(error))
                    continue
                if spec == peak_memory.INFERENCE:
                    measured = {"peak_bytes_inference": measured["peak_bytes"]}
                found |= measured
        return found

    def _write(
        self, task: str, seed: int, way: Spec, found: Mapping[str, Any], training: Training | None = None
    ) -> None:
        s, made = self.setting, self.setting.tasks[task]
        chosen = way if training is None else training.spec
        line = {
            "kind": "run",
            "key": s.key(task, way, seed),
            "task": task,
            "way": str(way),
            "method": way.name,
            "spec": str(chosen),
            "options": dict(chosen.options),
            "is_backprop": way.name == BACKPROP,
            "seed": seed,
            "metric": made.metric,
            "higher_is_better": made.higher_is_better,
            "perfect": made.perfect,
            "budget": s.plan.budget_of(made),
            "batch_size": s.plan.batch_size_of(made),
            "evaluations": s.plan.evaluations,
            "patience": s.plan.patience,
            "keep": s.plan.keep,
            "count": s.plan.count,
            "protocol": s.protocol,
            "trials": s.trials,
            "device": s.plan.device,
            **_machine(s),
            **found,
        }
        if training is not None:
            parts = training.parts
            line |= {f"num_{name}": len(getattr(parts, name)) for name in ("train", "validation", "test")}
            if line.get("log_bytes_a_step") is not None:
                line["log_bytes"] = round(line["log_bytes_a_step"] * line["steps"])
        self.records.add(line)
        quality = line.get("quality_test")
        said = f"{made.metric} {quality:.4f}" if quality is not None else f"{line['status']}: {line.get('reason', '')}"
        self.tell(f"{task}, {way}, seed {seed}: {said}")


COSTS = (
    "peak_bytes",
    "loaded_bytes",
    "memory_kind",
    "saved_bytes",
    "flops_forward",
    "flops_step",
    "stored_bytes",
    "log_bytes_a_step",
)


def _machine(setting: Setting) -> dict[str, Any]:
    is_cuda = torch.device(setting.plan.device).type == "cuda"
    return {
        "machine": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "localplug": importlib.metadata.version("localplug"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
