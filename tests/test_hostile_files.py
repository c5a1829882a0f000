"""Files by somebody else: read if they are right, refused by a ValueError that says why if not; never run, never trusted."""

import json
import os
import pathlib
import shutil
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch
from torch import nn

import localplug
from localplug import index
from localplug.checkpoint import Checkpoint
from localplug.encoding import from_text, to_text
from localplug.printable import printable

CORPUS = pathlib.Path(__file__).parent / "corpus"
READERS = {
    "log": localplug.read_log,
    "state": lambda path: from_text(path.read_text()),
    "checkpoint": Checkpoint,
    "index": index.read,
}
FILES = [path for folder in READERS for path in sorted((CORPUS / folder).iterdir())]


def linear():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def base():
    model = linear()
    model.load_state_dict(safetensors.torch.load_file(CORPUS / "checkpoint" / "ok-linear.safetensors"))
    return model


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_of_the_corpus_is_read_or_refused_in_little_memory(path):
    tracemalloc.start()
    try:
        if path.name.startswith("ok-"):
            READERS[path.parent.name](path)
        else:
            with pytest.raises(ValueError) as raised:
                READERS[path.parent.name](path)
            assert len(str(raised.value)) > 20 and "\x1b" not in str(raised.value)
        assert tracemalloc.get_traced_memory()[1] < 4e6 + 300 * path.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name == "log" and p.name.startswith("ok-")], ids=lambda p: p.stem
)
def test_every_truncation_of_a_log_is_read_up_to_there_or_refused(path, tmp_path):
    data, cut = path.read_bytes(), tmp_path / "cut.lplog"
    whole = localplug.read_log(path)
    header = 20 + struct.unpack_from("<Q", data, 8)[0]
    for length in [*range(0, header, 29), *range(header - 4, len(data), 1 if len(data) < 2000 else 97)]:
        cut.write_bytes(data[:length])
        try:
            found = localplug.read_log(cut)
        except ValueError:
            continue
        assert found.size + found.ignored == length and found.header == whole.header


def test_the_replay_of_a_corpus_log_moves_the_weights_and_that_of_a_hostile_state_is_refused(tmp_path):
    model = base()
    localplug.replay_log(model, CORPUS / "log" / "ok-mezo.lplog")
    assert not torch.equal(model[0].weight, base()[0].weight)
    data = (CORPUS / "log" / "ok-method-with-a-state.lplog").read_bytes()
    header = localplug.read_log(CORPUS / "log" / "ok-method-with-a-state.lplog").header
    assert header.state
    from localplug import trajectory

    for state in (to_text({"update": {"past": "x"}}), to_text({"update": 3}), "[1]", "no json"):
        header.state = state
        (tmp_path / "a.lplog").write_bytes(trajectory.packed(header))
        before = model[0].weight.clone()
        with pytest.raises(ValueError, match="state"):
            localplug.replay_log(model_for(header), tmp_path / "a.lplog")
        assert torch.equal(model[0].weight, before)
    assert data


def model_for(header):
    """A model that a header fits, whatever weights its run began with."""
    for parameter in header.parameters:
        parameter.checksum = None
    return base()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "no-such-method"}, "no method named 'no-such-method'"),
        ({"options": {"eps": -1}}, "cannot be made here"),
        ({"options": {"unheard_of": 1}}, "cannot be made here: mezo has no option 'unheard_of'"),
        ({"method": "tpsgd"}, "cannot be made here|no coefficients"),
    ],
)
def test_a_log_of_a_method_that_cannot_be_made_is_refused(tmp_path, change, said):
    from localplug import trajectory

    header = localplug.read_log(CORPUS / "log" / "ok-mezo.lplog").header
    model = model_for(header)
    for field, value in change.items():
        setattr(header, field, value)
    (tmp_path / "a.lplog").write_bytes(trajectory.packed(header))
    with pytest.raises((ValueError, localplug.UnknownName), match=said):
        localplug.replay_log(model, tmp_path / "a.lplog")


def test_a_log_whose_steps_have_too_many_coefficients_is_refused(tmp_path):
    from localplug import trajectory

    header = localplug.read_log(CORPUS / "log" / "ok-mezo.lplog").header
    header.options, header.num_coefficients = {"num_directions": 2}, 3
    data = trajectory.packed(header)
    body = b"l" + struct.pack("<fffd", 1, 2, 3, 0.1)
    (tmp_path / "a.lplog").write_bytes(data + body + trajectory.crc_after(body, data[-2:]))
    with pytest.raises(ValueError, match="step 0 has a number of coefficients"):
        localplug.replay_log(base(), tmp_path / "a.lplog")


def test_what_is_no_regular_file_is_not_read(tmp_path):
    """It may never end."""
    os.mkfifo(tmp_path / "run.lplog")
    with pytest.raises(OSError, match="no regular file"):
        localplug.read_log(tmp_path / "run.lplog")
    with pytest.raises(OSError, match="no regular file"):
        Checkpoint(tmp_path / "run.lplog")


# ---- checkpoints: names and links --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in one shard, with an index; and a file outside of it that nobody may touch."""
    folder = tmp_path / "base"
    folder.mkdir()
    shutil.copy(CORPUS / "checkpoint" / "ok-linear.safetensors", folder / "model-1.safetensors")
    shutil.copy(CORPUS / "checkpoint" / "ok-linear.safetensors", tmp_path / "secret.safetensors")
    write_index(folder, dict.fromkeys(base().state_dict(), "model-1.safetensors"))
    return folder


def write_index(folder, weight_map, **more):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **more}))


def test_a_sharded_checkpoint_is_read_by_its_index(sharded):
    assert set(Checkpoint(sharded).tensors) == set(base().state_dict())


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "..", ".", "", "a/../../secret.safetensors", "..\\secret.safetensors",
     "model-1.safetensors\0", "config.json", ".safetensors"],
)  # fmt: skip
def test_an_index_names_nothing_but_files_beside_it(sharded, name):
    write_index(sharded, {"0.weight": name})
    with pytest.raises(ValueError, match=r"must name \.safetensors files beside it"):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}',
     '{"weight_map": {"a": "b.safetensors"}, "weight_map": {"a": "c.safetensors"}}', "[" * 20000, '{"weight_map": {"a"'],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json (must have a weight_map|is not valid JSON)"):
        Checkpoint(sharded)
    (sharded / "model.safetensors.index.json").write_bytes(b'{"weight_map": "\xff"}')
    with pytest.raises(ValueError, match="is not valid JSON"):
        Checkpoint(sharded)


@pytest.mark.parametrize("link", ["model-1.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_link_out_of_the_folder_is_not_followed(sharded, tmp_path, link):
    """What it leads to would end up in the new checkpoint, and be published with it."""
    (sharded / link).unlink(missing_ok=True)
    if link.endswith("index.json"):
        (tmp_path / "secret.json").write_text(json.dumps({"weight_map": {"0.weight": "model-1.safetensors"}}))
        (sharded / link).symlink_to(tmp_path / "secret.json")
    else:
        (sharded / link).symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ValueError, match=f"links that lead out of it: {link}"):
        Checkpoint(sharded)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(CORPUS / "checkpoint" / "ok-linear.safetensors", blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert set(Checkpoint(snapshot).tensors) == set(base().state_dict())


@pytest.mark.parametrize("name", ["model-1.safetensors.new", "config.json"])
def test_a_link_in_the_folder_that_is_written_to_is_not_followed(sharded, tmp_path, name):
    (sharded / "config.json").write_text("{}")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(precious if name.endswith(".new") else tmp_path / "not-there")
    localplug.replay_checkpoint(sharded, CORPUS / "log" / "ok-mezo.lplog", out)
    assert precious.read_text() == "mine" and not (tmp_path / "not-there").exists()
    assert (out / "model-1.safetensors").is_file() and not [p for p in out.iterdir() if p.is_dir()]
    (out / "model-1.safetensors").unlink()
    (out / "model-1.safetensors").symlink_to(tmp_path / "not-there")
    with pytest.raises(ValueError, match="is there already, and would be overwritten"):
        localplug.replay_checkpoint(sharded, CORPUS / "log" / "ok-mezo.lplog", out)


# ---- states, and text that is shown ------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was():
    state = {
        "numbers": [1, -2.5, float("inf"), True, None, "\x1b\u202e"],
        "tuple": (1, (2, [3])),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.99)}}},
        "tensors": [
            torch.randn(2, 3).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int8)
        ],
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "transposed": torch.arange(6).view(2, 3).T,
        "empty": torch.zeros(0, 7),
    }
    back = from_text(to_text(state))
    assert back["numbers"] == state["numbers"] and back["tuple"] == (1, (2, [3]))
    assert back["optimizer"]["state"][0]["betas"] == (0.9, 0.99)
    pairs = [*zip(state["tensors"], back["tensors"], strict=True)]
    pairs += [(state[key], back[key]) for key in ("complex", "transposed", "empty")]
    assert all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    assert to_text({}) == "" and from_text("") == {}
    back["transposed"].add_(1)  # its memory is its own


@pytest.mark.parametrize("value", [{1, 2}, object(), torch.float32, torch.zeros(2, device="meta"), b"bytes", 1j])
def test_a_state_of_other_things_is_refused_when_it_is_written(value):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
        to_text({"a": [0, value]})


@pytest.mark.parametrize(
    "state",
    [{}, {"seed": 1}, {"seed": "x", "step": 0, "method": {}}, {"seed": 1, "step": 0, "method": {"update": {"past": [3]}}},
     {"seed": 1, "step": float("inf"), "method": {}}, [], None],
)  # fmt: skip
def test_an_engine_refuses_what_is_no_state_of_its_method(state):
    model = linear()
    engine = localplug.Engine(model, localplug.method("zo-adam"), torch.optim.SGD(model.parameters(), lr=0.1), seed=7)
    with pytest.raises(ValueError, match="no state of"):
        engine.load_state_dict(state)
    assert engine.run.seed == 7


@pytest.mark.parametrize(
    "text", ["mezo\x1b[2J", "a\nb", "\u202eabc", "\x9b31m", "a\x00b", "\ud800", "\x7f", "a\u2028b", "\r"]
)
def test_text_from_elsewhere_cannot_steer_a_terminal(text):
    shown = printable(text)
    assert shown.isprintable() and shown != text
    assert printable("größe: 3 µm, ok") == "größe: 3 µm, ok"


# ---- checkpoints of the trainers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        {"engine": {"seed": 1}},
        {"engine": {"seed": 42, "step": 2, "method": "gANjb3MKc3lzdGVtCnEAWAI="}},  # a pickle, which nobody opens
        {"engine": {"seed": 42, "step": 2, "method": '{"dict":[["update",{"dict":[["past",[3]]]}]]}'}},
        {"engine": [1]},
        {"args": 3},
    ],
)
def test_a_trainers_checkpoint_with_another_state_is_refused_by_name(tmp_path, damage):
    from transformers import Trainer, TrainingArguments

    from localplug_transformers import LocalPlugCallback

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear()

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    def trainer(steps):
        args = TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            save_steps=2,
            max_grad_norm=0.0,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = [{"x": torch.ones(3) * i, "labels": i % 2} for i in range(8)]
        return Trainer(Net(), args, train_dataset=rows, callbacks=[LocalPlugCallback("zo-adam")])

    trainer(2).train()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    content = json.loads(state.read_text())
    content["stateful_callbacks"]["LocalPlugCallback"].update(damage)
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="trainer_state.json holds no state of zo-adam"):
        trainer(4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
