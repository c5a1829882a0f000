"""The measured numbers of the guides in docs/."""

from generate.claims import Claim, percent, ratio, said, so, whole
from generate.results import result


def bench() -> list[Claim]:
    counts = result("bench_counts")["vowels:depth=3,width=32"]
    return [
        said(
            "a step of `predsim` counts as {} and computes {} times a forward pass, `dgl` counts as {} and computes {}",
            *(str(counts["predsim"]["counts as"]), ratio(counts["predsim"]["computes"], 1)),
            *(str(counts["dgl"]["counts as"]), ratio(counts["dgl"]["computes"], 1)),
        )
    ]


def local() -> list[Claim]:
    return [*_projections(), *_forward(), *_noprop(), *_fashion(), *_images(), *_graphs(), *_language(), *_convex()]


def _projections() -> list[Claim]:
    got = result("mnist_tpsgd")
    held, table = got["held"], got["table"]
    depths = ("2", "4", "8", "16", "32")

    def points(network: str, way: str) -> float:
        return float(100 * (table[network]["backprop"]["accuracy"] - table[network][way]["accuracy"]))

    recurrent = ("gru", "two-layer gru")
    return [
        said("`tpsgd`, `drtp` and `dfa` {} at 2, 4, 8, 16 and 32 layers", whole(held["tpsgd"]["2"])),
        so("at 2, 4, 8, 16 and 32 layers", {held[w][d] for w in ("tpsgd", "drtp", "dfa") for d in depths} == {65536}),
        said("backpropagation {} at 2 and {} at 32", *(whole(held["backprop"][d]) for d in ("2", "32"))),
        so("`fa` twice that.", all(1.45 < held["fa"][d] / held["backprop"][d] < 2.05 for d in depths)),
        so("stays within 3 points of backpropagation on an MLP", max(points(n, "tpsgd") for n in ("mlp", "cnn")) <= 3),
        so("within 1 point on GRUs", max(points(n, "tpsgd, truncation 28") for n in recurrent) <= 1),
        said("Truncated to one step it reaches {} %", percent(table["gru"]["tpsgd"]["accuracy"], 0)),
        said(
            "`drtp` fails on the CNN ({} %, where random features give {} %)",
            *(percent(table["cnn"][way]["accuracy"]) for way in ("drtp", "last layer")),
        ),
    ]


def _forward() -> list[Claim]:
    got = result("mnist_forward")

    def error(key: str, digits: int = 2) -> str:
        return percent(got[f"{key}, seed 0"]["test_error"], digits)

    runs = ("ff, ff at 1e-3", "ff, ff at 1e-3, longer", "ff, ff")
    goodness = [percent(got[f"{key}, seed 0"]["test_error_by_goodness"], 2) for key in runs]
    epochs = [str(got[f"{key}, seed 0"]["epochs"]) for key in runs]
    return [
        said(
            "`mono-forward` equals its backprop twin ({} against {} % error), `pepita` is close ({} against {}),",
            *(error(f"mono-forward, {way}") for way in ("mono-forward", "backprop")),
            *(error(f"pepita, {way}") for way in ("pepita", "backprop")),
        ),
        said("`cafo` on random convolutions reaches {}.", error("cafo, cafo by cross-entropy")),
        said(
            "reaches {} % error by goodness over all labels after {} epochs and {} % after {}, and {} % after {} at three "
            "times",
            *(x for pair in zip(goodness, epochs, strict=True) for x in pair),
        ),
        said("did badly in all three ({} %, {} % and {} %)", *(error(key, 0) for key in runs)),
        said("({} against {} % error).", *(error(f"softhebb, {way}") for way in ("softhebb", "last layer"))),
    ]


def _noprop() -> list[Claim]:
    got = result("mnist_noprop")
    return [
        said(
            "`noprop-dt` with 3 blocks reaches {} % after {} epochs",
            percent(got["dt, seed 0"]["test_accuracy"]),
            str(got["dt, seed 0"]["options"]["epochs"]),
        ),
        said(
            "through the whole inference got stuck at {} %; a single block trained by backpropagation on its own "
            "logits reaches {} %",
            percent(got["backprop, seed 0"]["test_accuracy"], 0),
            percent(got["block, seed 0"]["test_accuracy"]),
        ),
    ]


def _fashion() -> list[Claim]:
    table = result("fashion_tpsgd")["table"]
    mlp, cnn = ({way: value["accuracy"] for way, value in table[network].items()} for network in ("mlp", "cnn"))
    local = [mlp[way] for way in ("tpsgd", "drtp", "dfa", "fa")]
    return [
        said(
            "MLP {} to {} % (backpropagation {} %, the last layer alone {} %); CNN `tpsgd` {} % ({} %, {} %), `fa` {} %, "
            "`dfa` {} %, `drtp` {} %, below random features",
            *(percent(share) for share in (min(local), max(local), mlp["backprop"], mlp["last layer"])),
            *(percent(cnn[way]) for way in ("tpsgd", "backprop", "last layer", "fa", "dfa", "drtp")),
        )
    ]


def _images() -> list[Claim]:
    cifar, vgg = ({key.split(",")[0]: v for key, v in result(name).items()} for name in ("cifar_local", "cifar_vgg11"))
    ways = ("backprop", "predsim", "dgl", "infopro", "tpsgd", "last layer")
    step = {way: cifar[way]["process_seconds_a_step_over_backprop"] for way in ways}
    saved = [cifar[way]["saved_bytes_over_backprop"] for way in ("predsim", "dgl")]
    return [
        said(
            "backpropagation {} %, `predsim` {} %, `dgl` {} %, `infopro` {} %, `tpsgd` {} %, the last layer alone {} %.",
            *(percent(cifar[way]["test_accuracy"]) for way in ways),
        ),
        so("save half of the activations' memory", all(0.45 < share < 0.55 for share in saved)),
        said(
            "take {} to {} times the time of a step, `infopro` {} times",
            *(ratio(x, 1) for x in (*sorted((step["predsim"], step["dgl"])), step["infopro"])),
        ),
        said(
            "**fails**: {} %, where backpropagation reaches {} % and random features {} %, at {} of the saved activations and "
            "{} of the time.",
            *(percent(vgg[way]["test_accuracy"]) for way in ("tpsgd", "backprop", "last layer")),
            ratio(vgg["tpsgd"]["saved_bytes_over_backprop"]),
            ratio(vgg["tpsgd"]["process_seconds_a_step_over_backprop"]),
        ),
    ]


def _graphs() -> list[Claim]:
    mean, saved = result("cora_graph")["mean"], result("cora_graph")["saved bytes"]
    others = ("graph-top2loss", "graph-top2input", "graph-ff-la", "graph-ff-vn")
    deeper = all(mean[f"graph-sf, {d} layers"]["test"] > mean[f"backprop, {d} layers"]["test"] for d in (2, 3, 4))
    return [
        so("is above its backprop twin on Cora from two layers on", deeper),
        so("is flat over depth", len(set(saved["graph-sf"].values())) == 1),
        said(
            "({} MB against backpropagation's {} MB at 2 layers and {} MB at 8)",
            *(whole(x / 1e6) for x in (saved["graph-sf"]["2"], saved["backprop"]["2"], saved["backprop"]["8"])),
        ),
        said(
            "`graph-top2loss` {} %, `graph-top2input` {} %, `graph-ff-la` {} %, `graph-ff-vn` {} %.",
            *(percent(mean[f"{way}, 2 layers"]["test"]) for way in others),
        ),
    ]


def _language() -> list[Claim]:
    scratch, stories = (
        {key.split(",")[0]: v for key, v in result(f"block_local_lm_{name}").items()} for name in ("scratch", "stories")
    )
    return [
        said(
            "own {} bits a character, with the model's output embedding {}, backpropagation {}), at {} of the saved "
            "activations",
            *(ratio(scratch[way]["test_bits"]) for way in ("dgl own", "dgl tied", "backprop")),
            ratio(scratch["dgl own"]["saved_bytes"] / scratch["backprop"]["saved_bytes"]),
        ),
        said(
            "backpropagation reaches {} bits a token and `dgl` {}; the last block alone reaches {}, and `mezo` {} in as many",
            *(ratio(stories[way]["test_bits"]) for way in ("backprop", "dgl tied", "last block", "mezo")),
        ),
    ]


def _convex() -> list[Claim]:
    rows = result("convex")["agreement"].values()
    return [so("agree with CVXPY to six digits", all(abs(r["objective"] / r["cvxpy"] - 1) < 5e-6 for r in rows))]


def many_machines() -> list[Claim]:
    got = result("workers")
    return [
        said("took a `mezo` step of a {}M-weight", ratio(got["weights"] / 1e6, 1)),
        said(
            "Llama {} times as fast as one with all of it, where two that do not exchange anything came to {} (",
            ratio(got["speedup_of_two_processes"]),
            ratio(got["speedup_of_two_that_do_not_exchange"]),
        ),
    ]


def methods() -> list[Claim]:
    got = result("zo_precision")

    def after(key: str) -> str:
        values = got[key]["after, by seed"]
        return ratio(sum(values) / len(values))

    kinds = ("float32", "bfloat16", "bfloat16, naive in place")
    return [
        said(
            "{} steps of `mezo`, two seeds, held-out loss from {}: float32 {}, bf16 weights {}, the naive in-place form in "
            "bf16 {} (`eps` 0.01; with 0.001 it is {}, {}, {}).",
            whole(got["steps"]),
            ratio(got["float32, eps 0.01"]["held-out loss before"]),
            *(after(f"{kind}, eps 0.01") for kind in kinds),
            *(after(f"{kind}, eps 0.001") for kind in kinds),
        ),
        so("`mezo`, two seeds", all(len(got[f"{kind}, eps 0.01"]["after, by seed"]) == 2 for kind in kinds)),
    ]


def reproductions() -> list[Claim]:
    table, forward = result("energy")["table"].values(), result("mnist_forward")
    ways = [row for task in table for way, row in task.items() if way != "backprop"]
    mono = [task["backprop"]["test"] - task["mono-forward"]["test"] for task in table if "mono-forward" in task]
    lacks = forward["ff, ff at 1e-3, seed 0"]["test_error_by_goodness"] - forward["ff, backprop, seed 0"]["test_error"]
    return [
        so("Nothing saves energy at this size", all(row["energy_joules_over_backprop"][1] > 1 for row in ways)),
        so("Mono-Forward comes close to backpropagation", all(points < 0.02 for points in mono)),
        so("bring it to within a point", 0 < lacks < 0.01),
    ]


def ternary() -> list[Claim]:
    signs, llama, speed = result("ternary_signs"), result("ternary_llama_cpp"), result("ternary_speed")

    def mean(way: str) -> str:
        runs = signs[way]["runs"]
        return percent(sum(run["accuracy"] for run in runs) / len(runs))

    moved = max(trial["codes moved"] for trial in signs["codes as well"]["trials"])
    distances = [value["distance"] for value in llama["agreement"].values()]
    return [
        said(
            "that {} steps of backpropagation had brought to {} %, {} steps reached {} % with scales alone, and {} % with "
            "codes as well",
            str(signs["setting"]["recovery"]),
            percent(signs["before"]["accuracy"]),
            whole(signs["setting"]["steps"]),
            mean("scales and biases"),
            mean("codes as well"),
        ),
        said("its logits are off by {} to {} % of their norm", *(percent(d) for d in (min(distances), max(distances)))),
        said("One that moved {} was as good", whole(round(moved, -3))),
        said(
            "llama.cpp's time over ours is {} with a vocabulary of 256 tokens, and {} with Llama's 128,256",
            *(ratio(llama["decode"][what]["1 threads"]["ratio"]) for what in ("body", "whole")),
        ),
        so("the source's likeliest token at all of 256", all(v["agreement"] == 1 for v in llama["agreement"].values())),
        so("takes at most 1/8.7 of the time", speed["smallest_decode_ratio"] >= 8.7),
        so("through single layers at most 1/1.7", speed["smallest_rows_ratio"] >= 1.7),
    ]
