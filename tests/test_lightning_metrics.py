"""training_step runs 2q times for one batch: what it logs and what its metrics count is that of one run."""

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryPrecision, BinaryRecall

from lightning_problems import WARNINGS, data, module, trainer
from localplug_lightning import LocalPlugStrategy
from problems import weights

pytestmark = WARNINGS

NUM = 64


class Seen:
    """The outputs of the first evaluation of each batch, so that a metric can be made of them by hand."""

    def __init__(self):
        self.scores, self.labels, self.last = [], [], None

    def __call__(self, batch_idx, scores, labels):
        if self.last != batch_idx:
            self.scores.append(scores.detach().clone())
            self.labels.append(labels)
        self.last = batch_idx

    def by_hand(self, metric):
        metric.update(torch.cat(self.scores), torch.cat(self.labels))
        return float(metric.compute())


def counting(metrics, use):
    """The module, with metrics that its training_step uses by `use(model, scores, labels)`."""
    model = module()
    for name, metric in metrics.items():
        setattr(model, name, metric)
    model.seen = Seen()

    def training_step(batch, batch_idx):
        x, y = batch
        logits = model.net(x)
        scores = logits.softmax(1)[:, 1].contiguous()
        model.seen(batch_idx, scores, y)
        use(model, scores, y)
        loss = nn.functional.cross_entropy(logits, y)
        model.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    model.training_step = training_step
    return model


def fit(model, folder, epochs=1, **options):
    strategy = options.pop("strategy", None) or LocalPlugStrategy("mezo", eps=1e-1, num_directions=2)
    fitted = trainer(folder, strategy=strategy, max_epochs=epochs, max_steps=-1, **options)
    fitted.fit(model, data(NUM))
    return {k: float(v) for k, v in fitted.callback_metrics.items()}


def update_and_log(model, scores, y):
    model.accuracy.update(scores, y)
    model.log("accuracy", model.accuracy, on_step=False, on_epoch=True)


def forward_and_log(model, scores, y):
    model.accuracy(scores, y)
    model.log("accuracy", model.accuracy, on_step=True, on_epoch=True)


@pytest.mark.parametrize("use", [update_and_log, forward_and_log])
def test_accuracy_counts_every_sample_once(use, tmp_path):
    model = counting({"accuracy": BinaryAccuracy()}, use)
    counted = []
    model.on_train_epoch_end = lambda: counted.append(
        sum(int(getattr(model.accuracy, state)) for state in ("tp", "fp", "tn", "fn"))
    )
    metrics = fit(model, tmp_path)
    assert counted == [NUM]
    key = "accuracy_epoch" if use is forward_and_log else "accuracy"
    assert metrics[key] == model.seen.by_hand(BinaryAccuracy())
    if use is forward_and_log:
        last = BinaryAccuracy()
        assert metrics["accuracy_step"] == float(last(model.seen.scores[-1], model.seen.labels[-1]))


def test_a_second_epoch_starts_from_zero(tmp_path):
    model = counting({"accuracy": BinaryAccuracy()}, update_and_log)
    counted = []
    model.on_train_epoch_end = lambda: counted.append(int(model.accuracy._update_count))
    fit(model, tmp_path, epochs=3)
    assert counted == [8, 8, 8]


@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_counts_once(compute_groups, tmp_path):
    made = lambda: MetricCollection(  # noqa: E731
        [BinaryAccuracy(), BinaryPrecision(), BinaryRecall(), BinaryAUROC()], compute_groups=compute_groups
    )

    def use(model, scores, y):
        model.metrics.update(scores, y)
        model.log_dict(model.metrics, on_step=False, on_epoch=True)

    model = counting({"metrics": made()}, use)
    metrics = fit(model, tmp_path)
    for metric in (BinaryAccuracy(), BinaryPrecision(), BinaryRecall(), BinaryAUROC()):
        assert metrics[type(metric).__name__] == model.seen.by_hand(metric), metric


@pytest.mark.parametrize(
    "metric, made",
    [
        ("a list of all scores", BinaryAUROC),
        ("a mean", torchmetrics.MeanMetric),
        ("the last three", lambda: torchmetrics.wrappers.Running(torchmetrics.SumMetric(), window=3)),
        ("the largest", lambda: torchmetrics.wrappers.MinMaxMetric(torchmetrics.MeanMetric())),
        ("inside a list", lambda: nn.ModuleList([torchmetrics.MeanMetric()])),
    ],
)
def test_metrics_with_other_states_count_once(metric, made, tmp_path):
    def feed(metric, scores, y):
        inner = metric[0] if isinstance(metric, nn.ModuleList) else metric
        inner.update(*((scores, y) if isinstance(inner, BinaryAUROC) else (scores.mean(),)))
        if isinstance(inner, torchmetrics.wrappers.MinMaxMetric):
            inner.compute()  # which is when it remembers the extremes
        return inner

    model, values = counting({"metric": made()}, lambda model, scores, y: feed(model.metric, scores, y)), []
    inner = model.metric[0] if isinstance(model.metric, nn.ModuleList) else model.metric
    model.on_train_epoch_end = lambda: values.append(inner.compute())
    fit(model, tmp_path)
    by_hand = made()
    for scores, y in zip(model.seen.scores, model.seen.labels, strict=True):
        expected = feed(by_hand, scores, y)
    torch.testing.assert_close(values[0], expected.compute(), atol=0, rtol=0)


def test_values_logged_by_step_and_by_epoch_are_those_of_one_evaluation_of_each_batch(tmp_path):
    model = counting({}, lambda *_: None)
    metrics = fit(model, tmp_path)
    losses = [
        float(nn.functional.nll_loss(torch.stack([1 - s, s], 1).log(), y))
        for s, y in zip(model.seen.scores, model.seen.labels, strict=True)
    ]
    assert metrics["loss_epoch"] == pytest.approx(sum(losses) / 8, rel=1e-5)
    assert metrics["loss_step"] == pytest.approx(losses[-1], rel=1e-5)


def test_the_metrics_change_nothing_in_the_training(tmp_path):
    with_metrics, without = counting({"accuracy": BinaryAccuracy()}, update_and_log), counting({}, lambda *_: None)
    fit(with_metrics, tmp_path)
    fit(without, tmp_path)
    assert torch.equal(weights(with_metrics), weights(without))
    assert not {"log", "log_dict"} & set(vars(with_metrics))


def test_a_metric_that_is_the_loss_is_evaluated_every_time(tmp_path):
    model, plain = module(), module()
    model.mean = torchmetrics.MeanMetric()
    step = model.training_step
    model.training_step = lambda batch, batch_idx: model.mean(step(batch, batch_idx))
    counted = []
    model.on_train_epoch_end = lambda: counted.append(int(model.mean._update_count))
    fit(model, tmp_path)
    fit(plain, tmp_path)
    torch.testing.assert_close(weights(model), weights(plain), atol=1e-6, rtol=1e-5)
    assert counted == [8]


def test_tpsgd_evaluates_once_and_counts_once(tmp_path):
    model = counting({"accuracy": BinaryAccuracy()}, update_and_log)
    assert fit(model, tmp_path, strategy="localplug_tpsgd")["accuracy"] == model.seen.by_hand(BinaryAccuracy())
