"""The tables of the page that helps to choose: measured costs, read from the files of results."""

from collections.abc import Callable

from generate import algorithms, results
from generate.results import result, source

NOT_MEASURED = "not measured"


def _method(name: str) -> str:
    return f"[`{name}`](/docs/algorithms/{name}.md)"


def _passes(name: str) -> str:
    return algorithms.passes(algorithms.algorithms("methods")[name])


def _inference() -> str:
    m, t = result("mezo_memory"), result("mezo_time")
    return (
        f"peak memory above the model {m['mezo_vs_inference']:.2f} of inference's, backpropagation's "
        f"{m['backprop_vs_inference']:.2f} ({source('mezo_memory')}); a step takes {t['mezo_vs_two_forwards']:.2f} times two "
        f"forward passes, {t['mezo_vs_backprop']:.2f} times a step of backpropagation ({source('mezo_time')})"
    )


def _backprop() -> str:
    ways = result("zo_tasks")["table"]["sst2"]
    return (
        f"SST-2 at equal cost: backpropagation {results.percent(ways['backprop, all weights']['accuracy'])}, `mezo` "
        f"{results.percent(ways['mezo, all weights']['accuracy'])} ({source('zo_tasks')})"
    )


def _step(batch: str, ways: dict[str, str]) -> str:
    """The time of a step; ways are {what zo_figures calls it: what a reader sees}."""
    times = result("zo_figures")["smollm2"][batch]
    parts = [f"{shown} {times[way]:.2f}" for way, shown in ways.items()]
    return f"{batch} a batch, over two forward passes: {', '.join(parts)} ({source('zo_figures')})"


def _few_tokens() -> str:
    ways = {"rank-1": "`rank-1`", "rank-1 stacked": "stacked", "rank-1 deferred": "deferred"}
    return _step("few tokens, 16 tokens", ways)


def _noise() -> str:
    return _step("128 tokens", {"rank-1": "`rank-1`", "rademacher": "`rademacher`", "gaussian": "`gaussian`"})


def _heads() -> str:
    image = {r.method: r for r in results.rows() if r.file == "cifar_local"}
    text = next(r for r in results.rows() if r.file == "block_local_lm_scratch" and r.method == "dgl")
    parts = [f"`{name}` saved {image[name].saved}, time {image[name].time}" for name in ("dgl", "predsim", "infopro")]
    return (
        f"over backpropagation, five convolutions: {'; '.join(parts)} ({source('cifar_local')}); GPT-2 of 4 blocks: `dgl` "
        f"saved {text.saved}, time {text.time} ({source('block_local_lm_scratch')})"
    )


def _projections() -> str:
    held = result("mnist_tpsgd")["held"]
    return (
        f"an MLP of 32 layers holds {held['tpsgd']['32']:,} elements, backpropagation {held['backprop']['32']:,} "
        f"({source('mnist_tpsgd')})"
    )


def _graphs() -> str:
    saved = result("cora_graph")["saved bytes"]
    ratio = {depth: saved["graph-sf"][depth] / saved["backprop"][depth] for depth in ("2", "8")}
    return f"saved over backpropagation: {ratio['2']:.2f} at 2 layers, {ratio['8']:.2f} at 8 ({source('cora_graph')})"


def _workers() -> str:
    w = result("workers")
    return (
        f"{w['bytes_sent_a_step']:.0f} bytes a step; two processes on one machine {w['speedup_of_two_processes']:.2f} times "
        f"as fast as one ({source('workers')})"
    )


def _ternary() -> str:
    got = result("ternary_speed")
    return (
        f"one token through all linear layers takes at most 1/{got['smallest_decode_ratio']:.1f} of torch's time in bf16 "
        f"({source('ternary_speed')})"
    )


def _convex() -> str:
    row = next(r for r in results.rows() if r.method == "relu-admm" and r.task.startswith("MNIST"))
    adam = row.backprop.removesuffix(" (Adam)")
    return f"{row.task}: {row.result}, Adam on the same network in the same time {adam} ({source('convex')})"


def _unmeasured(*names: str) -> Callable[[], str]:
    return lambda: f"{'; '.join(f'`{name}` {_passes(name)}' for name in names)}; time and memory {NOT_MEASURED}"


SITUATIONS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("Backpropagation fits, and the loss is differentiable", "backpropagation", _backprop),
    ("Only inference fits", _method("mezo"), _inference),
    (
        "The objective has no gradient: a reward, an accuracy, an engine that only answers",
        f"{_method('mezo')} or {_method('es')} with [`objective=`](/docs/methods.md#objectives-without-a-gradient)",
        _unmeasured("mezo", "es"),
    ),
    (
        "The learning rate is hard to find",
        f"{_method('zo-scalar-adam')}, {_method('fzoo')}",
        _unmeasured("zo-scalar-adam", "fzoo"),
    ),
    (
        "Few tokens in a batch, so that reading weights takes the time",
        f'{_method("mezo")} with `directions="rank-1"`, `backend="deferred"`',
        _few_tokens,
    ),
    ("Making noise takes the time", f'{_method("mezo")} with `directions="rank-1"` or `"rademacher"`', _noise),
    (
        "Many evaluations are cheap: large batches, many workers",
        f"{_method('1.5-spsa')}, {_method('fzoo')}, {_method('es')}",
        _unmeasured("1.5-spsa", "fzoo", "es"),
    ),
    ("One evaluation a step is all there is", _method("residual-zo"), _unmeasured("residual-zo")),
    (
        "The loss is differentiable, and a graph does not fit",
        f"{_method('forward-grad')}, if twice the activations of inference fit",
        _unmeasured("forward-grad"),
    ),
    (
        "Stored activations do not fit, and labels are at hand",
        f"{_method('dgl')}, {_method('predsim')}, {_method('mono-forward')}",
        _heads,
    ),
    ("The same, and no head may be added", f"{_method('tpsgd')}, {_method('drtp')}, {_method('dfa')}", _projections),
    ("A graph neural network", _method("graph-sf"), _graphs),
    (
        "Backpropagation fits for the last layers, or for short batches",
        f"{_method('elastic-zo')}, {_method('addax')}",
        _unmeasured("elastic-zo", "addax"),
    ),
    ("Two layers, the whole data set at once", f"{_method('relu-admm')}, {_method('relu-scp')}", _convex),
    ("The model must be small and fast afterwards", "[ternary models](/docs/ternary.md)", _ternary),
    ("Several machines", "[the same script](/docs/many-machines.md)", _workers),
)


def decisions() -> str:
    """Situation, what to take, what it costs as measured."""
    lines = ["| your situation | take | measured |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {situation} | {take} | {cost()} |" for situation, take, cost in SITUATIONS])


def step_times() -> str:
    """Time of a zeroth-order step over two forward passes, by tokens a batch."""
    measured = result("zo_figures")["smollm2"]
    by_tokens = {int(words[0]): measured[k] for k in measured if len(words := k.split()) == 2 and words[1] == "tokens"}
    columns = ("rank-1", "rademacher", "gaussian", "released")
    lines = [f"| tokens a batch | {' | '.join(f'`{c}`' for c in columns)} |", f"| {' | '.join(['---'] * 5)} |"]
    for tokens, got in sorted(by_tokens.items()):
        cells = [f"{got[c]:.2f}" if c in got else "" for c in columns]
        lines.append(f"| {tokens:,} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"From {source('zo_figures')}."])


def memory() -> str:
    """Peak memory above the loaded model, over that of inference."""
    above = result("mezo_memory")["above_model_mb"]
    lines = ["| | MB above the model | over inference |", "| --- | --- | --- |"]
    lines += [f"| {way} | {mb:,.0f} | {mb / above['inference']:.2f} |" for way, mb in above.items()]
    batch, tokens = result("mezo_memory")["batch"]
    return "\n".join(
        [*lines, "", f"SmolLM2-135M in float32, a batch of {batch} x {tokens} tokens. From {source('mezo_memory')}."]
    )


def reached() -> str:
    """Every row of results, by task."""
    return algorithms.table(sorted(results.rows(), key=lambda row: (row.file, row.task)), named=True)


def recorded() -> str:
    """Every file of results: how it was made."""
    lines = ["| result | command | date | torch | machine |", "| --- | --- | --- | --- | --- |"]
    for name in results.names():
        got = results.load(name)
        lines.append(
            f"| {source(name)} | `{got['command']}` | {got['date']} | {got['versions']['torch']} | {got['machine']} |"
        )
    return "\n".join(lines)
