"""A network that responds to its hyper-parameters finds the optimum of ridge regression, in loops that stay as they are."""

import io
import math

import pytest
import torch
from torch import nn

import localplug
from localplug_updates.response import ResponseLinear
from localplug_updates.self_tuning import HyperParameter, SelfTuning


class Penalty:
    weight = 0.0


def ridge():
    """Inputs and targets to train on and to validate on, and the validation loss of the exact solution at log lambda = u."""
    g = torch.Generator().manual_seed(0)
    X, w = torch.randn(60, 20, generator=g), torch.randn(20, generator=g) * 0.5
    y = X @ w + 2 * torch.randn(60, generator=g)
    X, y, Xv, yv = X[:30], y[:30], X[30:], y[30:]

    def exact(u):
        w = torch.linalg.solve(X.T @ X / 30 + math.exp(u) * torch.eye(20), X.T @ y / 30)
        return float((Xv @ w - yv).square().mean())

    return X, y, Xv, yv, exact


def tuned_ridge(**options):
    X, y, Xv, yv, exact = ridge()
    penalty, model = Penalty(), nn.Sequential(nn.Linear(20, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    decay = HyperParameter("decay", [(penalty, "weight")], start=math.exp(-5))
    tuner = SelfTuning(
        model, [decay], lambda step: (model(Xv)[:, 0] - yv).square().mean(), **{"warmup": 100, "lr": 0.05, **options}
    )

    def loss():
        return (model(X)[:, 0] - y).square().mean() + penalty.weight * model[0].weight.square().sum()

    return model, tuner, loss, exact


def train(model, tuner, loss, optimizer, steps):
    with tuner.attach(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def test_it_finds_the_weight_decay_that_is_best_on_validation():
    model, tuner, loss, exact = tuned_ridge()
    best = min(exact(u / 10) for u in range(-70, 30))
    assert exact(-5) > 1.2 * best, "there is nothing to tune"
    train(model, tuner, loss, torch.optim.Adam(model.parameters(), lr=0.02), 1200)
    assert exact(math.log(tuner.values["decay"])) < 1.01 * best


def test_the_response_is_learned_by_forward_passes_alone():
    """By zeroth order like the weights: nothing is differentiated anywhere, and the hyper-parameter moves."""
    model, tuner, loss, _ = tuned_ridge(warmup=20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    engine = localplug.Engine(model, localplug.method("mezo", num_directions=8, update="trainer"), optimizer)
    before, losses = tuner.values["decay"], []
    with tuner.attach(optimizer):
        for _ in range(60):
            losses.append(float(engine.step(lambda: loss().detach(), optimizer)))
    engine.close()
    assert sum(losses[-10:]) < sum(losses[:10])
    assert model[0].gate.any() and tuner.values["decay"] != pytest.approx(before)


def test_a_response_is_the_equation_and_nothing_at_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    before = model.eval()(x)
    hypers = [HyperParameter(n, [(model[1], "p")], start=0.5, high=1.0) for n in ("a", "b")]
    tuner = SelfTuning(model, hypers, lambda step: 0.0, layers="0")
    assert isinstance(model[0], ResponseLinear) and isinstance(model[2], nn.Linear)
    torch.testing.assert_close(model(x), before)
    layer = model[0]
    with torch.no_grad():
        for p in (layer.gate, layer.gate_bias):
            p.normal_()
    u = tuner.settings.mean = torch.tensor([0.3, -0.2])
    w = layer.linear.weight + torch.diag(layer.gate @ u) @ layer.response
    b = layer.linear.bias + torch.diag(layer.gate_bias @ u) @ layer.response_bias
    torch.testing.assert_close(layer(x), x @ w.T + b)
    tuner.settings.drawn = torch.zeros(2)
    layer.train()
    torch.testing.assert_close(layer(x), x @ layer.linear.weight.T + layer.linear.bias)
    layer.eval()
    expected = model(x)
    tuner._mean.data.copy_(u)
    tuner.fold()
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected)


def test_what_is_drawn_is_written_and_the_mean_is_left_in_the_end():
    """Attributes and keys of dictionaries, in training round the mean, within the range; afterwards the mean itself."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    smoothing = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer_of = {}
    hypers = [
        HyperParameter("dropout", [(model[1], "p")], start=0.3, low=0.1, high=0.6),
        HyperParameter("smoothing", [(smoothing, "label_smoothing")], start=0.1, high=0.5),
        HyperParameter(
            "decay", [(optimizer_of.setdefault("group", {"weight_decay": 1.0}), "weight_decay")], start=0.01
        ),
    ]
    tuner = SelfTuning(model, hypers, lambda step: 0.0, warmup=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, seen = torch.randn(8, 4), []
    with tuner.attach(optimizer):
        for _ in range(30):
            seen.append((model[1].p, smoothing.label_smoothing, optimizer_of["group"]["weight_decay"]))
            smoothing(model(x), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
    assert len(set(seen)) == 30
    assert all(0.1 < p < 0.6 and 0 < s < 0.5 and d > 0 for p, s, d in seen)
    assert (model[1].p, smoothing.label_smoothing) == (pytest.approx(0.3), pytest.approx(0.1))
    assert tuner.values == pytest.approx({"dropout": 0.3, "smoothing": 0.1, "decay": 0.01})


def test_validation_sees_the_model_in_evaluation_mode_and_leaves_its_modes():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()  # somebody's own choice
    said = []

    def validation(step):
        said.append((step, any(m.training for m in model.modules()), torch.is_grad_enabled()))
        return model(torch.ones(1, 4)).sum()

    tuner = SelfTuning(model, [HyperParameter("p", [(model[1], "p")], 0.5, high=1.0)], validation, warmup=0, every=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modes = [m.training for m in model.modules()]
    train(model, tuner, lambda: model(torch.ones(2, 4)).sum(), optimizer, 7)
    assert said == [(1, False, False)] * 2 + [(2, False, False)] * 2
    assert [m.training for m in model.modules()] == modes


def test_it_resumes_where_it_was():
    def parts():
        torch.manual_seed(0)
        model, tuner, loss, _ = tuned_ridge(warmup=4)
        return model, tuner, loss, torch.optim.Adam(model.parameters(), lr=0.02)

    whole = parts()
    train(*whole, 30)
    first = parts()
    train(*first, 13)
    checkpoint = io.BytesIO()
    torch.save([x.state_dict() for x in (first[0], first[1], first[3])], checkpoint)
    checkpoint.seek(0)
    second = parts()
    for part, state in zip((second[0], second[1], second[3]), torch.load(checkpoint, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, 17)
    assert whole[1].values == second[1].values
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # lightning 2.6 on torch 2.13
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_it_works_inside_a_lightning_trainer():
    pl = pytest.importorskip("lightning.pytorch")
    X, y, Xv, yv, _ = ridge()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.penalty = nn.Sequential(nn.Linear(20, 1, bias=False)), Penalty()
            decay = HyperParameter("decay", [(self.penalty, "weight")], start=1e-3)
            self.tuner = SelfTuning(self.net, [decay], lambda step: (self.net(Xv)[:, 0] - yv).square().mean(), warmup=2)

        def training_step(self, batch, batch_idx):
            x, target = batch
            return (self.net(x)[:, 0] - target).square().mean() + self.penalty.weight * self.net[
                0
            ].weight.square().sum()

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
            self.tuner.attach(optimizer)
            return optimizer

    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=10)
    strategy = pytest.importorskip("localplug_lightning").LocalPlugStrategy("mezo", eps=1e-3)
    pl.Trainer(
        strategy=strategy,
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)
    assert module.tuner.step == 12 and module.tuner.values["decay"] != pytest.approx(1e-3)


def test_it_works_inside_a_transformers_trainer(tmp_path):
    """With the callback: the trainer's optimizer is handed over, and everything else is as ever."""
    transformers = pytest.importorskip("transformers")
    callback = pytest.importorskip("localplug_transformers").LocalPlugCallback("mezo", eps=1e-3)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.2,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(0, 16, (16, 6))]
    held = torch.randint(0, 16, (4, 6))
    attention = model.model.layers[0].self_attn
    dropout = HyperParameter("dropout", [(attention, "attention_dropout")], start=0.2, high=0.9)
    tuner = SelfTuning(
        model, [dropout], lambda step: model(input_ids=held, labels=held).loss, layers="*.mlp.*", warmup=1
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=8, max_grad_norm=0.0, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    with tuner.attach(optimizer):
        transformers.Trainer(
            model, args, train_dataset=rows, callbacks=[callback], optimizers=(optimizer, None)
        ).train()
    assert tuner.step == 8
    assert attention.attention_dropout == tuner.values["dropout"] != pytest.approx(0.2)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"start": 0.0}, r"hyper-parameter p: start must be between 0.0 and 1.0, got 0.0"),
        ({"spread": 0.0, "places": []}, "spread must be positive, got 0.0; places is empty"),
        ({"places": [(nn.Dropout(), "rate"), ({}, "lr")]}, "Dropout has no 'rate'; dict has no 'lr'"),
    ],
)
def test_a_hyper_parameter_refuses_what_is_wrong_all_at_once(options, says):
    with pytest.raises(ValueError, match=says):
        HyperParameter(**{"name": "p", "places": [(nn.Dropout(), "p")], "start": 0.5, "high": 1.0, **options})


def test_self_tuning_refuses_what_is_wrong_all_at_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    p = HyperParameter("p", [(model[1], "p")], 0.5, high=1.0)
    with pytest.raises(ValueError, match=r"share a name.*no torch.nn.Linear .*layers='3'.*every must be.*lr and delta"):
        SelfTuning(model, [p, p], lambda step: 0.0, layers="3", every=0, lr=0.0)
    assert type(model[0]) is nn.Linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tuner = SelfTuning(model, [p], lambda step: 0.0)
    with pytest.raises(
        ValueError, match=r"does not hold \['0.response', '0.gate', .*make the optimizer after SelfTuning"
    ):
        tuner.attach(optimizer)
