"""Labels in the input: where they go, which are wrong, and that nothing of the user's is changed."""

import pytest
import torch
from torch import nn

from localplug import Run, Unsupported
from localplug_forward.goodness import cosine, goodness, rms_normalised
from localplug_forward.labels import overlay, wrong_labels


def run_at(seed, step):
    return Run(nn.Linear(1, 1), [], seed, step)


def test_the_label_covers_the_first_pixels_of_the_first_row_of_the_first_channel():
    x = torch.randn(2, 3, 5, 6)
    before = x.clone()
    label = torch.eye(4)[[2, 0]]
    written = overlay(x, label, value=2.5)
    expected = x.clone()
    expected[:, 0, 0, :4] = 2.5 * label
    assert torch.equal(written, expected) and torch.equal(x, before)
    expected = x.clone()
    expected[:, 0, 0, 4:6], expected[:, 0, 1, 0:2] = (
        label[:, :2],
        label[:, 2:],
    )  # in the next row where a row is too short
    assert torch.equal(overlay(x, label, start=4), expected)


def test_what_cannot_hold_a_label_is_refused():
    with pytest.raises(Unsupported, match="covers 4 numbers from 3 on, and an input of the first unit has 6; pad"):
        overlay(torch.zeros(2, 6), torch.eye(4)[:2], start=3)
    with pytest.raises(Unsupported, match=r"gets torch.int64"):
        overlay(torch.zeros(2, 6, dtype=torch.long), torch.eye(4)[:2])


@pytest.mark.parametrize("K", [2, 3, 10])
def test_wrong_labels_are_never_the_true_one_and_uniform_over_the_others(K):
    true = torch.arange(K).repeat_interleave(3000)
    before = true.clone()
    wrong = wrong_labels(true, K, run_at(0, 0))
    assert torch.equal(true, before), "negatives have overwritten the labels"
    assert not (wrong == true).any() and 0 <= int(wrong.min()) <= int(wrong.max()) < K
    for label in range(K):
        share = torch.bincount(wrong[true == label], minlength=K) / 3000
        others = torch.arange(K) != label
        assert (share[others] - 1 / (K - 1)).abs().max() < 0.05


def test_wrong_labels_follow_from_seed_and_step():
    true = torch.zeros(200, dtype=torch.long)
    first = wrong_labels(true, 10, run_at(1, 5))
    assert torch.equal(first, wrong_labels(true, 10, run_at(1, 5)))
    assert not torch.equal(first, wrong_labels(true, 10, run_at(1, 6)))
    assert not torch.equal(first, wrong_labels(true, 10, run_at(2, 5)))


def test_goodness_and_what_hides_it():
    h = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(goodness(h), (h**2).sum((1, 2, 3)))
    torch.testing.assert_close(goodness(h, "mean"), (h**2).mean((1, 2, 3)))
    z = rms_normalised(h)
    assert z.shape == h.shape
    torch.testing.assert_close(goodness(z, "mean"), torch.ones(3))
    torch.testing.assert_close(z[1], h[1] / h[1].square().mean().sqrt())
    assert torch.equal(rms_normalised(torch.zeros(1, 4)), torch.zeros(1, 4))  # a silent layer gives no NaN
    p = torch.randn(32)
    expected = (h.flatten(1).abs() @ p) / h.flatten(1).norm(dim=1) / p.norm()
    torch.testing.assert_close(cosine(h, p), expected)
