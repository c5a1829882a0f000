"""LocalPlugDDPStrategy with two gloo processes, which Lightning starts by running a script twice."""

import json
import os
import warnings

import pytest
import torch

import localplug
from lightning_problems import WARNINGS, module, run_script, trainer
from lightning_workers import STEPS, counted, loader, options
from localplug.directions import Directions
from localplug_lightning import LocalPlugDDPStrategy, LocalPlugStrategy
from problems import weights

pytestmark = [*WARNINGS, pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")]


def start(folder, start_method="popen"):
    run_script("lightning_workers.py", folder, start_method)
    return folder


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """The folder with what all cases left behind."""
    return start(tmp_path_factory.mktemp("workers"))


CASES = ["mezo", "clipped", "different", "tpsgd", "whole", "resumed", "unequal", "counted"]


def left(folder, name):
    """([weights of each worker], [buffers], [facts])"""
    saved = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    facts = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    return [w for w, _ in saved], [b for _, b in saved], facts


@pytest.mark.parametrize("name", CASES)
def test_the_workers_end_with_the_same_weights_to_the_last_bit(name, two_workers):
    (first, second), buffers, facts = left(two_workers, name)
    assert torch.equal(first, second) and torch.equal(*buffers)
    assert not torch.equal(first, weights(counted() if name == "counted" else module()))
    for worker in facts:
        assert worker["workers"] == 2 and not worker["wrapped"]
        assert worker["step"] == STEPS // (2 if name == "clipped" else 1)


@pytest.mark.door("two processes, as one with the whole batch", "Lightning")
@pytest.mark.parametrize(
    "name, strategy",
    [
        ("mezo", dict(method="mezo")),
        ("clipped", dict(method="mezo", num_directions=2)),
        ("tpsgd", dict(method="tpsgd")),
        ("whole", dict(method="mezo", update="trainer")),
        ("unequal", dict(method="mezo")),
    ],
)
def test_two_workers_with_half_batches_are_one_worker_with_whole_batches(name, strategy, two_workers, tmp_path):
    """The sampler deals the samples out in turn: the halves of the workers make up the batch of one."""
    model = module(schedule=name == "whole")
    fitted = trainer(
        tmp_path, strategy=LocalPlugStrategy(**strategy), **{"max_steps": STEPS, **options(name, tmp_path)}
    )
    fitted.fit(model, loader(16, alone=True, num=64 if name == "whole" else 128))
    (trained, _), _, (facts, _) = left(two_workers, name)
    torch.testing.assert_close(trained, weights(model), atol=5e-6, rtol=1e-4)
    assert facts["calls"] == model.calls
    assert (weights(model) - weights(module())).abs().max() > 1e-3


def test_different_directions_are_averaged(two_workers):
    """By hand: worker r tries direction r on its half of the batch, and both directions are stepped along."""
    model = module()
    run = localplug.Engine(model, localplug.method("mezo")).run
    directions = Directions(run)
    for run.step, (x, y) in enumerate(loader(16, alone=True)):
        start = [p.detach().clone() for p in model.parameters()]
        update = [torch.zeros_like(p) for p in start]
        for worker in (0, 1):
            z = [directions.values(i, worker) for i in range(len(start))]
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    for p, w, noise in zip(model.parameters(), start, z, strict=True):
                        p.copy_(w + sign * 1e-3 * noise)
                    half = slice(worker, None, 2)
                    losses.append(float(torch.nn.functional.cross_entropy(model.net(x[half]), y[half])))
            for u, noise in zip(update, z, strict=True):
                u.add_(noise, alpha=(losses[0] - losses[1]) / 2e-3 / 2)
        with torch.no_grad():
            for p, w, u in zip(model.parameters(), start, update, strict=True):
                p.copy_(w - 1e-2 * u)
    assert run.step == STEPS - 1
    (different, _), _, _ = left(two_workers, "different")
    (same, _), _, _ = left(two_workers, "mezo")
    torch.testing.assert_close(different, weights(model), atol=5e-6, rtol=1e-4)
    assert (different - same).abs().max() > 1e-3


def test_a_checkpoint_of_two_workers_resumes_on_two_bit_for_bit(two_workers):
    (whole, _), _, _ = left(two_workers, "whole")
    (resumed, _), _, (facts, _) = left(two_workers, "resumed")
    assert torch.equal(whole, resumed) and facts["calls"] == STEPS  # half of them, twice each


def test_a_checkpoint_of_two_workers_resumes_on_one(two_workers, tmp_path):
    model = module(schedule=True)
    fitted = trainer(tmp_path, strategy=LocalPlugStrategy("mezo", update="trainer"), max_steps=STEPS)
    fitted.fit(model, loader(16, alone=True, num=64), ckpt_path=str(two_workers / "step=4.ckpt"), weights_only=True)
    (whole, _), _, _ = left(two_workers, "whole")
    assert fitted.strategy.engine.run.step == STEPS
    torch.testing.assert_close(weights(model), whole, atol=5e-6, rtol=1e-4)


def test_metrics_count_the_samples_of_both_workers_once_and_all_validate_alike(two_workers):
    _, buffers, facts = left(two_workers, "counted")
    assert [worker["counted"] for worker in facts] == [[8], [8]]
    assert facts[0]["accuracy"] == facts[1]["accuracy"] > 0 and facts[0]["scores"] == facts[1]["scores"]
    assert facts[0]["accuracy"] * 128 == pytest.approx(round(facts[0]["accuracy"] * 128), abs=1e-3)
    assert buffers[0].abs().sum() > 0


def test_processes_that_lightning_spawns(two_workers, tmp_path):
    start(tmp_path, "spawn")
    (trained, _), _, _ = left(two_workers, "mezo")
    assert torch.equal(torch.load(tmp_path / "spawn.pt", weights_only=True), trained)


def test_one_process_trains_as_the_strategy_of_one_device(tmp_path):
    model, plain = module(), module()
    trainer(tmp_path, strategy="localplug_mezo").fit(plain, loader(16, alone=True))
    environment = dict(os.environ)
    try:
        trainer(tmp_path, strategy="localplug_mezo_ddp").fit(model, loader(16))
    finally:
        torch.distributed.destroy_process_group()
        os.environ.clear()  # Lightning leaves LOCAL_RANK and the like behind, which other frameworks take for a launch
        os.environ.update(environment)
    assert torch.equal(weights(model), weights(plain))


def test_worker_directions_must_be_one_of_two(tmp_path):
    with pytest.raises(ValueError, match='"same" or "different"'):
        LocalPlugDDPStrategy("mezo", worker_directions="both")


def test_both_strategies_exist_in_both_packages():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as pl

    import localplug_lightning.pl as other

    for name in ("LocalPlugStrategy", "LocalPlugDDPStrategy"):
        assert getattr(other, name).__module__ == "localplug_lightning.pl"
    assert issubclass(other.LocalPlugDDPStrategy, pl.strategies.DDPStrategy)
    assert {"localplug_mezo", "localplug_mezo_ddp", "localplug_tpsgd_ddp"} <= set(pl.strategies.StrategyRegistry)
