"""Schedules, coefficients and embeddings against their definitions."""

import itertools
import math

import pytest
import torch
from torch import nn

from localplug_noprop.blocks import Block, convolutions
from localplug_noprop.embeddings import orthogonal, prototypes
from localplug_noprop.network import NoPropCTNet, NoPropFMNet, NoPropNet
from localplug_noprop.schedule import LearnedSchedule, coefficients, cosine, snr


@pytest.mark.parametrize(
    ("T", "ends"), [(1, (1e-4, 0.99)), (4, (0.01, 0.9)), (10, (1e-4, 1 - 1e-4)), (50, (1e-4, 0.99))]
)
def test_identities_of_the_coefficients(T, ends):
    """The mean and the variance of q(z_t | y) follow from those of q(z_{t-1} | y), and a^2 / 2c is half the rise of the SNR."""
    ab = cosine(T, min_signal=ends[0], max_signal=ends[1])
    assert len(ab) == T + 1 and (ab[0], ab[-1]) == ends and all(a < b for a, b in itertools.pairwise(ab))
    for before, after in itertools.pairwise(ab):
        a, b, c = coefficients(before, after)
        assert a + b * math.sqrt(before) == pytest.approx(math.sqrt(after))
        assert b**2 * (1 - before) + c == pytest.approx(1 - after)
        assert a**2 / (2 * c) == pytest.approx((snr(after) - snr(before)) / 2)


def test_alpha_is_that_of_the_step():
    """alpha_{t-1} = ab_{t-1} / ab_t: their product from t on is ab_t again, with nothing left over at T."""
    ab = cosine(6)
    for t in range(6):
        product = ab[-1]
        for s in range(t, 6):
            product *= ab[s] / ab[s + 1]
        assert product == pytest.approx(ab[t])


def test_the_end_of_the_schedule_decides_the_weight_of_the_last_block():
    def weights(**ends):
        ab = cosine(10, **ends)
        return [10 / 2 * 0.1 * (snr(b) - snr(a)) for a, b in itertools.pairwise(ab)]

    unbounded = weights(max_signal=1 - 1e-4)
    assert unbounded[0] == pytest.approx(0.0123, abs=1e-4)
    assert unbounded[8] == pytest.approx(12.92, abs=0.01)
    assert unbounded[9] == pytest.approx(4982, abs=1)
    assert weights()[8:] == pytest.approx([8.75, 36.71], abs=0.01)  # by default


def test_learned_schedule_is_monotone_between_its_ends_and_gives_its_slope():
    for seed in range(5):
        schedule = LearnedSchedule(0.002, 0.98)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in schedule.parameters():
                p.add_(3 * seed * torch.randn(p.shape, generator=generator))
        t = torch.linspace(0, 1, 201).requires_grad_()
        gamma, slope = schedule(t)
        assert torch.sigmoid(-gamma[[0, -1]]).tolist() == pytest.approx([0.002, 0.98], abs=1e-4)
        assert (gamma.diff() <= 1e-5).all()
        (wanted,) = torch.autograd.grad(gamma.sum(), t, create_graph=True)
        torch.testing.assert_close(slope, wanted, atol=1e-4, rtol=1e-4)
        moved = torch.autograd.grad(gamma[100] + slope[7], list(schedule.parameters()))
        assert all(g.any() for g in moved)


def test_orthogonal_embeddings():
    wide, narrow = orthogonal(10, 20, seed=1), orthogonal(10, 4)
    torch.testing.assert_close(wide @ wide.T, torch.eye(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(narrow.T @ narrow, torch.eye(4), atol=1e-5, rtol=0)
    assert torch.equal(wide, orthogonal(10, 20, seed=1)) and not torch.equal(wide, orthogonal(10, 20, seed=2))


def test_prototypes_have_the_smallest_median_distance_within_their_class():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1101, 2, 3, generator=generator), torch.randint(0, 2, (1101,), generator=generator)
    found = prototypes(x, y, 2)
    for k in range(2):
        own = x[y == k].flatten(1)
        medians = torch.stack([(own - row).norm(dim=1).median() for row in own])
        torch.testing.assert_close(found[k], own[medians.argmin()])
    with pytest.raises(ValueError, match="class 2 has no example"):
        prototypes(x, y, 3)


def test_a_block_takes_images_and_times():
    embed = convolutions((3, 12, 12), channels=(4, 8), width=10, batch_norm=True)
    block = Block(embed, embedded=10, z_dim=5, num_classes=4, width=6, takes_time=True)
    z, x, t = torch.randn(2, 5), torch.randn(2, 3, 12, 12), torch.tensor([0.1, 0.9])
    assert block.eval()(z, x, t).shape == (2, 4)
    torch.testing.assert_close(block(z, x, t), block.fuse(z, embed(x), t))
    assert not torch.allclose(block(z, x, t), block(z, x, 1 - t)), "t has no effect"
    with pytest.raises(TypeError, match="takes the time t"):
        block(z, x)


def test_what_networks_and_their_parts_refuse():
    def block():
        return Block(nn.Linear(2, 3), embedded=3, z_dim=2, num_classes=2, width=4)

    one = block()
    with pytest.raises(ValueError) as wrong:
        NoPropNet([one, one], torch.eye(2), max_signal=1.0)
    assert "max_signal" in str(wrong.value) and "module of its own" in str(wrong.value)
    with pytest.raises(ValueError, match="1 to 999 blocks, got 0"):
        NoPropNet([], torch.eye(2))
    with pytest.raises(ValueError) as wrong:
        NoPropCTNet(block(), torch.eye(2).long(), num_steps=0, min_signal=0.0)
    assert all(word in str(wrong.value) for word in ("embedding", "num_steps", "min_signal"))
    with pytest.raises(ValueError) as wrong:
        NoPropFMNet(block(), torch.zeros(3), num_steps=0)
    assert all(word in str(wrong.value) for word in ("embedding", "num_steps"))
    with pytest.raises(ValueError, match=r"max_signal.*num_blocks"):
        cosine(0, max_signal=2.0)
    with pytest.raises(ValueError, match=r"max_signal.*width"):
        LearnedSchedule(max_signal=2.0, width=0)
    with pytest.raises(ValueError, match=r"embedded.*width"):
        Block(nn.Identity(), embedded=0, z_dim=1, num_classes=2, width=0)
    with pytest.raises(ValueError, match="leave nothing"):
        convolutions((1, 4, 4), channels=(1, 1, 1))
