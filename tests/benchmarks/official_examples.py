"""The official example scripts of transformers, with LocalPlugCallback added and nothing else changed, on small data.

    python tests/benchmarks/official_examples.py --transformers CHECKOUT [--model FOLDER] [--steps 30]

CHECKOUT: of huggingface/transformers; its run_clm.py, run_classification.py and run_glue.py are read, copied, and given two
lines: an import, and `callbacks=[...]` in the call of Trainer. Needs `pip install evaluate`. Without --model a small Llama
of random weights is made, with a tokenizer of its own. The language model reads this repository's LICENSE, the classifiers
the reviews of the demo. Everything runs offline, in its own process and folder, with the Trainer's default optimizer.
"""

import argparse
import csv
import difflib
import hashlib
import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = {
    "run_clm": "examples/pytorch/language-modeling/run_clm.py",
    "run_classification": "examples/pytorch/text-classification/run_classification.py",
    "run_glue": "examples/pytorch/text-classification/run_glue.py",
}
IMPORT = "from localplug_transformers import LocalPlugCallback\n"
ARGUMENT = '        callbacks=[LocalPlugCallback("mezo", eps=1e-3)],\n'

# evaluate.load("accuracy") takes a folder of that name in the working directory before it asks the hub.
ACCURACY = """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features(dict(predictions=datasets.Value("int32"), references=datasets.Value("int32")))
        return evaluate.MetricInfo(description="share of equal pairs", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return dict(accuracy=sum(p == r for p, r in zip(predictions, references)) / len(references))
"""


def changed(text):
    """The script with the import and the argument."""
    lines = text.splitlines(keepends=True)
    at = lines.index("    trainer = Trainer(\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("import transformers"))
    return "".join([*lines[:first], IMPORT, *lines[first : at + 1], ARGUMENT, *lines[at + 1 :]])


def small_model(folder, texts):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokens.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=512, special_tokens=["<unk>", "<pad>", "<eos>"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", model_max_length=128
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def data(folder):
    """train.csv and validation.csv of reviews, and license.txt; returns all texts."""
    package = pathlib.Path(importlib.util.find_spec("localplug_transformers").origin).parent
    reviews = [json.loads(line) for line in (package / "reviews.jsonl").read_text().splitlines()]
    for name, rows in (("train", reviews[:200]), ("validation", reviews[200:248])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence", "label"])
            writer.writerows([row["text"], int(row["label"] == "positive")] for row in rows)
    license_text = (REPOSITORY / "LICENSE").read_text()
    (folder / "license.txt").write_text(license_text)
    return [license_text, *(row["text"] for row in reviews)]


def arguments(name, folder, model, steps):
    shared = (
        f"--model_name_or_path {model} --output_dir {folder / name} --do_train --do_eval --max_steps {steps} --use_cpu "
        f"--logging_steps 1 --save_steps {steps} --learning_rate 1e-3 --max_grad_norm 0 --report_to none --seed 0 "
        f"--per_device_train_batch_size 8 --cache_dir {folder / 'cache'} --disable_tqdm True"
    ).split()
    if name == "run_clm":
        text = folder / "license.txt"
        return [*shared, "--train_file", str(text), "--validation_file", str(text), "--block_size", "64"]
    files = ["--train_file", str(folder / "train.csv"), "--validation_file", str(folder / "validation.csv")]
    columns = (
        ["--text_column_names", "sentence", "--label_column_name", "label"] if name == "run_classification" else []
    )
    return [*shared, *files, *columns, "--max_seq_length", "64"]


def inside(script, report, options):
    """What the child process does: run the script, and count what autograd saves for a backward pass."""
    saved = [0]

    def pack(x):
        saved[0] += x.numel()
        return x

    sys.argv = [script, *options]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        runpy.run_path(script, run_name="__main__")
    pathlib.Path(report).write_text(json.dumps(saved[0]))


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def run(name, source, folder, model, steps):
    text = source.read_text()
    script = folder / f"{name}.py"
    script.write_text(changed(text))
    report = folder / f"{name}.saved"
    command = [sys.executable, __file__, "--inside", str(script), str(report), *arguments(name, folder, model, steps)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
    checkpoint = folder / name / f"checkpoint-{steps}"
    before, after = weights(pathlib.Path(model)), weights(checkpoint)
    both = [
        key for key in before if key in after and before[key].shape == after[key].shape
    ]  # a classifier's head is new
    log = json.loads((checkpoint / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in log["log_history"] if "loss" in entry]
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    evaluated = json.loads((folder / name / "eval_results.json").read_text())
    start = [
        line.split("localplug: ")[-1]
        for line in (done.stdout + done.stderr).splitlines()
        if "forward passes a batch" in line
    ]
    result = {
        "lines added": [
            line[1:].strip()
            for line in difflib.unified_diff(text.splitlines(), changed(text).splitlines(), n=0, lineterm="")
            if line[0] in "+-" and line[:3] not in ("+++", "---")
        ],
        "sha256 of the script": hashlib.sha256(text.encode()).hexdigest(),
        "it said": start[0].split(" - ")[-1] if start else None,
        "steps": log["global_step"],
        "first and last logged loss": [losses[0], losses[-1]],
        "losses logged": len(losses),
        "eval": {key: value for key, value in evaluated.items() if key in ("eval_loss", "eval_accuracy")},
        "tensors that moved": f"{sum(not torch.equal(before[key], after[key]) for key in both)} of {len(both)}",
        "states in the optimizer": len(optimizer["state"]),
        "elements saved for a backward pass": json.loads(report.read_text()),
    }
    wrong = [
        what
        for what, is_right in {
            "logged": len(losses) == steps and all(map(torch.isfinite, torch.tensor(losses))),
            "moved": any(not torch.equal(before[key], after[key]) for key in both),
            "no optimizer state": not optimizer["state"],
            "no backward pass": result["elements saved for a backward pass"] == 0,
        }.items()
        if not is_right
    ]
    if wrong:
        raise SystemExit(f"{name}: not {wrong}: {json.dumps(result, indent=1)}")
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3], sys.argv[4:])
        raise SystemExit(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "accuracy").mkdir()
        (folder / "accuracy" / "accuracy.py").write_text(ACCURACY)
        texts = data(folder)
        model = options.model.resolve() if options.model else folder / "model"
        if not options.model:
            small_model(model, texts)
        results = {
            example: run(example, options.transformers / path, folder, model, options.steps)
            for example, path in EXAMPLES.items()
        }
    sys.argv = [
        sys.argv[0],
        "--transformers",
        "CHECKOUT",
        *(["--model", "FOLDER"] if options.model else []),
    ]  # no paths
    save("official_examples", results)
