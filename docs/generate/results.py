"""What was measured: tests/benchmarks/results/*.json, as rows about one method each. No number of the site is typed by hand."""

import dataclasses
import functools
import json
import re
from typing import Any

from generate.repository import ROOT

FOLDER = ROOT / "tests" / "benchmarks" / "results"
NETWORKS = {"mlp": "MLP", "cnn": "CNN", "gru": "GRU", "two-layer gru": "GRU of two layers"}
DATA = {"mnist": "MNIST, 3 against 8", "cifar": "CIFAR-10, two classes", "vowel": "vowels"}
TWINS = ("backprop", "last layer", "last block")


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one task, beside what it is compared with in the same file."""

    method: str
    task: str
    result: str
    backprop: str = ""
    last_layer: str = ""
    saved: str = ""
    """What autograd holds at most, over that of backpropagation."""
    time: str = ""
    """Of a step, over that of backpropagation."""
    file: str = ""


@functools.cache
def load(name: str) -> Any:
    """The record of one file: command, date, machine, versions, result."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def result(name: str) -> Any:
    return load(name)["result"]


def names() -> list[str]:
    """Every result file there is, without its suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def source(name: str) -> str:
    """A link to a result file."""
    return f"[{name}]({place(name)})"


def place(name: str) -> str:
    """Where a result file is, from the repository's root."""
    return f"/tests/benchmarks/results/{name}.json"


@functools.cache
def rows() -> tuple[Row, ...]:
    """All rows, in the order of the files below."""
    return tuple(
        row
        for name, read in (
            ("mnist_tpsgd", _networks),
            ("fashion_tpsgd", _networks),
            ("mnist_forward", _forward),
            ("mnist_noprop", _noprop),
            ("cifar_local", _cifar),
            ("cifar_vgg11", _cifar),
            ("cora_graph", _cora),
            ("block_local_lm_scratch", _language),
            ("block_local_lm_stories", _language),
            ("zo_tasks", _tasks),
            ("demo", _demo),
            ("demo_sst2", _demo),
            ("zo_precision", _precision),
            ("convex", _convex),
        )
        if (FOLDER / f"{name}.json").exists()
        for row in read(name)
    )


def of(method: str) -> list[Row]:
    return [row for row in rows() if row.method == method]


def facts(method: str) -> dict[str, str]:
    """What was measured of a step, in words with their source."""
    found = {}
    if method == "mezo":
        ratio, file = result("mezo_memory")["mezo_vs_inference"], source("mezo_memory")
        found["peak memory"] = f"{ratio:.2f} of inference's, above the model, with SmolLM2-135M ({file})"
    memory = result("zo_figures")["memory"]["bytes"]
    if method in memory:
        ratio, file = memory[method]["peak"] / memory["inference"]["peak"], source("zo_figures")
        found["peak memory of the process"] = f"{ratio:.2f} of inference's, with SmolLM2-135M ({file})"
    held = result("mnist_tpsgd")["held"]
    if method in held:
        by_depth = {int(depth): number for depth, number in held[method].items()}
        low, high = min(by_depth), max(by_depth)
        found["saved activations"] = (
            f"{by_depth[low]:,} elements of an MLP of {low} layers, {by_depth[high]:,} of {high}; backpropagation "
            f"{held['backprop'][str(low)]:,} and {held['backprop'][str(high)]:,} ({source('mnist_tpsgd')})"
        )
    return found


def percent(share: float) -> str:
    return f"{100 * share + 1e-9:.1f} %"  # 0.9605 is no binary fraction, and is 96.1 %


def _networks(name: str) -> list[Row]:
    data = {"mnist_tpsgd": "MNIST", "fashion_tpsgd": "Fashion-MNIST"}[name]
    found = []
    for network, ways in result(name)["table"].items():
        for way, got in ways.items():
            if way in TWINS:
                continue
            method, _, how = way.partition(", ")
            found.append(
                Row(
                    method,
                    f"{data}, {NETWORKS[network]}" + (f", {how}" if how else ""),
                    f"{percent(got['accuracy'])}{_seeds(got['seeds'])}",
                    percent(ways["backprop"]["accuracy"]),
                    percent(ways["last layer"]["accuracy"]),
                    file=name,
                )
            )
    return found


def _seeds(number: int) -> str:
    return f" ({number} seeds)" if number > 1 else ""


def _forward(name: str) -> list[Row]:
    got = result(name)
    found = []
    for key, value in got.items():
        network, way, _ = re.match(r"([^,]+), (.*), (seed \d+)$", key).groups()  # type: ignore[union-attr]
        method, how = re.match(r"([\w-]+?)(?: (.*))?$", way.replace("last layer", "last-layer")).groups()  # type: ignore[union-attr]
        if method in ("backprop", "last-layer"):
            continue
        twins = {t: _error(got.get(f"{network}, {t}, seed 0"), value["epochs"]) for t in ("backprop", "last layer")}
        by_goodness = value.get("test_error_by_goodness")
        said = percent(1 - value["test_error"])
        if by_goodness is not None:
            said = f"{percent(1 - by_goodness)} by goodness, {said} by its classifier"
        task = f"MNIST, {value['epochs']} epoch{'s' if value['epochs'] > 1 else ''}" + (f", {how}" if how else "")
        found.append(Row(method, task, said, twins["backprop"], twins["last layer"], file=name))
    return found


def _error(value: dict[str, Any] | None, epochs: int) -> str:
    if not value:
        return ""
    return percent(1 - value["test_error"]) + (f" ({value['epochs']} epochs)" if value["epochs"] != epochs else "")


def _noprop(name: str) -> list[Row]:
    got = result(name)
    block = percent(got["block, seed 0"]["test_accuracy"])
    return [
        Row(
            f"noprop-{key.split(',')[0]}",
            f"MNIST, {value['options']['epochs']} epochs",
            percent(value["test_accuracy"]),
            f"{percent(got['backprop, seed 0']['test_accuracy'])} through the whole inference, {block} one block",
            file=name,
        )
        for key, value in got.items()
        if key.split(",")[0] in ("dt", "ct", "fm")
    ]


def _cifar(name: str) -> list[Row]:
    network = {"cifar_local": "five convolutions", "cifar_vgg11": "VGG-11, a quarter as wide"}[name]
    twins = {key.split(",")[0]: value for key, value in result(name).items()}
    return [
        Row(
            key.split(",")[0],
            f"CIFAR-10, a part of the images, {network}, {key.split(', ')[1]}",
            percent(value["test_accuracy"]),
            percent(twins["backprop"]["test_accuracy"]),
            percent(twins["last layer"]["test_accuracy"]),
            f"{value['saved_bytes_over_backprop']:.2f}",
            f"{value['process_seconds_a_step_over_backprop']:.2f}",
            name,
        )
        for key, value in result(name).items()
        if key.split(",")[0] not in TWINS
    ]


def _cora(name: str) -> list[Row]:
    mean, saved = result(name)["mean"], result(name)["saved bytes"]
    found = []
    for key, value in mean.items():
        method, layers = key.split(", ")
        if method in TWINS:
            continue
        depth = layers.split()[0]
        ratio = saved[method][depth] / saved["backprop"][depth] if method in saved else None
        backprop, last = mean.get(f"backprop, {layers}"), mean.get(f"last layer, {layers}")
        found.append(
            Row(
                method,
                f"Cora, GCN of {layers.replace('layers', 'layer') if depth == '1' else layers}",
                f"{percent(value['test'])}{_seeds(len(result(name)['seeds']))}",
                percent(backprop["test"]) if backprop else "",
                percent(last["test"]) if last else "",
                f"{ratio:.2f}" if ratio else "",
                file=name,
            )
        )
    return found


def _language(name: str) -> list[Row]:
    got = result(name)
    task = {
        "block_local_lm_scratch": "tiny Shakespeare from scratch, GPT-2 of 4 blocks",
        "block_local_lm_stories": "tiny Shakespeare, stories260K fine-tuned",
    }[name]
    unit = "a character" if name == "block_local_lm_scratch" else "a token"
    twins = {key.split(",")[0]: value for key, value in got.items() if key != "before"}
    found = []
    for key, value in got.items():
        method, _, how = key.split(",")[0].partition(" ")
        if method not in ("dgl", "mezo"):
            continue
        heads = {"own": ", heads of its own", "tied": ", the model's output embedding"}.get(how, "")
        found.append(
            Row(
                method,
                f"{task}, {key.split(', ')[1]}{heads}",
                f"{value['test_bits']:.2f} bits {unit}",
                f"{twins['backprop']['test_bits']:.2f}",
                f"{twins['last block']['test_bits']:.2f} (last block)",
                f"{value['saved_bytes'] / twins['backprop']['saved_bytes']:.2f}",
                f"{value['process_seconds_a_step'] / twins['backprop']['process_seconds_a_step']:.2f}",
                name,
            )
        )
    return found


def _tasks(name: str) -> list[Row]:
    found = []
    for task, ways in result(name)["table"].items():
        for way, value in ways.items():
            method, _, what = way.partition(", ")
            if method == "backprop":
                continue
            backprop = ways.get(f"backprop, {what}")
            found.append(
                Row(
                    method,
                    f"{task.upper().replace('SST2', 'SST-2')}, SmolLM2-135M, {what}, at equal cost",
                    f"{percent(value['accuracy'])}{_seeds(value['seeds'])}",
                    percent(backprop["accuracy"]) if backprop else "",
                    file=name,
                )
            )
    return found


def _demo(name: str) -> list[Row]:
    got = result(name)
    task = {"demo": "the demo's reviews", "demo_sst2": "SST-2"}[name]
    return [
        Row(
            "mezo",
            f"{task}, SmolLM2-135M, {got['steps']} steps",
            f"{percent(got['accuracy_before'])} → {percent(got['accuracy_after'])}",
            file=name,
        )
    ]


def _precision(name: str) -> list[Row]:
    got = result(name)
    found = []
    for key, value in got.items():
        if isinstance(value, dict) and "after, by seed" in value and "naive" not in key:
            after = value["after, by seed"]
            found.append(
                Row(
                    "mezo",
                    f"tiny Shakespeare, stories260K, {got['steps']:,} steps, {key}",
                    f"loss {value['held-out loss before']:.2f} → {sum(after) / len(after):.2f}{_seeds(len(after))}",
                    file=name,
                )
            )
    return found


def _convex(name: str) -> list[Row]:
    got = result(name)
    found = []
    for key, value in got["agreement"].items():
        method, _, what = key.partition(", ")
        told = f"objective {value['objective']:.5g}, of CVXPY {value['cvxpy']:.5g}"
        found.append(Row(method, f"a small problem, {what}", told, file=name))
    for task in got:
        if not isinstance(got[task], dict) or task == "agreement":
            continue
        for key, value in got[task].items():
            if isinstance(value, dict) and "test_accuracy" in value:
                method, _, what = key.partition(", ")
                adam = next(v for k, v in value.items() if k.startswith("adam"))
                found.append(
                    Row(
                        method,
                        DATA[task] + (f", {what}" if what else ""),
                        percent(value["test_accuracy"]),
                        f"{percent(adam['test_accuracy'])} (Adam)",
                        file=name,
                    )
                )
    return found
