"""The kernel's bodies against each other, against exact integers and against the dequantized weight."""

import copy
import importlib.util
import logging
import pathlib
import pickle
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from localplug_ternary import kernels
from localplug_ternary.kernels import layout, library

CSRC = pathlib.Path(__file__).parents[1] / "csrc"
INTEGER = [body for body in kernels.bodies() if body != "dequantize"]
SHAPES = [(1, 128, 128), (33, 256, 128), (32, 512, 256), (70, 768, 256), (5, 20, None), (40, 1100, None), (3, 7, None)]


def packed(codes_NK):
    """The checkpoint's bytes, written out by hand: feature 4j + i in bits 2i of byte j."""
    N, K = codes_NK.shape
    bytes_NJ = torch.zeros(N, -(-K // 4), dtype=torch.uint8)
    for k in range(K):
        bytes_NJ[:, k // 4] += codes_NK[:, k].to(torch.uint8) << 2 * (k % 4)
    return bytes_NJ


class Problem:
    def __init__(self, N, K, group, M=5, seed=0, bias=True, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.group = group or K
        self.codes_NK = torch.randint(0, 3, (N, K), generator=generator)
        self.scales_NG = torch.rand(N, K // self.group, generator=generator).add(0.01).half()
        self.bias_N = torch.randn(N, generator=generator) if bias else None
        self.x_MK = torch.randn(M, K, generator=generator).to(dtype)
        self.args = packed(self.codes_NK), self.scales_NG, self.bias_N, group or K

    def prepared(self, body):
        return kernels.prepare(*self.args, body=body)

    def weight(self):
        return (self.codes_NK - 1).double() * self.scales_NG.double().repeat_interleave(self.group, 1)

    def quantized(self):
        x_MK = self.x_MK.float()
        maximum_M1 = x_MK.abs().amax(1, keepdim=True)
        return (x_MK * (torch.tensor(127.0) / maximum_M1)).round().long(), maximum_M1 / 127

    def reference(self):
        """Integers by torch's int64, then float32 in the order of the groups."""
        q_MK, xs_M1 = self.quantized()
        y_MN = torch.zeros(len(q_MK), len(self.codes_NK))
        for group, s_N in enumerate(self.scales_NG.float().unbind(1)):
            part = slice(group * self.group, (group + 1) * self.group)
            d_MN = (q_MK[:, part, None] * (self.codes_NK[:, part].t() - 1)).sum(1)
            y_MN = y_MN + d_MN.float() * s_N
        y_MN = y_MN * xs_M1
        return y_MN if self.bias_N is None else y_MN + self.bias_N


@pytest.mark.parametrize("body", INTEGER)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("M", [1, 2, 3, 7])
def test_every_integer_body_gives_the_reference_bit_for_bit(body, shape, M):
    problem = Problem(*shape, M=M)
    assert torch.equal(kernels.linear(problem.x_MK, problem.prepared(body)), problem.reference())


@pytest.mark.parametrize("body", INTEGER)
@pytest.mark.parametrize("group", [128, 256, None])
def test_sums_of_the_largest_codes_and_activations_are_exact(body, group):
    """All codes 2 or 0 against activations of 127: what overflows 16 bits first."""
    problem = Problem(34, 4096, group, M=4, bias=False)
    problem.codes_NK = torch.tensor([2, 0]).repeat(17)[:, None].expand(34, 4096)
    problem.scales_NG = torch.ones_like(problem.scales_NG)
    problem.x_MK = torch.full((4, 4096), 127.0)
    prepared = kernels.prepare(packed(problem.codes_NK), problem.scales_NG, None, group, body=body)
    y_MN = kernels.linear(problem.x_MK, prepared)
    assert torch.equal(y_MN, (127.0 * 4096 * torch.tensor([1, -1]).repeat(17)).expand(4, 34))


@pytest.mark.parametrize("body", INTEGER)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations_are_widened_and_outputs_rounded_once(body, dtype):
    problem = Problem(33, 256, 128, M=6, dtype=dtype)
    y_MN = kernels.linear(problem.x_MK, problem.prepared(body))
    assert torch.equal(y_MN, problem.reference().to(dtype))


@pytest.mark.parametrize("body", INTEGER)
def test_bfloat16_outputs_round_ties_to_even(body):
    """Activations of 0 leave the bias: halfway between two numbers, just off that, and too large."""
    halfway = 1 + torch.tensor([1.0, 3.0, 5.0]) / 256
    bias_N = torch.cat([halfway, -halfway, halfway + 2**-20, halfway - 2**-20, torch.tensor([3.4e38, -3.4e38, 1e-40])])
    codes = torch.full((len(bias_N), 4), 0b01010101, dtype=torch.uint8)
    prepared = kernels.prepare(codes, torch.ones(len(bias_N), 1), bias_N, 16, body=body)
    y_N = kernels.linear(torch.zeros(16, dtype=torch.bfloat16), prepared)
    assert torch.equal(y_N, bias_N.to(torch.bfloat16))


@pytest.mark.parametrize("body", INTEGER)
def test_the_error_is_that_of_rounding_activations(body):
    problem = Problem(33, 512, 128, M=6)
    w_NK = problem.weight()
    exact_MN = problem.x_MK.double() @ w_NK.t() + problem.bias_N
    _, xs_M1 = problem.quantized()
    bound_MN = xs_M1.double() / 2 * w_NK.abs().sum(1)
    error_MN = (kernels.linear(problem.x_MK, problem.prepared(body)).double() - exact_MN).abs()
    assert (error_MN <= bound_MN * (1 + 1e-4)).all()
    assert error_MN.max() > 1e-4 * bound_MN.max()  # activations were rounded at all


@pytest.mark.parametrize("body", kernels.bodies())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantize_returns_the_checkpoint(body, shape):
    problem = Problem(*shape)
    prepared = problem.prepared(body)
    assert torch.equal(kernels.dequantize(prepared), problem.weight().float())
    assert kernels.dequantize(prepared, torch.bfloat16).dtype == torch.bfloat16


def test_the_dequantizing_body_is_torchs_linear():
    problem = Problem(33, 256, 128)
    y_MN = kernels.linear(problem.x_MK, problem.prepared("dequantize"))
    assert torch.equal(y_MN, torch.nn.functional.linear(problem.x_MK, problem.weight().float(), problem.bias_N))


@pytest.mark.parametrize("body", INTEGER)
def test_all_float16_scales_are_read_exactly(body):
    """Subnormal and normal ones of both signs, and zero."""
    s_N = torch.arange(-32768, 32768, 37, dtype=torch.int32).to(torch.int16).view(torch.float16)
    s_N = s_N[s_N.isfinite()]
    codes = torch.full((len(s_N), 4), 0b01010110, dtype=torch.uint8)  # +1 0 0 0
    y_N = kernels.linear(torch.tensor([127.0] + 15 * [0.0]), kernels.prepare(codes, s_N[:, None], None, 16, body=body))
    assert torch.equal(y_N, 127 * s_N.float())


@pytest.mark.parametrize("body", kernels.bodies())
def test_shapes_of_x(body):
    problem = Problem(33, 256, 128, M=6)
    prepared = problem.prepared(body)
    y_MN = kernels.linear(problem.x_MK, prepared)
    assert kernels.linear(problem.x_MK[:0], prepared).shape == (0, 33)
    assert kernels.linear(problem.x_MK.new_zeros(2, 0, 256), prepared).shape == (2, 0, 33)
    assert torch.equal(kernels.linear(problem.x_MK.view(2, 3, 256), prepared), y_MN.view(2, 3, 33))
    strided = problem.x_MK.t().contiguous().t()
    torch.testing.assert_close(kernels.linear(strided, prepared), y_MN, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("body", INTEGER)
def test_one_token_alone_and_among_others(body):
    problem = Problem(40, 512, 256, M=23)
    prepared = problem.prepared(body)
    alone = [kernels.linear(x_K, prepared) for x_K in problem.x_MK]
    assert torch.equal(kernels.linear(problem.x_MK, prepared), torch.stack(alone))


@pytest.mark.parametrize("body", INTEGER)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_makes_its_own_token_nan(body, bad, dtype):
    problem = Problem(33, 256, 128, dtype=dtype)
    prepared = problem.prepared(body)
    y_MN = kernels.linear(problem.x_MK, prepared)
    problem.x_MK[1, 200] = bad
    spoilt_MN = kernels.linear(problem.x_MK, prepared)
    assert spoilt_MN[1].isnan().all()
    others = [0, 2, 3, 4]
    assert torch.equal(spoilt_MN[others], y_MN[others])


@pytest.mark.parametrize("body", INTEGER)
def test_tokens_of_zeros_and_of_tiny_values_give_the_bias(body):
    problem = Problem(33, 256, 128)
    problem.x_MK[0] = 0
    problem.x_MK[1] *= 1e-40
    problem.x_MK[2] *= 1e-25  # small, but not tiny
    y_MN = kernels.linear(problem.x_MK, problem.prepared(body))
    assert torch.equal(y_MN[:2], problem.bias_N.expand(2, 33))
    no_bias = kernels.prepare(*problem.args[:2], None, problem.group, body=body)
    assert (kernels.linear(problem.x_MK, no_bias)[2] != 0).all()


@pytest.mark.parametrize("body", [body for body in INTEGER if body in library.COMPILED])
@pytest.mark.parametrize("M", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_the_result(body, M, dtype, monkeypatch):
    """Large enough that two threads are used, and of several passes over the weights."""
    problem = Problem(130, 16384, 256, M=M, dtype=dtype)
    prepared = problem.prepared(body)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(kernels.linear(problem.x_MK, prepared))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("body", [body for body in INTEGER if body in library.COMPILED and body != "portable"])
def test_more_tokens_than_are_held_at_once(body):
    """The widest rows that a compiled body takes, 64 of which it quantizes at a time."""
    K = layout.LARGEST_K
    problem = Problem(3, 16, None, M=70, dtype=torch.bfloat16)
    x_MK = problem.x_MK.repeat(1, K // 16)
    codes = packed(problem.codes_NK).repeat(1, K // 16)
    prepared = kernels.prepare(codes, problem.scales_NG, problem.bias_N, None, body=body)
    y_MN = kernels.linear(x_MK, prepared)
    assert torch.equal(y_MN, torch.cat([kernels.linear(x_MK[:5], prepared), kernels.linear(x_MK[5:], prepared)]))
    expected_MN = (problem.reference() - problem.bias_N) * (K // 16) + problem.bias_N
    torch.testing.assert_close(y_MN.float(), expected_MN, rtol=1e-2, atol=1e-2)


def test_several_python_threads_at_once():
    problem = Problem(64, 4096, 256, M=3)
    prepared = problem.prepared(None)
    expected = kernels.linear(problem.x_MK, prepared)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(kernels.linear(problem.x_MK, prepared))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("body", kernels.bodies())
def test_gradients_reach_x(body):
    problem = Problem(33, 256, 128)
    x_MK = problem.x_MK.requires_grad_()
    dy_MN = torch.randn(5, 33, generator=torch.Generator().manual_seed(1))
    kernels.linear(x_MK, problem.prepared(body)).backward(dy_MN)
    torch.testing.assert_close(x_MK.grad, dy_MN @ problem.weight().float())
    with torch.no_grad():
        assert not kernels.linear(x_MK, problem.prepared(body)).requires_grad


@pytest.mark.parametrize("body", kernels.bodies())
def test_prepared_survives_copies(body):
    problem = Problem(33, 256, 128)
    prepared = problem.prepared(body)
    y_MN = kernels.linear(problem.x_MK, prepared)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(kernels.linear(problem.x_MK, other), y_MN)


def test_scales_of_other_dtypes_are_kept_as_float16():
    problem = Problem(33, 256, 128)
    codes, scales, bias, group = problem.args
    twin = kernels.prepare(codes, scales.float(), bias.double(), group)
    assert torch.equal(kernels.linear(problem.x_MK, twin), kernels.linear(problem.x_MK, problem.prepared(None)))


def test_groups_that_the_compiled_bodies_cannot_take_run_on_torch():
    problem = Problem(33, 40, 8)
    assert problem.prepared(None).body in ("int_mm", "dequantize")
    assert torch.equal(kernels.linear(problem.x_MK, problem.prepared("int_mm")), problem.reference())


def test_another_device_dequantizes():
    codes, scales, bias, group = (
        a.to("meta") if isinstance(a, torch.Tensor) else a for a in Problem(33, 256, 128).args
    )
    prepared = kernels.prepare(codes, scales, bias, group)
    assert prepared.body == "dequantize"
    assert kernels.linear(torch.empty(2, 256, device="meta"), prepared).shape == (2, 33)


def test_all_that_is_wrong_with_a_weight_is_said_at_once():
    codes, scales, bias, group = Problem(33, 256, 128).args
    with pytest.raises(ValueError, match=r"scales must be floating-point \(33, 2\).*; bias must be .* \(33,\)"):
        kernels.prepare(codes, scales[:, :1], bias[:3], group)
    with pytest.raises(ValueError, match=r"some are 3; scales must be finite.*; body must be one of .*'magic'"):
        kernels.prepare(codes | 3, scales * torch.inf, bias, group, body="magic")
    with pytest.raises(ValueError, match="group must divide the 256 features"):
        kernels.prepare(codes, scales, bias, 100)
    with pytest.raises(ValueError, match=r"codes must be uint8 \(N, K / 4\)"):
        kernels.prepare(codes.int(), scales, bias, group)
    with pytest.raises(ValueError, match="one device"):
        kernels.prepare(codes, scales.to("meta"), bias, group)


@pytest.mark.parametrize("body", [body for body in INTEGER if body in library.COMPILED])
def test_a_compiled_body_refuses_groups_it_cannot_take(body):
    with pytest.raises(ValueError, match="multiple of 16 features, got 8"):
        Problem(3, 40, 8).prepared(body)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 255),
        torch.zeros(2, 256).double(),
        torch.zeros(2, 256).int(),
        torch.zeros(256, 2),
        torch.zeros(()),
    ],
)
def test_x_that_does_not_fit_is_refused(x):
    with pytest.raises(ValueError, match=r"x must be float32, bfloat16 or float16 \(..., 256\)"):
        kernels.linear(x, Problem(33, 256, 128).prepared(None))


def test_without_a_library_the_bodies_are_torchs_and_it_is_said_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_ternary.so")
    for cached in (library.library, library.bodies):
        cached.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "localplug"):
            assert kernels.bodies() == ("int_mm", "dequantize")
            problem = Problem(33, 256, 128)
            assert torch.equal(kernels.linear(problem.x_MK, problem.prepared(None)), problem.reference())
        assert [record.message for record in caplog.records if "no compiled kernel" in record.message] == [
            record.message for record in caplog.records
        ]
        assert len(caplog.records) == 1
    finally:
        for cached in (library.library, library.bodies):
            cached.cache_clear()


def test_a_broken_library_is_named(tmp_path):
    broken = tmp_path / "_ternary.so"
    broken.write_bytes(b"no library")
    with pytest.raises(library.NoLibrary, match="does not load"):
        library.load(broken)


def test_a_library_of_another_version_is_refused(monkeypatch):
    if library.library() is None:
        pytest.skip("installed without a C compiler")
    monkeypatch.setattr(library, "ABI", 99)
    with pytest.raises(library.NoLibrary, match="99 is needed"):
        library.load(library.LIBRARY)


@pytest.fixture
def build(tmp_path):
    """The build hook, in a copy of the sources that it may write to."""
    pytest.importorskip("hatchling")
    specification = importlib.util.spec_from_file_location("ternary_hatch_build", CSRC / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    shutil.copytree(CSRC, tmp_path / "csrc")
    (tmp_path / module.LIBRARY).parent.mkdir(parents=True)
    warnings = []
    app = SimpleNamespace(display_warning=warnings.append)
    hook = module.TernaryBuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app)
    data = {"pure_python": True, "artifacts": []}
    return SimpleNamespace(module=module, hook=hook, data=data, warnings=warnings, library=tmp_path / module.LIBRARY)


def test_a_wheel_gets_a_library_that_loads_and_a_tag_of_its_platform(build):
    if not any(shutil.which(command[0]) for command in build.module.compilers()):
        pytest.skip("no C compiler")
    build.hook.initialize("standard", build.data)
    assert build.warnings == [] and build.data["artifacts"] == [build.module.LIBRARY]
    assert build.data["pure_python"] is False and build.data["tag"].startswith("py3-none-")
    assert build.data["tag"] != "py3-none-any"
    loaded = library.load(build.library)
    assert loaded.ternary_supports(library.COMPILED["portable"])
    build.hook.clean([])
    assert not build.library.exists()


def test_without_a_compiler_the_wheel_is_pure_python_and_old_libraries_go(build, monkeypatch):
    build.library.write_bytes(b"of another machine")
    monkeypatch.setattr(build.module, "compilers", lambda: [["no-such-compiler"]])
    build.hook.initialize("standard", build.data)
    assert build.data == {"pure_python": True, "artifacts": []} and not build.library.exists()
    assert len(build.warnings) == 1 and "pure Python (no-such-compiler: No such file" in build.warnings[0]


def test_a_compiler_that_fails_is_no_error_either(build, monkeypatch):
    for source in build.module.SOURCES:
        (build.library.parents[3] / source).write_text("#error broken")
    monkeypatch.setattr(build.module, "compilers", lambda: [["cc"]])
    build.hook.initialize("standard", build.data)
    assert build.data["pure_python"] is True and len(build.warnings) == 1


def test_a_source_distribution_is_not_compiled(build):
    sdist = build.module.TernaryBuildHook(str(build.library.parents[3]), {}, None, None, "", "sdist", None)
    sdist.initialize("standard", build.data)
    assert not build.library.exists() and build.data["pure_python"] is True
