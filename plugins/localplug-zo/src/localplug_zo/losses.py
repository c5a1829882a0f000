"""Reading losses: in float32 or better, whatever the model computes in."""

from collections.abc import Sequence

from torch import Tensor

from localplug import EngineError, read


def scalar(leaves: Sequence[Tensor], what: str) -> Tensor:
    """The loss, for what is not linear in it and so cannot be had from other outputs by the chain rule.

    Raises:
        EngineError: the loss is built on other outputs of the model.
    """
    if len(leaves) != 1 or leaves[0].dim() != 0:
        raise EngineError(
            f"{what} needs the loss itself, and this trainer builds its loss outside the model, on outputs of shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}; let the model compute its loss (labels= in the batch, no label "
            "smoothing), or use a method that goes by slopes alone, such as mezo"
        )
    return read(leaves)[0]


def mean(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Of each leaf, over the evaluations."""
    return [sum(values[1:], values[0]) / len(values) for values in zip(*outputs, strict=True)]


def checked(eps: float, num_directions: int, least: int = 1) -> tuple[float, int]:
    """(eps, num_directions) as numbers.

    Raises:
        ValueError: eps is not positive, or num_directions is no integer of at least `least`; says both.
    """
    wrong = []
    if not eps > 0:
        wrong.append(f"eps must be positive, got {eps!r}")
    if not (isinstance(num_directions, int) and num_directions >= least):
        wrong.append(f"num_directions must be an integer of at least {least}, got {num_directions!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return float(eps), num_directions
