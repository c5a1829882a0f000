"""Noise is a function of (seed, step, direction, name, element), whatever the chunks, and normal enough."""

import math

import pytest
import torch

from localplug import kernels, noise

CPU = torch.device("cpu")
GOLDEN_KEY = 18006981619462553059
GOLDEN_BITS = [33032, 53160, 48798, 21484, 48607, 44682]


def test_golden_numbers():
    """The stream is part of what a checkpoint means: these numbers may never change."""
    assert noise.mix64(0) == 0 and noise.mix64(1) == 0x5692161D100B05E5
    key = noise.stream(0, 0, 0, "weight")
    assert key == GOLDEN_KEY
    assert noise.bits16(key, 0, 6, CPU).tolist() == GOLDEN_BITS


def _bits_in_python(key, offset, num):
    """The definition in the module's docstring, on Python integers."""
    found = []
    for i in range(offset, offset + num):
        word = noise.mix64(key + (i // 4) * 0x9E3779B97F4A7C15)
        found.append((word >> (16 * (i % 4))) & 0xFFFF)
    return found


@pytest.mark.parametrize("offset", [0, 1, 5, 65533, 10**10 + 3])
def test_equals_the_definition_on_python_integers(offset):
    for seed in (0, -1, 2**63, 2**70 + 5):
        key = noise.stream(seed, 7, 3, "layer.weight")
        assert noise.bits16(key, offset, 9, CPU).tolist() == _bits_in_python(key, offset, 9)


def test_any_chunking_and_order_gives_the_same_elements(monkeypatch):
    key = noise.stream(1, 2, 3, "w")
    whole = noise.normal(key, 0, 1000, CPU)
    pieces = {start: noise.normal(key, start, min(77, 1000 - start), CPU) for start in reversed(range(0, 1000, 77))}
    assert torch.equal(whole, torch.cat([pieces[start] for start in sorted(pieces)]))
    monkeypatch.setattr(noise, "_CHUNK_CPU", 128)
    assert torch.equal(whole, noise.normal(key, 0, 1000, CPU))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_a_gpu():
    key = noise.stream(1, 2, 3, "w")
    assert torch.equal(noise.normal(key, 3, 100_001, CPU), noise.normal(key, 3, 100_001, torch.device("cuda")).cpu())


def test_every_part_of_the_address_matters():
    addresses = [(0, 0, 0, "w"), (1, 0, 0, "w"), (0, 1, 0, "w"), (0, 0, 1, "w"), (0, 0, 0, "v"), (-1, 0, 0, "w")]
    drawn = torch.stack([noise.normal(noise.stream(*a), 0, 4096, CPU) for a in addresses])
    correlation = drawn @ drawn.T / 4096
    assert (correlation - torch.eye(len(addresses))).abs().max() < 5 / math.sqrt(4096) + 0.05


def test_moments_and_distribution_of_a_million():
    z = noise.normal(noise.stream(5, 0, 0, "w"), 0, 1 << 20, CPU).double()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / n) + 0.003
    for lag in (1, 2, 3, 4, 8):
        assert abs((z[:-lag] * z[lag:]).mean()) < 4 / math.sqrt(n)
    expected = torch.special.ndtr(torch.linspace(-3, 3, 25, dtype=torch.float64))
    found = torch.stack([(z < x).double().mean() for x in torch.linspace(-3, 3, 25, dtype=torch.float64)])
    assert (found - expected).abs().max() < 2 / math.sqrt(n)  # Kolmogorov's statistic at about 1e-3


def test_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    noise.normal(noise.stream(0, 0, 0, "w"), 0, 10, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_many_short_streams_at_once_are_those_one_by_one():
    keys = [noise.stream(3, 1, 0, name) for name in "abcd"]
    sizes = [1, 6, 4096, 7]
    together = noise.normals(keys, sizes, CPU)
    for key, size, z in zip(keys, sizes, together, strict=True):
        assert torch.equal(z, noise.normal(key, 0, size, CPU))
    again = noise.normals(keys[::-1], sizes[::-1], CPU)[::-1]
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))


@pytest.mark.parametrize("num", [1, 5, 63, 64, 65, 1000, 70_001, 300_000])
@pytest.mark.parametrize("offset", [0, 1, 3, 63, 64, 70, 12_345])
def test_the_compiled_loops_give_the_bits_of_torchs_operations(num, offset, monkeypatch):
    if not noise.kernels.AVAILABLE:
        pytest.skip("the loops are not compiled")
    key, start = noise.stream(1, 2, 3, "w"), torch.randn(num)
    found = []
    for usable in (noise.kernels.usable, lambda _: False):
        monkeypatch.setattr(noise.kernels, "usable", usable)
        normal, signs = start.clone(), start.clone()
        noise.add_normal_(normal, key, offset, 0.37)
        noise.add_signs_(signs, key, offset, 0.37)
        found.append((normal, signs))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_signs_are_fair_and_of_one_size():
    signs = noise.signs(noise.stream(0, 0, 0, "w"), 0, 100_000, CPU)
    assert set(signs.tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.02
    pairs = (signs[:-1] * signs[1:]).mean(), (signs[:-64] * signs[64:]).mean()
    assert all(abs(float(p)) < 0.02 for p in pairs)


@pytest.mark.parametrize("compiled", [True, False])
def test_signs_of_many_short_streams_are_those_of_each_by_itself(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(kernels, "AVAILABLE", False)
    where, sizes = (3, 1 << 70, -5), [1, 64, 130, 7]
    made = noise.signs_of(["a", "b", "c", "d"], sizes, [1.0, 0.3, -2.0, 1.0], where, CPU)
    for name, size, factor, got in zip("abcd", sizes, [1.0, 0.3, -2.0, 1.0], made, strict=True):
        wanted = noise.signs(noise.stream(*where, name), 0, size, CPU) * factor
        assert torch.equal(got, wanted)
