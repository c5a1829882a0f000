"""Methods that predict in a way of their own, in the evaluation loops of the trainers."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForSequenceClassification, Trainer, TrainingArguments

from lightning_problems import WARNINGS, data, dataset, trainer
from localplug import LocalMethod, Predictor, Signal, View, seeded
from localplug_lightning import LocalPlugStrategy
from localplug_transformers import LocalPlugCallback

pytestmark = WARNINGS


class Heads(LocalMethod):
    """Predicts by the sum of its heads' probabilities, of the mean over positions where there are any."""

    prediction = (View("all heads", learns=False),)

    def describe(self):
        return "heads"

    def owns(self, unit, output, run):
        return seeded(lambda: nn.Linear(output.shape[-1], self.K), output, seed=run.seed, name=unit.key)

    def head(self, activity):
        h = activity.output
        return activity.unit.owned(h if h.dim() == 2 else h.mean(1))

    def signal(self, activity, run):
        return Signal(loss=F.cross_entropy(self.head(activity), self.class_labels(run, activity.output.device)))

    def observe(self, activity, run):
        found = self.head(activity).softmax(-1)
        self.total = found if activity.unit.index == 0 else self.total + found

    def scores(self, output, run):
        total = self.total if output.dim() == 2 else self.total[:, None]
        return total + output.softmax(-1)


def rows(num=32):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 64, (num, 8), generator=g)
    return [{"input_ids": row, "labels": int(row[0] > 31)} for row in x]


def test_the_hugging_face_trainer_evaluates_and_predicts_with_the_methods_scores(tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_labels=2, pad_token_id=0,
        )
    )  # fmt: skip
    method = Heads(kind="block")
    args = TrainingArguments(
        tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, report_to=[], save_strategy="no", use_cpu=True,
        per_device_eval_batch_size=8,
    )  # fmt: skip
    hugging = Trainer(model, args, train_dataset=rows(), eval_dataset=rows(16), callbacks=[LocalPlugCallback(method)])
    hugging.train()
    evaluated = [entry["eval_loss"] for entry in hugging.state.log_history if "eval_loss" in entry]
    inputs = torch.stack([r["input_ids"] for r in rows(16)])
    labels = torch.tensor([r["labels"] for r in rows(16)])
    wrapped = Predictor(model, method).eval()
    with torch.no_grad():
        scores = wrapped(input_ids=inputs).logits
        plain = model.eval()(input_ids=inputs).logits
    assert evaluated[-1] == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-4)
    assert evaluated[-1] != pytest.approx(float(F.cross_entropy(plain, labels)), rel=1e-4)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2))
        self.seen = {}

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.setdefault("validate", []).append(self.net(batch[0]))

    def test_step(self, batch, batch_idx):
        self.seen.setdefault("test", []).append(self.net(batch[0]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_lightnings_loops_predict_with_the_methods_scores(tmp_path):
    """In validation during a fit, and in test and predict after it."""
    model, method = Net(), Heads()
    fitted = trainer(
        tmp_path, strategy=LocalPlugStrategy(method), max_steps=16, limit_val_batches=2, num_sanity_val_steps=0
    )
    loader = DataLoader(dataset(16), batch_size=8)
    fitted.fit(model, data(), val_dataloaders=loader)
    fitted.test(model, loader, verbose=False)
    predicted = torch.cat(fitted.predict(model, loader))
    x = dataset(16).tensors[0]
    wrapped = Predictor(model.net, Heads())  # what is owned goes by names that do not depend on wrappers
    wrapped._method.load_state_dict(method.state_dict())
    wrapped.eval()
    with torch.no_grad():
        scores, plain = wrapped(x), model.net(x)
    torch.testing.assert_close(predicted, scores)
    torch.testing.assert_close(torch.cat(model.seen["test"]), scores)
    assert not torch.allclose(predicted, plain)
    assert model.seen["validate"] and torch.cat(model.seen["validate"][-2:]).sum(1).mean() == pytest.approx(
        3.0, rel=1e-4
    )
