"""The quantizer kit's own test: quantizers that pass all of its checks, each broken in one place, and the check that tells.

A mutant is a replacement in a source text; it must fail the check that is named beside it by that check's own assertion.
"""

import importlib.util
import inspect
import pathlib
import sys
import types

import pytest

from localplug.testing.conformance import Documented
from localplug.testing.quantizer import QuantizerTests


class Claiming(QuantizerTests):
    is_idempotent = True


SUBJECTS = {"tequila": ("Tequila", QuantizerTests), "twn": ("TWN", Claiming), "annealed": ("Annealed", QuantizerTests)}

# (what is wrong, subject, the check that must fail, {old text: new text})
# fmt: off
MUTANTS = [
    ("forgets its group size", "twn", "is_a_quantizer_of_the_group_size_that_it_was_given",
     {"self.group_size = group_size": "self.group_size = group_size or 64"}),
    ("gives codes as numbers of 32 bits", "twn", "codes_scales_and_bias_are_what_packing_takes",
     {"return ternary(w_NGg.sign() * is_kept_NGg, s_NG)": "return ternary(w_NGg.sign() * is_kept_NGg, s_NG)._replace("
      "codes=(w_NGg.sign() * is_kept_NGg).int().flatten(1))"}),
    ("has five codes", "twn", "codes_scales_and_bias_are_what_packing_takes",
     {"ternary(w_NGg.sign() * is_kept": "ternary(w_NGg.sign() * (1 + (w_NGg.abs() > 2)) * is_kept"}),
    ("has negative scales", "twn", "codes_scales_and_bias_are_what_packing_takes",
     {"ternary(w_NGg.sign() * is_kept_NGg, s_NG)": "ternary(-w_NGg.sign() * is_kept_NGg, -s_NG)"}),
    ("has a bias that it says nothing about", "tequila", "codes_scales_and_bias_are_what_packing_takes",
     {"has_bias: ClassVar[bool] = True": "has_bias: ClassVar[bool] = False"}),
    ("keeps its bias in half precision", "tequila", "codes_scales_and_bias_are_what_packing_takes",
     {"return ternary(t_NGg, s_NG, C_N)": "return ternary(t_NGg, s_NG, C_N.half())"}),
    ("has one scale for a row", "twn", "codes_scales_and_bias_are_what_packing_takes",
     {"grouped(w_NK, self.group_size)": "grouped(w_NK, None)"}),
    ("records a gradient", "tequila", "codes_scales_and_bias_are_what_packing_takes",
     {"with torch.no_grad():": "with torch.enable_grad():", "grouped(w_NK, self.group_size)":
      "wide(w_NK).reshape(w_NK.shape[0], -1, self.group_size or w_NK.shape[1])"}),
    ("has no code -1", "twn", "it_uses_the_codes",
     {"ternary(w_NGg.sign() * is_kept_NGg, s_NG)": "ternary((w_NGg > 0) * is_kept_NGg, s_NG)"}),
    ("has one scale for all weights of this world", "twn", "it_uses_the_codes",
     {"ternary(w_NGg.sign() * is_kept_NGg, s_NG)": "ternary(w_NGg.sign() * is_kept_NGg, torch.ones_like(s_NG))"}),
    ("turns the signs", "twn", "codes_follow_the_signs_of_the_weights",
     {"ternary(w_NGg.sign()": "ternary(-w_NGg.sign()"}),
    ("has one scale for the tensor", "twn", "a_group_depends_on_its_own_weights_alone",
     {"return ternary(w_NGg.sign() * is_kept_NGg, s_NG)":
      "return ternary(w_NGg.sign() * is_kept_NGg, s_NG.mean().expand_as(s_NG))"}),
    ("takes the threshold of the tensor", "twn", "a_group_depends_on_its_own_weights_alone",
     {"w_NGg.abs().mean(-1, keepdim=True)": "w_NGg.abs().mean()"}),
    ("trains with scales that are not rounded", "twn", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "return straight_through(w_NK, self.quantize(w_NK)) * (1 + 2**-9), None"}),
    ("trains by w + (A - w), a rounding off", "twn", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "A = straight_through(w_NK, self.quantize(w_NK)).detach()\n        return w_NK + (A - w_NK).detach(), None"}),
    ("trains in float32 always", "twn", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "return straight_through(w_NK.float(), self.quantize(w_NK)), None"}),
    ("never ends", "annealed", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return progress >= HARD_FROM": "return False"}),
    ("says too early that it is ternary", "annealed", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return progress >= HARD_FROM": "return progress >= 0.5"}),
    ("packs another bias than it trains with", "tequila", "it_trains_in_the_end_with_exactly_what_is_packed",
     {"return straight_through(w_NK, made), C_N": "return straight_through(w_NK, made), 2 * C_N"}),
    ("has a schedule that it says nothing about", "annealed", "what_has_no_schedule_is_the_same_at_all_times",
     {"is_scheduled: ClassVar[bool] = True": "is_scheduled: ClassVar[bool] = False"}),
    ("has no gradient", "twn", "the_gradient_reaches_the_weights_of_every_group",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "return straight_through(w_NK.detach(), self.quantize(w_NK)), None"}),
    ("has a gradient in the first group alone", "twn", "the_gradient_reaches_the_weights_of_every_group",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "A = straight_through(w_NK, self.quantize(w_NK))\n"
      "        return torch.cat([A[:, :64], A[:, 64:].detach()], 1), None"}),
    ("has a gradient of the wrong sign", "twn", "trained_weights_fit_better_than_untrained_ones",
     {"return straight_through(w_NK, self.quantize(w_NK)), None":
      "A = straight_through(w_NK, self.quantize(w_NK))\n        return 2 * A.detach() - A, None"}),
    ("divides by a group of zeros", "twn", "groups_of_one_value_stay_finite",
     {".clamp_min(1)": ""}),
    ("gives weights of 0 a sign", "annealed", "groups_of_one_value_stay_finite",
     {"s_NG = w_NGg.abs().mean(-1)\n            return ternary(w_NGg.sign()":
      "s_NG = w_NGg.abs().mean(-1).clamp_min(1e-4)\n            return ternary((w_NGg >= 0).double().sub(0.5).sign()",
      "(w_NGg.abs() > s_NG.unsqueeze(-1) / 2)": "1"}),
    ("divides by a scale of 0 on the way", "annealed", "groups_of_one_value_stay_finite",
     {".clamp_min(1e-30)": ""}),
    ("takes the mean of all for a scale", "twn", "ternary_weights_are_reproduced_where_that_is_claimed",
     {"/ num_kept_NG": "/ w_NGg.shape[-1]"}),
    ("follows a running mean of the layers", "twn", "the_same_weights_give_the_same_answer",
     {"s_NG = (w_NGg": "self.mean = (getattr(self, 'mean', 1.0) + float(w_NGg.abs().mean())) / 2\n"
      "            s_NG = self.mean * (w_NGg"}),
    ("rounds at random", "twn", "the_same_weights_give_the_same_answer",
     {"w_NGg.abs() > 0.7": "w_NGg.abs() > torch.rand(w_NGg.shape, generator=self.drawn)",
      "self.group_size = group_size": "self.group_size, self.drawn = group_size, torch.Generator()"}),
    ("draws from the global random state", "twn", "leaves_the_global_random_state_alone",
     {"w_NGg.abs() > 0.7": "w_NGg.abs() > 0.7 + 0 * torch.rand(()) "}),
    ("writes the weights", "twn", "does_not_write_the_weights",
     {"is_kept_NGg = w_NGg.abs()": "is_kept_NGg = w_NGg.clamp_(-2, 2).abs()"}),
    ("cannot be pickled", "twn", "is_copied_and_pickled_with_its_options_and_without_tensors",
     {"self.group_size = group_size": "self.group_size, self.rule = group_size, lambda: 0.7"}),
    ("keeps its last scales", "twn", "is_copied_and_pickled_with_its_options_and_without_tensors",
     {"return ternary(w_NGg": "self.last = s_NG\n            return ternary(w_NGg"}),
]
# fmt: on


def loaded(name, source, monkeypatch):
    module = types.ModuleType("a_quantizer_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return getattr(module, name)


def text_of(subject):
    return pathlib.Path(importlib.util.find_spec(f"localplug_ternary.{subject}").origin).read_text()


def failure(kit, check, make):
    function = getattr(kit, f"test_{check}")
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    cases = [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]
    for case in cases:
        try:
            function(kit(), make=make, **case)
        except (Exception, pytest.fail.Exception) as error:
            return error
    return None


CHECKS = [n.removeprefix("test_") for n in vars(QuantizerTests) if n.startswith("test_")]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_subjects_pass_every_check(subject, monkeypatch):
    name, kit = SUBJECTS[subject]
    make = loaded(name, text_of(subject), monkeypatch)
    assert not {c: error for c in CHECKS if (error := failure(kit, c, make)) is not None}


@pytest.mark.parametrize(("subject", "check", "changes"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_mutant_is_killed(subject, check, changes, monkeypatch):
    name, kit = SUBJECTS[subject]
    source = text_of(subject)
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    error = failure(kit, check, loaded(name, source, monkeypatch))
    assert isinstance(error, AssertionError | pytest.fail.Exception), error


def test_every_check_kills_a_mutant():
    assert set(CHECKS) == {check for _, _, check, _ in MUTANTS}


def test_the_kit_asks_for_the_fixture_and_inherits_what_all_kits_check():
    assert issubclass(QuantizerTests, Documented)
    assert "make" in inspect.signature(QuantizerTests.test_it_uses_the_codes).parameters
