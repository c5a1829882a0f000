"""The conformance kit: subclass one class, write one fixture, and run pytest.

    class TestMine(MethodTests):
        @pytest.fixture
        def make(self):
            return lambda: MyMethod(eps=1e-3)

Each check has a name that says what a method, an update rule, a target generator or a local loss must do. A check may
be expected to fail only with a reason: override it with @pytest.mark.xfail(reason=...).
"""

import pytest

pytest.register_assert_rewrite(
    *(f"localplug.testing.{room}" for room in ("local", "local_method", "method", "update_rule"))
)

from localplug.testing.local import LocalLossTests, TargetGeneratorTests  # noqa: E402
from localplug.testing.local_method import LocalMethodTests  # noqa: E402
from localplug.testing.method import MethodTests  # noqa: E402
from localplug.testing.problem import CurvedProblem, Problem  # noqa: E402
from localplug.testing.update_rule import UpdateRuleTests  # noqa: E402

__all__ = [
    "CurvedProblem",
    "LocalLossTests",
    "LocalMethodTests",
    "MethodTests",
    "Problem",
    "TargetGeneratorTests",
    "UpdateRuleTests",
]
