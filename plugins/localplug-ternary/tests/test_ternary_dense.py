"""The product of few tokens with a floating-point weight: its sums, its bodies, and which layers and inputs take it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from localplug_ternary import dense as room
from localplug_ternary import kernels, speed, speed_up_
from localplug_ternary.dense import DenseLinear
from localplug_ternary.kernels import huge_pages

needs_library = pytest.mark.skipif(not kernels.dense_bodies(), reason="installed without a C compiler")
each_body = pytest.mark.parametrize("body", kernels.dense_bodies() or [pytest.param("", marks=needs_library)])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
SHAPES = [(1, 1, 1), (3, 63, 2), (7, 64, 1), (5, 65, 3), (33, 200, 2), (130, 1024, 1), (2, 8192, 1)]
HALF_STEP = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of the one rounding, by the value


def problem(N, K, M, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_MK, w_NK, b_N = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((M, K), (N, K), (N,)))
    return x_MK, w_NK, b_N


def in_slots(a_MK, dtype):
    """Padded to whole steps of 64 slots, (M, steps, 64): bfloat16 has the even ones of 32 before the odd ones."""
    padded = nn.functional.pad(a_MK.float(), (0, -a_MK.shape[1] % 64))
    if dtype == torch.bfloat16:
        padded = padded.unflatten(1, (-1, 16, 2)).transpose(2, 3).flatten(1)
    return padded.unflatten(1, (-1, 64))


def reference(x_MK, w_NK, b_N):
    """csrc/dense.h by torch's float32, one rounding a product and one a sum."""
    dtype = w_NK.dtype
    x, w = in_slots(x_MK, dtype)[:, None], in_slots(w_NK, dtype)[None]
    slots = torch.zeros(*torch.broadcast_shapes(x.shape, w.shape)[:2], 64)
    for step in range(x.shape[2]):
        slots = slots + x[:, :, step] * w[:, :, step]
    a, b, c, d = slots.split(16, -1)
    s = (a + b) + (c + d)
    while s.shape[-1] > 1:
        s = s[..., : s.shape[-1] // 2] + s[..., s.shape[-1] // 2 :]
    return (s[..., 0] + b_N.float()).to(dtype)


@each_body
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_body_adds_in_the_order_that_is_written_down(body, dtype, shape):
    args = problem(*shape, dtype)
    assert torch.equal(kernels.dense(*args, body=body), reference(*args))


@needs_library
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_stays_within_what_is_claimed(dtype, shape):
    x_MK, w_NK, _ = problem(*shape, dtype, seed=1)
    products = x_MK.double(), w_NK.double().t()
    exact_MN = products[0] @ products[1]
    size_MN = products[0].abs() @ products[1].abs()
    y_MN = kernels.dense(x_MK, w_NK).double()
    bound_MN = (shape[1] / 64 + 10) * 2**-24 * size_MN
    assert ((y_MN - exact_MN).abs() <= bound_MN * (1 + HALF_STEP[dtype]) + exact_MN.abs() * HALF_STEP[dtype]).all()


@needs_library
@each_dtype
def test_weights_that_lie_in_other_ways(dtype):
    x_MK, w_NK, b_N = problem(40, 130, 2, dtype)
    expected = kernels.dense(x_MK, w_NK, b_N)
    wide = torch.full((80, 200), torch.nan, dtype=dtype)
    wide[::2, 3:133] = w_NK
    assert torch.equal(kernels.dense(x_MK, wide[::2, 3:133], b_N), expected)  # rows apart, at odd addresses
    assert torch.equal(kernels.dense(x_MK.t().contiguous().t(), w_NK, b_N), expected)
    assert torch.equal(kernels.dense(x_MK[0], w_NK, b_N), expected[0])
    assert torch.equal(kernels.dense(x_MK.view(2, 1, 130), w_NK, b_N), expected.view(2, 1, 40))
    assert kernels.dense(x_MK[:0], w_NK, b_N).shape == (0, 40)


@each_body
@each_dtype
def test_all_values_of_a_dtype_are_widened_exactly(body, dtype):
    if dtype == torch.float32:
        w_N = torch.tensor([3.4e38, 1.2e-38, 1e-42, -0.0, torch.inf, -torch.inf, torch.nan])
    else:
        w_N = torch.arange(-32768, 32768, 7, dtype=torch.int32).to(torch.int16).view(dtype)
    one = torch.ones(1, dtype=dtype)
    torch.testing.assert_close(kernels.dense(one, w_N[:, None], body=body), w_N, rtol=0, atol=0, equal_nan=True)


@needs_library
@pytest.mark.parametrize("body", kernels.dense_bodies())
def test_threads_and_other_tokens_do_not_change_the_bits(body, monkeypatch):
    x_MK, w_NK, b_N = problem(700, 1024, 3, torch.bfloat16)  # large enough for several threads
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(kernels.dense(x_MK, w_NK, b_N, body=body))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(results[0], torch.stack([kernels.dense(x_K, w_NK, b_N, body=body) for x_K in x_MK]))


@needs_library
def test_all_that_does_not_fit_is_said_at_once():
    x_MK, w_NK, b_N = problem(4, 8, 2, torch.float32)
    with pytest.raises(
        ValueError, match=r"body must be one of .*'magic'; x must be .*\(\.\.\., 8\).*; bias must be .*\(4,\)"
    ):
        kernels.dense(x_MK[:, :7], w_NK, b_N[:3], body="magic")
    with pytest.raises(ValueError, match="contiguous rows"):
        kernels.dense(x_MK, w_NK.t().contiguous().t())
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        kernels.dense(x_MK.double(), w_NK.double())
    with pytest.raises(ValueError, match="on a CPU, got meta"):
        kernels.dense(x_MK.to("meta"), w_NK.to("meta"))


@pytest.fixture
def counted(monkeypatch):
    """A layer that is large enough, and how often its kernel was called."""
    monkeypatch.setattr(room, "LEAST_WEIGHTS", 64)
    monkeypatch.setattr(room, "_there_is_a_fast_body", lambda: True)
    calls, kernel = [], kernels.dense if kernels.dense_bodies() else lambda x, w, b: linear(x, w, b)
    monkeypatch.setattr(room.kernels, "dense", lambda *args: (calls.append(args[0].shape), kernel(*args))[1])
    layer = speed_up_(nn.Sequential(nn.Linear(64, 32))).requires_grad_(False)[0]
    return layer, calls


X = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))


def test_one_token_takes_the_kernel(counted):
    layer, calls = counted
    for x in (X, X[0], X[:, None]):
        torch.testing.assert_close(layer(x), linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-6)
    assert len(calls) == 3
    layer.weight.mul_(2)  # the weight as it is now
    torch.testing.assert_close(layer(X), linear(X, layer.weight, layer.bias), rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        layer(X)
    assert len(calls) == 5


def test_what_the_kernel_cannot_do_goes_torchs_way(counted, monkeypatch):
    layer, calls = counted
    same = [
        X.repeat(2, 1),  # tokens
        X[:0],
        X.clone().requires_grad_(),
    ]
    for x in same:
        assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
    layer.weight.requires_grad_()
    layer(X).sum().backward()
    assert torch.equal(layer.weight.grad, X.sum(0).expand(32, 64))
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        layer(X.bfloat16())  # of another dtype than the weight: torch's own error
    with pytest.raises(RuntimeError):
        layer(X[:, :63])
    assert torch.equal(torch.vmap(layer)(X), linear(X, layer.weight, layer.bias))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(X, X))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None
    with monkeypatch.context() as tracing:
        tracing.setattr(torch.jit, "is_tracing", lambda: True)  # which would keep what the kernel wrote, not the call
        assert torch.equal(layer(X), linear(X, layer.weight, layer.bias))
    assert layer.to("meta")(X.to("meta")).is_meta
    assert layer.to_empty(device="cpu").double()(X.double()).dtype == torch.float64
    monkeypatch.setattr(room, "LEAST_WEIGHTS", 1 << 20)
    layer.float()(X)  # too small
    assert not calls


def test_a_layer_stays_what_it_was_but_for_its_forward():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    net[2].weight = nn.Parameter(net[0].weight.detach().t().contiguous())
    layer, weight, state = net[0], net[0].weight, copy.deepcopy(net.state_dict())
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(True))
    assert speed_up_(net) is net and net[0] is layer and layer.weight is weight
    assert isinstance(layer, nn.Linear) and type(layer) is DenseLinear
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in state)
    net(X)
    assert seen == [True]
    for twin in (copy.deepcopy(net[2]), pickle.loads(pickle.dumps(net[2]))):
        assert type(twin) is DenseLinear and torch.equal(twin.weight, net[2].weight)
    speed_up_(net, on=False)
    assert type(layer) is nn.Linear and net[0] is layer


def test_subclasses_and_parametrized_layers_are_left_alone():
    attention = nn.MultiheadAttention(16, 2)
    twice = parametrize.register_parametrization(nn.Linear(16, 16), "weight", nn.Identity())
    kinds = [type(attention.out_proj), type(twice)]
    speed_up_(nn.ModuleList([attention, twice]))
    assert [type(attention.out_proj), type(twice)] == kinds


def test_huge_pages_leave_contents_and_addresses():
    large = torch.arange(3 << 20, dtype=torch.int32)
    where, copy_ = large.data_ptr(), large.clone()
    assert huge_pages.collapse(large) in (True, False)  # it is Linux's to decide
    assert large.data_ptr() == where and torch.equal(large, copy_)
    assert huge_pages.collapse(large[:10]) and huge_pages.collapse(torch.empty(0))  # nothing to do
    assert huge_pages.collapse(large.to("meta"))


def test_weights_of_a_mapped_file_move_out_of_it_unless_others_lie_there_too(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "LEAST_WEIGHTS", 1 << 20)
    numbers = torch.randn(1 << 11, 1 << 10, generator=torch.Generator().manual_seed(0))
    (tmp_path / "weights").write_bytes(numbers.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=numbers.numel()).view(numbers.shape)
    with torch.device("meta"):
        net = nn.Sequential(nn.Embedding(1 << 11, 1 << 10), nn.Linear(1 << 10, 1 << 11, bias=False))
    net[0].weight = net[1].weight = weight = nn.Parameter(mapped)
    speed_up_(net)
    assert net[0].weight is weight and net[1].weight is weight and torch.equal(weight, numbers)
    assert (weight.data_ptr() != mapped.data_ptr()) == huge_pages.there_are()
    net[0].weight, net[1].weight = nn.Parameter(mapped), nn.Parameter(mapped)
    speed_up_(net)
    assert net[0].weight.data_ptr() == net[1].weight.data_ptr() == mapped.data_ptr()


def test_copies_share_huge_pages_without_sharing_memory():
    sources = [
        torch.full((n,), float(i), dtype=dtype)
        for i, n in enumerate((1, 3, 1 << 20))
        for dtype in (torch.half, torch.float)
    ]
    sources.append(torch.arange(12).view(3, 4).t())
    copies = [huge_pages.copied(t) for t in sources]
    for source, made in zip(sources, copies, strict=True):
        assert torch.equal(source, made) and made.is_contiguous() and made.data_ptr() % made.element_size() == 0
        assert made.untyped_storage().nbytes() == made.nbytes  # so that one that is pickled takes no others along
        made.fill_(7)
        assert not torch.equal(source, made)
    assert all((made == 7).all() for made in copies)
    assert huge_pages.copied(torch.empty(0, 3)).shape == (0, 3)


def test_a_weight_is_laid_out_once_and_forgotten_with_its_codes():
    codes, scales = torch.full((3, 16), 0b01010110, dtype=torch.uint8), torch.ones(3, 1).half()
    first = kernels.prepared_of(codes, scales, None, 64)
    assert kernels.prepared_of(codes, scales, None, 64) is first
    scales.mul_(2)
    second = kernels.prepared_of(codes, scales, None, 64)
    assert second is not first and kernels.prepared_of(codes, scales, None, 64) is second
    assert kernels.prepared_of(codes, scales, torch.zeros(3), 64) is not second
    count = len(kernels.kept._kept)
    del codes
    assert len(kernels.kept._kept) == count - 1
