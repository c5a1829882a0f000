"""Ternary Llamas in llama.cpp against the same models in torch: likeliest next tokens, and the time of a decode step.

    pip install llama-cpp-python
    python tests/benchmarks/ternary_llama_cpp.py [--only agreement decode] [--threads 1 2] [--compiled] [--quick]
    python tests/benchmarks/ternary_llama_cpp.py --model DIR [--text FILE] [--type TQ2_0] [--positions 256]

agreement: a Llama 256 wide, ternary by tequila with a lambda of 0.1, so that its folded biases matter, with SmolLM2's
tokenizer, at 256 positions of wikitext-2's valid.txt, in each type of file; Q2_0 of a model with groups of 128. It is trained
on those positions for some steps, so that its likeliest tokens are no near ties. Numbers: the share of positions where both
have the same likeliest token, the distance of the logits by the norm of torch's, the same two for the torch model with its own
8-bit activations, and without its folded biases, and whether llama.cpp cuts the text into the same tokens. llama.cpp rounds
activations to 8 bits, so that the distance is not 0. Bar: agreement of 0.98 at least, and the same tokens. --model compares a
saved ternary Llama of yours, and saves nothing.

decode: one token through a random Llama of Llama-3.2-1B's shapes in bfloat16, packed, groups of 256, after a prompt of 32
tokens: in transformers, by set_int8_activations_ and speed_up_, and in llama.cpp from the TQ2_0 file of the same model, with
the same threads. Head and embedding are bfloat16 in both. "body" is the same model with a vocabulary of 256 tokens, in which
the head does not count. "before" is transformers without speed_up_, but in the same memory. --compiled adds torch.compile of
the decode step, which takes minutes to compile. All take turns of 8 tokens; a ratio, llama.cpp's time over ours, is the median
of those of the turns; that of the processor's time (one thread alone) leaves out what other programs take. Bar: at least 1.0.
What lies in huge pages is written down: Linux keeps a file that was just written in such, as llama.cpp's is here, and an older
one in small pages, from which llama.cpp takes longer; ours get them if some are free. --quick has two layers and few turns, and
saves nothing.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

import localplug_ternary.quantizer  # noqa: F401  (registers it)
from localplug_ternary import (
    PackedTernaryLinear,
    TernaryConfig,
    export,
    freeze_,
    set_int8_activations_,
    speed_up_,
    ternarize_,
)
from localplug_transformers import offline_models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save

TYPES = {"TQ2_0": 256, "TQ1_0": 256, "Q2_0": 128}  # and the groups of the model that is written so
TEXT = pathlib.Path(__file__).parents[3] / "shared/data/wikitext2/valid.txt"
PROMPT, TURN = 32, 8  # tokens
STEPS = 60  # of training on the positions that are compared


def loaded(folder, group_size, text, positions):
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(offline_models.smollm2())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    model = ternarize_(LlamaForCausalLM(config), TernaryConfig("tequila", group_size, lam=0.1)).train()
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:positions]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return freeze_(model.eval()), tokenizer


@torch.no_grad()
def in_torch(model, ids):
    return model(torch.tensor([ids])).logits[0].float().numpy()


def in_llama_cpp(path, ids, text):
    """Logits of the ids, and the ids that llama.cpp makes of the text."""
    from llama_cpp import Llama

    model = Llama(model_path=str(path), n_ctx=len(ids), logits_all=True, verbose=False)
    own_ids = model.tokenize(text.encode(), add_bos=False, special=False)
    model.eval(ids)
    return numpy.array(model.scores[: len(ids)]), list(own_ids)


def compared(logits, expected):
    return {
        "agreement": round(float((logits.argmax(-1) == expected.argmax(-1)).mean()), 4),
        "distance": round(float(numpy.linalg.norm(logits - expected) / numpy.linalg.norm(expected)), 5),
    }


def agreement(model, tokenizer, text, type, positions):
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = whole[:positions]
    expected = in_torch(model, ids)
    with tempfile.TemporaryDirectory() as folder:
        path = export.gguf(model, tokenizer, pathlib.Path(folder) / "out", type)
        logits, own_ids = in_llama_cpp(path, ids, text)
    result = {"positions": len(ids), **compared(logits, expected), "same_tokens": own_ids == whole}
    set_int8_activations_(model)
    result["torch_with_int8_activations"] = compared(in_torch(model, ids), expected)
    set_int8_activations_(model, False)
    for layer in model.modules():
        if isinstance(layer, PackedTernaryLinear):
            layer.bias = None
    result["without_biases"] = compared(in_torch(model, ids), expected)
    return result


def shaped_like_llama(layers, vocabulary):
    """A packed random model of Llama-3.2-1B's shapes, in bfloat16."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, rope_parameters=rope, rms_norm_eps=1e-5,
        max_position_embeddings=131072, dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return freeze_(ternarize_(model, TernaryConfig("tequila", 256)))


class InTorch:
    """A prompt, and tokens after it, again and again."""

    def __init__(self, model, prompt, sped_up=True, compiled=False):
        self.model, self.prompt, self.sped_up = set_int8_activations_(model), prompt, sped_up
        self.cache = DynamicCache(config=model.config)
        self.decode = torch.compile(model.forward, fullgraph=True, dynamic=True) if compiled else model
        speed_up_(model, sped_up)
        with torch.inference_mode():
            self.logits = self.step(model, prompt)

    def step(self, way, ids):
        return way(torch.tensor([ids]), cache=self.cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    @torch.inference_mode()
    def tokens(self):
        if (behind := self.cache.get_seq_length() - len(self.prompt)) > 0:
            self.cache.crop(-behind)
        for i in range(TURN):
            self.step(self.decode, [i + 1])

    def turn(self):
        speed_up_(self.model, self.sped_up)  # which others have undone
        began = now()
        self.tokens()
        return since(began)


class InLlamaCpp:
    """The same in llama.cpp."""

    def __init__(self, path, prompt, threads):
        from llama_cpp import Llama

        self.model = Llama(
            model_path=str(path), n_ctx=256, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
        )
        self.prompt = prompt
        self.model.eval(prompt)
        vocabulary = self.model.n_vocab()
        self.logits = torch.tensor(numpy.ctypeslib.as_array(self.model._ctx.get_logits(), (vocabulary,)).copy())

    def turn(self):
        self.model.n_tokens = len(self.prompt)  # the next call forgets what came after
        began = now()
        for i in range(TURN):
            self.model.eval([i + 1])
        return since(began)


def now():
    return time.perf_counter(), time.process_time()


def since(began):
    """Seconds a token: of the clock, and of the processor."""
    return [(end - start) / TURN for start, end in zip(began, now(), strict=True)]


def decode(layers, vocabulary, threads, turns, compiled):
    model, prompt = shaped_like_llama(layers, vocabulary), list(range(1, PROMPT + 1))
    result = {"layers": layers, "vocabulary": vocabulary}
    with tempfile.TemporaryDirectory() as folder:
        path = export.gguf(model, None, pathlib.Path(folder) / "out", "TQ2_0")
        for count in threads:
            torch.set_num_threads(count)
            ways = {
                "torch": InTorch(model, prompt),
                "llama.cpp": InLlamaCpp(path, prompt, count),
                "before": InTorch(model, prompt, sped_up=False),
            }
            if compiled:
                ways["compiled"] = InTorch(model, prompt, compiled=True)
            ours, theirs = (ways[name].logits.float() for name in ("torch", "llama.cpp"))
            taken = {name: [] for name in ways}
            for turn in range(turns + 1):
                for name, way in ways.items():
                    seconds = way.turn()
                    if turn:  # the first one warms up
                        taken[name].append(seconds)
            result[f"{count} threads"] = {
                **{f"{name} ms": round(1000 * statistics.median(x for x, _ in taken[name]), 3) for name in ways},
                "ratio": ratio(taken, "torch", 0),
                **({"ratio_processor_time": ratio(taken, "torch", 1)} if count == 1 else {}),  # idle threads spin
                **{f"ratio {name}": ratio(taken, name, 0) for name in ("before", "compiled") if name in ways},
                "distance of logits": round(float((ours - theirs).norm() / theirs.norm()), 4),
                "MB in huge pages": {
                    "torch": in_huge_pages("AnonHugePages"),
                    "llama.cpp": in_huge_pages("FilePmdMapped"),
                },
            }
    return result


def in_huge_pages(kind):
    """Of this process, in MB; None where Linux does not say."""
    rollup = pathlib.Path("/proc/self/smaps_rollup")
    found = re.search(rf"{kind}: *(\d+) kB", rollup.read_text()) if rollup.exists() else None
    return int(found[1]) // 1024 if found else None


def ratio(taken, name, clock):
    pairs = zip(taken["llama.cpp"], taken[name], strict=True)
    return round(statistics.median(other[clock] / own[clock] for other, own in pairs), 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, default=TEXT)
    parser.add_argument("--type", choices=TYPES, help="of --model's file (default: TQ2_0)")
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--only", nargs="+", choices=("agreement", "decode"), default=("agreement", "decode"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("llama-cpp-python is not installed, so nothing was compared; pip install llama-cpp-python builds it")
    text = options.text.read_text()[: 8 * options.positions]
    if options.model is not None:
        type = options.type or "TQ2_0"
        found = agreement(*loaded(options.model, None, text, options.positions), text, type, options.positions)
        print(json.dumps({"type": type, **found}, indent=1))
        return 0 if found["agreement"] >= 0.98 and found["same_tokens"] else 1
    if options.quick:
        options.layers, options.vocabulary, options.turns = 2, 1024, 2
    path = RESULTS / "ternary_llama_cpp.json"
    result = json.loads(path.read_text())["result"] if path.exists() and not options.quick else {}
    reached = []
    if "agreement" in options.only:
        result["agreement"] = {
            type: agreement(*loaded(None, group_size, text, options.positions), text, type, options.positions)
            for type, group_size in TYPES.items()
        }
        reached += [x["agreement"] >= 0.98 and x["same_tokens"] for x in result["agreement"].values()]
    if "decode" in options.only:
        sizes = {"whole": options.vocabulary, "body": 256}
        found = {
            name: decode(options.layers, size, options.threads, options.turns, options.compiled)
            for name, size in sizes.items()
        }
        result["decode"] = {"load": [round(load, 1) for load in os.getloadavg()], **found}
        reached += [x["ratio"] >= 1.0 for of in found.values() for x in of.values() if isinstance(x, dict)]
    if options.quick:
        print(json.dumps(result, indent=1))
    else:
        save("ternary_llama_cpp", result)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
