"""One run, three ways: callback, strategy and bare loop give the same numbers, on a real pretrained model."""

import logging

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import localplug
from localplug_lightning import LocalPlugStrategy
from localplug_transformers import LocalPlugCallback
from problems import SavedElements, fit, logged, weights

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # lightning 2.6 on torch 2.13
]
STEPS, EPS, LR = 5, 1e-3, 1e-4


class Stories(torch.utils.data.Dataset):
    """Text of the repository's licence, in rows of 32 tokens."""

    def __init__(self, tokenizer, text, num=20):
        ids = torch.tensor(tokenizer.encode(text))[: num * 32]
        self.x = ids.view(-1, 32)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i], "attention_mask": torch.ones_like(self.x[i]), "labels": self.x[i].clone()}


@pytest.fixture
def stories(shared_data, request):
    folder = shared_data / "models/stories260K/hf"
    text = (request.config.rootpath / "LICENSE").read_text()
    data = Stories(AutoTokenizer.from_pretrained(folder), text)
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), data


class KeepsLosses(TrainerCallback):
    """What the Trainer gets from the model; its log rounds to four places."""

    def __init__(self):
        self.losses = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.register_forward_hook(lambda m, args, out: self.losses.append(float(out.loss.detach())))


def test_callback_strategy_and_bare_loop_agree(stories, tmp_path):
    make, data = stories
    by_callback = make()
    seen = []
    by_callback.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append({k: v for k, v in kwargs.items() if torch.is_tensor(v)}), with_kwargs=True
    )
    callback = LocalPlugCallback("mezo", eps=EPS, seed=7)
    with SavedElements() as saved:
        kept = KeepsLosses()
        trainer = fit(by_callback, tmp_path, callback, data=data, max_steps=STEPS, learning_rate=LR, also=[kept])
    assert callback.engine.run.num_forwards == 2 * STEPS == 2 * len(seen)  # the hooks see one call a step
    assert all(p.grad is None for p in by_callback.parameters())
    assert len(trainer.optimizer.state) == 0 and saved.total == 0
    batches = [{k: b[k] for k in ("input_ids", "attention_mask", "labels")} for b in seen]

    by_loop, losses = make(), []
    by_loop.train()
    optimizer = torch.optim.AdamW(by_loop.parameters(), lr=LR, weight_decay=0.0)
    with localplug.attach(by_loop, "mezo", optimizer, eps=EPS, seed=7):
        for batch in batches:
            loss = by_loop(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = make(), []

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=0.0)

    module = Module()
    module.model.train()
    fitted = L.Trainer(
        strategy=LocalPlugStrategy("mezo", eps=EPS, seed=7), max_steps=STEPS, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    fitted.fit(module, DataLoader(batches, batch_size=None))

    assert losses == pytest.approx(module.losses, rel=1e-6)
    assert losses == pytest.approx(kept.losses, rel=1e-6)
    assert losses == pytest.approx(logged(trainer, "loss"), rel=1e-4)
    torch.testing.assert_close(weights(by_callback), weights(by_loop), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(weights(module.model), weights(by_loop), atol=1e-7, rtol=1e-6)
    assert len(set(losses)) == STEPS
