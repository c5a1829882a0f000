"""LocalPlugStrategy under an unmodified Lightning Trainer, in both packages."""

import logging
import pathlib
import warnings

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import localplug
import localplug_lightning
from localplug_lightning import LocalPlugStrategy
from problems import SavedElements, weights

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def data(num=64, batch=8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 16, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, :4].sum(1) > 0).long()), batch_size=batch)


def module(base=L.LightningModule, **options):
    class Net(base):
        def __init__(self, dropout=0.0, schedule=False, lr=1e-2):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 2))
            self.calls, self.losses, self.schedule, self.lr = 0, [], schedule, lr

        def training_step(self, batch, batch_idx):
            self.calls += 1
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.log("train_loss", loss)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)
            if not self.schedule:
                return optimizer
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8), "interval": "step"}
            ]

    return Net(**options)


def trainer(folder, package=L, **options):
    given = dict(
        max_steps=6, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    return package.Trainer(**{**given, **options})


def reference(model, steps, accumulate=1, clip=None, lr=1e-2):
    """The same training by the bare engine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    engine = localplug.Engine(model, localplug.method("mezo"), optimizer)
    batches = iter([b for _ in range(4) for b in data()])
    losses = []
    for _ in range(steps):
        for _ in range(accumulate):
            x, y = next(batches)
            loss = engine.evaluate(lambda x=x, y=y: nn.functional.cross_entropy(model.net(x), y), scale=1 / accumulate)
            losses.append(float(loss))
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        engine.apply(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("strategy", ["instance", "name"])
def test_equals_the_bare_engine(strategy, tmp_path):
    model, by_hand = module(), module()
    chosen = LocalPlugStrategy("mezo", eps=1e-3) if strategy == "instance" else "localplug_mezo"
    fitted = trainer(tmp_path, strategy=chosen)
    with SavedElements() as saved:
        fitted.fit(model, data())
    losses = reference(by_hand, 6)
    assert model.losses == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)
    assert model.calls == 12 and saved.total == 0 and not fitted.optimizers[0].state
    assert all(p.grad is None for p in model.parameters())


def test_accumulation_and_clipping(tmp_path):
    model, by_hand = module(), module()
    fitted = trainer(
        tmp_path, strategy="localplug_mezo", max_steps=3, accumulate_grad_batches=2, gradient_clip_val=0.05
    )
    fitted.fit(model, data())
    reference(by_hand, 3, accumulate=2, clip=0.05)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"update": "trainer"}], ids=["sgd", "adam"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(options, tmp_path):
    whole, resumed = module(schedule=True), module(schedule=True)
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")

    def made():
        strategy = LocalPlugStrategy("mezo", **options)
        return trainer(tmp_path, strategy=strategy, max_steps=16, enable_checkpointing=True, callbacks=[keep])

    made().fit(whole, data())
    checkpoint = next(pathlib.Path(tmp_path).glob("step=8*"))
    assert torch.load(checkpoint, weights_only=True)["localplug"] == {"seed": 0, "step": 8, "method": {}}
    made().fit(resumed, data(), ckpt_path=str(checkpoint), weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))


def test_learns_by_target_projection(tmp_path):
    model = module(lr=1e-2)
    trainer(tmp_path, strategy="localplug_tpsgd", max_steps=80).fit(model, data())
    assert model.calls == 80
    assert sum(model.losses[-8:]) / 8 < 0.35 < sum(model.losses[:2]) / 2


def test_bfloat16_autocast(tmp_path):
    model = module()
    trainer(tmp_path, strategy=LocalPlugStrategy("mezo", eps=1e-2), precision="bf16-mixed").fit(model, data())
    assert not torch.equal(weights(model), weights(module()))


def test_what_cannot_work_is_refused_with_the_way_out(tmp_path):
    manual = module()
    manual.automatic_optimization = False
    with pytest.raises(localplug.Unsupported, match="localplug.attach in the module's own loop"):
        trainer(tmp_path, strategy="localplug_mezo").fit(manual, data())
    two = module()
    two.configure_optimizers = lambda: [torch.optim.SGD(two.net[i].parameters(), 0.1) for i in (0, 3)]
    with pytest.raises(RuntimeError, match="multiple optimizers"):  # Lightning's own check comes first
        trainer(tmp_path, strategy="localplug_mezo").fit(two, data())
    with pytest.raises(MisconfigurationException, match="set devices=1"):
        trainer(tmp_path, strategy="localplug_mezo", devices=2)
    with pytest.raises(localplug.Unsupported, match="gradient_clip_val=None"):
        trainer(tmp_path, strategy=LocalPlugStrategy("mezo", strict="mezo"), gradient_clip_val=1.0).fit(
            module(), data()
        )


def test_fit_validate_and_fit_again(tmp_path):
    model = module()
    model.validation_step = lambda batch, batch_idx: model.log(
        "val_loss", nn.functional.cross_entropy(model.net(batch[0]), batch[1])
    )
    fitted = trainer(tmp_path, strategy="localplug_mezo")
    fitted.fit(model, data(), data(16))
    (metrics,) = fitted.validate(model, data(16), verbose=False)
    fitted.fit_loop.epoch_loop.max_steps = 9
    fitted.fit(model, data(), data(16))
    assert metrics["val_loss"] > 0 and fitted.global_step == 9


def test_the_other_package(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as pl

    from localplug_lightning.pl import LocalPlugStrategy as PlStrategy

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    model, by_hand = module(pl.LightningModule), module()
    trainer(tmp_path, package=pl, strategy="localplug_mezo").fit(model, data())
    reference(by_hand, 6)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)
    assert PlStrategy is not localplug_lightning.LocalPlugStrategy
