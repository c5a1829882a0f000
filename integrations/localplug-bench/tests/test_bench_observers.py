"""Observers: what they say is right, what they look at stays as it is, and the trainers' logs have it."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_bench.observers import Observer

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def trained(method, observe=None, steps=4, lr=0.05, **options):
    """(model, what was found after each step), by an engine; `observe` gets the model and makes the observer."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    engine = localplug.Engine(model, localplug.method(method, **options), optimizer, seed=0)
    observer = observe(model) if observe else None
    if observer:
        observer.attach(model, optimizer, engine)
    found = []
    for _ in range(steps):
        engine.step(lambda: F.cross_entropy(model(X), Y), optimizer, targets=Y)
        found.append(dict(observer.found) if observer else {})
    if observer:
        observer.detach()
    return model, found


def probing(model):
    return Observer(lambda: F.cross_entropy(model(X), Y))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", ["mezo", "tpsgd", "dgl"])
def test_what_is_observed_trains_as_if_nobody_looked(method):
    state = torch.get_rng_state()
    alone, _ = trained(method)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    watched, found = trained(method, probing)
    assert torch.equal(weights(alone), weights(watched)) and torch.equal(torch.get_rng_state(), after)
    assert all("alignment" in step for step in found)


def test_backpropagation_itself_is_aligned_with_the_true_gradient():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = probing(model)
    observer.attach(model, optimizer)
    F.cross_entropy(model(X), Y).backward()
    length = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    optimizer.step()
    assert observer.found["alignment"] == pytest.approx(1, abs=1e-5)
    assert observer.found["true_gradient"] == pytest.approx(length, rel=1e-5)


def test_more_directions_are_better_aligned_and_less_variable():
    """cos^2 is about q / (q + d + 1) for q standard normal directions in d dimensions; d is 130 here."""
    estimators = (localplug.estimator("two-sided", num_directions=q) for q in (2, 64))
    few, many = (trained("zo", probing, steps=12, lr=1e-3, estimator=e)[1] for e in estimators)
    cosine, better = (sum(step["alignment"] for step in found) / len(found) for found in (few, many))
    assert (2 / 133) ** 0.5 * 0.4 < cosine < better / 2 and better == pytest.approx((64 / 195) ** 0.5, rel=0.25)
    assert sum(s["estimate_variance"] for s in many) < sum(s["estimate_variance"] for s in few) / 4


def test_every_zeroth_order_method_says_what_its_estimate_varies_by():
    """(kappa - 1) / q times the mean square of the slopes, with kappa = d + 2 of standard normal directions."""
    model, found = trained("mezo", lambda model: Observer(), num_directions=3)
    num = sum(p.numel() for p in model.parameters())
    for step in found:
        assert step["estimate_variance"] == pytest.approx(step["projected_gradient"] ** 2 * (num + 1) / 3, rel=1e-5)
    silent = set()
    for name in (n for n, by in localplug.plugins.names("methods").items() if by[0].distribution == "localplug-zo"):
        _, found = trained(name, lambda model: Observer(), steps=2, lr=1e-4)
        if not all("estimate_variance" in step for step in found[1:]):
            silent.add(name)
    assert silent == {"addax", "elastic-zo"}, "these two mix an estimate with a gradient"
    assert "estimate_variance" not in trained("mezo", lambda model: Observer(), strict="mezo")[1][1]


def test_the_projected_gradient_is_the_engines():
    seen = []
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = localplug.Engine(model, localplug.method("mezo"), optimizer)
    observer = Observer()
    observer.attach(model, optimizer, engine)
    for _ in range(2):
        engine.step(lambda: F.cross_entropy(model(X), Y), optimizer)
        seen.append((observer.found["projected_gradient"], engine.gradient_norm))
    assert all(a == b > 0 for a, b in seen) and seen[0] != seen[1]


def test_each_unit_that_has_a_local_loss_says_it_before_the_step():
    _, found = trained("mono-forward", lambda model: Observer(), steps=1)
    names = [name for name in found[0] if name.startswith("loss/")]
    assert names == ["loss/0"], "the second hidden unit learns with the head, by the trainer's loss"
    assert found[0]["loss/0"] > 0 and "signal" not in vars(localplug.method("mono-forward"))


def test_the_first_step_and_every_nth_is_observed_and_costs_something():
    calls = []

    def counted(model):
        return Observer(lambda: calls.append(1) or F.cross_entropy(model(X), Y), every=3)

    _, found = trained("mezo", counted, steps=7)
    assert [bool(step) for step in found] == [True, False, True, False, False, True, False]
    assert len(calls) == 3


def test_a_probe_says_loudly_that_it_back_propagates_and_no_probe_says_nothing(caplog):
    caplog.set_level(logging.WARNING, "localplug")
    trained("mezo", lambda model: Observer(), steps=1)
    assert not caplog.records
    trained("mezo", probing, steps=1)
    assert "BACKPROPAGATION through the whole model" in caplog.text


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Observer(every=0)
    with pytest.raises(ValueError, match="leave probe out"):
        trained("mono-forward", probing, predict="sum")


def test_the_trainer_of_transformers_logs_it(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from localplug_bench.transformers_log import TrainerLog
    from localplug_transformers import LocalPlugCallback

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2,
        )
    )  # fmt: skip
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(0, 32, (8, 6))]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    args = TrainingArguments(
        str(tmp_path), max_steps=4, learning_rate=1e-3, report_to=[], save_strategy="no", logging_steps=2, use_cpu=True,
        disable_tqdm=True, max_grad_norm=0.0, optim="sgd",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[LocalPlugCallback("mezo")])
    trainer.add_callback(TrainerLog(trainer, Observer(lambda: model(**batch).loss, every=args.logging_steps)))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "localplug/alignment" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 4]
    assert all(0 < e["localplug/alignment"] <= 1 and e["localplug/projected_gradient"] > 0 for e in logged)
    assert all(e["localplug/estimate_variance"] > 0 for e in logged)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # lightning 2.6 on torch 2.13
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_trainer_of_lightning_logs_it(tmp_path):
    import lightning.pytorch as L
    from lightning.pytorch.loggers import CSVLogger

    from localplug_bench.lightning_log import LightningLog
    from localplug_lightning import LocalPlugStrategy

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    logger = CSVLogger(tmp_path)
    L.Trainer(
        strategy=LocalPlugStrategy("mezo"), max_steps=4, accelerator="cpu", devices=1, logger=logger, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[LightningLog(probing(module.net))],
    ).fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8))  # fmt: skip
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "localplug/estimate_variance" in rows[0]
    assert "localplug/alignment" in rows[0] and "localplug/projected_gradient" in rows[0] and len(rows) == 1 + 4
