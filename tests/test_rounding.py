"""Stochastic rounding to half precision: the mean is kept, neighbours alone are hit, compiled loops give torch's bits."""

import pytest
import torch

from localplug import kernels, rounding

HALF = (torch.bfloat16, torch.float16)


def rounded(value, dtype, key=7, offset=0):
    return rounding.round_(torch.empty(len(value), dtype=dtype), value, key, offset)


def some_values():
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(100_003, generator=generator) * 10 ** (6 * torch.rand(100_003, generator=generator) - 4)
    special = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 3.3895e38, -3.3895e38, 3.4e38, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-45, 65519.0,
         65535.0, 6e-8]
    )  # fmt: skip
    return torch.cat([plain, special.repeat(64)])


@pytest.mark.parametrize("dtype", HALF)
def test_a_value_goes_to_one_of_its_two_neighbours(dtype):
    value = some_values()
    out = rounded(value, dtype)
    fine = torch.isfinite(value) & (value.abs() < torch.finfo(dtype).max)
    nearest = value.to(dtype)
    away = (
        torch.nextafter(nearest, torch.full_like(nearest, float("inf"))),
        torch.nextafter(nearest, torch.full_like(nearest, float("-inf"))),
    )
    assert ((out == nearest) | (out == away[0]) | (out == away[1]))[fine].all()
    error = (out.float() - value).abs()[fine]
    spacing = torch.maximum((away[0].float() - nearest.float()).abs(), (nearest.float() - away[1].float()).abs())[fine]
    assert (error <= spacing).all()
    exact = value.to(dtype).float() == value
    assert torch.equal(out[exact].float(), value[exact])
    assert torch.equal(out.isnan(), value.isnan())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("value", [1.0 + 2**-10, -3.0 - 2**-9, 1e-3])
def test_the_mean_is_kept(dtype, value):
    out = rounded(torch.full((1 << 18,), value), dtype).float()
    gap = float(out.max() - out.min())
    assert abs(float(out.double().mean()) - float(torch.tensor(value))) < 4 * gap / (1 << 9) / 2 + 1e-12


@pytest.mark.skipif(not kernels.AVAILABLE, reason="the loops are not compiled")
@pytest.mark.parametrize("offset", [0, 1, 6, 4_000_000_001])
def test_compiled_loops_give_the_same_bits_as_torch(monkeypatch, offset):
    value = some_values()
    fast = rounded(value, torch.bfloat16, offset=offset)
    monkeypatch.setattr(kernels, "usable", lambda _: False)
    slow = rounded(value, torch.bfloat16, offset=offset)
    number = ~value.isnan()
    assert torch.equal(fast.view(torch.int16)[number], slow.view(torch.int16)[number])
    assert fast[~number].isnan().all() and slow[~number].isnan().all()


@pytest.mark.parametrize("dtype", HALF)
def test_a_piece_is_rounded_as_in_the_whole(dtype):
    value = some_values().nan_to_num(0.0)
    whole = rounded(value, dtype, offset=5)
    parts = [rounded(value[a:b], dtype, offset=5 + a) for a, b in ((0, 3), (3, 70_000), (70_000, len(value)))]
    assert torch.equal(torch.cat(parts), whole)
