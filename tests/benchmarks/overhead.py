"""What localplug costs above hand-written MeZO: the same steps by a bare loop of our own, attach, the callback, the strategy.

    python tests/benchmarks/overhead.py [--model FOLDER] [--steps 100] [--batch 8] [--tokens 128]

The hand-written loop is the published algorithm as one would type it: three in-place sweeps of seeded torch.normal noise
and one that updates. After every step of each way the hand-written step is taken once on a second model, and the result is
the median over steps of the ratio of the two: a machine that slows down slows both. The callback and the strategy pay for
their trainer's loop, too; what that costs by itself is measured with the hand-written method put into the same Trainer. And
the hand-written loop with localplug's noise, one parameter after another, tells the price of the noise from the host's.
"""

import argparse
import logging
import pathlib
import statistics
import sys
import tempfile
import time
import warnings

import lightning.pytorch as L
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import localplug
from localplug_lightning import LocalPlugStrategy
from localplug_transformers import LocalPlugCallback

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

EPS, LR = 1e-3, 1e-6


class HandWritten:
    """MeZO as one would type it."""

    def __init__(self, model, own_noise=False):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.generator, self.step_number, self.own_noise = torch.Generator(), 0, own_noise
        names = localplug.contract.parameter_names([n for n, p in model.named_parameters() if p.requires_grad])
        self.directions = localplug.Directions(
            localplug.Run(model, list(zip(names, self.parameters, strict=True)), seed=0)
        )

    def sweep(self, factor):
        if self.own_noise:
            self.directions._run.step = self.step_number
            for i, p in enumerate(self.parameters):
                self.directions.add_(p.data, i, [localplug.Term(0, factor)])
            return
        self.generator.manual_seed(self.step_number)
        for p in self.parameters:
            z = torch.normal(0.0, 1.0, size=p.shape, dtype=p.dtype, generator=self.generator)
            p.data.add_(z, alpha=factor)

    @torch.no_grad()
    def step(self, loss):
        self.sweep(EPS)
        plus = loss()
        self.sweep(-2 * EPS)
        minus = loss()
        self.sweep(EPS)
        self.sweep(-LR * float(plus - minus) / (2 * EPS))
        self.step_number += 1
        return plus


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows, length, vocabulary):
        self.x = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i], "labels": self.x[i]}


class Clock(transformers.TrainerCallback):
    """Called at the end of each step: notes how long it took, and takes the hand-written one."""

    def __init__(self, make, data, options):
        self.model = make().train()
        self.by_hand = HandWritten(self.model)
        self.batches = iter(DataLoader(data, batch_size=options.batch))
        self.ratios, self.milliseconds, self.since = [], [], None

    def tick(self):
        took = time.perf_counter() - self.since if self.since is not None else None
        batch = next(self.batches)
        start = time.perf_counter()
        self.by_hand.step(lambda: self.model(**batch).loss)
        reference = time.perf_counter() - start
        if took is not None:
            self.ratios.append(took / reference)
            self.milliseconds.append(1000 * reference)
        self.since = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.tick()


def bare(make, data, options, way, clock):
    model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    by_hand = HandWritten(model, own_noise=way == "hand-written, localplug's noise")
    plug = localplug.attach(model, "mezo", optimizer, eps=EPS) if way == "attach" else None
    for batch in DataLoader(data, batch_size=options.batch):
        if plug is None:
            by_hand.step(lambda batch=batch: model(**batch).loss)
        else:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        clock.tick()
    if plug is not None:
        plug.close()


def hugging_face(make, data, options, way, clock):
    class ByHand(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if not hasattr(self, "by_hand"):
                self.by_hand = HandWritten(model)
            model.train()
            inputs = self._prepare_inputs(inputs)
            return self.by_hand.step(lambda: self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch))

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.batch, learning_rate=LR,
            lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0, optim="sgd",
            save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        kind, also = (Trainer, [LocalPlugCallback("mezo", eps=EPS)]) if way == "callback" else (ByHand, [])
        kind(make(), args, train_dataset=data, callbacks=[*also, clock]).train()


def lightning(make, data, options, way, clock):
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = make().train()
            self.by_hand = HandWritten(self.model)
            self.automatic_optimization = way == "strategy"

        def training_step(self, batch, batch_idx):
            if way == "strategy":
                return self.model(**batch).loss
            return self.by_hand.step(lambda: self.model(**batch).loss)

        def on_train_batch_end(self, *args):
            clock.tick()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    strategy = LocalPlugStrategy("mezo", eps=EPS) if way == "strategy" else "auto"
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            strategy=strategy, max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        ).fit(Module(), DataLoader(data, batch_size=options.batch))  # fmt: skip


WAYS = {
    "hand-written": bare,
    "hand-written, localplug's noise": bare,
    "attach": bare,
    "hand-written in the Trainer": hugging_face,
    "callback": hugging_face,
    "hand-written in Lightning": lightning,
    "strategy": lightning,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder with a small causal LM; a random one of 260K weights if not given")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "localplug"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()

    def make():
        if options.model:
            return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        torch.manual_seed(0)
        shape = dict(vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8)
        return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, max_position_embeddings=512))

    data = Rows(options.steps * options.batch, options.tokens, 500)
    ratios, reference = {}, []
    for way, run in WAYS.items():
        clock = Clock(make, data, options)
        run(make, data, options, way, clock)
        ratios[way] = [round(q, 3) for q in statistics.quantiles(clock.ratios[2:], n=4)]
        reference += clock.milliseconds[2:]
    middle = {way: q[1] for way, q in ratios.items()}
    save(
        "overhead",
        {
            "weights": sum(p.numel() for p in make().parameters()),
            "batch": [options.batch, options.tokens],
            "step / hand-written step, quartiles over the steps": ratios,
            "the host alone": {
                "attach": middle["attach"],
                "callback": round(middle["callback"] / middle["hand-written in the Trainer"], 3),
                "strategy": round(middle["strategy"] / middle["hand-written in Lightning"], 3),
            },
            "milliseconds of the hand-written step": round(statistics.median(reference), 1),
        },
    )
