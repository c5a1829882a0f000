"""Graph methods through the trainers: one graph a step, labels in the batch, predictions in their own way."""

import logging

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch_geometric.nn import GCN
from transformers import Trainer, TrainingArguments

import localplug
from localplug_lightning import LocalPlugStrategy
from localplug_transformers import LocalPlugCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
STEPS, NODES = 40, 60


def graph():
    """Two communities with a few edges between them; a fifth of the nodes has a label to learn from."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(NODES) % 2
    edges = torch.randint(0, NODES, (2, 600), generator=g)
    inside = y[edges[0]] == y[edges[1]]
    edges = edges[:, inside | (torch.rand(600, generator=g) < 0.1)]
    x = torch.randn(NODES, 6, generator=g) + 0.5 * y[:, None]
    return x, edges, torch.where(torch.arange(NODES) < NODES // 5, y, -100), y


class Nodes(nn.Module):
    """A network as a Trainer calls it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gcn = GCN(in_channels=6, hidden_channels=16, num_layers=3, out_channels=2)

    def forward(self, x, edge_index, labels=None):
        logits = self.gcn(x, edge_index)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def by_hand():
    """(the trained model, its scores)."""
    model, (x, edges, labels, _) = Nodes(), graph()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with localplug.attach(model, "graph-sf", optimizer, targets=lambda args, kwargs: kwargs["labels"]):
        for _ in range(STEPS):
            model(x, edges, labels=labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            scores = model(x, edges)["logits"]
    return model, scores


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_hugging_face_trainer(tmp_path):
    model, (x, edges, labels, y) = Nodes(), graph()
    rows = [{"x": x, "edge_index": edges, "labels": labels}]
    args = TrainingArguments(
        tmp_path, max_steps=STEPS, per_device_train_batch_size=1, per_device_eval_batch_size=1, max_grad_norm=0.0,
        report_to=[], save_strategy="no", use_cpu=True, seed=0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=lambda rows: rows[0], callbacks=[LocalPlugCallback("graph-sf")],
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    expected, scores = by_hand()
    torch.testing.assert_close(weights(model), weights(expected), atol=1e-5, rtol=1e-4)
    predicted = torch.tensor(trainer.predict(rows).predictions)
    right = (scores.argmax(1) == y).float().mean()
    assert right > 0.8 and predicted.shape == scores.shape


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.nodes = Nodes()

    def training_step(self, batch, batch_idx):
        (x, edges), labels = batch
        return self.nodes(x, edges, labels=labels)["loss"]

    def predict_step(self, batch, batch_idx):
        (x, edges), _ = batch
        return self.nodes(x, edges)["logits"]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_lightning(tmp_path):
    module, (x, edges, labels, _) = Module(), graph()
    loader = DataLoader([((x, edges), labels)], batch_size=None)
    trainer = L.Trainer(
        max_steps=STEPS, default_root_dir=tmp_path, strategy=LocalPlugStrategy("graph-sf"), accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    (predicted,) = trainer.predict(module, loader)
    expected, scores = by_hand()
    torch.testing.assert_close(weights(module), weights(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predicted, scores, atol=1e-4, rtol=1e-3)
