"""The conformance kit's own test: sources that pass all of its checks, each broken in one place, and the check that tells.

A mutant is a replacement in a source text. It is loaded as a module, and must fail the check that is named beside it, by
that check's own assertion; a crash on the way there (a TypeError, say) is a bad mutant and not a good check.
"""

import textwrap

import pytest

import localplug
from localplug.testing import LocalLossTests, MethodTests, TargetGeneratorTests, UpdateRuleTests
from mutants import all_failures, assert_killed, changed, counts, loaded, source_of, unproved

# How many mutants each class of the kit is tried on here; those of the parts of a zeroth-order method, of objectives, solvers
# and commands are in test_kit_part_mutants.py, those of quantizers in test_quantizer_kit.py.
TABLE = {"LocalLossTests": 15, "MethodTests": 48, "TargetGeneratorTests": 20, "UpdateRuleTests": 18}

# An in-place perturbation with momentum: what can go wrong in it does not go wrong in mezo, which keeps no state and
# never writes the weights.
HEAVY_BALL = textwrap.dedent('''
    import torch
    from localplug import Method, Projection, noise


    class HeavyBall(Method):
        """Two-sided differences along one normal direction, with momentum (Polyak, 1964).

        Args:
            eps: half-width.
            momentum: share of the last step that is taken again.

        Example:
            >>> HeavyBall(momentum=0.9).describe()
            'heavy ball'
        """

        def __init__(self, eps=1e-3, momentum=0.5):
            self.eps, self.momentum, self.velocity, self.log, self.calls = eps, momentum, {}, [], 0

        num_evaluations = 2
        num_coefficients = 1

        def describe(self):
            return "heavy ball"

        def problems(self, run):
            found = ["one direction a step"] if run.num_workers_apart > 1 else []
            return found + [f"{n} would be rounded" for n, p in run.parameters if p.element_size() < 4]

        def setup(self, run):
            pass

        def z(self, run, name, p):
            seed = noise.stream(run.seed, run.step, 0, name) >> 1
            return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))

        def shift(self, run, scale):
            for name, p in run.parameters:
                p.data += scale * self.eps * self.z(run, name, p)

        def estimate(self, run):
            self.shift(run, +1)
            try:
                (plus,) = yield
                plus = plus.clone()
            finally:
                self.shift(run, -1)
            self.shift(run, -1)
            try:
                (minus,) = yield
            finally:
                self.shift(run, +1)
            return Projection([(plus + minus) / 2], [[(plus - minus) / (2 * self.eps)]])

        def update(self, run, coefficients, groups):
            for name, p in run.parameters:
                lr, decay = groups[p]["lr"], groups[p]["weight_decay"]
                v = self.velocity.get(name, torch.zeros(()))
                self.velocity[name] = self.momentum * v + coefficients[0] * self.z(run, name, p)
                p.data -= lr * (self.velocity[name] + decay * p.data)

        def teardown(self):
            pass

        def state_dict(self):
            return {"velocity": dict(self.velocity)}

        def load_state_dict(self, state):
            self.velocity = dict(state["velocity"])
''')

LISTED = 'return found + [f"{n} would be rounded" for n, p in run.parameters if p.element_size() < 4]'
FINALLY = """finally:
            self.shift(run, -1)"""
LAST_LINE = "p.data -= lr * (self.velocity[name] + decay * p.data)"


# name: (kit, source, from the module to what the kit's fixture `make`, or `loss`, gives)
SUBJECTS = {
    "heavy ball": (MethodTests, HEAVY_BALL, lambda m: lambda: m.HeavyBall()),
    "mezo": (MethodTests, source_of("localplug_zo.mezo"), lambda m: lambda: m.MeZO(num_directions=2)),
    "two-sided": (
        MethodTests,
        source_of("localplug_zo.two_sided"),
        lambda m: lambda: localplug.ZerothOrder(m.TwoSided(num_directions=2), localplug.update("sgd")),
    ),
    "updates": (
        MethodTests,
        source_of("localplug_zo.updates"),
        lambda m: lambda: localplug.ZerothOrder(localplug.estimator("two-sided", num_directions=2), m.SGD()),
    ),
    "tpsgd": (MethodTests, source_of("localplug_tpsgd.tpsgd"), lambda m: lambda: m.TPSGD()),
    "sign": (UpdateRuleTests, source_of("localplug_zo.sign"), lambda m: lambda p: m.SignSGD(p, lr=1e-2)),
    "projection": (
        TargetGeneratorTests,
        source_of("localplug_tpsgd.projection"),
        lambda m: lambda: m.TargetProjection(),
    ),
    "l1": (LocalLossTests, source_of("localplug_tpsgd.losses"), lambda m: m.l1),
    "l2": (LocalLossTests, source_of("localplug_tpsgd.losses"), lambda m: m.l2),
}

# (what is wrong, subject, the check that must fail, {old text: new text})
# fmt: off
MUTANTS = [
    # methods
    ("steps uphill", "heavy ball", "lowers_the_loss",
     {"p.data -= lr *": "p.data += lr *"}),
    ("asks for one evaluation more than it says", "heavy ball", "evaluates_as_often_as_it_says",
     {"        self.shift(run, +1)\n": "        yield\n        self.shift(run, +1)\n"}),
    ("asks for one evaluation less than it says", "heavy ball", "evaluates_as_often_as_it_says",
     {"num_evaluations = 2": "num_evaluations = 3"}),
    ("does not restore the weights", "heavy ball", "an_evaluation_does_not_write_the_weights",
     {FINALLY: "finally:\n            pass"}),
    ("does not restore after an evaluation that fails", "heavy ball",
     "a_failing_evaluation_leaves_weights_and_gradients_as_they_were",
     {"    finally:\n            self.shift(run, -1)":
      "    except ZeroDivisionError:\n            pass\n        self.shift(run, -1)"}),
    ("stays in evaluation mode when an evaluation fails", "heavy ball",
     "a_failing_evaluation_leaves_weights_and_gradients_as_they_were",
     {"        self.shift(run, +1)\n        try:":
      "        self.shift(run, +1)\n        run.model.eval()\n        try:",
      "        return Projection": "        run.model.train()\n        return Projection"}),
    ("reports half of the loss", "heavy ball", "reports_the_loss_of_the_batch",
     {"[(plus + minus) / 2]": "[(plus + minus) / 4]"}),
    ("updates, and leaves a gradient as well", "heavy ball", "changes_the_weights_or_leaves_gradients_and_never_both",
     {LAST_LINE: LAST_LINE + "\n            p.grad = self.velocity[name].clone()"}),
    ("leaves a gradient on frozen weights", "heavy ball", "changes_the_weights_or_leaves_gradients_and_never_both",
     {LAST_LINE: LAST_LINE + "\n        for p in run.model.parameters():\n"
      "            p.grad = None if p.requires_grad else torch.zeros_like(p)"}),
    ("draws one direction where workers draw different ones", "heavy ball",
     "directions_of_several_workers_are_drawn_and_applied_or_refused",
     {'["one direction a step"] if run.num_workers_apart > 1 else []': "[]"}),
    ("evaluates the first worker's directions on all", "two-sided",
     "directions_of_several_workers_are_drawn_and_applied_or_refused",
     {"        return list(raw)": "        return list(raw)\n\n    def estimate(self, run, perturbed):\n"
      "        run.first_direction = 0\n        return (yield from super().estimate(run, perturbed))"}),
    ("applies its own worker's coefficients alone", "updates",
     "directions_of_several_workers_are_drawn_and_applied_or_refused",
     {"sgd_update(run, directions, coefficients, groups)": "sgd_update(run, directions, coefficients[:2], groups)"}),
    ("draws from the global random state", "heavy ball", "leaves_the_global_random_state_as_one_forward_pass_would",
     {"return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))":
      "torch.manual_seed(seed)\n        return torch.randn(p.shape)"}),
    ("is not seeded", "heavy ball", "the_same_seed_repeats_the_run",
     {"noise.stream(run.seed,": "noise.stream(id(self),"}),
    ("ignores the seed", "heavy ball", "another_seed_makes_another_run",
     {"noise.stream(run.seed,": "noise.stream(0,"}),
    ("repeats the first step's direction", "heavy ball", "steps_differ",
     {"run.step, 0, name)": "0, 0, name)",
      "momentum=0.5": "momentum=0.0"}),
    ("forgets its state in a checkpoint", "heavy ball", "a_resumed_run_equals_the_uninterrupted_one",
     {'return {"velocity": dict(self.velocity)}': "return {}",
      'dict(state["velocity"])': "{}"}),
    ("counts its steps itself and forgets the count", "heavy ball", "a_resumed_run_equals_the_uninterrupted_one",
     {"seed = noise.stream(run.seed, run.step,": "seed = noise.stream(run.seed, self.calls,",
      "    def update(self, run, coefficients, groups):\n":
      "    def update(self, run, coefficients, groups):\n        self.calls += 1\n"}),
    ("puts objects in a checkpoint", "heavy ball", "a_resumed_run_equals_the_uninterrupted_one",
     {'return {"velocity": dict(self.velocity)}': 'return {"velocity": dict(self.velocity), "owner": Method}'}),
    ("trains frozen weights", "heavy ball", "frozen_parameters_stay",
     {"in run.parameters:\n            lr,": "in run.model.named_parameters():\n            lr,",
      "groups[p]": "groups.get(p, {'lr': 0.05, 'weight_decay': 0.0})"}),
    ("ignores the learning rate", "heavy ball", "the_optimizers_learning_rate_scales_the_step",
     {'groups[p]["lr"]': "0.05"}),
    ("takes the first group's learning rate for all", "heavy ball", "the_learning_rate_is_taken_by_parameter_group",
     {'groups[p]["lr"]': 'next(iter(groups.values()))["lr"]'}),
    ("ignores the weight decay", "heavy ball", "the_optimizers_weight_decay_shrinks_the_weights",
     {"decay * p.data": "0 * p.data"}),
    ("draws anew for every micro-batch", "heavy ball", "two_halves_of_a_step_equal_the_step",
     {"run.step, 0, name)": "self.calls, 0, name)",
      "    def estimate(self, run):\n": "    def estimate(self, run):\n        self.calls += 1\n"}),
    ("keeps all of its past in a checkpoint", "heavy ball", "memory_of_the_method_does_not_grow",
     {'return {"velocity": dict(self.velocity)}': 'return {"velocity": dict(self.velocity), "log": self.log}',
      "            p.data -=": "            self.log.append(self.velocity[name])\n            p.data -="}),
    ("keeps all of its past out of a checkpoint", "heavy ball", "memory_of_the_method_does_not_grow",
     {"            p.data -=": "            self.log.append(coefficients[0])\n            p.data -="}),
    ("leaves a hook on the model", "heavy ball", "teardown_takes_its_hooks_off_the_model",
     {"    def setup(self, run):\n        pass":
      "    def setup(self, run):\n        run.model.register_forward_hook(lambda *_: None)"}),
    ("has an option without a word about it", "heavy ball", "its_docstring_has_a_summary_and_every_option",
     {"eps=1e-3, momentum=0.5": "eps=1e-3, momentum=0.5, s=1"}),
    ("describes itself in two lines", "heavy ball", "describes_itself_in_one_line",
     {'"heavy ball"': '"heavy\\nball"'}),
    ("freezes what it trains", "heavy ball", "leaves_no_gradient_and_no_graph_behind",
     {LAST_LINE: LAST_LINE + "\n            p.requires_grad_(False)"}),
    ("puts other parameters into the model", "heavy ball", "leaves_no_gradient_and_no_graph_behind",
     {LAST_LINE: LAST_LINE + "\n        run.model[0].bias = torch.nn.Parameter(run.model[0].bias.detach().clone())"}),
    ("leaves its rounding in half precision", "heavy ball", "half_precision_is_kept_or_refused",
     {LISTED: "return found"}),
    ("steps of half precision are not finite", "heavy ball", "half_precision_is_kept_or_refused",
     {LISTED: "return found",
      "p.data += scale * self.eps * self.z(run, name, p)": "pass",
      "p.data -= lr * (self.velocity[name]": "p.data -= lr * (self.velocity[name] + p.data.new_tensor(1e-12).reciprocal()"}),
    ("draws by the name that a wrapper gives", "heavy ball", "a_wrapper_round_the_model_changes_nothing",
     {"run.step, 0, name)": "run.step, 0, {id(q): n for n, q in run.model.named_parameters()}[id(p)])"}),
    ("holds what cannot be pickled", "heavy ball", "can_be_pickled",
     {"{}, [], 0\n": "{}, [], 0\n        self.schedule = lambda step: 1.0\n"}),
    ("its example prints something else", "heavy ball", "the_example_in_its_docstring_runs",
     {"'heavy ball'": "'light ball'"}),
    ("has no example", "heavy ball", "the_example_in_its_docstring_runs",
     {">>> HeavyBall": "HeavyBall"}),
    ("does not say where it comes from", "heavy ball", "names_its_source",
     {" (Polyak, 1964)": ""}),
    ("has the sign of its slopes wrong", "two-sided", "lowers_the_loss",
     {"(p - m) / (2 * self.eps)": "(m - p) / (2 * self.eps)"}),
    ("takes one direction's slope for another's", "updates", "lowers_the_loss",
     {"sgd_update(run, directions, coefficients,": "sgd_update(run, directions, coefficients[::-1],"}),
    ("evaluates without perturbing", "two-sided", "lowers_the_loss",
     {"[(j, sign * self.eps) for": "[(j, 0.0) for"}),
    ("miscounts its evaluations", "two-sided", "evaluates_as_often_as_it_says",
     {"        return list(raw)":
      "        return list(raw)\n\n    @property\n    def num_evaluations(self):\n        return self.num_directions + 1"}),
    ("adds the directions' losses up", "two-sided", "reports_the_loss_of_the_batch",
     {"Projection(mean(outputs), slopes)": "Projection([len(outputs) * m for m in mean(outputs)], slopes)"}),
    ("updates in both ways", "updates", "changes_the_weights_or_leaves_gradients_and_never_both",
     {"        sgd_update(run, directions, coefficients, groups)\n\n\n@final\nclass Sign":
      "        sgd_update(run, directions, coefficients, groups)\n        write_gradients(run, directions, coefficients)\n\n\n"
      "@final\nclass Sign"}),
    ("describes itself by nothing", "mezo", "describes_itself_in_one_line",
     {"return self._method.describe()": 'return "" and self._method.describe()'}),
    ("has an option without a word about it", "mezo", "its_docstring_has_a_summary_and_every_option",
     {"        strict: Literal": "        num_steps: int = 1,\n        strict: Literal"}),
    ("draws targets from no seed", "tpsgd", "the_same_seed_repeats_the_run",
     {"seed=run.seed)\n        if self._delta": "seed=id(self))\n        if self._delta"}),
    ("draws targets from one seed", "tpsgd", "another_seed_makes_another_run",
     {"seed=run.seed)\n        if self._delta": "seed=0)\n        if self._delta"}),
    # update rules
    ("steps uphill", "sign", "lowers_a_quadratic",
     {".sub_(p.grad.sign()": ".add_(p.grad.sign()"}),
    ("does not step", "sign", "lowers_a_quadratic",
     {'p.grad.sign().mul_(group["lr"])': "p.grad.sign().mul_(0.0)"}),
    ("ignores the learning rate", "sign", "a_learning_rate_of_zero_moves_nothing",
     {'.mul_(group["lr"]))': ".mul_(0.01))"}),
    ("has no learning rate", "sign", "is_an_optimizer_with_a_learning_rate",
     {'{"lr": lr, ': '{"step_size": lr, ',
      'group["lr"]': 'group["step_size"]'}),
    ("moves weights without a gradient", "sign", "leaves_parameters_without_a_gradient_alone",
     {"                if p.grad is not None:\n":
      "                if p.grad is None:\n                    p.mul_(1 - group['lr'])\n                else:\n"}),
    ("writes the sign into the gradient", "sign", "does_not_change_the_gradient",
     {"p.grad.sign()": "p.grad.sign_()"}),
    ("draws from the global random state", "sign", "leaves_the_global_random_state_alone",
     {"p.grad.sign()": "(p.grad + 1e-3 * torch.randn_like(p)).sign()"}),
    ("is not seeded", "sign", "the_same_gradients_make_the_same_steps",
     {"p.grad.sign()":
      "(torch.rand(p.shape, generator=torch.Generator().manual_seed(id(p) % 2**32)) + p.grad.sign())"}),
    ("keeps momentum where no checkpoint finds it", "sign", "resumes_from_its_state_dict",
     {"p.grad.sign()": "self.__dict__.setdefault('m', torch.zeros_like(p)).add_(p.grad).sign()"}),
    ("takes the first group's learning rate for all", "sign", "takes_the_learning_rate_of_each_group",
     {'p.grad.sign().mul_(group["lr"])': 'p.grad.sign().mul_(self.param_groups[0]["lr"])'}),
    ("calls the closure twice", "sign", "a_closure_that_raises_leaves_the_weights_alone",
     {"loss = closure()": "loss = closure() + 0 * closure()"}),
    ("steps before the closure", "sign", "a_closure_that_raises_leaves_the_weights_alone",
     {"                loss = closure()":
      "                self.param_groups[0]['params'][0].data.sub_(0.1)\n                loss = closure()"}),
    ("divides by what half precision rounds to zero", "sign", "half_precision_is_kept",
     {"p.grad.sign()": "(p.grad / p.grad.square().add(1e-12).sqrt())"}),
    ("keeps all gradients", "sign", "memory_does_not_grow",
     {"p.grad.sign()": "(self.state[p].setdefault('log', []).append(p.grad.clone()) or p.grad.sign())"}),
    ("holds what cannot be pickled", "sign", "can_be_pickled",
     {'"weight_decay": weight_decay}': '"weight_decay": weight_decay, "schedule": lambda step: lr}'}),
    ("has an option without a word about it", "sign", "its_docstring_has_a_summary_and_every_option",
     {"weight_decay: decoupled": "decay: decoupled"}),
    ("its example prints something else", "sign", "the_example_in_its_docstring_runs",
     {"[1.5, -2.5]": "[1.5, 2.5]"}),
    ("does not say where it comes from", "sign", "names_its_source",
     {"2019": "soon"}),
    # target generators
    ("draws from the global random state", "projection", "leaves_the_global_random_state_alone",
     {"matrix(seed, ": "torch.rand(1).mul_(0) + matrix(seed, "}),
    ("ignores the seed", "projection", "is_a_function_of_seed_and_unit",
     {"matrix(seed, ": "matrix(0, "}),
    ("ignores the unit", "projection", "is_a_function_of_seed_and_unit",
     {"unit.index,": "0,"}),
    ("keeps the first seed's targets", "projection", "is_a_function_of_seed_and_unit",
     {"key = (seed, unit.index, K, D, device)": "key = (0, unit.name, K, D, device)"}),
    ("keeps the first unit's targets", "projection", "is_a_function_of_seed_and_unit",
     {"key = (seed, unit.index, K, D, device)": 'key = (seed, "", K, D, device)'}),
    ("draws anew for every call", "projection", "is_a_function_of_seed_and_unit",
     {"if key not in self._cache:":
      "seed += len(self._cache)\n        key = (seed, unit.index, K, D, device)\n        if True:"}),
    ("gives every class the same target", "projection", "examples_of_one_class_share_a_target_and_others_do_not",
     {"t_BD = (targets_BK @": "t_BD = (torch.ones_like(targets_BK) @"}),
    ("gives every example its own target", "projection", "examples_of_one_class_share_a_target_and_others_do_not",
     {"t_BD = (targets_BK @": "t_BD = (torch.arange(1.0, 1 + len(targets_BK))[:, None] * targets_BK @"}),
    ("centres the targets of a batch", "projection", "does_not_depend_on_the_rest_of_the_batch",
     {"        between = ": "        t_BD = t_BD - t_BD.mean(0)\n        between = "}),
    ("leaves out the positions", "projection", "a_target_is_shaped_like_the_output",
     {".expand_as(output)": ""}),
    ("leaves the target in float32", "projection", "a_target_is_shaped_like_the_output",
     {"output.device)).to(output.dtype)": "output.device))"}),
    ("follows the output", "projection", "does_not_depend_on_the_output",
     {"        between = ": "        t_BD = t_BD + output.flatten(1)[:, : t_BD.shape[1]]\n        between = "}),
    ("scales the labels in place", "projection", "does_not_change_what_it_is_given",
     {"(targets_BK @": "(targets_BK.mul_(2) @"}),
    ("hands out what it keeps", "projection", "does_not_change_what_it_is_given",
     {"return t_BD.view(t_BD.shape[0], *between, t_BD.shape[-1]).expand_as(output)":
      "return self.__dict__.setdefault('made', t_BD)"}),
    ("carries the output's graph", "projection", "a_target_has_no_graph",
     {"        between = ": "        t_BD = t_BD + 0 * output.mean()\n        between = "}),
    ("keeps a target for each call", "projection", "memory_does_not_grow",
     {"        return self._cache[key]":
      "        self._cache[len(self._cache)] = self._cache[key].clone()\n        return self._cache[key]"}),
    ("holds what cannot be pickled", "projection", "can_be_pickled",
     {"self.scale = float(scale)": "self.scale = float(scale)\n        self.schedule = lambda step: scale"}),
    ("has an option without a word about it", "projection", "its_docstring_has_a_summary_and_every_option",
     {"scale: largest": "largest"}),
    ("its example prints something else", "projection", "the_example_in_its_docstring_runs",
     {"torch.Size([4, 3])": "torch.Size([3, 4])"}),
    ("does not say where it comes from", "projection", "names_its_source",
     {"2022, arXiv:2208.08503": "to appear"}),
    # local losses
    ("rises towards the target", "l2", "is_smaller_at_the_target",
     {"return 0.5 * (output": "return -0.5 * (output"}),
    ("falls against its gradient", "l2", "falls_along_its_gradient",
     {"return 0.5 * (output - target).square().sum() / positions(output)": "return _Turned.apply(output, target)",
      "def l2(":
      "class _Turned(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, output, target):\n"
      "        ctx.save_for_backward(output, target)\n"
      "        return 0.5 * (output - target).square().sum() / positions(output)\n\n    @staticmethod\n"
      "    def backward(ctx, g):\n        output, target = ctx.saved_tensors\n"
      "        return g * (target - output), None\n\n\ndef l2("}),
    ("sums over the examples", "l2", "is_an_average_over_examples",
     {"square().sum() / positions(output)": "square().sum() / (positions(output) // len(output))"}),
    ("sums over the positions", "l2", "is_an_average_over_positions",
     {"square().sum() / positions(output)": "square().sum() / len(output)"}),
    ("has one value for each example", "l2", "is_a_finite_scalar_with_a_gradient",
     {"square().sum() / positions(output)": "square().flatten(1).sum(1)"}),
    ("has no gradient", "l1", "is_a_finite_scalar_with_a_gradient",
     {"torch.abs(output - target)": "torch.abs((output - target).detach() + 0 * output)"}),
    ("is infinite", "l1", "is_a_finite_scalar_with_a_gradient",
     {"torch.abs(output - target)": "torch.abs(output - target).div(0)"}),
    ("sums over the examples", "l1", "is_an_average_over_examples",
     {"return torch.abs(output - target).sum() / positions(output)": "return torch.abs(output - target).sum()"}),
    ("overwrites the target", "l1", "does_not_change_what_it_compares",
     {"torch.abs(output - target)": "torch.abs(target.data.sub_(output.detach()) + (output - output.detach()))"}),
    ("overflows in half precision", "l2", "half_precision_is_close_to_float32",
     {"0.5 * (output - target)": "0.5e-8 * (1e4 * (output - target))"}),
    ("adds noise from the global random state", "l1", "has_one_value_and_leaves_the_global_random_state_alone",
     {"return torch.abs(output - target)": "return torch.abs(output - target + 1e-4 * torch.randn_like(output))"}),
    ("cannot be pickled", "l2", "can_be_pickled",
     {"def delta_l2(": "l2 = (lambda f: lambda output, target: f(output, target))(l2)\n\n\ndef delta_l2("}),
    ("has an argument without a word about it", "l2", "its_docstring_has_a_summary_and_every_option",
     {"output, target: (B, D)": "output: (B, D)"}),
    ("its example prints something else", "l2", "the_example_in_its_docstring_runs",
     {"        2.0\n": "        4.0\n"}),
    ("does not say where it comes from", "l2", "names_its_source",
     {" (arXiv:2208.08503)": ""}),
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


class Replaced(LocalLossTests):
    def test_can_be_pickled(self, loss):
        pass


class ReplacedUnderAMarkWithoutAReason(LocalLossTests):
    @pytest.mark.xfail
    def test_can_be_pickled(self, loss):
        pass


class ReplacedUnderAnEmptyReason(LocalLossTests):
    @pytest.mark.skip(reason=" ")
    def test_can_be_pickled(self, loss):
        pass


class TakenOut(LocalLossTests):
    test_can_be_pickled = None


class ReplacedByAClassBetween(Replaced):
    pass


class ExpectedWithoutAReason(LocalLossTests):
    expected_failures = {"test_can_be_pickled": ""}  # noqa: RUF012


class ExpectedUnderNoChecksName(LocalLossTests):
    expected_failures = {"test_can_be_pickeld": "it holds a lambda"}  # noqa: RUF012


class WithReasons(LocalLossTests):
    expected_failures = {"test_is_an_average_over_examples": "it is a sum"}  # noqa: RUF012

    @pytest.mark.xfail(reason="it holds a lambda")
    def test_can_be_pickled(self, loss):
        pass

    @pytest.mark.skip("it is a sum")
    def test_is_an_average_over_positions(self, loss):
        pass

    def test_is_a_sum(self, loss):
        """A check of its own."""


@pytest.mark.parametrize(
    "tests",
    [
        Replaced,
        ReplacedUnderAMarkWithoutAReason,
        ReplacedUnderAnEmptyReason,
        TakenOut,
        ReplacedByAClassBetween,
        ExpectedWithoutAReason,
        ExpectedUnderNoChecksName,
    ],
)
def test_a_check_that_is_replaced_without_a_reason_is_told(tests):
    with pytest.raises(AssertionError, match=r"test_can_be_pick(led|eld).* is replaced without a reason"):
        tests().test_overrides_no_check_without_a_reason()


def test_a_check_may_be_replaced_with_a_reason():
    WithReasons().test_overrides_no_check_without_a_reason()
