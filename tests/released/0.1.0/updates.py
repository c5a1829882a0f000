"""released-update: the estimate is shortened to a length that it must not exceed (Pascanu, Mikolov, Bengio, 2013).

theta <- (1 - lr weight_decay) theta - lr min(1, length / |c|) (1/q) sum_j c_j z_j
"""

from collections.abc import Sequence
from typing import Any, final

import localplug
from localplug import Directions, Groups, Run, Update, sgd_update

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_update_rules() -> dict[str, Any]:
    return {"released-update": ReleasedUpdate}


@final
class ReleasedUpdate(Update):
    """SGD along the estimate, whose coefficients are scaled down to a norm of at most `length`.

    Args:
        length: largest norm of the coefficients, in units of the loss over parameter units, > 0.

    Raises:
        ValueError: length is not positive.

    Example:
        >>> ReleasedUpdate(length=2.0).describe()
        'released-update, length 2'
    """

    def __init__(self, length: float = 1e6) -> None:
        if not length > 0:
            raise ValueError(f"released-update: length must be positive, got {length!r}")
        self.length = float(length)

    def describe(self) -> str:
        return f"released-update, length {self.length:g}"

    def problems(self, run: Run) -> list[str]:
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        pass

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        norm = sum(c * c for c in coefficients) ** 0.5
        scale = min(1.0, self.length / norm) if norm else 1.0
        sgd_update(run, directions, [scale * c for c in coefficients], groups)
