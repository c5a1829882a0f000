"""Every layer-local method, by its name, through the bare loop, the Hugging Face callback and the Lightning strategy.

One network, one problem, one optimizer and seed: what is learned is the same through every door, to the last bit where the
frameworks do the same arithmetic, and predictions are better than before.
"""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import localplug
from lightning_problems import WARNINGS, trainer
from localplug_lightning import LocalPlugStrategy
from localplug_transformers import LocalPlugCallback

pytestmark = WARNINGS

METHODS = {
    "tpsgd": {}, "drtp": {}, "dfa": {}, "fa": {},
    "ff": {}, "mono-forward": {}, "cafo": {}, "pepita": {}, "softhebb": {}, "phyll": {},
    "predsim": {}, "dgl": {}, "infopro": {},
}  # fmt: skip
STEPS, BATCH, SIZE = 60, 16, 12


class Classifier(nn.Module):
    """As a Trainer wants it: labels in, loss and logits out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(SIZE, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * BATCH, SIZE, generator=g)
    return x, (x[:, 2:6].sum(1) > 0).long()


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def scores(model):
    model.eval()
    with torch.no_grad():
        found = model(rows()[0])
    model.train()
    return found["logits"] if isinstance(found, dict) else found


def by_hand(name):
    """(model, its scores in an evaluation loop)."""
    model, (x, y) = Classifier(), rows()
    optimizer = adam(model)
    method = localplug.method(name, **METHODS[name])
    with localplug.attach(model, method, optimizer, targets=lambda args, kwargs: kwargs["labels"]):
        for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
            model(a, labels=b)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        found = scores(model)
    return model, found


@pytest.fixture(scope="module")
def reference():
    made = {}

    def get(name):
        if name not in made:
            made[name] = by_hand(name)
        return made[name]

    return get


@pytest.mark.parametrize("name", METHODS)
def test_learns_in_a_bare_loop(name, reference):
    model, found = reference(name)
    _, y = rows()
    assert (found.argmax(1) == y).float().mean() > (0.6 if name in ("cafo", "softhebb", "phyll") else 0.8)
    assert not torch.equal(weights(model), weights(Classifier()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_hugging_face_callback_trains_the_same(name, reference, tmp_path):
    model, (x, y) = Classifier(), rows()
    data = [{"x": a, "labels": b} for a, b in zip(x, y.tolist(), strict=True)]
    args = TrainingArguments(
        tmp_path, max_steps=STEPS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=len(x), report_to=[],
        save_strategy="no", use_cpu=True, max_grad_norm=0.0, seed=0, train_sampling_strategy="sequential",
    )  # fmt: skip
    optimizer = adam(model)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    callback = LocalPlugCallback(name, **METHODS[name])
    hugging = Trainer(
        model, args, train_dataset=data, eval_dataset=data, callbacks=[callback, Evaluates()],
        optimizers=(optimizer, constant),
    )  # fmt: skip
    hugging.train()
    expected, expected_scores = reference(name)
    torch.testing.assert_close(weights(model), weights(expected), atol=1e-5, rtol=1e-4)
    (logged,) = (entry["eval_loss"] for entry in hugging.state.log_history if "eval_loss" in entry)
    wrapped = callback.engine.method
    if wrapped.predicting(callback.engine.run) is not None:
        assert logged == pytest.approx(float(F.cross_entropy(expected_scores, y)), rel=1e-3)


class Evaluates(TrainerCallback):
    """After the last step, while the method is still attached."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step == STEPS


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Classifier()
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.model(batch[0], labels=batch[1])["loss"]

    def predict_step(self, batch, batch_idx):
        return self.model(batch[0])["logits"]

    def configure_optimizers(self):
        return adam(self)


@pytest.mark.parametrize("name", METHODS)
def test_the_lightning_strategy_trains_the_same(name, reference, tmp_path):
    module, (x, y) = Net(), rows()
    fitted = trainer(tmp_path, strategy=LocalPlugStrategy(name, **METHODS[name]), max_steps=STEPS)
    fitted.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH))
    predicted = torch.cat(fitted.predict(module, DataLoader(TensorDataset(x), batch_size=len(x))))
    expected, expected_scores = reference(name)
    torch.testing.assert_close(weights(module), weights(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predicted, expected_scores, atol=1e-4, rtol=1e-3)


def test_the_table_has_every_layer_local_method():
    """Those on networks of their own, NoProp's and graphs, have their doors in their plugins' tests."""
    given = {
        name
        for plugin in localplug.installed()
        for name in plugin.gives.get("methods", {})
        if plugin.name in ("tpsgd", "forward", "greedy")
    }
    assert given == set(METHODS)
