"""The measured numbers of README.md."""

from generate.claims import Claim, percent, ratio, said, so, whole
from generate.results import result


def claims() -> list[Claim]:
    """In the order of the page."""
    return [*_demo(), *_costs(), *_reached()]


def _demo() -> list[Claim]:
    demo, sst2 = result("demo"), result("demo_sst2")
    both = percent(demo["accuracy_before"]), percent(demo["accuracy_after"])
    return [
        said("({} steps of 16 reviews, {} minutes in all,", str(demo["steps"]), ratio(demo["seconds"] / 60, 1)),
        said("accuracy on {} held-out reviews | {} % | **{} %**", str(demo["held_out_rows"]), *both),
        said(
            "(1,000 training sentences, {} dev rows) the same run goes from {} to {} %",
            str(sst2["held_out_rows"]),
            percent(sst2["accuracy_before"]),
            percent(sst2["accuracy_after"]),
        ),
        so("the same run", sst2["steps"] == demo["steps"]),
        said(
            "{} forward passes, no backward pass; peak memory of the process {} times plain inference's, {} times backprop's.",
            str(demo["forward_passes"]),
            ratio(demo["peak_memory_vs_inference"]),
            ratio(demo["peak_memory_vs_backprop"]),
        ),
    ]


def _costs() -> list[Claim]:
    memory, figures = result("mezo_memory"), result("zo_figures")
    above, times = memory["above_model_mb"], figures["smollm2"]
    peaks = figures["memory"]["peak_vs_inference"].values()
    host = result("overhead")["step / hand-written step, quartiles over the steps"]
    ways = ("rank-1", "rademacher", "gaussian", "released")
    found = [
        said(
            "| plain inference | {} | 1 | | `mezo` | {} | {} | | backprop with SGD | {} | {} |",
            *(whole(above["inference"]), whole(above["mezo"]), ratio(memory["mezo_vs_inference"])),
            *(whole(above["backprop"]), ratio(memory["backprop_vs_inference"])),
        ),
        said("takes {} to {} times that of inference", ratio(min(peaks), 3), ratio(max(peaks), 3)),
        so("in seven recipes", len(peaks) == 7),
        said(
            "it takes {} (`attach`), {} (callback) and {} (strategy) times MeZO",
            *(ratio(host[way][1]) for way in ("attach", "callback", "strategy")),
        ),
    ]
    for tokens, shown in (("16", "16"), ("128", "128"), ("512", "512"), ("2048", "2,048")):
        row = times[f"{tokens} tokens"]
        there = [ratio(row[way], 1 if row[way] > 10 else 2) for way in ways if way in row]
        found.append(said(f"| {shown} |{' {} |' * len(there)}", *there))
    return found


def _reached() -> list[Claim]:
    mnist, fashion = (result(name)["table"] for name in ("mnist_tpsgd", "fashion_tpsgd"))
    held = result("mnist_tpsgd")["held"]
    forward, noprop, cora = result("mnist_forward"), result("mnist_noprop"), result("cora_graph")
    scratch = {key.split(",")[0]: value for key, value in result("block_local_lm_scratch").items()}

    def reached(table: dict[str, dict[str, float]], *ways: str) -> list[str]:
        return [percent(table[way]["accuracy"]) for way in ways]

    def right(key: str) -> str:
        return percent(1 - forward[key]["test_error"])

    gru, deep = mnist["gru"], mnist["two-layer gru"]
    return [
        said(
            "3 epochs ({} seeds) | `dfa` {} %, `fa` {} %, `drtp` {} %, `tpsgd` {} % | {} % | {} % |",
            str(mnist["mlp"]["dfa"]["seeds"]),
            *reached(mnist["mlp"], "dfa", "fa", "drtp", "tpsgd", "backprop", "last layer"),
        ),
        said(
            "| `fa` {} %, `dfa` {} %, `tpsgd` {} % ({} seeds), `drtp` {} % ({} seeds) | {} % | {} % |",
            *reached(mnist["cnn"], "fa", "dfa", "tpsgd"),
            str(mnist["cnn"]["tpsgd"]["seeds"]),
            *reached(mnist["cnn"], "drtp"),
            str(mnist["cnn"]["drtp"]["seeds"]),
            *reached(mnist["cnn"], "backprop", "last layer"),
        ),
        said(
            "`truncation=28`: {} %; {} %. Local in time as well: {} %; {} % | {} %; {} % | {} %; {} % |",
            *(reached(t, "tpsgd, truncation 28")[0] for t in (gru, deep)),
            *(reached(t, way)[0] for way in ("tpsgd", "backprop", "last layer") for t in (gru, deep)),
        ),
        said(
            "`mono-forward` {} % | {} % | {} % |",
            *(right(f"mono-forward, {way}, seed 0") for way in ("mono-forward", "backprop", "last layer")),
        ),
        said(
            "{} epochs | `ff`, by goodness {} % | {} % ({} epochs) | {} % |",
            str(forward["ff, ff at 1e-3, seed 0"]["epochs"]),
            percent(1 - forward["ff, ff at 1e-3, seed 0"]["test_error_by_goodness"]),
            right("ff, backprop, seed 0"),
            str(forward["ff, backprop, seed 0"]["epochs"]),
            right("ff, last layer, seed 0"),
        ),
        said(
            "`noprop-fm` {} %, `noprop-dt` {} %, `noprop-ct` {} % | one block {} %",
            *(percent(noprop[f"{way}, seed 0"]["test_accuracy"]) for way in ("fm", "dt", "ct", "block")),
        ),
        said(
            "| Fashion-MNIST, the same MLP | `drtp` {} %, `dfa` {} %, `fa` {} %, `tpsgd` {} % | {} % | {} % |",
            *reached(fashion["mlp"], "drtp", "dfa", "fa", "tpsgd", "backprop", "last layer"),
        ),
        said(
            "| Cora, GCN of 2 layers; of 4 ({} seeds) | `graph-sf` {} %; {} % | {} %; {} % | {} % |",
            str(len(cora["seeds"])),
            *(
                percent(cora["mean"][key]["test"])
                for key in (
                    *("graph-sf, 2 layers", "graph-sf, 4 layers", "backprop, 2 layers", "backprop, 4 layers"),
                    "last layer, 2 layers",
                )
            ),
        ),
        said(
            "`dgl` {}, with the model's own output embedding {}; `mezo` {} | {} | last block {} |",
            *(ratio(scratch[way]["test_bits"]) for way in ("dgl own", "dgl tied", "mezo", "backprop", "last block")),
        ),
        said(
            "`dgl` {} of backprop's, `mezo` none | 1 |",
            ratio(scratch["dgl own"]["saved_bytes"] / scratch["backprop"]["saved_bytes"]),
        ),
        so("`mezo` none | 1 |", scratch["mezo"]["saved_bytes"] == 0),
        said(
            "`tpsgd`, `drtp`, `dfa` {} elements; {} | {}; {} |",
            *(whole(held[way][depth]) for way in ("tpsgd", "backprop") for depth in ("2", "32")),
        ),
        so("`tpsgd`, `drtp`, `dfa`", held["tpsgd"] == held["drtp"] == held["dfa"]),
    ]
