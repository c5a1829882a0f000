"""Every feature through every door: the weights that each leaves are those of the engine by itself, or the refusal is exact.

docs/doors.md is made of these tests by tests/doors_table.py. A test's `door` mark names its row of the table; the doors are
its parameters. Where a row is refused at some door, `refusal` is what the error says, word for word.

The distance between two trainings is measured as a share of the way that training has gone, door by door: `Door.within`.
"""

import copy
import math
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

import localplug
from door import BATCH, ROWS, ByHand, language_model_loss, share_of_the_way
from doors import DOORS
from lightning_problems import WARNINGS
from problems import SavedElements, Tokens, tiny_llama, weights

pytestmark = [
    *WARNINGS,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # trl 1.16's own
]

EPS = dict(eps=1e-2)
NAMES = list(DOORS)
each_door = pytest.mark.parametrize("door", NAMES)


def doors_but(*left_out):
    return pytest.mark.parametrize("door", [name for name in NAMES if name not in left_out])


def refused(**texts):
    """For these doors (bare_loop stands for the bare loop) what the error says."""
    return pytest.mark.parametrize(
        "door, refusal", [pytest.param(n.replace("_", " "), t, id=n.replace("_", " ")) for n, t in texts.items()]
    )


@pytest.fixture(autouse=True)
def _no_trace_in_the_process():
    """Trainers tell accelerate and each other by the environment and by global objects how to train."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)


def llama(**changes):
    return tiny_llama(initializer_range=0.2, **changes)


def watched_llama():
    """What makes the model, and the set of the dtypes that one of its layers has given."""
    seen = set()

    def make():
        model = llama()
        model.model.layers[0].mlp.register_forward_hook(lambda m, args, output: seen.add(output.dtype))
        return model

    return make, seen


def adapted(how):
    import peft

    model = llama()
    torch.manual_seed(0)
    if how == "LoRA":  # B is not zero here: otherwise A would not move
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
    else:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(model, config)


def through(door, folder, model, **job):
    fit = DOORS[door](model, folder, **{"options": EPS, **job})
    fit.run()
    return fit


def both(door, folder, make=llama, within=None, **job):
    """(the training through this door, the training by hand), which end with the same weights."""
    model, other = make(), make()
    start = weights(model)
    fit = through(door, folder, model, **copy.copy(job))
    by_hand = ByHand(other, folder, **{"options": EPS, **job}, like=fit).run()
    distance = share_of_the_way(model, other, start)
    allowed = (fit.within if within is None else within) * job.get("fits", 1)  # roundings of several trainings add up
    assert distance <= allowed, distance
    return fit, by_hand


@pytest.mark.parametrize(
    "changed",
    [dict(lr=1.01e-2), dict(options=dict(eps=2e-2)), dict(accumulate=2), dict(data=Tokens(12)), dict(clip=1.0)],
)
def test_the_comparison_notices(changed, tmp_path):
    one, other = ByHand(llama(), tmp_path, options=EPS), ByHand(llama(), tmp_path, **{"options": EPS, **changed})
    distance = share_of_the_way(one.run().model, other.run().model, weights(llama()))
    assert distance > 10 * max(door.within for door in DOORS.values())


# ---- what is trained --------------------------------------------------------------------------------------------------------


@pytest.mark.door("all weights, float32")
@each_door
def test_all_weights_in_float32(door, tmp_path):
    with SavedElements() as saved:
        fit, _ = both(door, tmp_path)
    assert fit.engine.run.step == 4 and fit.engine.run.num_forwards in (8, 10)  # TRL: the first step twice
    assert saved.total == 0 or door == "TRL"  # TRL: a loss outside of the model, a few numbers a token
    assert saved.total <= 4 * BATCH * 12 * 4
    assert not fit.optimizer.state and all(p.grad is None for p in fit.model.parameters())


@pytest.mark.door("LoRA")
@each_door
def test_lora_moves_only_the_adapter(door, tmp_path):
    model = adapted("LoRA")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit, _ = both(door, tmp_path, lambda: adapted("LoRA"), lr=1e-1)
    moved = {n for n, p in fit.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}


@pytest.mark.door("prompt tuning")
@each_door
def test_prompt_tuning(door, tmp_path):
    fit, _ = both(door, tmp_path, lambda: adapted("prompt tuning"), lr=1e-1)
    assert [n for n, _ in fit.engine.run.parameters] == ["weight"]


@pytest.mark.door("bfloat16 weights")
@each_door
def test_bfloat16_weights(door, tmp_path):
    within = 5e-2 if door == "TRL" else None  # its loss is of other bfloat16 numbers than the model's
    fit, _ = both(door, tmp_path, within=within, precision="bf16 weights", options=dict(eps=3e-2))
    assert {p.dtype for p in fit.model.parameters()} == {torch.bfloat16}


@pytest.mark.door("bfloat16 autocast")
@each_door
def test_bfloat16_autocast(door, tmp_path):
    watched, seen = watched_llama()
    within = 5e-2 if door == "TRL" else None  # its loss is of other bfloat16 numbers than the model's
    both(door, tmp_path, watched, within=within, precision="bf16 autocast")
    assert seen == {torch.bfloat16}


@pytest.mark.door("fp16 autocast and loss scaling")
@each_door
def test_loss_scaling_cancels_out(door, tmp_path):
    """The oracle has fp16 autocast and no scaling."""
    watched, seen = watched_llama()
    within = 5e-2 if door == "TRL" else None  # its loss is of other float16 numbers than the model's
    fit, _ = both(door, tmp_path, watched, within=within, precision="fp16 scaled")
    assert seen == {torch.float16} and fit.scaler.get_scale() == 2.0**8 and fit.engine.run.num_dropped == 0


# ---- how the step is made ---------------------------------------------------------------------------------------------------


@pytest.mark.door("gradient accumulation")
@each_door
def test_gradient_accumulation(door, tmp_path):
    fit, _ = both(door, tmp_path, accumulate=2)
    assert fit.engine.run.step == 2


@pytest.mark.door("gradient clipping")
@each_door
def test_gradient_clipping(door, tmp_path):
    free = ByHand(llama(), tmp_path, options=EPS).run()
    fit, _ = both(door, tmp_path, clip=0.1)
    start = weights(llama())
    assert (weights(fit.model) - start).norm() < 0.5 * (weights(free.model) - start).norm()


@pytest.mark.door("learning-rate schedule, weight decay by group")
@each_door
def test_schedule_and_weight_decay_by_group(door, tmp_path):
    plain = ByHand(llama(), tmp_path, options=EPS).run()
    fit, _ = both(door, tmp_path, linear=True, weight_decay=0.5)
    assert share_of_the_way(fit.model, plain.model, weights(llama())) > 0.1


@pytest.mark.door("several directions a step")
@each_door
def test_several_directions_a_step(door, tmp_path):
    fit, _ = both(door, tmp_path, options=dict(EPS, num_directions=3))
    assert fit.engine.run.num_forwards in (24, 30)  # TRL: the first step twice


@pytest.mark.door("update by the trainer's own optimizer (AdamW)")
@each_door
def test_update_by_the_trainers_own_optimizer(door, tmp_path):
    options = dict(EPS, update="trainer")
    fit, _ = both(door, tmp_path, optim="adamw", options=options)
    assert len(fit.optimizer.state) == len(list(fit.model.parameters()))
    # Lightning keeps the gradients of a step until the next one starts
    assert all(p.grad is None for p in fit.model.parameters()) or door == "Lightning"


@pytest.mark.door("an optimizer that needs a closure (LBFGS)")
@refused(
    **dict.fromkeys(
        [name.replace(" ", "_") for name in NAMES],
        "LBFGS evaluates the model inside its step; use an optimizer whose step needs no closure",
    )
)
def test_an_optimizer_that_needs_a_closure_is_refused(door, refusal, tmp_path):
    model = llama()
    with pytest.raises(localplug.Unsupported) as error:
        through(door, tmp_path, model, optim=lambda model: torch.optim.LBFGS(model.parameters()))
    assert refusal in str(error.value)
    assert torch.equal(weights(model), weights(llama())) and not model._forward_hooks


@pytest.mark.door("a loss built outside of the model")
@each_door
def test_a_loss_built_outside_of_the_model(door, tmp_path):
    """The slopes of the logits turn d loss / d logits into the projected gradient: the same but for terms of order eps^2."""
    fit, by_hand = both(door, tmp_path, within=2e-2, loss=language_model_loss, options=dict(eps=1e-3))
    if door != "Lightning":  # there the loss is training_step's, and so exact
        by_hand = through("bare loop", tmp_path, llama(), loss=language_model_loss, options=dict(eps=1e-3))
    assert share_of_the_way(fit.model, by_hand.model, weights(llama())) <= fit.within
    inside = ByHand(llama(), tmp_path, options=dict(eps=1e-3)).run()
    assert share_of_the_way(fit.model, inside.model, weights(llama())) > 0.1  # it is another loss


def penalty(model):
    return 0.1 * model.lm_head.weight.square().mean()


@pytest.mark.door("a part of the loss that goes round the model")
@refused(
    **dict.fromkeys(
        [name.replace(" ", "_") for name in NAMES if name != "Lightning"],
        "a real backward pass reached ['lm_head.weight']: part of the loss does not go through the attached module",
    )
)
def test_a_part_of_the_loss_that_goes_round_the_model_is_refused(door, refusal, tmp_path):
    model = llama()
    with pytest.raises(localplug.EngineError) as error:
        through(door, tmp_path, model, extra=penalty)
    assert refusal in str(error.value)
    assert torch.equal(weights(model), weights(llama()))


@pytest.mark.door("a part of the loss that goes round the model")
@doors_but(*(name for name in NAMES if name != "Lightning"))
def test_all_of_training_step_is_evaluated(door, tmp_path):
    both(door, tmp_path, extra=penalty)


@pytest.mark.door("activation checkpointing")
@each_door
def test_activation_checkpointing(door, tmp_path):
    seen = []

    def watched():
        model = llama()
        model.model.layers[0].register_forward_hook(lambda m, *_: seen.append(m.gradient_checkpointing))
        return model

    both(door, tmp_path, watched, checkpointing=True)
    assert seen.count(True) in (8, 10) and seen.count(False) == 8  # through the door, and by hand


@pytest.mark.door("torch.compile")
@each_door
def test_torch_compile(door, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    both(door, tmp_path, lambda: llama(num_hidden_layers=1), compiled="eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


# ---- between the steps ------------------------------------------------------------------------------------------------------


@pytest.mark.door("evaluation between steps")
@each_door
def test_evaluation_between_steps(door, tmp_path):
    fit, by_hand = both(door, tmp_path, evaluated=Tokens(8, seed=2))
    assert fit.engine.run.num_forwards in (8, 10)
    assert len(by_hand.eval_losses) == 2
    assert fit.eval_losses == pytest.approx(by_hand.eval_losses, rel=1e-5)


@pytest.mark.door("saving and exact resume")
@pytest.mark.parametrize("update", ["sgd", "trainer"])
@each_door
def test_a_resumed_training_ends_with_the_same_bits(door, update, tmp_path):
    job = dict(data=Tokens(8), epochs=2, linear=True, optim="adamw", options=dict(EPS, update=update))
    dropout = 0.0 if door == "Lightning" else 0.1  # whose checkpoints do not hold the random state
    whole = through(door, tmp_path, llama(attention_dropout=dropout), save=True, **job)
    resumed = through(door, tmp_path, llama(seed=1, attention_dropout=dropout), resume=True, **job)
    assert resumed.engine.run.step == whole.engine.run.step == 4
    assert resumed.engine.run.num_forwards < whole.engine.run.num_forwards
    assert torch.equal(weights(resumed.model), weights(whole.model))


@pytest.mark.door("a deep-copied average of the weights (EMA)")
@each_door
def test_a_deep_copied_average_of_the_weights(door, tmp_path):
    steps = []
    ByHand(llama(), tmp_path, options=EPS, watch=lambda model: steps.append(weights(model))).run()
    expected = steps[0]
    for step in steps[1:]:
        expected = 0.5 * expected + 0.5 * step
    fit = through(door, tmp_path, llama(), averaged=True)
    way = (expected - weights(llama())).norm()
    assert (weights(fit.average) - expected).norm() <= max(fit.within, 1e-5) * way


@pytest.mark.door("training twice with the same objects")
@each_door
def test_training_twice_with_the_same_objects(door, tmp_path):
    fit, _ = both(door, tmp_path, fits=2)
    assert not fit.model._forward_hooks and not fit.model._forward_pre_hooks


# ---- another kind of method -------------------------------------------------------------------------------------------------


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Points(torch.utils.data.Dataset):
    def __init__(self):
        self.x = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return dict(x=self.x[i], labels=(self.x[i, :4].sum() > 0).long())


@pytest.mark.door("a layer-local method (tpsgd)")
@doors_but("TRL")
def test_a_layer_local_method(door, tmp_path):
    both(door, tmp_path, Classifier, method="tpsgd", options={}, data=Points())


@pytest.mark.door("a layer-local method (tpsgd)")
@refused(
    TRL="the method needs class labels of shape (B,) or float targets (B, K), got (4, 12); tokens of a language "
    "model are not covered"
)
def test_a_layer_local_method_has_no_targets_for_tokens(door, refusal, tmp_path):
    model = llama()
    with pytest.raises(ValueError) as error:
        through(door, tmp_path, model, method="tpsgd", options={})
    assert refusal in str(error.value)
    assert torch.equal(weights(model), weights(llama()))


# ---- what goes wrong --------------------------------------------------------------------------------------------------------


class Broken(Tokens):
    """Data whose row 9, in the third batch, cannot be read once the training runs."""

    def __getitem__(self, i):
        if i == 9:
            raise OSError("row 9 cannot be read")
        return super().__getitem__(i)


@pytest.mark.door("an exception in the data loader")
@each_door
def test_an_exception_in_the_data_leaves_the_weights_of_the_last_step(door, tmp_path):
    model, after = llama(), [weights(llama())]
    ByHand(llama(), tmp_path, options=EPS, watch=lambda model: after.append(weights(model))).run()
    fit = DOORS[door](model, tmp_path, options=EPS, data=Broken(ROWS))
    with pytest.raises(OSError, match="row 9 cannot be read"):
        fit.run()
    steps = fit.engine.run.step
    assert steps in (1, 2)  # some read one batch ahead
    assert (weights(model) - after[steps]).norm() <= fit.within * (after[steps] - after[0]).norm()
    assert torch.is_grad_enabled()


@pytest.mark.door("an exception in a batch")
@pytest.mark.parametrize("evaluation", [1, 2])
@each_door
def test_an_exception_in_a_batch_leaves_the_weights_of_the_last_step(door, evaluation, tmp_path):
    model, after, batches = llama(), [weights(llama())], []
    ByHand(llama(), tmp_path, options=EPS, watch=lambda model: after.append(weights(model))).run()
    third = Tokens(ROWS).x[8:12]

    def fails(module, args, output):
        if torch.equal(batches[-1], third):
            calls.append(1)
            if len(calls) == evaluation:
                raise RuntimeError("out of memory")

    calls = []
    model.model.embed_tokens.register_forward_pre_hook(lambda m, args: batches.append(args[0]))
    handle = model.model.layers[1].register_forward_hook(fails)
    fit = DOORS[door](model, tmp_path, options=EPS)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit.run()
    handle.remove()
    assert fit.engine.run.step == 2 and len(calls) == evaluation
    assert (weights(model) - after[2]).norm() <= fit.within * (after[2] - after[0]).norm()
    assert torch.is_grad_enabled()


@pytest.mark.door("a batch whose loss is not finite is left out and counted")
@each_door
def test_a_batch_whose_loss_is_not_finite_is_left_out_and_counted(door, tmp_path):
    third = Tokens(ROWS).x[8:12]

    def breaking():
        model, batches = llama(), []
        model.model.embed_tokens.register_forward_pre_hook(lambda m, args: batches.append(args[0]))
        model.model.norm.register_forward_hook(
            lambda m, args, output: output * float("nan") if torch.equal(batches[-1], third) else None
        )
        return model

    fit, _ = both(door, tmp_path, breaking)
    assert fit.engine.run.num_dropped == 1 and fit.engine.run.step == 4
    assert weights(fit.model).isfinite().all() and math.isfinite(fit.engine.gradient_norm)


# ---- two processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """(door, how) -> what each of two workers found; all that tests/door_workers.py does."""
    folder = tmp_path_factory.mktemp("workers")
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            str(here / "door_workers.py"), str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(here)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return lambda door, how: [torch.load(folder / f"{door}.{how}.{rank}.pt", weights_only=True) for rank in (0, 1)]


def near(trained, expected, within):
    way = (expected - weights(llama())).norm()
    assert way > 0
    assert (trained - expected).norm() <= within * way, float((trained - expected).norm() / way)


@pytest.mark.door("two processes, as one with the whole batch")
@each_door
def test_two_processes_are_one_with_the_whole_batch_and_equal_to_the_last_bit(door, two_workers, tmp_path):
    first, second = two_workers(door, "same")
    assert first["workers"] == second["workers"] == 2 and first["step"] == 4
    assert torch.equal(first["weights"], second["weights"])
    one = ByHand(llama(), tmp_path, options=EPS, like=DOORS[door]).run()
    near(first["weights"], weights(one.model), within=1e-4)  # the mean of two losses rounds differently


INTERLEAVED = ("Lightning", "Fabric", "bare loop")
"""Where torch's DistributedSampler deals the rows out; Accelerate, and so the Trainer, gives each worker half of a batch."""


@pytest.mark.door("two processes, different directions for each")
@each_door
def test_each_process_tries_its_own_direction_on_its_own_rows(door, two_workers):
    first, second = two_workers(door, "different")
    assert torch.equal(first["weights"], second["weights"])
    by_hand = llama()
    directions = localplug.Directions(run := localplug.Engine(by_hand, localplug.method("mezo")).run)
    parameters = [p for _, p in run.parameters]
    for run.step, batch in enumerate(torch.utils.data.DataLoader(Tokens(ROWS), batch_size=BATCH)):
        start, change = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
        for worker in (0, 1):
            rows = slice(worker, None, 2) if door in INTERLEAVED else slice(2 * worker, 2 * worker + 2)
            z = [directions.values(i, worker) for i in range(len(parameters))]
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    for p, theta, noise in zip(parameters, start, z, strict=True):
                        p.copy_(theta + sign * 1e-2 * noise)
                    losses.append(by_hand(**{k: v[rows] for k, v in batch.items()}).loss)
            g = (losses[0] - losses[1]) / 2e-2
            change = [c - 1e-2 * g * noise / 2 for c, noise in zip(change, z, strict=True)]
        with torch.no_grad():
            for p, theta, c in zip(parameters, start, change, strict=True):
                p.copy_(theta + c)
    near(first["weights"], weights(by_hand), within=1e-4)


@pytest.mark.door("fully sharded parameters (FSDP2)")
@doors_but("Trainer", "TRL")
def test_fully_sharded_parameters_train_as_replicas_do_bit_for_bit(door, two_workers):
    (first, second), (replica, _) = two_workers(door, "sharded"), two_workers(door, "same")
    assert first["workers"] == 2 and torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["weights"], replica["weights"])


def test_attaching_before_accelerate_shards_the_parameters_says_what_to_do(two_workers):
    """Its prepare makes new parameters, and puts them into the optimizer. For replicas it is right to attach before."""
    for found in two_workers("Accelerate", "too early"):
        assert "attach" in found.get("error", "")


@pytest.mark.door("fully sharded parameters (FSDP2)")
@refused(
    Trainer="FSDP shards the parameters; remove fsdp=",
    TRL="FSDP shards the parameters; remove fsdp=",
)
def test_fsdp_of_the_trainer_is_refused(door, refusal, two_workers):
    for found in two_workers(door, "sharded"):
        assert refusal in found["error"]
