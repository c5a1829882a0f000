"""What a Lightning Trainer is asked for besides training: precision, clipping, schedules, callbacks, the tuner."""

import pathlib

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import nn

import localplug
from lightning_problems import WARNINGS, Quiet, data, dataset, module, reference, trainer, validated
from localplug_lightning import LocalPlugStrategy
from problems import weights

pytestmark = WARNINGS

METHODS = {"mezo": dict(eps=1e-2), "tpsgd": {}}


def steady():
    """The module with an optimizer that half precision does not upset, as it does Adam's second moments."""
    model = validated()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=1e-2)
    return model


def fit(model, folder, method="mezo", **options):
    fitted = trainer(folder, strategy=LocalPlugStrategy(method, **METHODS[method]), **options)
    fitted.fit(model, data(), data(16))
    return fitted


def moved(model):
    return weights(model) - weights(module())


# ---- precision ------------------------------------------------------------------------------------------------------

DTYPES = {
    "32-true": (torch.float32, torch.float32), "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, torch.bfloat16), "16-true": (torch.float16, torch.float16),
    "64-true": (torch.float64, torch.float64),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # see the next test
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", DTYPES)
def test_precision(precision, method, tmp_path):
    model, seen = steady(), set()
    model.net[0].register_forward_hook(lambda m, args, output: seen.add(output.dtype))
    fit(model, tmp_path, method, precision=precision)
    parameters, activations = DTYPES[precision]
    assert {p.dtype for p in model.parameters()} == {parameters} and seen == {activations}
    plain = steady()
    fit(plain, tmp_path, method)
    # the way that float32 takes, but for rounding: a loss in bfloat16 is 3e-3 coarse, and its differences are small
    tolerance = {"32-true": 0, "64-true": 1e-4, "bf16-true": 0.5}.get(precision, 0.1)
    assert (moved(model) - moved(plain)).norm() <= tolerance * moved(plain).norm()


def test_a_layer_local_method_in_half_precision_warns_of_nothing_but_the_loss(tmp_path):
    torch.set_warn_always(True)  # torch warns only once a process
    try:
        fit(steady(), tmp_path, "tpsgd", precision="bf16-true")
    finally:
        torch.set_warn_always(False)


class Scaled:
    """fp16 autocast with Lightning's own loss scaling, on a CPU."""

    def __init__(self, **options):
        self.scaler = torch.amp.GradScaler("cpu", **options)
        self.plugin = MixedPrecision("16-mixed", "cpu", scaler=self.scaler)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, dict(accumulate_grad_batches=2, gradient_clip_val=0.05)], ids=["", "clipped"])
def test_loss_scaling_cancels_out(options, method, tmp_path):
    scaled, unscaled = Scaled(init_scale=2.0**8, growth_interval=2), Scaled(enabled=False)
    model, plain = steady(), steady()
    seen = set()
    model.net[0].register_forward_hook(lambda m, args, output: seen.add(output.dtype))
    fit(model, tmp_path, method, plugins=[scaled.plugin], **options)
    fit(plain, tmp_path, method, plugins=[unscaled.plugin], **options)
    assert seen == {torch.float16} and scaled.scaler.get_scale() == 2.0**11
    # fp16 gradients of the last unit keep 11 bits, at another place when scaled
    tolerance = 1e-5 if method == "mezo" else 2e-2
    assert (moved(model) - moved(plain)).norm() <= tolerance * moved(plain).norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_is_not_finite_is_skipped_and_the_scale_shrinks(method, tmp_path):
    model, after, scaled = steady(), [], Scaled(init_scale=2.0**10)
    step = model.training_step
    model.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (float("inf") if batch_idx == 2 else 1.0)
    model.on_train_batch_end = lambda *_: after.append(weights(model))
    fitted = fit(model, tmp_path, method, plugins=[scaled.plugin])
    assert torch.equal(after[1], after[2]) and scaled.scaler.get_scale() == 2.0**9
    assert not torch.equal(after[2], after[3]) and not torch.equal(after[0], after[1])
    assert fitted.strategy.engine.run.step == 5 and torch.isfinite(after[-1]).all()


def test_a_batch_without_a_loss_is_skipped_under_loss_scaling_too(tmp_path):
    model, after, scaled = steady(), [], Scaled()
    step = model.training_step
    model.training_step = lambda batch, batch_idx: None if batch_idx == 2 else step(batch, batch_idx)
    model.on_train_batch_end = lambda *_: after.append(weights(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning.pytorch.loops.optimization.automatic.Closure.warning_cache.warn", lambda *_: None)
        fit(model, tmp_path, plugins=[scaled.plugin])
    assert torch.equal(after[1], after[2]) and not torch.equal(after[2], after[3])


def test_a_fused_optimizer_under_loss_scaling_is_refused(tmp_path):
    model = module()
    model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(localplug.Unsupported, match="without fused=True"):
        trainer(tmp_path, strategy="localplug_mezo", plugins=[Scaled().plugin]).fit(model, data())


# ---- clipping and schedules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm, clip", [("norm", torch.nn.utils.clip_grad_norm_), ("value", torch.nn.utils.clip_grad_value_)]
)
def test_clipping_by_norm_and_by_value(algorithm, clip, tmp_path):
    model, by_hand, free = module(), module(), module()
    trainer(
        tmp_path, strategy="localplug_mezo", gradient_clip_val=0.05, gradient_clip_algorithm=algorithm
    ).fit(model, data())  # fmt: skip
    reference(by_hand, 6, clip=lambda parameters: clip(parameters, 0.05))
    reference(free, 6)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)
    assert moved(model).norm() < 0.5 * moved(free).norm()


class Kept(Logger):
    """Keeps what is logged."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.kept = []

    def log_metrics(self, metrics, step=None):
        self.kept.append((step, metrics))

    def log_hyperparams(self, *_, **__):
        pass


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_by_step_or_by_epoch_reaches_the_update(interval, tmp_path):
    model, by_hand, logger = module(), module(), Kept()

    def configure_optimizers():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    model.configure_optimizers = configure_optimizers
    rates = []
    model.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    trainer(tmp_path, strategy="localplug_mezo", max_steps=12, callbacks=[LearningRateMonitor()], logger=logger).fit(
        model, data()
    )
    expected = [1e-2 * 0.5 ** (step if interval == "step" else step // 8) for step in range(12)]
    reference(by_hand, 12, lr=expected.__getitem__)
    assert rates == expected
    assert {v for _, metrics in logger.kept for k, v in metrics.items() if k == "lr-SGD"} <= set(expected)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)


def test_reduce_on_plateau_follows_the_monitored_loss(tmp_path):
    model = validated()

    def configure_optimizers():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=0, threshold=10.0, threshold_mode="abs"
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    model.configure_optimizers = configure_optimizers
    fitted = fit(model, tmp_path, max_epochs=3, max_steps=-1)
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)  # no epoch but the first is better by 10


# ---- callbacks ------------------------------------------------------------------------------------------------------


def test_early_stopping_stops(tmp_path):
    model = validated()
    stopping = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    fitted = fit(model, tmp_path, max_epochs=9, max_steps=-1, callbacks=[stopping])
    assert fitted.current_epoch == 2 and stopping.stopped_epoch == 1


def test_model_checkpoint_keeps_the_best_weights(tmp_path):
    model, seen = validated(lr=3e-2), {}
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    model.on_validation_epoch_end = lambda: seen.update(
        {float(model.trainer.callback_metrics["val_loss"]): weights(model)}
    )
    fit(
        model, tmp_path, max_epochs=4, max_steps=-1, callbacks=[keep], enable_checkpointing=True, num_sanity_val_steps=0
    )
    saved = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    assert len(seen) == 4 and float(keep.best_model_score) == min(seen)
    assert torch.equal(torch.cat([v.flatten() for v in saved.values()]), seen[min(seen)])


def test_averaged_weights_are_the_average_of_the_steps(tmp_path):
    model, plain = validated(), validated()
    steps = []
    plain.on_train_batch_end = lambda *_: steps.append(weights(plain))
    fit(model, tmp_path, callbacks=[EMAWeightAveraging(decay=0.5)])
    fit(plain, tmp_path)
    expected = steps[0]
    for step in steps[1:]:
        expected = 0.5 * expected + 0.5 * step
    torch.testing.assert_close(weights(model), expected, atol=1e-7, rtol=1e-6)


def averaged(folder, norm):
    model, seen = module(), [weights(module())]
    if norm:
        model.net.insert(1, nn.BatchNorm1d(32))
        seen = [weights(model)]
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=1e-2)
    model.on_train_epoch_end = lambda: seen.append(weights(model))
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
    fitted = trainer(folder, strategy="localplug_mezo", max_epochs=4, max_steps=-1, callbacks=[averaging])
    fitted.fit(model, data())
    assert fitted.strategy.engine.run.step == 32
    return model, seen


@pytest.mark.parametrize("norm", [False, True], ids=["", "batch norm"])
def test_stochastic_weight_averaging(norm, tmp_path):
    """With batch norm it evaluates one more epoch, without any backward pass."""
    model, seen = averaged(tmp_path, norm)
    # the average is taken at the start of every epoch from the first on
    torch.testing.assert_close(weights(model), torch.stack(seen[:4]).mean(0), atol=1e-6, rtol=1e-5)
    assert not torch.equal(seen[0], seen[3])


def test_stochastic_weight_averaging_sets_the_running_statistics(tmp_path):
    model, _ = averaged(tmp_path, norm=True)
    inputs = model.net[0](dataset().tensors[0])
    torch.testing.assert_close(model.net[1].running_mean, inputs.mean(0), atol=1e-2, rtol=1e-2)


def test_a_part_that_a_callback_thaws_is_trained_from_then_on(tmp_path):
    model, ends = module(lr=1e-2), []
    model.backbone, model.head = nn.Sequential(*model.net[:3]), model.net[3]
    model.on_train_epoch_end = lambda: ends.append((weights(model.backbone), weights(model.head)))
    model.configure_optimizers = lambda: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )  # fmt: skip
    start = weights(model.backbone)
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-2, verbose=False)
    fitted = trainer(tmp_path, strategy="localplug_mezo", max_epochs=2, max_steps=-1, callbacks=[finetuning])
    fitted.fit(model, data())
    assert torch.equal(ends[0][0], start) and not torch.equal(ends[1][0], start)
    assert fitted.strategy.engine.run.step == 16 and not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_averaged_weights_and_a_schedule_resumes_exactly(method, tmp_path):
    def run(model, **options):
        fitted = trainer(
            tmp_path, strategy=LocalPlugStrategy(method, **METHODS[method]), max_steps=16, enable_checkpointing=True,
            callbacks=[EMAWeightAveraging(decay=0.9), keep], plugins=[Scaled(growth_interval=3).plugin],
            num_sanity_val_steps=0,
        )  # fmt: skip
        fitted.fit(model, data(), data(16), **options)

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    whole, resumed = validated(schedule=True), validated(schedule=True)
    run(whole)
    (checkpoint,) = pathlib.Path(tmp_path).glob("step=8*")
    run(resumed, ckpt_path=str(checkpoint), weights_only=True)
    assert torch.equal(weights(whole), weights(resumed)) and resumed.calls == whole.calls / 2


def test_a_compiled_module_trains_as_it_does_uncompiled(tmp_path):
    compiled, plain = Quiet(), Quiet()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer(tmp_path, strategy="localplug_mezo").fit(torch.compile(compiled, backend="eager"), data())
    trainer(tmp_path, strategy="localplug_mezo").fit(plain, data())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch.equal(weights(compiled), weights(plain))


# ---- the tuner ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_learning_rate_finder_leaves_everything_as_it_was(method, tmp_path):
    model, plain = validated(), validated()
    fitted = trainer(tmp_path, strategy=LocalPlugStrategy(method, **METHODS[method]))
    found = Tuner(fitted).lr_find(
        model, data(), data(16), num_training=20, min_lr=1e-4, max_lr=1.0, update_attr=False, early_stop_threshold=None
    )
    assert len(found.results["loss"]) == 20 and found.results["lr"][0] < found.results["lr"][-1]
    assert torch.equal(weights(model), weights(module())) and fitted.global_step == 0
    fitted.fit(model, data(), data(16))
    fit(plain, tmp_path, method)
    assert fitted.strategy.engine.run.step == 6 and torch.equal(weights(model), weights(plain))


def batch_size_found(model, folder, strategy, mode):
    model.batch_size = 2
    model.train_dataloader = lambda: torch.utils.data.DataLoader(dataset(), batch_size=model.batch_size)
    model.val_dataloader = lambda: data(16)
    step = model.training_step

    def training_step(batch, batch_idx):
        if len(batch[0]) > 16:
            raise RuntimeError("out of memory")
        return step(batch, batch_idx)

    model.training_step = training_step
    fitted = trainer(folder, strategy=strategy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning.pytorch.tuner.batch_size_scaling.is_oom_error", lambda e: "out of memory" in str(e))
        size = Tuner(fitted).scale_batch_size(model, mode=mode, init_val=2, steps_per_trial=2, max_trials=5)
    assert size == model.batch_size and fitted.global_step == 0
    return size, fitted


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder_leaves_everything_as_it_was(mode, tmp_path):
    model, plain = validated(), validated()
    expected, _ = batch_size_found(validated(), tmp_path, "auto", mode)
    size, fitted = batch_size_found(model, tmp_path, LocalPlugStrategy("mezo", eps=1e-2), mode)
    assert size == expected >= 8 and torch.equal(weights(model), weights(module()))
    model.batch_size = 8
    fitted.fit(model)
    fit(plain, tmp_path)
    assert fitted.strategy.engine.run.step == 6 and torch.equal(weights(model), weights(plain))
