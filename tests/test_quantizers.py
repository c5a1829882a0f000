"""The quantizer contract through the host's door: by name, as an object, and what it refuses."""

import pickle

import pytest
import torch

import localplug
from localplug import Quantizer, Ternary, UnknownName, dequantize, grouped, straight_through, ternary
from localplug.quantizers import faults

NAMES = ["tequila", "absmean", "twn", "sherry", "annealed"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_becomes_a_quantizer_with_its_options(name):
    made = localplug.quantizer(name, group_size=64)
    assert isinstance(made, Quantizer) and made.group_size == 64
    assert localplug.quantizer(made) is made
    assert type(pickle.loads(pickle.dumps(made))) is type(made)


def test_options_are_checked_and_have_no_second_way():
    assert localplug.quantizer("tequila", group_size=None, lam=0.5).lam == 0.5
    with pytest.raises(TypeError, match=r"tequila has no option 'lamb'.* Did you mean 'lam'"):
        localplug.quantizer("tequila", group_size=None, lamb=0.5)
    with pytest.raises(TypeError, match="would have no effect"):
        localplug.quantizer(localplug.quantizer("twn", group_size=None), group_size=64)
    with pytest.raises(UnknownName, match="no quantizer named 'tekila'; did you mean 'tequila'"):
        localplug.quantizer("tekila", group_size=None)
    with pytest.raises(TypeError, match="expected a name or a localplug.Quantizer, got 3"):
        localplug.quantizer(3)


def test_a_weight_goes_by_groups_and_comes_back_as_codes_times_scales():
    w_NK = torch.tensor([[1.0, -3.0, 0.5, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    w_NGg = grouped(w_NK, 2)
    assert w_NGg.shape == (1, 2, 2) and w_NGg.dtype == torch.float32 and not w_NGg.requires_grad
    made = ternary(w_NGg.sign(), w_NGg.abs().mean(-1))
    assert made.codes.dtype == torch.int8 and made.scales.dtype == torch.float16 and made.bias is None
    A_NK = straight_through(w_NK, made)
    assert A_NK.dtype == torch.bfloat16 and A_NK.tolist() == [[2.0, -2.0, 0.5, 0.5]]
    assert torch.equal(A_NK, dequantize(made.codes, made.scales, torch.bfloat16))
    A_NK.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.bfloat16))
    assert w_NK.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_faults_are_all_told_at_once():
    class Odd(Quantizer):
        has_bias = True
        group_size = 4

        def quantize(self, w_NK):
            raise NotImplementedError

        latent = is_ternary = quantize

    made = Ternary(torch.full((2, 8), 2, dtype=torch.int8), torch.ones(2, 1), None)
    said = "; ".join(faults(Odd(), made, (2, 8)))
    assert "they go from 2 to 2" in said and "scales must be float16, (2, 2); they are float32, (2, 1)" in said
    assert "has_bias is True, and C is None" in said
    good = Ternary(torch.ones(2, 8, dtype=torch.int8), torch.ones(2, 2, dtype=torch.float16), torch.ones(2))
    assert faults(Odd(), good, (2, 8)) == []
    assert faults(Odd(), good._replace(scales=-good.scales), (2, 8)) == [
        "scales must not be negative; turn the signs of the codes"
    ]
    half = good._replace(bias=torch.ones(2, dtype=torch.float16))
    assert faults(Odd(), half, (2, 8)) == ["C must have float32 at least, (2,); it is float16, (2,)"]
