"""The readers of files never end in anything but a value or a clear error, whatever bytes they meet.

The suite runs some dozens of examples of each, always the same; `make fuzz` runs for minutes, with new ones each time:
LOCALPLUG_FUZZ is the number of examples.
"""

import json
import os
import pathlib
import struct
import tempfile
import zlib

import hypothesis
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import nn

import localplug
from localplug import index, trajectory
from localplug.checkpoint import Checkpoint
from localplug.cli import main
from localplug.encoding import from_text, to_text
from localplug.printable import printable

CORPUS = pathlib.Path(__file__).parent / "corpus"
EXAMPLES = int(os.environ.get("LOCALPLUG_FUZZ", "40"))
REFUSALS = (ValueError, OSError, localplug.LocalPlugError)

fuzzed = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 100,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def seeds(folder, suffix=""):
    return [p.read_bytes() for p in sorted((CORPUS / folder).glob(f"*{suffix}")) if p.stat().st_size < 5000]


INTERESTING = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\xff" * 8,
    b"\x00" * 8,
    b"9" * 30,
    b'"',
    b"{",
    b"]",
    b"../",
    b"NaN",
    b"-1",
    b"\xc0\x80",
]


@st.composite
def mutated(draw, originals):
    """One of the seeds, cut, flipped, doubled or spliced in a few places."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 16)))
        how = draw(st.sampled_from(("flip", "cut", "drop", "double", "insert", "overwrite", "splice")))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at:end]
        elif how == "double":
            data[at:at] = data[at:end]
        elif how == "insert":
            data[at:at] = draw(st.sampled_from(INTERESTING) | st.binary(max_size=8))
        elif how == "overwrite":
            piece = draw(st.sampled_from(INTERESTING) | st.binary(max_size=8))
            data[at : at + len(piece)] = piece
        else:
            other = draw(st.sampled_from(originals))
            start = draw(st.integers(0, len(other)))
            data[at:end] = other[start : start + draw(st.integers(0, 64))]
    return bytes(data)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**12, 10**30, -1]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 2**40), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def changed(draw, value):
    """The JSON value with one or two things in it replaced, left out or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        place = value
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(list(keys)))
            if not (isinstance(place[key], dict | list) and place[key]) or draw(st.booleans()):
                how = draw(st.sampled_from(("replace", "drop", "add")))
                if how == "replace":
                    place[key] = draw(ODD)
                elif how == "drop":
                    del place[key]
                elif isinstance(place, dict):
                    place[draw(st.text(max_size=3))] = draw(ODD)
                else:
                    place.append(draw(ODD))
                break
            place = place[key]
    return value


def header_of(name):
    data = (CORPUS / "log" / name).read_bytes()
    start = len(trajectory.MAGIC) + 8
    return json.loads(data[start : start + struct.unpack("<Q", data[start - 8 : start])[0]])


HEADERS = [header_of(f"ok-{name}.lplog") for name in ("mezo", "two-groups-bad-step", "method-with-a-state")]
FLOATS = st.floats(width=32) | st.sampled_from([0.0, 1e-3, float("nan"), float("inf")])


@st.composite
def logs(draw):
    """A log whose checksums are right, and whose contents may be anything."""
    header = draw(st.sampled_from(HEADERS))
    if draw(st.booleans()):
        header = draw(changed(header))
    text = json.dumps(header).encode()
    data = trajectory.MAGIC + struct.pack("<Q", len(text)) + text
    data += struct.pack("<I", zlib.crc32(data))
    tail = data[-2:]
    for kind in draw(st.lists(st.sampled_from("slgnr?"), max_size=6)):
        q = draw(st.sampled_from((1, 1, 1, 1, 2, 0)))
        body = kind.encode()
        if kind in "sl":
            body += struct.pack(f"<{q}f", *(draw(FLOATS) for _ in range(q)))
        if kind == "l":
            body += struct.pack("<d", draw(st.floats()))
        if kind == "g":
            n = draw(st.sampled_from((1, 2, 2, 0, 3)))
            body += struct.pack(f"<H{2 * n}d", n, *(draw(FLOATS) for _ in range(2 * n)))
        if kind == "r":
            body += struct.pack("<QI", draw(st.integers(0, 6)), draw(st.sampled_from((1, 1, 2, 0, 2**32 - 1))))
        if kind == "?":
            body = draw(st.binary(min_size=1, max_size=12))
        tail = trajectory.crc_after(body, tail)
        data += body + tail
    return data


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        yield pathlib.Path(made)


def read_or_refused(reader, *given):
    """What the reader gives; None where it refuses in words."""
    try:
        return reader(*given)
    except REFUSALS as error:
        assert str(error)
        return None


@fuzzed
@hypothesis.given(data=mutated(seeds("log")))
def test_logs_of_any_bytes(folder, data):
    (folder / "a.lplog").write_bytes(data)
    found = read_or_refused(localplug.read_log, folder / "a.lplog")
    if found is not None:
        assert found.size + found.ignored == len(data)
        assert [s.number for s in found.steps] == list(range(found.header.step, found.end))


@fuzzed
@hypothesis.given(data=logs())
def test_logs_with_right_checksums_and_any_contents(folder, data):
    (folder / "b.lplog").write_bytes(data)
    found = read_or_refused(localplug.read_log, folder / "b.lplog")
    if found is None:
        return
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model.load_state_dict(safetensors.torch.load_file(CORPUS / "checkpoint" / "ok-linear.safetensors"))
    before = [p.clone() for p in model.parameters()]
    done = read_or_refused(lambda: localplug.replay_log(model, folder / "b.lplog"))
    if done is None and not found.steps:
        assert all(map(torch.equal, before, model.parameters()))


@fuzzed
@hypothesis.given(data=mutated(seeds("state")))
def test_states_of_any_text(data):
    read_or_refused(from_text, data.decode("utf-8", "surrogateescape"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text() | st.integers(), inside) | st.tuples(inside, inside),
    max_leaves=10,
)


@fuzzed
@hypothesis.given(state=st.dictionaries(st.text(), PLAIN))
def test_every_plain_state_comes_back(state):
    assert from_text(to_text(state)) == state


@fuzzed
@hypothesis.given(
    state=st.dictionaries(st.sampled_from(("estimator", "update", "selection", "distribution")), ODD | st.dictionaries(
        st.sampled_from(("past", "second", "count", "last", "anchor", "since")), ODD | st.lists(st.lists(ODD)))),
    seed=ODD, step=ODD,
)  # fmt: skip
def test_states_of_an_engine(state, seed, step):
    model = nn.Linear(2, 1)
    for name in ("zo-adam", "svrg", "residual-zo"):
        engine = localplug.Engine(model, localplug.method(name), torch.optim.SGD(model.parameters(), lr=0.1))
        read_or_refused(engine.load_state_dict, {"seed": seed, "step": step, "method": state})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@fuzzed
@hypothesis.given(data=st.data())
def test_weights_of_any_bytes(folder, suffix, data):
    path = folder / f"weights{suffix}"
    path.write_bytes(data.draw(mutated(seeds("checkpoint", suffix))))
    found = read_or_refused(Checkpoint, path)
    if found is not None:
        stored = sum(t.untyped_storage().nbytes() for t in found.tensors.values())
        assert stored <= len(found.tensors) * path.stat().st_size


@fuzzed
@hypothesis.given(content=changed({"metadata": {"total_size": 3}, "weight_map": {"0.weight": "model-1.safetensors"}}))
def test_indices_of_shards(folder, content):
    (folder / "shards").mkdir(exist_ok=True)
    (folder / "shards" / "model-1.safetensors").write_bytes(
        (CORPUS / "checkpoint" / "ok-linear.safetensors").read_bytes()
    )
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(content))
    found = read_or_refused(Checkpoint, folder / "shards")
    assert found is None or [file.parent for file in found.files] == [folder / "shards"]


@fuzzed
@hypothesis.given(data=mutated([index.FILE.read_bytes()[1200:2600], *seeds("index")]))
def test_indices_of_plugins(folder, data):
    (folder / "index.toml").write_bytes(data)
    for entry in read_or_refused(index.read, folder / "index.toml") or []:
        assert all(text.isprintable() for text in (entry.name, entry.distribution, entry.summary, entry.licence))


@fuzzed
@hypothesis.given(text=st.text())
def test_any_text_is_made_printable(text):
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


WORDS = st.one_of(
    st.sampled_from(
        ["plugins", "hooks", "replay", "--json", "--load", "--available", "--until", "3", "--out", "out", "base", "-h"]
    ),
    st.text(max_size=6).filter(lambda word: "/" not in word),
)


@fuzzed
@hypothesis.given(words=st.lists(WORDS, max_size=5))
def test_the_command_line_gives_a_status_for_any_words(folder, words):
    here = os.getcwd()
    os.chdir(folder)
    try:
        status = main(words)
    except SystemExit as exit_:
        status = exit_.code
    finally:
        os.chdir(here)
    assert status in (0, 1, 2)
