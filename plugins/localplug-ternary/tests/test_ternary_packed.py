"""The packed layer: its bytes, its outputs, its gradients, and what a copy or a cast leaves alone."""

import copy
import pickle
import types

import pytest
import torch
from torch.nn import functional as F

from localplug_ternary import packed as room
from localplug_ternary.latent import TernaryLinear
from localplug_ternary.packed import PackedTernaryLinear, pack, unpack
from localplug_ternary.tequila import Tequila
from localplug_ternary.twn import TWN


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latent(method=None, bias=True, dtype=torch.float32):
    layer = TernaryLinear(64, 12, bias, method=method or Tequila(32, lam=0.1), dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(random(12, 64) * 0.1)
        if bias:
            layer.bias.copy_(random(12, seed=9))
    return layer


def test_the_bytes():
    codes = torch.tensor([[-1, 0, 1, 0, 1, 1, -1, -1]], dtype=torch.int8)
    # byte 0: codes + 1 = 0, 1, 2, 1, lowest bits first; byte 1: 2, 2, 0, 0
    assert pack(codes).tolist() == [[0 | 1 << 2 | 2 << 4 | 1 << 6, 2 | 2 << 2]]
    assert pack(codes).dtype == torch.uint8
    everything = torch.randint(-1, 2, (7, 32), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    assert torch.equal(unpack(pack(everything)), everything)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [Tequila(32, 0.1), Tequila(None, 0.1), TWN(64)])
def test_outputs_are_those_of_the_latent_layer_bit_by_bit(method, dtype, bias):
    layer, x = latent(method, bias, dtype), random(2, 5, 64, dtype=dtype)
    packed = PackedTernaryLinear.of(layer)
    assert torch.equal(packed(x), layer(x))
    x.requires_grad_()
    assert torch.equal(packed(x), layer(x))  # the path that a backward pass goes
    assert (packed.bias is None) == (not bias and isinstance(method, TWN))
    size = sum(t.numel() * t.element_size() for t in packed.state_dict().values())
    assert size == 12 * (64 / 4 + packed.scales.shape[1] * 2 + (4 if packed.bias is not None else 0))


def test_the_bias_is_not_scaled():
    layer = latent(Tequila(32, lam=0.0))
    assert torch.equal(PackedTernaryLinear.of(layer)(torch.zeros(1, 64)), layer.bias.detach().unsqueeze(0))


def test_the_folded_bias_counts():
    layer, x = latent(bias=False), random(4, 64)
    packed = PackedTernaryLinear.of(layer)
    dead = unpack(packed.codes) == 0
    C = 0.1 * (layer.weight.detach() * dead).sum(1)
    torch.testing.assert_close(
        packed(x) - F.linear(x, packed.dequantized(torch.float32)), C.expand(4, 12), rtol=0, atol=1e-5
    )
    assert C.abs().max() > 0.01


def test_gradients_are_those_of_the_dense_layer():
    packed = PackedTernaryLinear.of(latent(), trains_scales=True)
    x = random(2, 3, 64).requires_grad_()
    dy = random(2, 3, 12, seed=4)
    packed(x).backward(dy)
    got = x.grad, packed.scales.grad, packed.bias.grad
    x2, s, b = (
        x.detach().requires_grad_(),
        packed.scales.detach().requires_grad_(),
        packed.bias.detach().requires_grad_(),
    )
    A = (unpack(packed.codes).float().reshape(12, 2, 32) * s.unsqueeze(-1)).reshape(12, 64)
    F.linear(x2, A, b).backward(dy)
    for mine, theirs in zip(got, (x2.grad, s.grad, b.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_backward_pass_keeps_no_dense_weight():
    packed = PackedTernaryLinear.of(latent())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed(random(3, 64).requires_grad_())
    assert {t.dtype for t in kept} == {torch.float16, torch.uint8}
    assert sum(t.numel() * t.element_size() for t in kept) < 12 * 64


def test_a_cast_leaves_scales_and_bias_as_stored_and_the_parameters_the_same_objects():
    packed = PackedTernaryLinear.of(latent(), trains_scales=True)
    before, parameters = {k: v.clone() for k, v in packed.state_dict().items()}, list(packed.parameters())
    packed.to(torch.bfloat16).half().float()
    after = packed.state_dict()
    assert {k: v.dtype for k, v in after.items()} == {
        "codes": torch.uint8,
        "scales": torch.float32,
        "bias": torch.float32,
    }
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(a is b for a, b in zip(packed.parameters(), parameters, strict=True))
    assert packed(random(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_scales_and_bias_train_and_only_if_asked():
    packed = PackedTernaryLinear.of(latent())
    assert not any(p.requires_grad for p in packed.parameters())
    packed.train_scales_()
    assert {n for n, p in packed.named_parameters() if p.requires_grad} == {"scales", "bias"}
    assert packed.scales.dtype == torch.float32
    packed.train_scales_(False)
    assert packed.scales.dtype == torch.float16 and not packed.trains_scales


@pytest.mark.parametrize(("factor", "words"), [(1e6, "too large"), (1e-10, "too small"), (float("nan"), "not finite")])
def test_weights_without_float16_scales_are_refused(factor, words):
    layer = latent()
    with torch.no_grad():
        layer.weight.mul_(factor)
    with pytest.raises(ValueError, match=words):
        PackedTernaryLinear.of(layer)


class Kernels:
    """Stands for the compiled kernels, and counts."""

    def __init__(self, body="portable"):
        self.prepared, self.body = [], body

    def available(self):
        return self.body

    def prepared_of(self, codes, scales, bias, group):
        self.prepared.append(group)
        return types.SimpleNamespace(codes=codes, scales=scales.detach(), bias=bias)

    def linear(self, x, prepared):
        A = (
            unpack(prepared.codes).float().reshape(*prepared.scales.shape, -1) * prepared.scales.unsqueeze(-1)
        ).flatten(1)
        return F.linear(x, A, prepared.bias) + 1000  # recognisable


def test_the_kernel_is_asked_only_where_it_was_asked_for(monkeypatch):
    kernels = Kernels()
    monkeypatch.setattr(room, "kernels", kernels)
    x = random(2, 64)
    plain, fast = (
        PackedTernaryLinear.of(latent(Tequila(None))),
        PackedTernaryLinear.of(latent(Tequila(None)), int8_activations=True),
    )
    expected = plain(x)
    assert not kernels.prepared
    torch.testing.assert_close(fast(x), expected + 1000)
    assert kernels.prepared == [64]
    assert torch.equal(fast(x.clone().requires_grad_()), expected)  # gradients go the unpacking way
    with monkeypatch.context() as tracing:
        tracing.setattr(torch.jit, "is_tracing", lambda: True)
        assert torch.equal(fast(x), expected)
    assert torch.equal(fast.requires_grad_(True)(x), expected)  # while scales train, one function alone
    assert kernels.prepared == [64]


def test_the_kernel_sees_what_was_written_to_the_layer():
    x = random(2, 64)
    fast = PackedTernaryLinear.of(latent(Tequila(None)), int8_activations=True)
    before, bias = fast(x), fast.bias.detach().clone()
    with torch.no_grad():
        fast.scales.mul_(2.0)
        fast.bias.zero_()
    torch.testing.assert_close(fast(x), 2 * (before - bias), rtol=1e-3, atol=1e-3)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(x), fast(x))
        twin.codes.copy_(pack(-unpack(fast.codes)))
        assert torch.equal(twin(x), -fast(x))


def test_without_kernels_or_for_their_unknown_groups_the_layer_unpacks(monkeypatch):
    x = random(2, 64)
    fast = PackedTernaryLinear.of(latent(), int8_activations=True)  # groups of 32
    expected = PackedTernaryLinear.of(latent())(x)
    monkeypatch.setattr(room, "kernels", Kernels())
    assert torch.equal(fast(x), expected)
    monkeypatch.setattr(room, "kernels", Kernels("dequantize"))
    assert torch.equal(
        PackedTernaryLinear.of(latent(Tequila(None)), int8_activations=True)(x),
        PackedTernaryLinear.of(latent(Tequila(None)))(x),
    )


@pytest.mark.parametrize("group_size", [None, 128])
def test_the_installed_kernels_agree_within_their_rounding_of_activations(group_size):
    layer = TernaryLinear(256, 48, method=Tequila(group_size, lam=0.1))
    with torch.no_grad():
        layer.weight.copy_(random(48, 256) * 0.1)
    fast, plain = PackedTernaryLinear.of(layer, int8_activations=True), PackedTernaryLinear.of(layer)
    x = random(3, 256, seed=3)
    with torch.no_grad():
        y, expected = fast(x), plain(x)
    # each activation is off by at most half a step, absmax / 127
    bound = plain.dequantized(torch.float32).abs().sum(1) * x.abs().amax(1, keepdim=True) / 254
    assert ((y - expected).abs() <= bound + 1e-4).all()
    assert not torch.equal(y, expected)
    with torch.no_grad():
        assert torch.equal(fast.requires_grad_(True)(x), expected)  # while scales train, one function alone


def test_under_autocast():
    packed = PackedTernaryLinear.of(latent(), trains_scales=True)
    x = random(3, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
    y.float().sum().backward()
    exact = PackedTernaryLinear.of(latent(), trains_scales=True)
    exact(x.detach()).sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.float32
    torch.testing.assert_close(packed.scales.grad, exact.scales.grad, rtol=0.05, atol=0.05)
    torch.testing.assert_close(packed.bias.grad, exact.bias.grad)


def test_the_weight_that_others_read():
    packed = PackedTernaryLinear.of(latent())
    assert torch.equal(packed.weight, packed.dequantized(torch.float32)) and packed.weight.shape == (12, 64)


def test_layers_made_in_inference_mode_use_the_kernel_too():
    with torch.inference_mode():
        layer = PackedTernaryLinear(256, 8, int8_activations=True)
        layer.scales.fill_(1.0)
        assert layer(torch.ones(2, 256)).shape == (2, 8)
