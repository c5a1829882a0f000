"""Checks that every ternary quantizer must pass: what packing, training and saving rely on.

Shapes: N outputs, K inputs, G = K / g groups of a row, g inputs of a group.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from localplug.quantizers import Quantizer, dequantize, faults
from localplug.testing.conformance import Documented, pickled

GROUP, NUM_OUTPUTS, NUM_INPUTS = 64, 6, 192
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PROGRESS = (0.0, 0.05, 0.3, 0.5, 0.9, 1.0)
STEPS = 150

Make = Callable[..., Quantizer]


class QuantizerTests(Documented):
    """Subclass it, and give the fixture `make`: a function of `group_size` that makes your quantizer.

    class TestMine(QuantizerTests):
        @pytest.fixture
        def make(self):
            return lambda group_size: Mine(group_size, threshold=0.5)
    """

    is_idempotent = False
    """Whether weights that are ternary already keep their codes and scales; set it to True to have that checked."""

    @pytest.fixture
    def documented(self, make: Make) -> Any:
        return type(make(group_size=None))

    def test_is_a_quantizer_of_the_group_size_that_it_was_given(self, make: Make) -> None:
        for group_size in (GROUP, None):
            made = make(group_size=group_size)
            assert isinstance(made, Quantizer)
            assert made.group_size == group_size

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_codes_scales_and_bias_are_what_packing_takes(self, make: Make, dtype: torch.dtype) -> None:
        """int8 codes in {-1, 0, 1}, float16 scales of 0 or more, a bias just where has_bias says so, and no gradient."""
        for quantizer in _each(make):
            w_NK = _weights(quantizer, dtype=dtype).requires_grad_()
            made = quantizer.quantize(w_NK)
            assert not (wrong := faults(quantizer, made, w_NK.shape)), "; ".join(wrong)
            assert made.scales.isfinite().all() and (made.bias is None or made.bias.isfinite().all())
            assert not any(t.requires_grad for t in made if t is not None), "quantize records a gradient"

    def test_it_uses_the_codes(self, make: Make) -> None:
        """Gaussian weights get codes of both signs and scales above 0; a scale is about the size of its weights."""
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            made = quantizer.quantize(w_NK)
            assert (made.codes == 1).any() and (made.codes == -1).any() and (made.scales > 0).all()
            larger = quantizer.quantize(w_NK * 16)
            ratio = float((larger.scales.float() / made.scales.float()).mean())
            assert 2 < ratio < 128, f"weights 16 times as large have scales {ratio:.3g} times as large"

    def test_codes_follow_the_signs_of_the_weights(self, make: Make) -> None:
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            assert not (quantizer.quantize(w_NK).codes * w_NK < 0).any(), "a code has the other sign than its weight"

    def test_a_group_depends_on_its_own_weights_alone(self, make: Make) -> None:
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            before = quantizer.quantize(w_NK)
            g = quantizer.group_size or w_NK.shape[1]
            changed = w_NK.clone()
            changed[1, :g] = changed[1, :g].flip(0) * 3
            after = quantizer.quantize(changed)
            others = torch.ones(before.scales.shape, dtype=torch.bool)
            others[1, 0] = False
            assert torch.equal(before.scales[others], after.scales[others]), "scales of other groups have changed"
            codes = [made.codes.reshape(*others.shape, g)[others] for made in (before, after)]
            assert torch.equal(*codes), "codes of other groups have changed"
            assert not torch.equal(before.scales[1, 0], after.scales[1, 0]), "the group has no scale of its own"
            if before.bias is not None and after.bias is not None:
                rows = [made[torch.arange(len(made)) != 1] for made in (before.bias, after.bias)]
                assert torch.equal(*rows), "C of other outputs has changed"

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_it_trains_in_the_end_with_exactly_what_is_packed(self, make: Make, dtype: torch.dtype) -> None:
        """At progress 1, and wherever is_ternary says so, `latent` is `quantize` bit by bit, in the dtype of the weights."""
        for quantizer in _each(make):
            assert quantizer.is_ternary(1.0), "is_ternary(1.0) is False, so that a trained model could not be packed"
            w_NK = _weights(quantizer, dtype=dtype)
            made = quantizer.quantize(w_NK)
            for progress in filter(quantizer.is_ternary, PROGRESS):
                A_NK, C_N = quantizer.latent(w_NK, progress)
                assert A_NK.dtype == dtype and A_NK.shape == w_NK.shape
                assert torch.equal(A_NK, dequantize(made.codes, made.scales, dtype)), f"at progress {progress:g}"
                assert (C_N is None) == (made.bias is None), "latent and quantize disagree on whether there is a C"
                if C_N is not None and made.bias is not None:
                    assert torch.equal(C_N.detach().to(dtype), made.bias.to(dtype)), f"C at progress {progress:g}"

    def test_what_has_no_schedule_is_the_same_at_all_times(self, make: Make) -> None:
        for quantizer in _each(make):
            if quantizer.is_scheduled:
                continue
            w_NK = _weights(quantizer)
            last, _ = quantizer.latent(w_NK, 1.0)
            for progress in PROGRESS:
                same = torch.equal(quantizer.latent(w_NK, progress)[0], last)
                assert quantizer.is_ternary(progress) and same, f"it changes at {progress:g}; set is_scheduled = True"

    @pytest.mark.parametrize("progress", PROGRESS)
    def test_the_gradient_reaches_the_weights_of_every_group(self, make: Make, progress: float) -> None:
        for quantizer in _each(make):
            w_NK = _weights(quantizer).requires_grad_()
            A_NK, C_N = quantizer.latent(w_NK, progress)
            loss = (A_NK * _random(*A_NK.shape, seed=1)).sum()
            if not loss.requires_grad:
                pytest.fail("the weight that training computes with has no gradient; take localplug.straight_through")
            (dw_NK,) = torch.autograd.grad(loss if C_N is None else loss + C_N.sum(), w_NK)
            assert dw_NK.isfinite().all()
            g = quantizer.group_size or w_NK.shape[1]
            assert dw_NK.reshape(len(w_NK), -1, g).abs().sum(-1).all(), "a whole group has no gradient"

    def test_trained_weights_fit_better_than_untrained_ones(self, make: Make) -> None:
        """By Adam on the squared error of one layer to another layer's outputs; what counts is the packed layer's error."""
        for quantizer in _each(make):
            w_NK = _weights(quantizer).requires_grad_()
            x_BK, wanted_NK = _random(64, w_NK.shape[1], seed=2), _random(*w_NK.shape, seed=3)
            b_N = torch.zeros(len(w_NK), requires_grad=True)
            optimizer = torch.optim.Adam([w_NK, b_N], lr=0.03)
            before = _error(quantizer, w_NK, b_N, x_BK, wanted_NK)
            for step in range(STEPS):
                A_NK, C_N = quantizer.latent(w_NK, step / STEPS)
                y_BN = x_BK @ (A_NK - wanted_NK).T + (b_N if C_N is None else C_N + b_N)
                optimizer.zero_grad()
                y_BN.square().mean().backward()
                optimizer.step()
            after = _error(quantizer, w_NK, b_N, x_BK, wanted_NK)
            assert after < 0.6 * before, f"the error went from {before:.3g} to {after:.3g}"

    @pytest.mark.parametrize("value", [0.0, 1e-12, 0.3, -0.3])
    def test_groups_of_one_value_stay_finite(self, make: Make, value: float) -> None:
        """Groups that are 0 give 0; constant ones, and those too small for float16, no NaN, neither in codes nor gradients."""
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            g = quantizer.group_size or w_NK.shape[1]
            w_NK[0, :g] = value
            w_NK.requires_grad_()
            made = quantizer.quantize(w_NK)
            assert not (wrong := faults(quantizer, made, w_NK.shape)), "; ".join(wrong)
            assert made.scales.isfinite().all() and (made.bias is None or made.bias.isfinite().all())
            for progress in PROGRESS:
                A_NK, C_N = quantizer.latent(w_NK, progress)
                assert A_NK.isfinite().all(), f"at progress {progress:g}"
                assert value or not A_NK[0, :g].any(), f"weights of 0 become others at progress {progress:g}"
                (dw_NK,) = torch.autograd.grad(A_NK.sum() if C_N is None else A_NK.sum() + C_N.sum(), w_NK)
                assert dw_NK.isfinite().all(), f"the gradient at progress {progress:g}"

    def test_ternary_weights_are_reproduced_where_that_is_claimed(self, make: Make) -> None:
        """For a quantizer that says is_idempotent: quantize(s t) is t and s again."""
        if not self.is_idempotent:
            return
        for quantizer in _each(make):
            made = quantizer.quantize(_weights(quantizer))
            again = quantizer.quantize(dequantize(made.codes, made.scales, torch.float32))
            assert torch.equal(again.codes, made.codes) and torch.equal(again.scales, made.scales)

    def test_the_same_weights_give_the_same_answer(self, make: Make) -> None:
        """Whatever was quantized before, and by whichever object: one serves all layers of a model."""
        for one, two in zip(_each(make), _each(make), strict=True):
            w_NK = _weights(one)
            first, trained = one.quantize(w_NK), one.latent(w_NK, 0.5)[0]
            one.quantize(_weights(one, seed=7) * 5)
            one.latent(_weights(one, seed=8), 0.1)
            for quantizer in (one, two):
                assert _equal(quantizer.quantize(w_NK), first) and torch.equal(quantizer.latent(w_NK, 0.5)[0], trained)

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(123)
            before = torch.get_rng_state()
            for quantizer in _each(make):
                w_NK = _weights(quantizer)
                quantizer.quantize(w_NK)
                for progress in PROGRESS:
                    quantizer.latent(w_NK, progress)
            assert torch.equal(before, torch.get_rng_state())

    def test_does_not_write_the_weights(self, make: Make) -> None:
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            before = w_NK.clone()
            quantizer.quantize(w_NK)
            for progress in PROGRESS:
                quantizer.latent(w_NK, progress)
            assert torch.equal(w_NK, before)

    def test_is_copied_and_pickled_with_its_options_and_without_tensors(self, make: Make) -> None:
        for quantizer in _each(make):
            w_NK = _weights(quantizer)
            made = quantizer.quantize(w_NK)
            quantizer.latent(w_NK, 0.5)
            for other in (pickled(quantizer), copy.deepcopy(quantizer)):
                assert other.group_size == quantizer.group_size and _equal(other.quantize(w_NK), made)
            held = [name for name, value in vars(quantizer).items() if isinstance(value, Tensor)]
            assert not held, f"it holds tensors in {', '.join(held)}, which no checkpoint would save"


def _each(make: Make) -> list[Quantizer]:
    """With groups and with whole rows; whole rows alone for one whose inputs are not multiples of 64."""
    whole = make(group_size=None)
    return [whole] if GROUP % whole.group_multiple else [make(group_size=GROUP), whole]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _weights(quantizer: Quantizer, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return _random(NUM_OUTPUTS, math.lcm(NUM_INPUTS, quantizer.group_multiple), seed=seed).to(dtype)


def _equal(one: Any, two: Any) -> bool:
    pairs = zip(one, two, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def _error(quantizer: Quantizer, w_NK: Tensor, b_N: Tensor, x_BK: Tensor, wanted_NK: Tensor) -> float:
    made = quantizer.quantize(w_NK)
    A_NK = dequantize(made.codes, made.scales, torch.float32)
    y_BN = x_BK @ (A_NK - wanted_NK).T + (b_N if made.bias is None else made.bias + b_N)
    return float(y_BN.square().mean())
