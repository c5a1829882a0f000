"""The run as a file: what is written, what survives, and that a replay gives the trained weights to the last bit."""

import binascii
import copy
import importlib
import json
import logging
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import trajectory
from localplug.cli import main
from localplug.log import Log

# Heavy imports stand where they are needed: child processes import this file.


def problems():
    return importlib.import_module("problems")


def callback(*words, **options):
    return importlib.import_module("localplug_transformers").LocalPlugCallback(*words, **options)


STORIES = pathlib.Path(__file__).parents[1] / "../shared/data/models/stories260K/hf"


class Net(nn.Module):
    """Tied weights, frozen ones, small ones, and one that is more than a chunk of noise."""

    def __init__(self, dtype=torch.float32, gives_loss=False):
        super().__init__()
        self.gives_loss = gives_loss
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            self.embed = nn.Embedding(300, 150)
            self.norm = nn.LayerNorm(150)
            self.frozen = nn.Linear(150, 150).requires_grad_(False)
            self.head = nn.Linear(150, 300, bias=True)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, x):
        y = self.head(self.frozen(self.norm(self.embed(x[:, :-1]))))
        y = y if y.dtype == torch.float64 else y.float()
        return F.cross_entropy(y.flatten(0, 1), x[:, 1:].flatten()) if self.gives_loss else y


X = torch.arange(24).view(6, 4) * 7 % 300


def loss_of(net):
    y = net(X)
    return y if y.dim() == 0 else F.cross_entropy(y.flatten(0, 1), X[:, 1:].flatten())


def optimizer_of(net, groups=1, weight_decay=0.0, lr=1e-3):
    trained = [p for p in net.parameters() if p.requires_grad]
    if groups == 1:
        return torch.optim.SGD(trained, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(
        [dict(params=trained[:1], lr=lr, weight_decay=weight_decay), dict(params=trained[1:], lr=3 * lr)], lr=lr
    )


def trained(
    path,
    method="mezo",
    steps=6,
    *,
    net=None,
    groups=1,
    weight_decay=0.0,
    seed=5,
    accumulation=1,
    bad=(),
    start=0,
    state=None,
    kept=None,
    constant=False,
    **options,
):
    """A net after some steps in a plain loop, with a learning rate that changes."""
    net = net or Net()
    optimizer = optimizer_of(net, groups, weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    with localplug.attach(net, method, optimizer, seed=seed, log=path, **options) as attached:
        attached.engine.run.step = start
        if state is not None:
            attached.engine.load_state_dict(state)
        for step in range(attached.engine.run.step, steps):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr if constant else lr / (1 + step)
            for _ in range(accumulation):
                loss = loss_of(net) / accumulation
                (loss * float("nan") if step in bad else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        if kept is not None:
            kept.append(copy.deepcopy(attached.engine.state_dict()))
    return net


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def replayed(path, net=None, **options):
    net = net or Net()
    localplug.replay_log(net, path, **options)
    return net


def records_start(path):
    """Where the records begin."""
    data = path.read_bytes()
    return len(trajectory.MAGIC) + 8 + struct.unpack_from("<Q", data, len(trajectory.MAGIC))[0] + 4


# ---- what is written --------------------------------------------------------------------------------------------------


def test_the_bytes_of_the_records(tmp_path):
    log, run = opened(tmp_path / "a.lplog", num_groups=2)
    two = [dict(lr=0.5, weight_decay=0.0), dict(lr=0.5, weight_decay=0.0)]
    for coefficients, groups in (
        ([1.0], two),  # the learning rate is new
        ([-2.0], two),  # nothing is
        (None, two),
        ([0.5], [dict(lr=0.5, weight_decay=0.25), dict(lr=1.0)]),  # differ from each other
        ([0.5], [dict(lr=0.5, weight_decay=0.25), dict(lr=1.0)]),
    ):
        log.step(coefficients, groups)
        run.step += 1
    run.step = 3
    log.begin(run, localplug.method("mezo"), groups_of(run, 2), torch.ones(1))
    golden = [
        "6c" "0000803f" "000000000000e03f",
        "73" "000000c0",
        "6e",
        "67" "0200" "000000000000e03f" "000000000000d03f" "000000000000f03f" "0000000000000000",
        "73" "0000003f",
        "73" "0000003f",
        "72" "0300000000000000" "01000000",
    ]  # fmt: skip
    data, at = (tmp_path / "a.lplog").read_bytes(), records_start(tmp_path / "a.lplog")
    for body in map(bytes.fromhex, golden):
        crc = binascii.crc_hqx(body, struct.unpack("<H", data[at - 2 : at])[0])
        assert data[at : at + len(body) + 2] == body + struct.pack("<H", crc)
        at += len(body) + 2
    assert at == len(data)
    assert trajectory.crc_after(bytes.fromhex(golden[0]), b"\x01\x02") == bytes.fromhex("90af")


def groups_of(run, number):
    parameters = [p for _, p in run.parameters]
    return [dict(params=parameters[:1]), *(dict(params=parameters[1:] if i == 1 else []) for i in range(1, number))]


def opened(path, num_groups=1, num_coefficients=1):
    """A log with nothing but its header."""
    net = nn.Linear(3, 2)
    run = localplug.Run(net, list(net.named_parameters()), 0)
    log = Log(path, method="mezo")
    log.weigh(run)
    groups = groups_of(run, num_groups)
    log.begin(run, localplug.method("mezo"), groups, torch.ones(num_coefficients))
    return log, run


@pytest.mark.parametrize("constant, size", [(False, 15), (True, 7)])
def test_a_step_takes_15_bytes_and_7_at_a_constant_learning_rate(tmp_path, constant, size):
    path = tmp_path / "a.lplog"
    trained(path, steps=11, constant=constant)
    assert path.stat().st_size - records_start(path) == 10 * size + 15
    trained(tmp_path / "q.lplog", steps=11, num_directions=4, constant=constant)
    assert (tmp_path / "q.lplog").stat().st_size - records_start(tmp_path / "q.lplog") <= 11 * 16 * 4


def test_the_header_tells_the_run(tmp_path):
    trained(tmp_path / "a.lplog", steps=2, eps=1e-2, groups=2)
    found = localplug.read_log(tmp_path / "a.lplog")
    header = found.header
    assert (header.method, header.options, header.seed, header.step, header.state) == ("mezo", {"eps": 1e-2}, 5, 0, "")
    assert [(p.name, p.full_names, p.shape, p.dtype, p.group) for p in header.parameters][:2] == [
        ("embed.weight", ["embed.weight", "head.weight"], [300, 150], "float32", 0),
        ("norm.weight", ["norm.weight"], [150], "float32", 1),
    ]
    assert [s.number for s in found.steps] == [0, 1] and found.end == 2 and found.ignored == 0
    assert found.steps[1].rates == ((0.5e-3, 0.0), (1.5e-3, 0.0))
    assert all(struct.unpack("f", struct.pack("f", c))[0] == c for s in found.steps for c in s.coefficients)


def test_coefficients_of_a_model_in_float64_are_not_rounded(tmp_path):
    net = trained(tmp_path / "a.lplog", net=Net(torch.float64))
    assert localplug.read_log(tmp_path / "a.lplog").header.precision == "float64"
    assert same(replayed(tmp_path / "a.lplog", Net(torch.float64)), net)


# ---- bit for bit ------------------------------------------------------------------------------------------------------


MATRIX = [
    dict(),
    dict(weight_decay=0.1),
    dict(groups=2, weight_decay=0.1),
    dict(num_directions=3, accumulation=2, groups=2),
    dict(bad=(1, 4), weight_decay=0.1),
    dict(dtype=torch.bfloat16),
    dict(dtype=torch.bfloat16, groups=2, weight_decay=0.1, num_directions=2, bad=(0,)),
    dict(dtype=torch.float16, accumulation=2),
    dict(strict="mezo"),
    dict(strict="mezo", weight_decay=0.1, groups=2),
    dict(strict="mezo", weight_decay=0.1, bad=(0, 3)),
]


@pytest.mark.parametrize("case", MATRIX, ids=lambda c: ", ".join(f"{k} {v}" for k, v in c.items()) or "default")
def test_a_replay_gives_the_trained_weights(tmp_path, case):
    options = dict(case)
    dtype = options.pop("dtype", torch.float32)
    net = trained(tmp_path / "a.lplog", net=Net(dtype), **options)
    assert not same(net, Net(dtype))
    assert same(replayed(tmp_path / "a.lplog", Net(dtype)), net)


BACKPROPAGATING = ("addax", "elastic-zo")  # refused, with the reason: tests of localplug-zo
REPLAYABLE = [
    name
    for name, (giver, *_) in localplug.plugins.names("methods").items()
    if giver.name == "zo" and name not in BACKPROPAGATING
]


@pytest.mark.parametrize("name", REPLAYABLE)
def test_a_replay_gives_the_trained_weights_of_every_zeroth_order_method(tmp_path, name):
    net = trained(tmp_path / "a.lplog", name, steps=8, net=Net(gives_loss=True))
    assert same(replayed(tmp_path / "a.lplog"), net)


def test_a_replay_can_stop_at_any_step(tmp_path):
    trained(tmp_path / "a.lplog", "zo-sgd-momentum", steps=6)
    for steps in range(7):
        assert same(replayed(tmp_path / "a.lplog", until=steps), trained(None, "zo-sgd-momentum", steps=steps))
    with pytest.raises(ValueError, match="holds the steps 0 to 6, and until is 7"):
        replayed(tmp_path / "a.lplog", until=7)


def test_a_method_object_is_handed_in_again(tmp_path):
    mask = {"embed.weight": torch.arange(300 * 150).view(300, 150) % 3 == 0}
    net = trained(tmp_path / "a.lplog", localplug.method("mezo", parameters=mask))
    with pytest.raises(ValueError, match="was given a method object .*pass it to .* as method="):
        replayed(tmp_path / "a.lplog")
    assert same(replayed(tmp_path / "a.lplog", method=localplug.method("mezo", parameters=mask)), net)
    trained(tmp_path / "b.lplog", parameters=mask)  # a tensor is no plain value either
    assert localplug.read_log(tmp_path / "b.lplog").header.method is None


def test_workers_with_directions_of_their_own(tmp_path):
    """One file, by worker 0, with the coefficients of both."""
    script = f"""
import sys, torch, test_trajectory as t
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
net = t.trained("{tmp_path}/a.lplog", steps=4, worker_directions="different", num_directions=2)
torch.save(net.state_dict(), f"{tmp_path}/net{{rank}}.pt")
torch.distributed.destroy_process_group()
"""
    together = [run_python(script, str(rank)) for rank in range(2)]
    assert [p.wait(timeout=100) for p in together] == [0, 0]
    net = Net()
    net.load_state_dict(torch.load(tmp_path / "net1.pt"))
    assert len(localplug.read_log(tmp_path / "a.lplog").steps[0].coefficients) == 4
    assert same(replayed(tmp_path / "a.lplog"), net)


def run_python(script, *words):
    here = str(pathlib.Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script, *words], env=environment)


# ---- what survives ----------------------------------------------------------------------------------------------------


def test_after_kill_9_the_log_gives_the_weights_of_an_uninterrupted_run(tmp_path):
    path = tmp_path / "a.lplog"
    process = run_python(f"import test_trajectory as t; t.trained({str(path)!r}, steps=10**9)")
    try:
        waited = time.monotonic()
        while not path.exists() or path.stat().st_size - records_start(path) < 40 * 15:
            assert process.poll() is None and time.monotonic() - waited < 60
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = localplug.read_log(path).end
    assert steps >= 39
    assert same(replayed(path), trained(None, steps=steps))


@pytest.mark.parametrize("last", ["step", "group rates", "bad step", "rewind"])
def test_a_torn_tail_is_left_out_and_its_bytes_are_told(tmp_path, last):
    path = tmp_path / "a.lplog"
    trained(path, steps=3, groups=2 if last == "group rates" else 1)
    before = len(path.read_bytes())
    run_on = dict(start=3, steps=4) if last != "rewind" else dict(start=2, steps=2)
    net = replayed(path)
    if last == "rewind":
        log = Log(path)
        log._header, log._descriptor = localplug.read_log(path).header, os.open(path, os.O_WRONLY | os.O_APPEND)
        log._next, log._size, log._tail = 3, before, path.read_bytes()[-2:]
        log._rewind(1, 1)
        log.close()
    else:
        net = trained(
            path, net=net, groups=2 if last == "group rates" else 1, bad=(3,) if last == "bad step" else (), **run_on
        )
    data, whole = path.read_bytes(), localplug.read_log(path)
    first = data[before : before + 1]
    assert first == {"step": b"l", "group rates": b"g", "bad step": b"n", "rewind": b"r"}[last]
    for cut in range(before, len(data)):
        path.write_bytes(data[:cut])
        found = localplug.read_log(path)
        assert found.end == 3 and found.size + found.ignored == cut
        assert found.ignored == cut - before or first == b"g"  # its two records are one write, and may be torn between
    path.write_bytes(data[:-1])
    if last != "rewind":
        again = trained(
            path,
            net=replayed(path, until=3),
            groups=2 if last == "group rates" else 1,
            bad=(3,) if last == "bad step" else (),
            **run_on,
        )
        assert same(again, net) and localplug.read_log(path).steps == whole.steps
        assert same(replayed(path), net)


def test_damage_before_the_end_is_an_error_that_names_the_place(tmp_path):
    path = tmp_path / "a.lplog"
    trained(path, steps=5)
    data, start = path.read_bytes(), records_start(path)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        record = start + (place - start) // 15 * 15
        if place < start:
            with pytest.raises(ValueError, match="header|no log|another format"):
                localplug.read_log(path)
        elif record == start + 4 * 15:
            assert (localplug.read_log(path).end, localplug.read_log(path).ignored) == (4, 15)
        else:
            with pytest.raises(ValueError, match=f"damaged at byte {record}:"):
                localplug.read_log(path)
    for wrong in (data[: start + 15] + data[start + 30 :], data[: start + 15] + data[start:]):  # lost, doubled
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"damaged at byte {start + 15}:"):
            localplug.read_log(path)


def test_a_full_disk_ends_the_training_and_the_log_with_the_step_before(tmp_path, monkeypatch):
    path, write = tmp_path / "a.lplog", os.write

    def full(descriptor, data):
        if path.stat().st_size < records_start(path) + 30:
            return write(descriptor, data)
        if len(data) == 15:
            return write(descriptor, data[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        trained(path)
    found = localplug.read_log(path)
    assert (found.end, found.ignored) == (2, 0)
    assert same(replayed(path), trained(None, steps=2))


# ---- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_the_end_and_from_before(tmp_path):
    path, options = tmp_path / "a.lplog", dict(method="zo-scalar-adam", groups=2, weight_decay=0.1)
    net = trained(path, steps=5, **options)
    at = {steps: replayed(path, until=steps) for steps in (3, 5)}
    states = {steps: state_after(steps, **options) for steps in (3, 5)}
    assert same(trained(path, steps=8, net=at[5], state=states[5], **options), trained(None, steps=8, **options))
    assert localplug.read_log(path).end == 8
    size = path.stat().st_size
    gone_on = trained(path, steps=6, net=at[3], state=states[3], **options)
    assert same(gone_on, trained(None, steps=6, **options))
    found = localplug.read_log(path)
    assert path.stat().st_size > size and [s.number for s in found.steps] == list(range(6))
    assert same(replayed(path), gone_on) and not same(net, gone_on)


def state_after(steps, **options):
    kept = []
    trained(None, steps=steps, kept=kept, **options)
    return kept[0]


def test_a_log_that_begins_in_the_middle_holds_the_methods_state(tmp_path):
    state, net = state_after(3, method="zo-sgd-momentum"), trained(None, "zo-sgd-momentum", steps=3)
    before = copy.deepcopy(net)
    after = trained(tmp_path / "a.lplog", "zo-sgd-momentum", steps=6, net=net, state=state)
    found = localplug.read_log(tmp_path / "a.lplog")
    assert (found.header.step, found.end) == (3, 6) and found.header.state
    assert same(after, trained(None, "zo-sgd-momentum", steps=6))
    assert same(replayed(tmp_path / "a.lplog", before), after)


def test_the_same_run_started_again_begins_the_log_anew(tmp_path):
    trained(tmp_path / "a.lplog", steps=5)
    net = trained(tmp_path / "a.lplog", steps=3)
    assert localplug.read_log(tmp_path / "a.lplog").end == 3
    assert same(replayed(tmp_path / "a.lplog"), net)


def test_another_run_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "a.lplog"
    trained(path)
    before = path.read_bytes()
    for options, told in (
        (dict(eps=1e-2), r"the method was mezo\(\), is mezo\(eps=0.01\)"),
        (dict(seed=6), "the seed was 5, is 6"),
        (dict(groups=2), "in another group of the optimizer norm.weight, norm.bias, head.bias"),
        (dict(net=Net(torch.bfloat16)), "in another shape or dtype embed.weight, norm.weight, norm.bias and 1 more"),
        (dict(net=Net().requires_grad_(True)), "it did not train frozen.weight, frozen.bias"),
        (dict(net=replayed(path)), "it began with other values of embed.weight"),
        (dict(start=7, steps=8), "holds the steps 0 to 6, and this run goes on at step 7"),
    ):
        with pytest.raises(localplug.Unsupported, match=told):
            trained(path, **options)
        assert path.read_bytes() == before
    path.write_text("something else")
    with pytest.raises(localplug.Unsupported, match="is no log of a localplug run; remove it or give another path"):
        trained(path)


def test_what_cannot_be_replayed_is_refused_at_the_door_with_the_other_reasons(tmp_path):
    net, optimizer = nn.Linear(4, 2), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(localplug.Unsupported) as refused:
        localplug.Engine(net, localplug.method("tpsgd"), optimizer, log=tmp_path / "a.lplog")
    assert "log: the method has no coefficients that could be logged" in str(refused.value)
    assert "holds none of the model's trainable parameters" in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("update", ["trainer", "trainer-streamed"])
def test_an_update_by_the_trainers_optimizer_is_refused(tmp_path, update):
    with pytest.raises(localplug.LocalPlugError, match="the trainer's optimizer does the update"):
        trained(tmp_path / "a.lplog", update=update)


# ---- onto checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory):
    """(folder, trained model): base/ and run.lplog of five steps."""
    folder = tmp_path_factory.mktemp("llama")
    model = problems().tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(folder / "base")
    (folder / "base/tokenizer.json").write_text("{}")
    (folder / "base/optimizer.pt").write_bytes(b"not ours")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    x = problems().Tokens().x[:4]
    with localplug.attach(model, "mezo", optimizer, log=folder / "run.lplog"):
        for _ in range(5):
            model(input_ids=x, labels=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return folder, model


def test_the_command_writes_the_trained_checkpoint(llama_run, tmp_path, capsys):
    folder, model = llama_run
    assert main(["replay", str(folder / "base"), str(folder / "run.lplog"), "--out", str(tmp_path / "out")]) == 0
    weights = sum(p.numel() for p in model.parameters())
    assert capsys.readouterr().out.startswith(f"replayed 5 steps onto {weights:,} weights in ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert same(type(model).from_pretrained(tmp_path / "out"), model)
    words = ["replay", str(folder / "base"), str(folder), "--out", str(tmp_path / "none"), "--until", "0"]
    assert main(words) == 0  # the folder holds one log
    assert same(type(model).from_pretrained(tmp_path / "none"), problems().tiny_llama(tie_word_embeddings=True))


@pytest.mark.parametrize("kind", ["shards", "one .safetensors", "state dict", "pytorch_model.bin", "under state_dict"])
def test_every_kind_of_checkpoint(llama_run, tmp_path, kind):
    folder, model = llama_run
    start, base, out = problems().tiny_llama(tie_word_embeddings=True), tmp_path / "base", tmp_path / "out"
    base.mkdir()
    if kind == "shards":
        start.save_pretrained(base, max_shard_size="40KB")
        assert len(list(base.glob("*.safetensors"))) > 1
    elif kind == "one .safetensors":
        base = shutil.copyfile(folder / "base/model.safetensors", base / "weights.safetensors")
    elif kind == "state dict":
        torch.save(start.state_dict(), base / "weights.pt")
        base = base / "weights.pt"
    elif kind == "pytorch_model.bin":
        torch.save(start.state_dict(), base / "pytorch_model.bin")
    else:
        torch.save({"state_dict": start.state_dict(), "epoch": 1}, base / "last.pt")
        base = base / "last.pt"
    done = localplug.replay_checkpoint(base, folder / "run.lplog", out)
    assert done.num_steps == 5 and {f.parent for f in done.files} == {out}
    found = {}
    for file in done.files:
        content = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else torch.load(file)
        found.update(content.get("state_dict", content))
    wanted = model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in found) and set(wanted) - set(found) <= {"lm_head.weight"}
    assert (out / "model.safetensors.index.json").exists() == (kind == "shards")


def test_what_does_not_fit_is_one_error_that_lists_all_of_it(llama_run, tmp_path, capsys):
    folder, model = llama_run
    state = {key: value.clone() for key, value in problems().tiny_llama().state_dict().items()}

    def fails(state, *told, log=folder / "run.lplog"):
        torch.save(state, tmp_path / "base.pt")
        assert main(["replay", str(tmp_path / "base.pt"), str(log), "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("localplug: ")
        assert all(part in shown.err for part in told), shown.err
        assert not (tmp_path / "out").exists()

    lacking = {k: v for k, v in state.items() if "q_proj" not in k}
    fails(lacking, *(f"has no model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)))
    other = {"model.norm.weight": state["model.norm.weight"][:5], "lm_head.weight": state["lm_head.weight"].half()}
    fails(
        {**state, **other, "model.embed_tokens.weight": state["model.embed_tokens.weight"].half()},
        "norm.weight has shape [5], and had [32] in the run", "embed_tokens.weight is float16, and was float32",
    )  # fmt: skip
    fails(model.state_dict(), "not the weights that the run began with at step 0", "embed_tokens.weight")
    fails(state, "nothing.lplog", log=tmp_path / "nothing.lplog")
    fails(state, "no .lplog file", log=tmp_path)
    (tmp_path / "taken").mkdir()
    shutil.copyfile(folder / "base/model.safetensors", tmp_path / "taken/model.safetensors")
    with pytest.raises(ValueError, match="is there already, and would be overwritten"):
        localplug.replay_checkpoint(folder / "base", folder / "run.lplog", tmp_path / "taken")
    with pytest.raises(ValueError, match="holds no weights: there is no model.safetensors"):
        localplug.replay_checkpoint(tmp_path, folder / "run.lplog", tmp_path / "out")


def test_a_torn_tail_is_told_by_the_command(llama_run, tmp_path, capsys):
    folder, _ = llama_run
    (tmp_path / "torn.lplog").write_bytes((folder / "run.lplog").read_bytes()[:-3])
    words = ["replay", str(folder / "base"), str(tmp_path / "torn.lplog"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "replayed 4 steps" in shown.out and "the last 4 bytes of" in shown.err


def test_lora_adapters_onto_the_adapters_that_peft_saved(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        problems().tiny_llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "base")
    problems().fit(model, tmp_path / "out", callback("mezo", log=True), max_steps=3, learning_rate=1e-2)
    model.save_pretrained(tmp_path / "trained")
    localplug.replay_checkpoint(tmp_path / "base", tmp_path / "out", tmp_path / "again")
    one, other = (
        safetensors.torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "again")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- the Trainer ------------------------------------------------------------------------------------------------------


def trainer_options():
    return dict(
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        max_steps=8,
        save_strategy="steps",
        save_steps=3,
    )


@pytest.fixture(scope="module")
def stories():
    if not STORIES.exists():
        pytest.skip("needs shared/data/models/stories260K")
    from transformers import LlamaForCausalLM

    return lambda: LlamaForCausalLM.from_pretrained(STORIES, dtype=torch.float32)


@pytest.mark.parametrize("make", ["tiny", "stories260K"])
def test_checkpoints_of_kilobytes_are_made_whole_and_resumed_bit_for_bit(make, tmp_path, request):
    make = problems().tiny_llama if make == "tiny" else request.getfixturevalue("stories")
    made = lambda: callback("mezo", num_directions=2, log=True, checkpoints="log")  # noqa: E731
    whole = make()
    whole.save_pretrained(tmp_path / "base")
    problems().fit(whole, tmp_path / "out", made(), **trainer_options())
    checkpoint = tmp_path / "out/checkpoint-6"
    assert not [f.name for f in checkpoint.rglob("*") if f.suffix in (".safetensors", ".bin") and "args" not in f.name]
    log = next(checkpoint.glob("*.lplog"))
    assert localplug.read_log(log).end == 6
    assert sum(f.stat().st_size for f in checkpoint.iterdir()) < 100_000

    interrupted = tmp_path / "interrupted"  # what is left of the run is this checkpoint
    shutil.copytree(checkpoint, interrupted / "checkpoint-6")
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        problems().fit(make(), interrupted, made(), resume=str(interrupted / "checkpoint-6"), **trainer_options())
    there = str(interrupted / "checkpoint-6")
    assert main(["replay", str(tmp_path / "base"), there, "--out", there]) == 0
    again = make()
    with torch.no_grad():
        for p in again.parameters():
            p.add_(1.0)  # what the checkpoint does not bring back would show
    resumed = problems().fit(again, interrupted, made(), resume=there, **trainer_options())
    assert resumed.state.global_step == 8 and same(again, whole)
    assert (
        localplug.read_log(interrupted / trajectory.NAME).steps
        == localplug.read_log(tmp_path / "out" / trajectory.NAME).steps
    )
    assert same(replayed(interrupted, make()), whole)


def test_a_resumed_run_goes_on_in_its_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "localplug")
    made = lambda: callback("mezo", log=True)  # noqa: E731
    whole = problems().tiny_llama()
    problems().fit(whole, tmp_path, made(), **trainer_options())
    again = problems().tiny_llama(seed=1)
    problems().fit(again, tmp_path, made(), resume=str(tmp_path / "checkpoint-3"), **trainer_options())
    assert same(again, whole) and not caplog.records
    assert (tmp_path / trajectory.NAME).read_bytes().count(b"r" + struct.pack("<QI", 3, 1)) == 1
    assert same(replayed(tmp_path / trajectory.NAME, problems().tiny_llama()), whole)
    saved = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["LocalPlugCallback"]["args"]["log"] is True


def test_checkpoints_that_need_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match='checkpoints="log" are made of the log; set log=True'):
        callback("mezo", checkpoints="log")
    with pytest.raises(ValueError, match='"full" or "log", got \'none\''):
        callback("mezo", checkpoints="none", log=True)
    options = trainer_options() | dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=3)
    model = problems().tiny_llama()
    model.counts = nn.BatchNorm1d(3)
    with pytest.raises(localplug.Unsupported) as refused:
        problems().fit(
            model,
            tmp_path,
            callback("mezo", log=tmp_path / "a.lplog", checkpoints="log"),
            trainer_options=dict(eval_dataset=problems().Tokens(8)),
            **options,
        )
    assert "set load_best_model_at_end=False" in str(refused.value)
    assert "no running statistics, and counts has them" in str(refused.value)


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # lightning 2.6 on torch 2.13
def test_a_lightning_strategy_logs_too(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from localplug_lightning import LocalPlugStrategy

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, batch_idx):
            return loss_of(self.net)

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)

    module = Module()
    trainer = lightning.Trainer(
        strategy=LocalPlugStrategy("mezo", log=tmp_path / "a.lplog"), max_steps=3, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(X, batch_size=2, num_workers=0))
    assert same(replayed(tmp_path / "a.lplog", Module()), module)
