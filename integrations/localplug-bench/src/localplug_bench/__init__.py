"""The bench: one table for every way to train. `localplug bench TASKS METHODS` trains each method beside backpropagation,
and `localplug report RUNS` shows what it wrote down.

Importing this imports no torch. Each file is one concern:

    specs          what a user types, "mezo:lr=1e-3,eps=1e-3"
    ways           what trains by it, and what a step of it counts; backpropagation among them
    training       one run: steps up to a budget, quality on the way, early stopping, one look at the test examples
    pairing        runs that alternate in one process, so that ratios of times hold
    clock, energy  what time and energy went into
    costs          what a step holds and computes; peak_memory: of a process of its own
    bench          all runs that were asked for, what is done left out
    records, table the file of runs, one JSON line each; and the table of them
    tuning         options by Optuna, the same number of trials and the same budget for every way
    performance_profile    one setting for all tasks, scored
    report         the file of runs as a page and as plots
    observers      what an estimate is worth, while it trains; transformers_log, lightning_log: in those trainers' logs
"""

import localplug


@localplug.hookimpl
def localplug_commands():
    return {"bench": "localplug_bench.command:main", "report": "localplug_bench.report.command:main"}


@localplug.hookimpl
def localplug_tasks():
    return {
        "digits": "localplug_bench.small_tables:Digits",
        "vowels": "localplug_bench.small_tables:Vowels",
        "mnist": "localplug_bench.images:MNIST",
        "fashion-mnist": "localplug_bench.images:FashionMNIST",
        "cifar10": "localplug_bench.images:CIFAR10",
        "cora": "localplug_bench.citations:Cora",
        "char-lm": "localplug_bench.characters:Characters",
        "sst2": "localplug_bench.prompts:SST2",
        "rte": "localplug_bench.prompts:RTE",
        "trec": "localplug_bench.prompts:TREC",
        "boolq": "localplug_bench.prompts:BoolQ",
        "permutation": "localplug_bench.permutation:Permutation",
    }
