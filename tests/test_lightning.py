"""LocalPlugStrategy under an unmodified Lightning Trainer, in both packages."""

import logging
import pathlib
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import localplug
import localplug_lightning
from lightning_problems import WARNINGS, data, dataset, module, reference, trainer, validated
from localplug_lightning import LocalPlugStrategy
from problems import SavedElements, weights

pytestmark = WARNINGS


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
    reference(by_hand, 3, accumulate=2, clip=lambda p: torch.nn.utils.clip_grad_norm_(p, 0.05))
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
    with pytest.raises(MisconfigurationException, match="localplug_mezo_ddp"):
        trainer(tmp_path, strategy="localplug_mezo", devices=2)
    with pytest.raises(localplug.Unsupported, match="gradient_clip_val=None"):
        trainer(tmp_path, strategy=LocalPlugStrategy("mezo", strict="mezo"), gradient_clip_val=1.0).fit(
            module(), data()
        )


def test_fit_validate_and_fit_again(tmp_path):
    model = validated()
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


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # once a process
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_for_which_training_step_returns_none_is_left_out(accumulate, tmp_path):
    model, by_hand = module(), module()
    learned, skipped = model.training_step, {1, 2, 3}  # with two micro-batches a step: half of one step, all of another

    def training_step(batch, batch_idx):
        loss = learned(batch, batch_idx)
        return None if batch_idx in skipped else loss

    model.training_step = training_step
    fitted = trainer(tmp_path, strategy="localplug_mezo", max_steps=8 // accumulate, accumulate_grad_batches=accumulate)
    fitted.fit(model, data())
    losses = reference(by_hand, 8 // accumulate, accumulate, skip=skipped)
    expected = [loss if loss is None else pytest.approx(loss / accumulate, rel=1e-6) for loss in losses]
    assert model.losses == expected  # Lightning's outputs["loss"] is divided, too
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)
    assert fitted.global_step == 8 // accumulate


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_none_in_a_later_evaluation_of_the_batch_leaves_it_out_too(tmp_path):
    model, by_hand = module(), module()
    learned, after = model.training_step, []

    def training_step(batch, batch_idx):
        loss = learned(batch, batch_idx)
        return None if model.calls == 4 else loss  # the second evaluation of batch 1

    model.training_step = training_step
    model.on_train_batch_end = lambda *_: after.append(weights(model))
    trainer(tmp_path, strategy="localplug_mezo", max_steps=4).fit(model, data())
    reference(by_hand, 4, skip={1})
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-7, rtol=1e-6)
    assert torch.equal(after[0], after[1]) and not torch.equal(after[1], after[2])


def test_a_dictionary_with_extras_comes_back_as_in_any_strategy(tmp_path):
    seen = {}
    for strategy in ("auto", "localplug_mezo"):
        model = module()
        learned = model.training_step
        model.training_step = lambda batch, i, learned=learned: {
            "loss": learned(batch, i),
            "num": len(batch[0]),
            "i": i,
        }
        model.on_train_batch_end = lambda outputs, *_, strategy=strategy: seen.setdefault(strategy, []).append(outputs)
        trainer(tmp_path, strategy=strategy, max_steps=3).fit(model, data())
    for stock, ours in zip(*seen.values(), strict=True):
        assert set(stock) == set(ours) == {"loss", "num", "i"} and (ours["num"], ours["i"]) == (
            stock["num"],
            stock["i"],
        )
        assert not ours["loss"].requires_grad and ours["loss"].shape == stock["loss"].shape


@pytest.mark.parametrize(
    "wrong, message", [("loss", "got 'loss'"), ({"a": 1}, "a dictionary with 'loss'"), ({"loss": None}, "got None")]
)
def test_what_is_no_loss_is_an_error(wrong, message, tmp_path):
    model = module()
    model.training_step = lambda batch, batch_idx: wrong
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, strategy="localplug_mezo").fit(model, data())
    assert torch.equal(weights(model), weights(module()))


HOOKS = [
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step",
    "optimizer_zero_grad", "configure_gradient_clipping", "backward", "on_train_batch_start",
]  # fmt: skip


def recorded(model, log):
    """The module's own hooks write down that they ran, with the types that they got, and do what they always do."""
    for name in HOOKS:
        original = getattr(model, name)

        def hook(*args, name=name, original=original, **kwargs):
            log.append((name, [type(a).__name__ for a in args if not callable(a)], sorted(kwargs)))
            return original(*args, **kwargs)

        setattr(model, name, hook)
    return model


def test_the_hooks_of_the_module_run_as_in_any_strategy(tmp_path):
    seen = {}
    for strategy in ("auto", "localplug_mezo"):
        seen[strategy] = []
        trainer(tmp_path, strategy=strategy, max_steps=3, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(
            recorded(module(schedule=True), seen[strategy]), data()
        )
    assert seen["auto"] == seen["localplug_mezo"] and {name for name, *_ in seen["auto"]} == set(HOOKS)


def test_hooks_get_the_optimizer_of_configure_optimizers(tmp_path):
    model, got = module(schedule=True), []
    model.on_before_optimizer_step = got.append
    fitted = trainer(tmp_path, strategy="localplug_mezo", max_steps=3)
    fitted.fit(model, data())
    assert len(got) == 3 and all(optimizer is fitted.optimizers[0] for optimizer in got)


def test_overrides_that_change_the_step_do_what_they_say(tmp_path):
    model, by_hand = module(), module()

    def optimizer_step(epoch, batch_idx, optimizer, optimizer_closure):  # the warm-up of Lightning's documentation
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (2 + batch_idx)

    model.optimizer_step = optimizer_step
    model.backward = lambda loss: (loss * 0.5).backward()
    model.configure_gradient_clipping = lambda optimizer, gradient_clip_val, gradient_clip_algorithm: (
        model.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
    )
    trainer(tmp_path, strategy="localplug_mezo").fit(model, data())

    def clip(parameters):
        (carrier,) = [p for p in parameters if p.grad is not None]
        carrier.grad *= 0.5
        torch.nn.utils.clip_grad_norm_([carrier], 0.05)

    reference(by_hand, 6, clip=clip, lr=lambda step: 1e-2 / (1 + step))
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=1e-5)


def test_a_training_without_an_optimizer_is_refused(tmp_path):
    model = module()
    model.configure_optimizers = lambda: None
    with (
        pytest.warns(UserWarning, match="will run with no optimizer"),
        pytest.raises(localplug.Unsupported, match="configure_optimizers returned None"),
    ):
        trainer(tmp_path, strategy="localplug_mezo").fit(model, data())


def test_a_second_fit_of_the_same_trainer_goes_on_with_new_directions(tmp_path):
    once, twice = module(), module()
    trainer(tmp_path, strategy="localplug_mezo", max_epochs=2, max_steps=-1).fit(once, data())
    fitted = trainer(tmp_path, strategy="localplug_mezo", max_epochs=1, max_steps=-1)
    fitted.fit(twice, data())
    fitted.fit_loop.max_epochs = 2
    fitted.fit(twice, data())
    assert fitted.strategy.engine.run.step == fitted.global_step == 16
    assert torch.equal(weights(once), weights(twice))


def test_validating_a_checkpoint_does_not_set_the_step_of_the_next_training(tmp_path):
    model, fresh = validated(), validated()
    first = trainer(tmp_path, strategy="localplug_mezo")
    first.fit(model, data(), data(16))
    first.save_checkpoint(tmp_path / "x.ckpt")
    second = trainer(tmp_path, strategy="localplug_mezo")
    second.validate(fresh, data(16), ckpt_path=str(tmp_path / "x.ckpt"), verbose=False, weights_only=True)
    assert torch.equal(weights(fresh), weights(model))
    second.fit(fresh, data(), data(16))
    assert second.strategy.engine.run.step == second.global_step == 6


def test_validate_test_and_predict_are_plain_forwards(tmp_path):
    model = validated()
    model.test_step = lambda batch, batch_idx: model.log("test_loss", model.net(batch[0]).square().mean())
    model.predict_step = lambda batch, batch_idx: model.net(batch[0])
    fitted = trainer(tmp_path, strategy="localplug_mezo")
    fitted.fit(model, data(), data(16))
    calls = []
    handle = model.net.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    (validated_,) = fitted.validate(model, data(16), verbose=False)
    (tested,) = fitted.test(model, data(16), verbose=False)
    predicted = fitted.predict(model, data(16))
    handle.remove()
    assert calls == [False] * 6 and validated_["val_loss"] > 0 and tested["test_loss"] > 0
    assert torch.equal(torch.cat(predicted), model.eval().net(dataset(16).tensors[0]))
