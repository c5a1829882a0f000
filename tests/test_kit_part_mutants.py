"""Mutants of the parts of a zeroth-order method, of objectives, solvers, tasks and commands; see test_kit_mutants.py."""

import textwrap

import pytest

from localplug.testing import (
    CommandTests,
    DistributionTests,
    EstimatorTests,
    ObjectiveTests,
    SolverTests,
    TaskTests,
    UpdateTests,
)
from mutants import all_failures, assert_killed, changed, counts, loaded, source_of, unproved

# How many mutants each class of the kit is tried on here.
TABLE = {
    "CommandTests": 3,
    "DistributionTests": 25,
    "EstimatorTests": 21,
    "ObjectiveTests": 13,
    "SolverTests": 14,
    "TaskTests": 34,
    "UpdateTests": 18,
}

ACCURACY = textwrap.dedent('''
    """Accuracy (of anybody, since about 1900)."""

    import torch


    def accuracy(outputs, batch, model):
        """Share of the labels whose logit is the largest.

        Args:
            outputs: with `logits` (B, K).
            batch: with `labels` (B,).
            model: not looked at.

        Example:
            >>> round(1 / 3, 2)
            0.33
        """
        logits, labels = outputs.logits, batch["labels"]
        score = (logits.argmax(-1) == labels).float().mean()
        return score
''')

RANDOM_FEATURES = textwrap.dedent('''
    import torch
    from torch import nn

    from localplug import noise


    class RandomFeatures:
        """Ridge regression on random ReLU features (Rahimi, Recht, 2008).

        Args:
            width: features.
            ridge: > 0.

        Example:
            >>> RandomFeatures(width=3).width
            3
        """

        def __init__(self, width=100, ridge=1e-3):
            self.width, self.ridge, self.seen = width, ridge, []

        @torch.no_grad()
        def __call__(self, inputs, targets):
            if len(inputs) != len(targets):
                raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
            if not (inputs.isfinite().all() and targets.isfinite().all()):
                raise ValueError("data must be finite")
            num, dim = inputs.shape
            drawn = torch.zeros(self.width * (dim + 1))
            noise.add_normal_(drawn, noise.stream(0, 0, 0, "features"), 0, 1.0)
            drawn = drawn.view(self.width, dim + 1).to(inputs.dtype)
            first = nn.Linear(dim, self.width, dtype=inputs.dtype, device="meta").to_empty(device="cpu")
            first.weight.copy_(drawn[:, 1:])
            first.bias.copy_(drawn[:, 0])
            last = nn.Linear(self.width, targets.shape[1], bias=False, dtype=inputs.dtype, device="meta")
            last = last.to_empty(device="cpu")
            h = first(inputs).relu()
            eye = self.ridge * torch.eye(self.width, dtype=h.dtype)
            last.weight.copy_(torch.linalg.solve(h.T @ h + eye, h.T @ targets).T)
            return nn.Sequential(first, nn.ReLU(), last)
''')

RINGS = textwrap.dedent('''
    """Two rings (new here)."""

    import torch
    from torch import nn

    from localplug import Parts, Task, Tensors
    from localplug.tasks import located


    class Rings(Task):
        """Is a point of the plane on a ring? Accuracy.

        Args:
            data: a folder with rings/points.pt; without one the points are drawn.
            width: of the network.

        Example:
            >>> len(Rings().parts(0).test)
            20
        """

        batch_size, budget = 8, 30

        def __init__(self, data=None, width=8):
            self.data, self.width = data, width

        def model(self):
            return nn.Sequential(nn.Linear(2, self.width), nn.BatchNorm1d(self.width), nn.Linear(self.width, 2))

        def parts(self, seed):
            if self.data is not None:
                located(self.data, "rings", ["points.pt"], get_it="It is at https://example.org/points.pt.")
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(100, 2, generator=generator)
            labels = ((x.norm(dim=1) - 1).abs() < 0.4).long()
            a, b, c = (Tensors(x[rows], labels[rows]) for rows in (slice(0, 60), slice(60, 80), slice(80, 100)))
            return Parts(a, b, c)
''')

COMMAND = textwrap.dedent("""
    import argparse


    def main(argv):
        parser = argparse.ArgumentParser(prog="localplug greet")
        parser.add_argument("--name", default="you")
        options = parser.parse_args(argv)
        print(f"hello {options.name}")
        return 0
""")

SUBJECTS = {
    "two-sided": (
        EstimatorTests,
        source_of("localplug_zo.two_sided"),
        lambda m: lambda: m.TwoSided(num_directions=2),
    ),
    "residual": (EstimatorTests, source_of("localplug_zo.one_sided"), lambda m: lambda: m.Residual()),
    "sphere": (DistributionTests, source_of("localplug_zo.sparse"), lambda m: lambda: m.Sphere()),
    "rank-1": (DistributionTests, source_of("localplug_zo.low_rank"), lambda m: lambda: m.LowRank()),
    "sgd": (UpdateTests, source_of("localplug_zo.updates"), lambda m: lambda: m.SGD()),
    "scalar": (UpdateTests, source_of("localplug_zo.updates"), lambda m: lambda: m.Scalar()),
    "trainer": (UpdateTests, source_of("localplug_zo.updates"), lambda m: lambda: m.Materialized()),
    "accuracy": (ObjectiveTests, ACCURACY, lambda m: lambda: m.accuracy),
    "random features": (SolverTests, RANDOM_FEATURES, lambda m: lambda: m.RandomFeatures()),
    "rings": (TaskTests, RINGS, lambda m: lambda: m.Rings()),
    "greet": (CommandTests, COMMAND, lambda m: lambda: m.main),
}

TWO_SIDED = "        return list(raw)\n"
SLOPE = "(p - m) / (2 * self.eps)"
NEW_METHOD = "    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:\n        pairs"
IN_PLACE = """    def estimate(self, run, perturbed):
        for _, p in run.parameters:
            p.data.add_(1e-2)
        found = yield from super().estimate(run, perturbed)
        for _, p in run.parameters:
            p.data.sub_(1e-2)
        return found

"""
KEY = "noise.stream(self._run.seed, piece.step, piece.direction, self._run.parameters[piece.index][0])\n        scale"
ADDED = "noise.add_normal_(target, key, piece.offset, factor * scale)"
KAPPA = "    def kappa(self, num_elements: int) -> float:\n        return num_elements\n"
SGD = "        sgd_update(run, directions, coefficients, groups)\n\n\n@final\nclass Sign"

OWN_LOSS = "    def loss(self, model, batch):\n        return {}\n\n    def parts"
OWN_SCORE = "    def score(self, model, batch):\n        return {}\n\n    def parts"

# (what is wrong, subject, the check that must fail, {old text: new text})
# fmt: off
MUTANTS = [
    # estimators
    ("has the sign of its slopes wrong", "two-sided", "points_along_the_gradient",
     {SLOPE: "(m - p) / (2 * self.eps)"}),
    ("miscounts its evaluations", "two-sided", "evaluates_as_often_as_it_says",
     {NEW_METHOD: "    num_evaluations = 5\n\n" + NEW_METHOD}),
    ("has fewer numbers than it says", "two-sided", "gives_as_many_numbers_as_it_says",
     {"num_fields = 1": "num_fields = 2"}),
    ("says that its error is negative", "two-sided", "gives_as_many_numbers_as_it_says",
     {"return spsa_variance(coefficients, kappa)": "return -spsa_variance(coefficients, kappa)"}),
    ("takes the sign before micro-batches are added", "two-sided", "numbers_of_micro_batches_add_up",
     {SLOPE: f"({SLOPE}).sign()"}),
    ("adds the losses up", "two-sided", "reports_the_loss_of_the_batch",
     {"Projection(mean(outputs), slopes)": "Projection([4 * m for m in mean(outputs)], slopes)"}),
    ("does not say that scale does not matter", "two-sided", "says_truly_whether_scale_matters",
     {TWO_SIDED: "        return [c / max(map(abs, raw)) for c in raw]\n"}),
    ("says that scale does not matter", "two-sided", "says_truly_whether_scale_matters",
     {"num_fields = 1\n": "num_fields = 1\n    is_scale_free = True\n"}),
    ("does not restore after an evaluation that fails", "two-sided", "an_evaluation_that_fails_leaves_nothing_perturbed",
     {NEW_METHOD: IN_PLACE + NEW_METHOD}),
    ("is not seeded", "two-sided", "the_same_seed_repeats_the_estimate_and_another_does_not",
     {SLOPE: f"{SLOPE} + next(_COUNT)",
      "from typing import final\n": "from itertools import count\nfrom typing import final\n\n_COUNT = count()\n"}),
    ("evaluates the first worker's directions on all", "two-sided",
     "a_second_worker_evaluates_its_own_directions_or_is_refused",
     {NEW_METHOD: "    def estimate(self, run, perturbed):\n        run.first_direction = 0\n"
      "        return (yield from super().estimate(run, perturbed))\n\n" + NEW_METHOD}),
    ("forgets its state in a checkpoint", "residual", "resumes_from_its_state_dict",
     {'return {} if self._last is None else {"last": self._last}': "return {}"}),
    ("leaves its rounding in half precision", "two-sided",
     "losses_of_half_precision_are_read_in_float32_or_refused",
     {NEW_METHOD: IN_PLACE.replace("1e-2", "0.3") + NEW_METHOD}),
    ("overflows in half precision", "two-sided", "losses_of_half_precision_are_read_in_float32_or_refused",
     {SLOPE: f"({SLOPE}) + 0 * run_over(p)",
      "from typing import final\n":
      "from typing import final\n\n\ndef run_over(p):\n    return (p.half() * 60000) if p.isfinite() else p\n"}),
    ("draws from the global random state", "two-sided", "leaves_the_global_random_state_alone",
     {TWO_SIDED: "        return [c + 0 * float(torch.rand(())) for c in raw]\n",
      "from torch import Tensor\n": "import torch\nfrom torch import Tensor\n"}),
    ("keeps all of its past", "two-sided", "memory_does_not_grow",
     {TWO_SIDED: "        self.__dict__.setdefault('log', []).append(list(raw))\n        return list(raw)\n"}),
    ("holds what cannot be pickled", "residual", "can_be_pickled",
     {"self._last: float | None = None": "self._last, self.schedule = None, lambda step: eps"}),
    ("describes itself by nothing", "residual", "describes_itself_in_one_line",
     {'return f"residual feedback, eps {self.eps:g}"': 'return ""'}),
    ("has an option without a word about it", "residual", "its_docstring_has_a_summary_and_every_option",
     {"        eps: width": "        width"}),
    ("its example prints something else", "residual", "the_example_in_its_docstring_runs",
     {"'residual feedback, eps 0.1'": "'residual feedback, eps 1'"}),
    ("does not say where it comes from", "residual", "names_its_source",
     {"2017": "", "2022": "", "arXiv:2509.24372": ""}),
    # distributions
    ("begins its noise anew in each piece", "sphere", "any_cutting_gives_the_same_elements",
     {ADDED: ADDED.replace("piece.offset", "0")}),
    ("rounds by pieces", "rank-1", "any_cutting_gives_the_same_elements",
     {"            add_low_rank_(target, *factors, factor, piece.offset)":
      "            add_low_rank_(target, *factors, factor * (1 + 1e-6 * target.numel()), piece.offset)"}),
    ("has one direction a step", "sphere", "a_direction_is_a_function_of_seed_step_and_number",
     {KEY: KEY.replace("piece.direction", "0")}),
    ("repeats the first step's directions", "sphere", "a_direction_is_a_function_of_seed_step_and_number",
     {KEY: KEY.replace("piece.step", "0")}),
    ("keeps the seed that it began with", "sphere", "follows_the_seed_of_a_resumed_run",
     {"self._run, self._indices = run, list(indices)":
      "self._run, self._indices, self._seed = run, list(indices), run.seed",
      KEY: KEY.replace("self._run.seed", "self._seed")}),
    ("gives equal shapes equal noise", "sphere", "parameters_have_noise_of_their_own",
     {KEY: KEY.replace("self._run.parameters[piece.index][0]", '""')}),
    ("ignores the factor", "sphere", "adds_factor_times_z",
     {ADDED: ADDED.replace("factor * scale", "scale")}),
    ("overwrites what it adds to", "sphere", "adds_factor_times_z",
     {ADDED: "target.zero_()\n        " + ADDED}),
    ("writes the source", "sphere", "add_to_gives_the_bits_of_add",
     {KAPPA: "    def add_to_(self, target, source, piece, factor):\n"
      "        self.add_(source, piece, factor)\n        target.copy_(source)\n\n" + KAPPA}),
    ("has another length", "sphere", "the_second_moment_is_the_identity",
     {"return math.sqrt(total / square)": "return 1 / math.sqrt(square)"}),
    ("is not centred", "sphere", "the_second_moment_is_the_identity",
     {ADDED: ADDED + "\n        target.add_(0.3 * factor)"}),
    ("says half of its kappa", "sphere", "kappa_is_as_said",
     {KAPPA: KAPPA.replace("return num_elements", "return num_elements / 2")}),
    ("says twice its kappa", "sphere", "kappa_is_as_said",
     {KAPPA: KAPPA.replace("return num_elements", "return num_elements * 2")}),
    ("says that it reaches less", "sphere", "moves_what_it_says_it_reaches",
     {KAPPA: "    def reached(self, step, direction):\n        return [0]\n\n" + KAPPA}),
    ("has factors of another matrix", "rank-1", "factors_make_the_same_z",
     {"            add_low_rank_(target, *factors, factor, piece.offset)":
      "            add_low_rank_(target, *factors, -factor, piece.offset)"}),
    ("reaches what is not trained", "sphere", "takes_some_of_the_parameters",
     {KAPPA: "    def reached(self, step, direction):\n        return range(len(self._run.parameters))\n\n" + KAPPA}),
    ("draws other noise for half precision", "sphere", "the_direction_does_not_depend_on_the_weights_dtype",
     {KEY: KEY.replace("self._run.seed", "self._run.seed + self._run.parameters[piece.index][1].element_size()")}),
    ("depends on how often it was asked", "sphere", "resumes_from_its_state_dict",
     {ADDED: "self._calls = getattr(self, '_calls', 0) + 1\n        "
      + ADDED.replace("factor * scale", "factor * scale * (1 + self._calls)")}),
    ("draws from the global random state", "sphere", "leaves_the_global_random_state_alone",
     {ADDED: ADDED.replace("factor * scale", "factor * scale + 0 * float(torch.rand(()))")}),
    ("keeps whole directions", "sphere", "memory_does_not_grow",
     {ADDED: "self.__dict__.setdefault('kept', {})[piece] = torch.zeros(self._run.parameters[piece.index][1].numel())\n"
      "        " + ADDED}),
    ("holds what cannot be pickled", "rank-1", "can_be_pickled",
     {"        self.noise = noise\n": "        self.noise, self.schedule = noise, lambda step: rank\n"}),
    ("describes itself by nothing", "sphere", "describes_itself_in_one_line",
     {'return "sphere"': 'return " "'}),
    ("has an option without a word about it", "rank-1", "its_docstring_has_a_summary_and_every_option",
     {"        noise: of U": "        of U"}),
    ("its example prints something else", "sphere", "the_example_in_its_docstring_runs",
     {"        'sphere'": "        'ball'"}),
    ("does not say where it comes from", "sphere", "names_its_source",
     {"2005": "", "arXiv:2410.09823": "", "arXiv:2402.11592": ""}),
    # updates
    ("steps uphill", "sgd", "lowers_a_quadratic",
     {SGD: SGD.replace("coefficients", "[-c for c in coefficients]")}),
    ("takes one direction's coefficient for another's", "sgd", "moves_every_parameter_against_the_estimate",
     {SGD: SGD.replace("coefficients", "coefficients[::-1]")}),
    ("takes a quarter of the coefficients", "sgd", "moves_every_parameter_against_the_estimate",
     {SGD: SGD.replace("coefficients", "coefficients[: max(len(coefficients) // 4, 1)]")}),
    ("takes the first group's learning rate for all", "sgd", "takes_the_learning_rate_of_each_group",
     {SGD: SGD.replace("groups", "{p: next(iter(groups.values())) for p in groups}")}),
    ("ignores the weight decay", "sgd", "weight_decay_is_decoupled",
     {SGD: SGD.replace("groups", "{p: {**g, 'weight_decay': 0.0} for p, g in groups.items()}")}),
    ("moves what is not selected", "sgd", "changes_what_is_selected_alone",
     {SGD: "        run.parameters[1][1].data.add_(1e-3)\n" + SGD}),
    ("writes the coefficients", "sgd", "changes_what_is_selected_alone",
     {SGD: "        coefficients[0] *= 2\n" + SGD}),
    ("does not say that its steps are in no log", "trainer", "leaves_gradients_or_can_be_replayed",
     {'''        return [
            "the trainer's optimizer does the update''': '''        return [] and [
            "the trainer's optimizer does the update'''}),
    ("is not seeded", "sgd", "the_same_coefficients_make_the_same_steps",
     {SGD: SGD.replace("coefficients", "[c + next(_COUNT) for c in coefficients]"),
      "import math\n": "import itertools\nimport math\n\n_COUNT = itertools.count()\n"}),
    ("forgets its state in a checkpoint", "scalar", "resumes_from_its_state_dict",
     {'return {"second": self._second, "count": self._count}': "return {}"}),
    ("rounds small steps away", "sgd", "small_steps_of_half_precision_are_not_lost",
     {SGD: SGD.replace("sgd_update(run, directions, coefficients, groups)",
      "for i in directions.indices:\n"
      "            p = run.parameters[i][1]\n"
      "            p.data.sub_(groups[p]['lr'] * gradient_of(run, directions, coefficients, i))")}),
    ("draws from the global random state", "sgd", "leaves_the_global_random_state_alone",
     {SGD: SGD.replace("coefficients", "[c + 0 * float(torch.rand(())) for c in coefficients]")}),
    ("keeps all of its past", "sgd", "memory_does_not_grow",
     {SGD: "        self.__dict__.setdefault('log', []).append(list(coefficients))\n" + SGD}),
    ("holds what cannot be pickled", "scalar", "can_be_pickled",
     {"self._second, self._count = 0.0, 0\n": "self._second, self._count, self.f = 0.0, 0, lambda c: c\n"}),
    ("describes itself in two lines", "sgd", "describes_itself_in_one_line",
     {'return "SGD in place"': 'return "SGD\\nin place"'}),
    ("has an option without a word about it", "scalar", "its_docstring_has_a_summary_and_every_option",
     {"        delta: > 0, in units of the directional": "        > 0, in units of the directional"}),
    ("its example prints something else", "sgd", "the_example_in_its_docstring_runs",
     {"        'SGD in place'": "        'SGD'"}),
    ("does not say where it comes from", "sgd", "names_its_source",
     {"arXiv": "", "2019": "", "2305.17333": "", "2605.00650": "", "2605.03869": ""}),
    # objectives
    ("gives a number for each example", "accuracy", "is_one_finite_number_for_a_batch",
     {".float().mean()": ".float()"}),
    ("takes what nobody gives", "accuracy", "is_one_finite_number_for_a_batch",
     {"(outputs, batch, model)": "(outputs, batch, model, tokenizer)"}),
    ("is higher for worse answers", "accuracy", "is_higher_for_better_answers",
     {"== labels": "!= labels"}),
    ("adds the last batch's score", "accuracy", "is_the_same_each_time",
     {"    return score\n": "    last, accuracy.last = getattr(accuracy, 'last', score), score\n    return score + last\n"}),
    ("writes the logits", "accuracy", "does_not_change_what_it_is_given",
     {"logits, labels = outputs.logits": "logits, labels = outputs.logits.mul_(2)"}),
    ("changes the model's mode", "accuracy", "does_not_change_what_it_is_given",
     {"logits, labels = ": "model.eval()\n    logits, labels = "}),
    ("counts differently where there is a graph", "accuracy", "needs_no_gradient_and_leaves_none",
     {"    return score\n": "    return score + logits.requires_grad\n"}),
    ("compares in the dtype of the logits", "accuracy", "outputs_of_half_precision_are_scored_alike",
     {"    return score\n": "    return score * (1 + 1000 * (logits + 1e-3 - logits).mean())\n"}),
    ("draws from the global random state", "accuracy", "leaves_the_global_random_state_alone",
     {"    return score\n": "    return score + 0 * torch.rand(())\n"}),
    ("cannot be pickled", "accuracy", "can_be_pickled",
     {"    return score\n":
      "    return score\n\n\naccuracy = (lambda f: lambda outputs, batch: f(outputs, batch, None))(accuracy)\n"}),
    ("has an argument without a word about it", "accuracy", "its_docstring_has_a_summary_and_every_option",
     {"        model: not": "        not"}),
    ("its example prints something else", "accuracy", "the_example_in_its_docstring_runs",
     {"        0.33\n": "        0.34\n"}),
    ("does not say where it comes from", "accuracy", "names_its_source",
     {", since about 1900": ""}),
    # solvers
    ("is a linear function", "random features", "fits_better_than_the_best_linear_function",
     {"nn.Sequential(first, nn.ReLU(), last)": "nn.Sequential(first, last)",
      "first(inputs).relu()": "first(inputs)"}),
    ("gives float32", "random features", "gives_a_network_of_the_datas_shape_and_dtype",
     {"return nn.Sequential(first, nn.ReLU(), last)": "return nn.Sequential(first, nn.ReLU(), last, _Float())",
      "class RandomFeatures":
      "class _Float(nn.Module):\n    def forward(self, y):\n        return y.float()\n\n\nclass RandomFeatures"}),
    ("draws other features each time", "random features", "the_same_data_give_the_same_network",
     {'noise.stream(0, 0, 0, "features")': 'noise.stream(len(self.seen), 0, 0, "features")',
      "        num, dim = ": "        self.seen = [*self.seen, 1]\n        num, dim = "}),
    ("centres the data in place", "random features", "does_not_change_the_data",
     {"        num, dim = ": "        targets -= targets.mean()\n        num, dim = "}),
    ("leaves gradients off", "random features", "leaves_no_graph",
     {"    @torch.no_grad()\n": "",
      "        num, dim = ": "        torch.set_grad_enabled(False)\n        num, dim = "}),
    ("does not compare lengths", "random features", "wrong_data_are_refused",
     {"if len(inputs) != len(targets)": "if False"}),
    ("takes what is not finite", "random features", "wrong_data_are_refused",
     {"if not (inputs.isfinite().all() and targets.isfinite().all())": "if False"}),
    ("draws from the global random state", "random features", "leaves_the_global_random_state_alone",
     {"        num, dim = ": "        torch.rand(1)\n        num, dim = "}),
    ("keeps the data", "random features", "memory_does_not_grow",
     {"        num, dim = ": "        self.seen.append(inputs)\n        num, dim = "}),
    ("holds what cannot be pickled", "random features", "can_be_pickled",
     {"ridge, []": "ridge, lambda: 0"}),
    ("has an option without a word about it", "random features", "its_docstring_has_a_summary_and_every_option",
     {"        ridge: > 0": "        > 0"}),
    ("has no summary", "random features", "its_docstring_has_a_summary_and_every_option",
     {"Ridge regression on random ReLU features (Rahimi, Recht, 2008).": "Rahimi, Recht, 2008"}),
    ("its example fails", "random features", "the_example_in_its_docstring_runs",
     {"RandomFeatures(width=3).width": "RandomFeatures(features=3).width"}),
    ("does not say where it comes from", "random features", "names_its_source",
     {" (Rahimi, Recht, 2008)": ""}),
    # tasks
    ("has a budget of nothing", "rings", "says_how_it_is_trained_and_measured",
     {"budget = 8, 30": "budget = 8, 0"}),
    ("has an optimizer that nobody knows", "rings", "says_how_it_is_trained_and_measured",
     {"budget = 8, 30": 'budget, optimizer = 8, 30, "lion"'}),
    ("is no Task", "rings", "says_how_it_is_trained_and_measured",
     {"class Rings(Task)": "class Rings"}),
    ("seeds its models itself", "rings", "a_model_is_a_function_of_the_seed",
     {"        return nn.Sequential(": "        torch.manual_seed(0)\n        return nn.Sequential("}),
    ("draws its models from no seed", "rings", "a_model_is_a_function_of_the_seed",
     {"        return nn.Sequential(":
      "        torch.default_generator.seed()\n        return nn.Sequential("}),
    ("makes one model", "rings", "a_model_is_new_each_time",
     {"    def model(self):": "    def model(self):\n        self.made = getattr(self, 'made', None) or self.new()\n"
      "        return self.made\n\n    def new(self):"}),
    ("freezes all of it", "rings", "a_model_is_new_each_time",
     {"nn.Linear(self.width, 2))": "nn.Linear(self.width, 2)).requires_grad_(False)"}),
    ("gives three parts in a tuple", "rings", "has_examples_in_three_parts",
     {"return Parts(a, b, c)": "return a, b, c"}),
    ("has nothing to validate on", "rings", "has_examples_in_three_parts",
     {"slice(60, 80)": "slice(80, 80)"}),
    ("tests on what it validated on", "rings", "parts_are_apart",
     {"slice(80, 100)": "slice(79, 99)"}),
    ("validates on what it has learned", "rings", "parts_are_apart",
     {"slice(60, 80)": "slice(59, 79)"}),
    ("draws other examples each time", "rings", "the_same_seed_gives_the_same_parts",
     {".manual_seed(seed)": ".manual_seed(self.count)",
      "generator = ": "self.count = getattr(self, 'count', 0) + 1\n        generator = "}),
    ("draws other examples in each task", "rings", "the_same_seed_gives_the_same_parts",
     {".manual_seed(seed)": ".manual_seed(id(self) % 2**31)",
      "def __init__(self, data=None, width=8):\n": "def __init__(self, data=None, width=8):\n        KEPT.append(self)\n",
      "class Rings": "KEPT = []\n\n\nclass Rings"}),
    ("seals its test examples once for all runs", "rings", "each_run_looks_at_its_test_examples_once",
     {"return Parts(a, b, c)": "self.kept = getattr(self, 'kept', None) or Parts(a, b, c)\n        return self.kept"}),
    ("looks at its test examples", "rings", "each_run_looks_at_its_test_examples_once",
     {"return Parts(a, b, c)": "found = Parts(a, b, c)\n        found.test.look()\n        return found"}),
    ("hides its tensors in an object", "rings", "a_batch_can_be_moved_to_a_device",
     {"a, b, c = (Tensors(": "a, b, c = (Hidden(",
      "class Rings": "class Pair:\n    def __init__(self, columns):\n        self.columns = columns\n\n\n"
      "class Hidden(Part):\n    def __init__(self, *columns):\n        self.part = Tensors(*columns)\n\n"
      "    def __len__(self):\n        return len(self.part)\n\n"
      "    def batch(self, chosen):\n        return (chosen, Pair(self.part.batch(chosen)))\n\n\nclass Rings",
      "import Parts": "import Part, Parts"}),
    ("has a loss for each example", "rings", "the_loss_is_a_finite_scalar_with_a_gradient",
     {"    def parts": OWN_LOSS.format("nn.functional.cross_entropy(model(batch[0]), batch[1], reduction='none')")}),
    ("has a loss without a gradient", "rings", "the_loss_is_a_finite_scalar_with_a_gradient",
     {"    def parts": OWN_LOSS.format("super().loss(model, batch).detach()")}),
    ("has a loss that is infinite", "rings", "the_loss_is_a_finite_scalar_with_a_gradient",
     {"    def parts": OWN_LOSS.format("super().loss(model, batch) / 0")}),
    ("calls the model twice", "rings", "the_loss_calls_the_model_once",
     {"    def parts": OWN_LOSS.format("(super().loss(model, batch) + super().loss(model, batch)) / 2")}),
    ("calls a part of the model", "rings", "the_loss_calls_the_model_once",
     {"    def parts": OWN_LOSS.format("super().loss(lambda x: model[2](model[1](model[0](x))), batch)")}),
    ("adds the losses up", "rings", "the_loss_is_a_mean_over_the_batch",
     {"    def parts": OWN_LOSS.format("super().loss(model, batch) * len(batch[1])")}),
    ("has no labels for its batches", "rings", "gives_the_labels_of_a_batch",
     {"    def parts": "    def targets(self, batch):\n        return batch['labels']\n\n    def parts"}),
    ("has a quality that is not a number", "rings", "quality_is_finite_and_none_is_better_than_perfect",
     {"    def parts": OWN_SCORE.format("float('nan'), len(batch[1])")}),
    ("says that less is better", "rings", "quality_is_finite_and_none_is_better_than_perfect",
     {"budget = 8, 30": "budget, higher_is_better = 8, 30, False"}),
    ("measures accuracy in per cent of 1", "rings", "right_answers_are_perfect",
     {"budget = 8, 30": "budget, perfect = 8, 30, 100.0"}),
    ("scores by a mean", "rings", "quality_does_not_depend_on_how_a_part_is_cut",
     {"    def parts": OWN_SCORE.format("super().score(model, batch)[0] / len(batch[1]) ** 2, 1")}),
    ("trains where it measures", "rings", "measuring_does_not_change_the_model",
     {"    def parts": OWN_SCORE.format("super().score(model.train(), batch)")}),
    ("draws its points from the global random state", "rings", "leaves_the_global_random_state_alone",
     {", generator=generator": ""}),
    ("reads its file without a look", "rings", "what_is_missing_is_told_with_what_to_fetch",
     {"located(self.data, \"rings\", [\"points.pt\"], get_it=\"It is at https://example.org/points.pt.\")":
      "open(self.data / 'points.pt')"}),
    ("takes no folder for a folder", "rings", "what_is_missing_is_told_with_what_to_fetch",
     {"if self.data is not None:": "if self.data is None:\n            self.data / 'rings'\n        else:"}),
    ("has an option without a word about it", "rings", "its_docstring_has_a_summary_and_every_option",
     {"        width: of": "        of"}),
    ("its example prints something else", "rings", "the_example_in_its_docstring_runs",
     {"        20\n": "        21\n"}),
    ("does not say where it comes from", "rings", "names_its_source",
     {"(new here)": ""}),
    # commands
    ("knows no --help", "greet", "help_says_how_it_is_used",
     {'prog="localplug greet"': 'prog="localplug greet", add_help=False'}),
    ("raises for a wrong option", "greet", "a_wrong_option_is_refused_without_a_traceback",
     {'prog="localplug greet"': 'prog="localplug greet", exit_on_error=False',
      "parser.parse_args(argv)": "parser.parse_args([a for a in argv if a != '--no-such-option-of-this-command' or [][0]])"}),
    ("takes any option", "greet", "a_wrong_option_is_refused_without_a_traceback",
     {"options = parser.parse_args(argv)": "options, _ = parser.parse_known_args(argv)"}),
]
# fmt: on


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_subjects_pass_every_check(subject, monkeypatch, capsys):
    kit, source, made_of = SUBJECTS[subject]
    assert not all_failures(kit, made_of(loaded(source, monkeypatch)), capsys)


@pytest.mark.parametrize(
    ("subject", "killer", "changes"), [m[1:] for m in MUTANTS], ids=[f"{m[1]}: {m[0]}" for m in MUTANTS]
)
def test_a_mutant_is_killed(subject, killer, changes, monkeypatch, capsys):
    kit, source, made_of = SUBJECTS[subject]
    assert_killed(kit, killer, made_of(loaded(changed(source, changes), monkeypatch)), capsys)


def test_every_check_of_the_kit_kills_a_mutant():
    assert not unproved(SUBJECTS, MUTANTS)


def test_the_table_counts_them():
    assert counts(SUBJECTS, MUTANTS) == TABLE
