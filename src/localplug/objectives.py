"""Train on what has no gradient: a score of the model's output, or of the model itself, in the place of its loss."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug.contract import Method
from localplug.errors import EngineError
from localplug.output import Output

PARAMETERS = ("outputs", "batch", "model")


@final
class Objective:
    """Evaluates a score where a model would give its loss: loss = -score, so that training raises the score.

    Args:
        score: a callable that takes one or more of these by name, and gives a number or a tensor with one element, higher is
            better:
                outputs   what the model's forward returned
                batch     {name: value} of the arguments that the forward was called with
                model     the model, at the weights that are evaluated
            Without `outputs` no forward pass is made for it, but in the last evaluation of a step, which is the trainer's.

    Raises:
        TypeError: it is no such callable.
    """

    def __init__(self, score: Callable[..., Any]) -> None:
        if not callable(score):
            raise TypeError(f"objective must be a name or a callable, got {score!r}")
        self.name = getattr(score, "__name__", type(score).__name__)
        self._score = score
        parameters = inspect.signature(score).parameters.values()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._names = [name for name in named if name in PARAMETERS]
        strange = [
            p.name
            for p in parameters
            if p.name not in PARAMETERS and p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        if strange or not self._names:
            raise TypeError(
                f"objective {self.name} takes {strange or 'nothing'}; name its parameters out of {', '.join(PARAMETERS)}"
            )

    @property
    def needs_outputs(self) -> bool:
        """Whether the score is one of the forward's output."""
        return "outputs" in self._names

    def problems(self, method: Method, outputs: Sequence[str] | None) -> list[str]:
        """Every reason why a method cannot train by this."""
        found = []
        if method.needs_derivative:
            found.append(
                f"objective {self.name} has no gradient, and the method needs one; use mezo or another of zeroth order"
            )
        if method.goes_round:
            found.append(
                f"objective {self.name} is evaluated at one point at a time; use another back-end than 'stacked'"
            )
        if method.backpropagates:
            found.append(
                f"objective {self.name} has no gradient, and the method back-propagates {method.backpropagates}"
            )
        if outputs is not None:
            found.append(f"objective {self.name} stands in the place of the loss; leave outputs={tuple(outputs)} out")
        return found

    def judged(self, tree: Any, batch: Mapping[str, Any], model: nn.Module) -> Any:
        """A model's output with -score in the place of its loss.

        Raises:
            EngineError: the output holds no loss that could be replaced.
        """
        output = Output(tree)
        scalars = [i for i, leaf in enumerate(output.leaves) if leaf.dim() == 0]
        if not scalars:
            raise EngineError(
                f"objective= stands in the place of the model's own loss, and its output has none, but {output.names}; pass "
                "the labels to the model"
            )
        place = output.names.index("loss") if "loss" in output.names else scalars[0]
        value = self.loss(tree, batch, model).to(output.leaves[place].device)
        return output.replaced({place: value})

    def loss(self, outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
        """-score, float32, scalar.

        Raises:
            TypeError: the score is not one number.
        """
        given = {"outputs": outputs, "batch": batch, "model": model}
        value = self._score(**{name: given[name] for name in self._names})
        score = torch.as_tensor(value, dtype=torch.float32)
        if score.numel() != 1:
            raise TypeError(f"objective {self.name} must give one number for a batch, gave shape {tuple(score.shape)}")
        return -score.detach().reshape(())


def arguments(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of the arguments of a call."""
    try:
        bound = inspect.signature(forward).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):
        return dict(kwargs)
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def accuracy(outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
    """Share of the labels whose logit is the largest; labels of -100 do not count.

    Shapes: logits (B, K) or (B, T, K), labels (B,) or (B, T). A language model's logits at t are for the label at t + 1.

    Raises:
        ValueError: there are no logits or no labels.
    """
    predicted, labels = _answers(outputs, batch, model)
    return (predicted == labels).float().mean()


def macro_f1(outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
    """Mean over the classes that occur, among labels or answers, of 2 TP / (2 TP + FP + FN). Arguments: see `accuracy`."""
    predicted, labels = _answers(outputs, batch, model)
    scores = []
    for k in torch.cat([predicted, labels]).unique():
        right = ((predicted == k) & (labels == k)).sum()
        scores.append(2 * right / ((predicted == k).sum() + (labels == k).sum()))
    return torch.stack(scores).mean() if scores else torch.zeros(())


def _answers(outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """(answers, labels) of what counts, one-dimensional."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    labels = batch.get("labels")
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
        raise ValueError(
            f"accuracy and f1 need `logits` in the output and `labels` in the batch, which has {sorted(batch)}"
        )
    if logits.dim() == 3 and "CausalLM" in str(getattr(model, "loss_type", type(model).__name__)):
        logits, labels = logits[:, :-1], labels[:, 1:]
    predicted = logits.argmax(-1)
    counted = labels != -100
    return predicted[counted], labels[counted]
