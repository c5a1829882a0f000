"""The compiled loops of the noise: how they are built, and what happens where they cannot be. Their bits: test_noise.py."""

import importlib.util
import pathlib
import shutil

import pytest
import torch

from localplug import kernels, noise

CSRC = pathlib.Path(__file__).parent.parent / "csrc"
NO_COMPILER = shutil.which("cc") is None and shutil.which("gcc") is None


@pytest.fixture
def build():
    """csrc/hatch_build.py as a module."""
    spec = importlib.util.spec_from_file_location("loops_hatch_build", CSRC / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Where localplug.kernels looks for the library, in the place of the installed one."""
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "_loops.so")
    monkeypatch.setattr(kernels, "AVAILABLE", True)
    kernels._loops.cache_clear()
    yield tmp_path / "_loops.so"
    kernels._loops.cache_clear()


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler")
def test_a_compiler_is_enough(build, library):
    assert build.compile_library(CSRC / "loops.c", library, build.compilers()) is None
    out, wanted = torch.ones(1000), torch.ones(1000)
    assert kernels.usable(out)
    noise.add_normal_(out, 7, 3, 0.5)
    wanted += noise.normal(7, 3, 1000, out.device) * 0.5
    assert torch.equal(out, wanted)


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler")
def test_one_body_for_all_processors_gives_the_same_bits(build, library, monkeypatch):
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-DONE_BODY"])
    assert build.compile_library(CSRC / "loops.c", library, build.compilers()) is None
    a, b = torch.randn(50), torch.randn(100)
    normal, signs, outer = (torch.ones(5000) for _ in range(3))
    noise.add_normal_(normal, 7, 3, 0.5)
    noise.add_signs_(signs, 7, 3, 0.5)
    kernels.add_outer_(outer, a * 0.3, b, 0)
    monkeypatch.setattr(kernels, "usable", lambda _: False)
    by_torch = [torch.ones(5000) for _ in range(2)]
    noise.add_normal_(by_torch[0], 7, 3, 0.5)
    noise.add_signs_(by_torch[1], 7, 3, 0.5)
    assert torch.equal(normal, by_torch[0]) and torch.equal(signs, by_torch[1])
    assert torch.equal(outer, 1 + ((a * 0.3)[:, None] * b).view(-1))


@pytest.mark.skipif(not kernels.AVAILABLE, reason="no compiled loops")
@pytest.mark.parametrize("num", [1, 3, 4, 9])
def test_products_in_one_sweep_have_the_bits_of_a_sweep_each(num):
    rows, columns, weight = torch.randn(num, 7), torch.randn(num, 1100), torch.randn(7, 1100)
    for keeps in (torch.ones(num), 1 - torch.rand(num)):
        got, wanted = weight.clone(), weight.clone()
        kernels.add_outers_(got.view(-1), rows, columns, keeps)
        for row, column, keep in zip(rows, columns, keeps, strict=True):
            wanted = wanted * keep + row[:, None] * column
        assert torch.equal(got, wanted)


def test_without_a_compiler_the_reason_is_told_and_no_old_library_stays(build, tmp_path):
    stale = tmp_path / "_loops.so"
    stale.write_bytes(b"of another version")
    reason = build.compile_library(CSRC / "loops.c", stale, [["no-such-compiler"]])
    assert "no-such-compiler" in reason and not stale.exists()
    assert build.compile_library(CSRC / "loops.c", stale, []) == "no compiler"


def test_a_library_that_cannot_be_loaded_is_told_once_and_torch_does_it(library, caplog):
    library.write_bytes(b"not a library")
    out, wanted = torch.ones(100), torch.ones(100)
    noise.add_signs_(out, 7, 3, 0.5)
    noise.add_signs_(out, 7, 3, -0.5)
    assert torch.equal(out, wanted)
    assert [r.message.split(" cannot")[0] for r in caplog.records] == ["_loops.so"]


def test_what_is_no_plain_tensor_is_left_to_torch(library, build):
    if NO_COMPILER:
        pytest.skip("no C compiler")
    build.compile_library(CSRC / "loops.c", library, build.compilers())
    x = torch.zeros(8, 8)
    assert kernels.usable(x) and kernels.usable(torch.nn.Parameter(x))
    for other in (x.double(), x.bfloat16(), x.t()[1:], torch.empty(8, device="meta")):
        assert not kernels.usable(other)
