"""Mutants of selectors of trained elements; see test_kit_mutants.py."""

import textwrap

import pytest

from localplug.testing import SelectorTests
from mutants import all_failures, assert_killed, changed, counts, loaded, source_of, unproved

TABLE = {"SelectorTests": 26}

DRAWN = textwrap.dedent('''
    """Random elements, drawn from the seed and kept (of anybody, since about 1950)."""

    import torch

    from localplug import Selector, noise


    class Drawn(Selector):
        """A random share of each parameter, drawn anew every `every` steps.

        Args:
            share: in (0, 1).
            every: steps.

        Example:
            >>> Drawn(share=0.5).describe()
            'drawn'
        """

        changes = True

        def __init__(self, share=0.4, every=4):
            self.share, self.every, self.past = share, every, []

        def describe(self):
            return "drawn"

        def setup(self, run, indices):
            self.run, self.indices, self.epoch = run, indices, run.step // self.every
            self.draw()

        def begin(self, run):
            if run.step // self.every > self.epoch:
                self.epoch = run.step // self.every
                self.draw()

        def draw(self):
            self.masks = {}
            for i in self.indices:
                name, p = self.run.parameters[i]
                key = noise.stream(self.run.seed, self.epoch, -2, name)
                self.masks[i] = noise.uniform(key, 0, p.numel(), p.device) < self.share

        def mask(self, index, values, offset, step):
            return self.masks[index][offset : offset + values.numel()]

        def num_elements(self, index):
            return int(self.masks[index].sum())

        def state_dict(self):
            return {"masks": {str(i): m for i, m in self.masks.items()}, "epoch": self.epoch}

        def load_state_dict(self, state):
            self.masks = {i: state["masks"][str(i)] for i in self.masks}
            self.epoch = int(state["epoch"])
''')

SUBJECTS = {
    "sara": (SelectorTests, source_of("localplug_select.sara"), lambda m: lambda: m.SaRA(share=0.3, refresh=3)),
    "drawn": (SelectorTests, DRAWN, lambda m: m.Drawn),
}
ANSWER = "return self.masks[index][offset : offset + values.numel()]"

# fmt: off
MUTANTS = [
    ("chooses nothing", "drawn", "chooses_some_elements_and_not_all",
     {"< self.share": "< 0"}),
    ("chooses everything by saying nothing", "drawn", "chooses_some_elements_and_not_all",
     {ANSWER: "return None"}),
    ("answers with numbers", "drawn", "a_mask_is_boolean_and_shaped_like_the_values",
     {ANSWER: ANSWER + ".to(torch.uint8)"}),
    ("answers for the whole parameter", "drawn", "a_mask_is_boolean_and_shaped_like_the_values",
     {ANSWER: "return self.masks[index].repeat(2)"}),
    ("counts all elements", "drawn", "counts_what_it_chooses",
     {"int(self.masks[index].sum())": "self.masks[index].numel()"}),
    ("begins anew in each piece", "drawn", "any_cutting_gives_the_same_elements",
     {ANSWER: "return self.masks[index][: values.numel()]"}),
    ("takes the smallest of each piece", "sara", "any_cutting_gives_the_same_elements",
     {"return self._masks.slice(index, offset, values.numel())": "return values.abs() <= values.abs().median()"}),
    ("goes on from its last run", "drawn", "the_same_weights_and_seed_give_the_same_choice",
     {"self.run, self.indices, self.epoch = run, indices, run.step // self.every":
      "self.run, self.indices, self.epoch = run, indices, getattr(self, 'epoch', 0)"}),
    ("draws at every call of begin", "drawn", "a_step_has_one_choice",
     {"noise.stream(self.run.seed, self.epoch, -2, name)": "noise.stream(self.run.seed, len(self.past), -2, name)",
      "        self.masks = {}\n": "        self.masks = {}\n        self.past = [*self.past, 1][-9:]\n",
      "if run.step // self.every > self.epoch": "if run.step"}),
    ("says that it stays", "drawn", "says_whether_its_choice_changes",
     {"changes = True": "changes = False"}),
    ("chooses only in steps that it hears of", "sara", "a_step_that_was_left_out_changes_nothing",
     {"if epoch <= self._epoch:": "if not run.step or run.step % self.refresh:"}),
    ("sets what it leaves out to zero", "drawn", "writes_no_weight",
     {"        self.masks = {}\n": "        self.masks = {}\n        self.run.parameters[0][1].data[0] = 0\n"}),
    ("looks at the values that it is given", "sara", "directions_and_updates_keep_to_its_choice",
     {"return self._masks.slice(index, offset, values.numel())":
      "self._n = getattr(self, '_n', 0) + 1\n        return values.abs() <= self._h + (self._n % 2) / 4"}),
    ("saves nothing", "sara", "resumes_from_its_state_dict",
     {'return {"masks": self._masks.state_dict(), "epoch": self._epoch, "threshold": self._h}': "return {}",
      "        self._masks.load_state_dict(state[\"masks\"])\n"
      "        self._epoch, self._h = int(state[\"epoch\"]), float(state[\"threshold\"])": "        pass"}),
    ("forgets its threshold", "sara", "resumes_from_its_state_dict",
     {"self._epoch, self._h = int(state[\"epoch\"]), float(state[\"threshold\"])": "self._epoch = int(state['epoch'])"}),
    ("keeps the seed that it began with", "drawn", "resumes_from_its_state_dict",
     {"self.run.seed": "self.seed",
      "self.run, self.indices, self.epoch = run, indices, run.step // self.every":
      "self.run, self.indices, self.epoch, self.seed = run, indices, run.step // self.every, run.seed"}),
    ("takes any state", "drawn", "a_damaged_state_is_refused",
     {'{i: state["masks"][str(i)] for i in self.masks}': '{i: state["masks"].get(str(i)) for i in self.masks}'}),
    ("draws from the global random state", "drawn", "leaves_the_global_random_state_alone",
     {"noise.uniform(key, 0, p.numel(), p.device)": "torch.rand(p.numel())"}),
    ("keeps all of its choices", "drawn", "memory_does_not_grow",
     {"        self.masks = {}\n": "        self.masks = {}\n        self.past.append(1)\n",
      "if run.step // self.every > self.epoch:": "if run.step >= 0:"}),
    ("keeps a copy of the weights", "drawn", "memory_does_not_grow",
     {"        self.masks = {}\n":
      "        self.masks = {}\n        self.past = [p.detach().clone() for _, p in self.run.parameters]\n"}),
    ("compares half precision as integers", "drawn", "weights_of_any_precision_are_chosen_among",
     {"< self.share": "< (self.share if p.dtype == torch.float32 else 0)"}),
    ("holds what cannot be pickled", "drawn", "can_be_pickled",
     {"share, every, []": "share, every, lambda: 0"}),
    ("describes itself by nothing", "drawn", "describes_itself_in_one_line",
     {'return "drawn"': 'return ""'}),
    ("has an option without a word about it", "drawn", "its_docstring_has_a_summary_and_every_option",
     {"        every: steps.": "        steps."}),
    ("its example prints something else", "drawn", "the_example_in_its_docstring_runs",
     {"        'drawn'\n": "        'drawm'\n"}),
    ("does not say where it comes from", "drawn", "names_its_source",
     {" (of anybody, since about 1950)": ""}),
]
# fmt: on


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_subjects_pass_every_check(subject, monkeypatch):
    kit, source, made_of = SUBJECTS[subject]
    assert not all_failures(kit, made_of(loaded(source, monkeypatch)))


@pytest.mark.parametrize(
    ("subject", "killer", "changes"), [m[1:] for m in MUTANTS], ids=[f"{m[1]}: {m[0]}" for m in MUTANTS]
)
def test_a_mutant_is_killed(subject, killer, changes, monkeypatch):
    kit, source, made_of = SUBJECTS[subject]
    assert_killed(kit, killer, made_of(loaded(changed(source, changes), monkeypatch)))


def test_every_check_of_the_kit_kills_a_mutant():
    assert not unproved(SUBJECTS, MUTANTS)


def test_the_table_counts_them():
    assert counts(SUBJECTS, MUTANTS) == TABLE
