"""One run: steps up to a budget of forward passes, quality on validation examples on the way, one look at the test examples.

The same for every way of training: the model's first weights and the order of the examples are functions of the seed alone,
the quality is measured at equal shares of the budget, and a run stops early when `patience` measurements in a row bring
nothing. The weights of the best measurement are what is tested.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, final

import torch
from torch import Tensor

from localplug import Part, Task, Unsupported
from localplug.replay import RandomState, random_state, restore_random_state
from localplug.tasks import moved, seeded_state
from localplug_bench.clock import OBSERVATION, Clock
from localplug_bench.costs import passes_a_step
from localplug_bench.energy import Meter
from localplug_bench.observers import Observer
from localplug_bench.specs import Spec
from localplug_bench.ways import ByMethod, Way, way

BAD_STEPS = 20  # steps in a row with a loss that is not finite, after which a run has diverged


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs that are compared have in common.

    Args:
        budget: forward passes over a batch, a backward pass counting as two; None for the task's own.
        batch_size: None for the task's own.
        evaluations: how often quality is measured, at equal shares of the budget; at least 1.
        laps: turns of each run between two measurements; runs that are paired take turns.
        patience: measurements in a row without a better one, after which a run stops; None: never.
        count: what the budget counts: "passes" by the rule of `ways`, or "operations", which charges each step what its
            products and convolutions were measured to be, over those of a forward pass.
        keep: whether the weights of the "best" measurement are tested, or the "last" ones.
        device: "cpu" or "cuda".
        observe: steps from one whose estimate is compared with the true gradient to the next; None: no estimate is. It makes
            backward passes that no budget counts and no time of training holds.

    Raises:
        ValueError: a value is out of its range; lists all of them.
    """

    budget: int | None = None
    batch_size: int | None = None
    evaluations: int = 10
    laps: int = 2
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    device: str = "cpu"
    observe: int | None = None
    count: Literal["passes", "operations"] = "passes"

    def __post_init__(self) -> None:
        found = []
        for name in ("budget", "batch_size", "evaluations", "laps", "patience", "observe"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                found.append(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.keep not in ("best", "last"):
            found.append(f'keep must be "best" or "last", got {self.keep!r}')
        if self.count not in ("passes", "operations"):
            found.append(f'count must be "passes" or "operations", got {self.count!r}')
        if found:
            raise ValueError("; ".join(found))

    def budget_of(self, task: Task) -> int:
        """Forward passes of a run on a task."""
        return task.budget if self.budget is None else self.budget

    def batch_size_of(self, task: Task) -> int:
        """Examples of a step on a task."""
        return task.batch_size if self.batch_size is None else self.batch_size


@final
class Training:
    """A run in progress, lap by lap.

    Args:
        task: what is learned.
        spec: by what, with its options.
        seed: of the first weights, the order of examples, and the method.
        plan: how long, and how it is judged.
        meter: of energy, if there is one.

    Raises:
        Unsupported, UnknownName, TypeError, ValueError: see `ways.way`.
        FileNotFoundError, ImportError: the task's data or packages are missing.
    """

    def __init__(self, task: Task, spec: Spec, seed: int, plan: Plan, meter: Meter | None = None) -> None:
        self.task, self.spec, self.seed, self.plan = task, spec, seed, plan
        self.parts = task.parts(seed)
        with seeded_state(seed):
            self.way: Way = way(task, spec, seed, plan.device)
            self._random: RandomState = random_state()
        self.budget = plan.budget_of(task)
        self._measured: float | None = None
        if plan.count == "operations":
            self._measured = passes_a_step(
                task, spec, batch_size=plan.batch_size_of(task), device=plan.device, seed=seed
            )
        synchronize = torch.cuda.synchronize if torch.device(plan.device).type == "cuda" else None
        self.clock, self.evaluating = Clock(synchronize), Clock(synchronize)
        self.meter, self.joules = meter, 0.0
        self.laps: list[tuple[float, float]] = []
        """(forward passes counted, seconds) of each lap."""
        self.curve: list[dict[str, Any]] = []
        self.status, self.reason = "running", ""
        self._batches = self._order(self.parts.train)
        self._losses: list[Tensor] = []
        self._bad_steps, self._without_better = 0, 0
        self._best: tuple[float, int, dict[str, Any]] | None = None
        self._schedule = spec.own["schedule"]
        self._observer = self._observing() if plan.observe is not None else None
        self._observed: list[dict[str, float]] = []
        self.measure()

    def _observing(self) -> Observer:
        """On the first validation examples, as many as a batch has."""
        task, way, validation = self.task, self.way, self.parts.validation
        engine = way.engine if isinstance(way, ByMethod) else None
        size = min(self.plan.batch_size_of(task), len(validation))
        batch = moved(validation.batch(torch.arange(size)), self.plan.device)
        predicts = engine is not None and engine.method.predicting(engine.run) is not None
        observer = Observer(
            None if predicts else lambda: task.loss(way.model, batch),
            every=self.plan.observe or 1,
            within=lambda: self.clock(OBSERVATION),
        )
        observer.attach(way.model, way.optimizer, engine)
        return observer

    def _order(self, train: Part) -> Iterator[Any]:
        """Batches for ever, epoch after epoch in a new order; the last batch of an epoch may be short."""
        size, epoch = self.plan.batch_size_of(self.task), 0
        while True:
            generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
            for chosen in torch.randperm(len(train), generator=generator).split(size):
                yield train.batch(chosen)
            epoch += 1

    @property
    def used(self) -> float:
        """What of the budget is used up."""
        return self.way.passes.counted if self._measured is None else self._measured * self.way.num_steps

    @property
    def price(self) -> float:
        """What the next step takes of it."""
        return self.way.price if self._measured is None else self._measured

    @property
    def is_over(self) -> bool:
        """Whether it is of no use to go on."""
        return self.status != "running"

    def lap(self, until: float) -> None:
        """Train until so many forward passes are used up in all."""
        used, seconds = self.used, self.clock.total
        joules = None if self.meter is None else self.meter.joules()
        ours, restore_random_state_after = self._random, random_state()
        restore_random_state(ours)
        try:
            with self.clock.watching(), self.clock("framework"):
                while not self.is_over and self.used + self.price <= until:
                    self._step()
        finally:
            self._random = random_state()
            restore_random_state(restore_random_state_after)
        if self.meter is not None and joules is not None:
            self.joules += self.meter.joules() - joules
        self.laps.append((self.used - used, self.clock.total - seconds))

    def _step(self) -> None:
        with self.clock("data"):
            batch = moved(next(self._batches), self.plan.device)
        if self._schedule == "linear":
            self.way.decay(1 - self.used / self.budget)
        try:
            loss = self.way.step(batch, self.clock)
        except Unsupported as error:  # what only the first pass shows
            self.status, self.reason = "refused", str(error)
            return
        except Exception as error:  # a method that breaks in its hundredth step must not take the other runs with it
            self.status = "diverged" if self.way.num_dropped >= BAD_STEPS else "failed"
            self.reason = f"{type(error).__name__}: {error}"
            return
        self._losses.append(loss)
        if self._observer is not None and self._observer.found:
            self._observed.append(dict(self._observer.found))
        self._bad_steps = 0 if math.isfinite(loss) else self._bad_steps + 1
        if self._bad_steps >= BAD_STEPS:
            self.status, self.reason = "diverged", f"the loss of the last {BAD_STEPS} steps was not finite"

    def measure(self) -> None:
        """Quality on the validation examples now: a point of the curve, perhaps the best one, perhaps the last one."""
        if self.is_over and self.status != "diverged":
            return
        with self.evaluating("forward"):
            quality = self.task.quality(self.way.predictor, self.parts.validation, self.plan.device)
        losses = torch.stack(self._losses).float() if self._losses else torch.full((1,), math.nan)
        self._losses = []
        self.curve.append(
            {
                "step": self.way.num_steps,
                "forward_passes": self.used,
                "seconds": round(self.clock.total, 6),
                "quality": quality,
                "loss": float(losses.mean()),
            }
        )
        if self._observer is not None:
            names = dict.fromkeys(name for found in self._observed for name in found)
            several = {name: [found[name] for found in self._observed if name in found] for name in names}
            self.curve[-1]["observed"] = {name: sum(values) / len(values) for name, values in several.items()}
            self._observed = []
        is_better = self._best is None or self._is_better(quality, self._best[0])
        if is_better:
            self._best = (quality, self.way.num_steps, self.way.state() if self.plan.keep == "best" else {})
        self._without_better = 0 if is_better else self._without_better + 1
        if self.plan.patience is not None and self._without_better >= self.plan.patience and not self.is_over:
            self.status, self.reason = "stopped", f"{self._without_better} measurements in a row brought nothing"

    def _is_better(self, quality: float, than: float) -> bool:
        if not math.isfinite(quality):
            return False
        if not math.isfinite(than):
            return True
        return quality > than if self.task.higher_is_better else quality < than

    @property
    def best_quality(self) -> float:
        """On the validation examples; of the last measurement where the plan keeps the last weights."""
        assert self._best is not None
        return self._best[0] if self.plan.keep == "best" else float(self.curve[-1]["quality"])

    def finished(self, *, with_test: bool = True) -> dict[str, Any]:
        """What the run found, flat; the test examples are looked at now. The run is over afterwards.

        Args:
            with_test: False for a trial of a search, which must not see them.
        """
        assert self._best is not None
        best_step = self._best[1] if self.plan.keep == "best" else self.way.num_steps
        if self.plan.keep == "best":
            self.way.load(self._best[2])
        test = None
        if with_test:
            test = self.task.quality(self.way.predictor, self.parts.test.look(), self.plan.device)
        passes, clock = self.way.passes, self.clock
        found = {
            "status": "diverged" if self.status == "diverged" else "done",
            "reason": self.reason,
            "stopped_early": self.status == "stopped",
            "describes": self.way.describe(),
            "quality_start": self.curve[0]["quality"],
            "quality_validation": self.best_quality,
            "quality_test": test,
            "test_looks": self.parts.test.num_looks,
            "best_step": best_step,
            "steps": self.way.num_steps,
            "forward_passes": passes.forward,
            "backward_passes": passes.backward,
            "local_backward_passes": passes.local_backward,
            "tangent_passes": passes.tangent,
            "budget_used": self.used,
            "seconds": clock.total,
            **{f"seconds_{kind}": seconds for kind, seconds in clock.seconds.items()},
            "seconds_evaluation": self.evaluating.total,
            "energy_joules": None if self.meter is None else self.joules,
            "energy_kind": None if self.meter is None else self.meter.kind,
            "weights": sum(p.numel() for p in self.way.model.parameters() if p.requires_grad),
            "curve": self.curve,
        }
        if self._observer is not None:
            self._observer.detach()
        self.way.close()
        return found
