"""NoProp in a bare loop, under a Hugging Face Trainer and under Lightning: it learns, predicts by the model, and resumes."""

import logging

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import localplug
from localplug_lightning import LocalPlugStrategy
from localplug_noprop.blocks import Block
from localplug_noprop.embeddings import one_hot, orthogonal
from localplug_noprop.network import NoPropCTNet, NoPropFMNet, NoPropNet
from localplug_transformers import LocalPlugCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def network(name="noprop-dt"):
    torch.manual_seed(0)

    def block():
        embed = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        return Block(embed, embedded=16, z_dim=3, num_classes=3, width=16, takes_time=name != "noprop-dt")

    if name == "noprop-dt":
        return NoPropNet([block() for _ in range(3)], nn.Parameter(orthogonal(3, 3)))
    if name == "noprop-ct":
        return NoPropCTNet(block(), one_hot(3), num_steps=20, max_signal=0.9)
    return NoPropFMNet(block(), one_hot(3), num_steps=20)


def data(seed=1, n=240):
    """Three classes: which of the first three numbers is the largest in absolute value."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].abs().argmax(1)


def accuracy(model):
    x, y = data(seed=2, n=600)
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


STEPS = {"noprop-dt": (100, 0.02), "noprop-ct": (250, 0.03), "noprop-fm": (250, 0.03)}


@pytest.mark.parametrize("name", STEPS)
def test_a_bare_loop(name):
    (steps, lr), (x, y) = STEPS[name], data(n=960)
    model = network(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    labels = [None]
    with localplug.attach(model, name, optimizer, targets=lambda args, kwargs: labels[0]):
        for step in range(steps):
            chosen = torch.arange(240) + 240 * (step % 4)
            labels[0] = y[chosen]
            loss = F.cross_entropy(model(x[chosen]), labels[0])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        labels[0] = None
        inside = accuracy(model)  # the evaluation loop sees the model, and no label
    assert inside == accuracy(model) > 0.5, "of three classes"


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-2)


def trainer(folder, steps, **options):
    return L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), strategy=LocalPlugStrategy("noprop-dt"), **options,
    )  # fmt: skip


def loader(seed=1, n=240):
    return DataLoader(TensorDataset(*data(seed, n)), batch_size=60)


def test_lightning(tmp_path):
    """The same gradients as those of the bare engine, and the accuracy of the inference in the validation loop."""
    model, by_hand = Module(), Module()
    fitted = trainer(tmp_path, 60, enable_checkpointing=False)
    fitted.fit(model, loader())
    optimizer = by_hand.configure_optimizers()
    engine = localplug.Engine(by_hand, localplug.method("noprop-dt"), optimizer)
    batches = list(loader())
    for step in range(60):
        x, y = batches[step % 4]
        engine.step(lambda x=x, y=y: F.cross_entropy(by_hand.net(x), y), optimizer, targets=y)
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    (found,) = fitted.validate(model, DataLoader(TensorDataset(*data(2, 600)), batch_size=600), verbose=False)
    assert found["accuracy"] == pytest.approx(accuracy(by_hand.net), abs=0.01) and found["accuracy"] > 0.5


def test_lightning_goes_on_from_a_checkpoint(tmp_path):
    whole, resumed = Module(), Module()
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    trainer(tmp_path, 8, callbacks=[keep]).fit(whole, loader())
    checkpoint = str(next(tmp_path.glob("step=4*")))
    trainer(tmp_path, 8, callbacks=[keep]).fit(resumed, loader(), ckpt_path=checkpoint, weights_only=True)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


class Labelled(nn.Module):
    """A network as a Trainer calls it."""

    def __init__(self, name):
        super().__init__()
        self.net = network(name)

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("name", STEPS)
def test_a_hugging_face_trainer(name, tmp_path):
    """The callback alone; what its predict gives is the inference by denoising."""
    (steps, lr), (x, y) = STEPS[name], data(n=960)
    model = Labelled(name)
    rows = [{"x": a, "labels": b} for a, b in zip(x, y.tolist(), strict=True)]
    args = TrainingArguments(
        tmp_path, max_steps=steps, per_device_train_batch_size=240, per_device_eval_batch_size=600, learning_rate=lr,
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[LocalPlugCallback(name)])
    trainer.train()
    x, y = data(seed=2, n=600)
    predicted = trainer.predict([{"x": a, "labels": b} for a, b in zip(x, y.tolist(), strict=True)])
    right = float((torch.tensor(predicted.predictions).argmax(1) == y).float().mean())
    assert right == pytest.approx(accuracy(model.net)) and right > 0.5
