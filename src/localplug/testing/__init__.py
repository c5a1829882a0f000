"""The conformance kit: subclass one class, write one fixture, and run pytest.

    class TestMine(MethodTests):
        @pytest.fixture
        def make(self):
            return lambda: MyMethod(eps=1e-3)

    hook                           what it gives                  class
    localplug_methods              a Method                       MethodTests
                                   a LocalMethod                  LocalMethodTests
    localplug_estimators           an Estimator                   EstimatorTests
    localplug_perturbations        a Distribution                 DistributionTests
    localplug_selectors            a Selector                     SelectorTests
    localplug_update_rules         a torch.optim.Optimizer        UpdateRuleTests
                                   an Update                      UpdateTests
    localplug_objectives           a score of a batch             ObjectiveTests
    localplug_target_generators    a TargetGenerator              TargetGeneratorTests
    localplug_local_losses         a callable(output, target)     LocalLossTests
    localplug_solvers              a callable(inputs, targets)    SolverTests
    localplug_quantizers           a Quantizer                    QuantizerTests
    localplug_tasks                a Task                         TaskTests
    localplug_commands             a subcommand                   CommandTests

`localplug check --list` prints every check with a line about it, and `localplug check DISTRIBUTION` runs them without a test
file. A check may be expected to fail with a reason, by the class's `expected_failures`, and may be replaced under
@pytest.mark.skip(reason=...) or xfail(reason=...): a check of its own says so.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"localplug.testing.{room}"
        for room in (
            "command",
            "conformance",
            "distribution",
            "estimator",
            "local",
            "local_method",
            "method",
            "objective",
            "quantizer",
            "selector",
            "solver",
            "task",
            "update",
            "update_rule",
        )
    )
)

from localplug.testing.command import CommandTests  # noqa: E402
from localplug.testing.distribution import DistributionTests  # noqa: E402
from localplug.testing.estimator import EstimatorTests  # noqa: E402
from localplug.testing.local import LocalLossTests, TargetGeneratorTests  # noqa: E402
from localplug.testing.local_method import LocalMethodTests  # noqa: E402
from localplug.testing.method import MethodTests  # noqa: E402
from localplug.testing.objective import ObjectiveTests  # noqa: E402
from localplug.testing.problem import CurvedProblem, Problem  # noqa: E402
from localplug.testing.quantizer import QuantizerTests  # noqa: E402
from localplug.testing.selector import SelectorTests  # noqa: E402
from localplug.testing.solver import SolverTests  # noqa: E402
from localplug.testing.task import TaskTests  # noqa: E402
from localplug.testing.update import UpdateTests  # noqa: E402
from localplug.testing.update_rule import UpdateRuleTests  # noqa: E402

__all__ = [
    "CommandTests",
    "CurvedProblem",
    "DistributionTests",
    "EstimatorTests",
    "LocalLossTests",
    "LocalMethodTests",
    "MethodTests",
    "ObjectiveTests",
    "Problem",
    "QuantizerTests",
    "SelectorTests",
    "SolverTests",
    "TargetGeneratorTests",
    "TaskTests",
    "UpdateRuleTests",
    "UpdateTests",
]
