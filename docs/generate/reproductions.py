"""The tables of docs/reproductions.md, from what is measured so far."""

from typing import Any

from generate import results
from generate.claims import percent, ratio

MINUS = "\u2212"
NOTHING = "Not measured yet."
TASKS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
ENERGY_PAPER = {  # arXiv:2509.19063 and 2511.01061: points of accuracy against backpropagation, and what it took
    ("mono-forward", "MNIST"): "+0.09",
    ("mono-forward", "Fashion-MNIST"): "+0.51, energy +10 %, time +18 %",
    ("mono-forward", "CIFAR-10"): f"+1.21, energy {MINUS}41 %, time {MINUS}34 %",
    ("ff", "MNIST"): "+0.24, time +342 %",
    ("ff", "Fashion-MNIST"): "+0.75, energy 9.6 times, time 13.3 times",
    ("cafo", "MNIST"): f"{MINUS}0.32 (CNN)",
    ("cafo", "Fashion-MNIST"): "+1.11 (CNN)",
    ("cafo", "CIFAR-10"): f"{MINUS}13.2 (CNN)",
}


def _there(name: str) -> bool:
    return name in results.names()


def _points(share: float) -> str:
    """Points of accuracy, with their sign."""
    text = f"{100 * abs(share):.1f}"
    return ("+" if share > 0 else MINUS if text != "0.0" else "") + text


def _spread(three: list[float]) -> str:
    mean, low, high = three
    return ratio(mean) if low == high else f"{ratio(mean)} ({ratio(low)} to {ratio(high)})"


def energy() -> str:
    """FF, CaFo and Mono-Forward against backpropagation, with equal patience."""
    name = "energy-12000" if _there("energy-12000") else "energy"
    if not _there(name):
        return NOTHING
    got = results.result(name)
    lines = ["| task | method | test accuracy | points | energy | time for the same budget | in the paper |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for typed, ways in got["table"].items():
        task = TASKS[typed.split(":")[0]]
        twin = ways.get("backprop")
        for method, row in ways.items():
            spread = f" \u00b1 {50 * row['spread']:.1f}" if len(row["seeds"]) > 1 else ""
            used = [
                _spread(row[key]) if key in row else "" for key in ("energy_joules_over_backprop", "time_over_backprop")
            ]
            cells = [task, f"`{method}`", f"{percent(row['test'])} %{spread}"]
            if method == "backprop" or twin is None:
                cells += ["", "1", "1", ""]
            else:
                cells += [_points(row["test"] - twin["test"]), *used, ENERGY_PAPER.get((method, task), "")]
            lines.append(f"| {' | '.join(cells)} |")
    seeds = max(len(row["seeds"]) for ways in got["table"].values() for row in ways.values())
    s = got["setting"]
    lines += [
        "",
        f"{s['network']}, {s['budget']:,} forward passes at most, {s['trials']} trials each, patience {s['patience']} of "
        f"{s['evaluations']} measurements, {seeds} seed(s); energy: {s['energy']}; \u00b1: half of largest less smallest. "
        f"From [{name}](../tests/benchmarks/results/{name}.json).",
    ]
    return "\n".join(lines)


def zo_bench() -> str:
    """Zeroth-order methods by fine-tuning scheme."""
    if not _there("zo_bench_table"):
        return NOTHING
    got = results.result("zo_bench_table")
    schemes, cells = ("all weights", "LoRA"), {}
    for key, run in got["runs"].items():
        method, scheme, _ = key.split(", ")
        cells.setdefault(method, {}).setdefault(scheme, []).append(run)
    lines = [
        "| method | all weights | LoRA |",
        "| --- | --- | --- |",
        f"| zero-shot | {percent(got['zero_shot'])} % | |",
    ]
    for method, by in cells.items():
        lines.append(f"| `{method}` | {' | '.join(_cell(by.get(scheme, [])) for scheme in schemes)} |")
    s, rows = got["setting"], got["rows"]
    lines += [
        "",
        f"Accuracy on {rows['test']} short sentences of SST-2's dev set; {s['budget']} forward passes over {s['batch']} of "
        f"{rows['train']:,} training sentences of at most {s['max_tokens']} tokens; rates chosen on {rows['chosen on']} "
        "others. From [zo_bench_table](../tests/benchmarks/results/zo_bench_table.json).",
    ]
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "not measured yet"
    tests = [run["test"] for run in runs if "test" in run]
    if not tests:
        return "refused"
    return f"{percent(sum(tests) / len(tests))} %" + (f" ({len(tests)} seeds)" if len(tests) > 1 else "")


def shallow() -> str:
    """tpSGD against backpropagation on shallow networks."""
    rows = []
    for name, data in (("mnist_tpsgd", "MNIST"), ("fashion_tpsgd", "Fashion-MNIST")):
        for network, ways in results.result(name)["table"].items():
            for way, row in ways.items():
                if way.startswith("tpsgd"):
                    how = f", {way.partition(', ')[2]}" if "," in way else ""
                    what = f"{results.NETWORKS[network]}{how}"
                    last = ways["last layer"]["accuracy"]
                    rows.append((data, what, row["accuracy"], ways["backprop"]["accuracy"], last, row["seeds"], name))
    for name, network in (("cifar_local", "five convolutions"), ("cifar_vgg11", "VGG-11, a quarter as wide")):
        by = {key.split(",")[0]: value["test_accuracy"] for key, value in results.result(name).items()}
        rows.append(("CIFAR-10, 3,500 images", network, by["tpsgd"], by["backprop"], by["last layer"], 1, name))
    lines = ["| data | network | `tpsgd` | backprop | points | last layer alone | seeds | within 5 points |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for data, network, ours, twin, last, seeds, name in rows:
        file = f"[{data}](../tests/benchmarks/results/{name}.json)"
        shares = [f"{percent(share)} %" for share in (ours, twin)]
        fits = "yes" if twin - ours <= 0.05 else "**no**"
        lines.append(
            f"| {file} | {network} | {' | '.join(shares)} | {_points(ours - twin)} | {percent(last)} % | {seeds} | {fits} |"
        )
    return "\n".join(lines)
