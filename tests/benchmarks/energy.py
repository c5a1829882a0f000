"""Forward-Forward, CaFo and Mono-Forward against backpropagation: quality, time and energy of an MLP, with equal patience.

    python tests/benchmarks/energy.py [--data ../shared/data] [--tasks mnist cifar10] [--budget 1200] [--seeds 0 1 2] [--list]
    python tests/benchmarks/energy.py --budget 12000 --trials 8 --costs             # the long form, in a file of its own

After "Beyond Backpropagation" (Spyra and Dzwinel, arXiv:2509.19063 and 2511.01061), which compares them on an A100: one network
for all ways, options by Optuna with the same number of trials each, one rule of early stopping for all, energy of the training
alone. Here by `localplug bench`: MLPs of two hidden layers of 256 (the paper's: 1,000 to 2,000 wide), whose learning rates are
searched for; `--patience` measurements of 20 without a better one end a run; every seed makes other weights and another order
of examples; the runs of a task and seed take turns in one process, so that ratios hold. Joules are a counter's where the
machine has one, and else seconds on the cores times `WATTS`, "estimated": then energy says no more than processor time does.

Runs are lines of results/energy[-BUDGET].jsonl, of which `localplug report` makes plots; the table is in
results/energy[-BUDGET].json. What is there is not made again. Fashion-MNIST is Debian's package dataset-fashion-mnist: link its
folder into DATA, or it is left out.
"""

import argparse
import pathlib
import statistics
import sys

import optuna
import torch

import localplug
from localplug_bench.bench import Bench, Setting
from localplug_bench.energy import meter
from localplug_bench.records import Records
from localplug_bench.specs import parsed
from localplug_bench.training import Plan
from record import RESULTS, save

TASKS = {
    "mnist": "mnist:num_validation=2000",
    "fashion-mnist": "fashion-mnist:num_validation=2000",
    "cifar10": "cifar10:network=mlp",
}
WAYS = (
    "backprop:lr=1e-4..1e-2",
    "ff:inference=goodness,reads_first=true,label_value=10.0,lr=1e-4..1e-2",
    "cafo:lr=1e-4..1e-1",
    "mono-forward:lr=1e-4..1e-2",
)
BUDGET, WATTS = 1200, 10.0  # forward passes, a backward pass counting as two; of a core, which no ratio depends on


def setting_of(options):
    tasks = {}
    for name in options.tasks:
        spec = parsed(TASKS[name])
        task = localplug.task(spec.name, data=options.data, **spec.options)
        try:
            task.parts(0)
            tasks[str(spec)] = task
        except FileNotFoundError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
    plan = Plan(budget=options.budget, evaluations=20, laps=1, patience=options.patience)
    ways = [parsed(way) for way in WAYS]
    return Setting(
        tasks,
        ways,
        options.seeds,
        plan,
        options.trials,
        data=str(options.data),
        costs=options.costs,
        watts=WATTS,
        threads=1,
    )


def table(lines, setting):
    """{task: {method: means over seeds, ratios to backpropagation's run of the same seed, their smallest and largest}}."""
    keys = {setting.key(task, way, seed) for task in setting.tasks for way in setting.ways for seed in setting.seeds}
    runs = {}
    for line in lines:
        if line.get("kind") == "run" and line["key"] in keys and line["status"] == "done":
            runs.setdefault(line["task"], {}).setdefault(line["method"], {})[line["seed"]] = line
    return {
        task: {method: row(of, ways.get("backprop", {})) for method, of in ways.items()} for task, ways in runs.items()
    }


def row(runs, twins):
    def values(name, over=False):
        there = [seed for seed in sorted(runs) if not over or seed in twins]
        return [runs[seed][name] / (twins[seed][name] if over else 1) for seed in there]

    tests = values("quality_test")
    found = {
        "seeds": sorted(runs),
        "test": round(statistics.fmean(tests), 4),
        "spread": round(max(tests) - min(tests), 4),
        "validation": round(statistics.fmean(values("quality_validation")), 4),
        "steps": round(statistics.fmean(values("steps"))),
        "stopped_early": sum(values("stopped_early")),
        "options": next(iter(runs.values()))["options"],
        "energy_kind": next(iter(runs.values()))["energy_kind"],
    }
    for name in ("energy_joules", "seconds", "time_over_backprop", "peak_bytes"):
        if all(run.get(name) is not None for run in (*runs.values(), *twins.values())):
            ratios = values(name, over=name != "time_over_backprop")
            if ratios:
                key = name if name == "time_over_backprop" else f"{name}_over_backprop"
                found[key] = [round(x, 3) for x in (statistics.fmean(ratios), min(ratios), max(ratios))]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--budget", type=int, default=BUDGET, help="forward passes of a run, or of a trial")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--costs", action="store_true", help="measure memory, too, in processes of its own")
    parser.add_argument("--list", action="store_true", help="say what is left to do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setting = setting_of(options)
    name = "energy" if options.budget == BUDGET else f"energy-{options.budget}"
    records = Records(RESULTS / f"{name}.jsonl")
    bench = Bench(setting, records, lambda line: print(line, file=sys.stderr, flush=True))
    if options.list:
        print("\n".join(f"{task}, {way}, seed {seed}" for task, seed, way in bench.left()))
        sys.exit()
    for _ in bench.run():
        pass
    save(
        name,
        {
            "setting": {
                "budget": options.budget,
                "trials": options.trials,
                "patience": options.patience,
                "evaluations": setting.plan.evaluations,
                "network": "MLP, two hidden layers of 256",
                "energy": meter("cpu", WATTS).kind,
            },
            "table": table(records, setting),
        },
    )
