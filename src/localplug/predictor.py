"""A trained model with a method's own way to predict as its forward pass."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from localplug.checks import trainable
from localplug.contract import Method, Prediction, Run
from localplug.recipes import method as make_method


@final
class Predictor(nn.Module):
    """Calls the model as often as the method's prediction needs; gives the model's output, with the method's scores in it.

    Any evaluation loop takes it for the model. Its state_dict holds the model's weights and what the algorithm owns.

    Args:
        model: the trained model, without wrappers.
        method: a name, or the method object that trained it.
        seed: of the run that trained it.
        **options: the method's own, checked against its signature.

    Raises:
        ValueError: the method predicts by a forward pass of the model; use the model.
    """

    def __init__(self, model: nn.Module, method: str | Method, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        self.model = model
        self._method = make_method(method, **options)
        self._run = Run(model, trainable(model), seed)
        self._prediction()

    def _prediction(self) -> Prediction:
        prediction = self._method.predicting(self._run)
        if prediction is None:
            raise ValueError(
                f"{self._method.describe()}: predicts by a forward pass of the model; use the model itself"
            )
        return prediction

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return predict(self._prediction(), lambda: self.model(*args, **kwargs))

    def get_extra_state(self) -> dict[str, Any]:
        return self._method.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._method.load_state_dict(state)


def predict(prediction: Prediction, call: Callable[[], Any]) -> Any:
    """What `call` gives in the last of a prediction's passes."""
    broken_off(prediction, call)
    with prediction.during:
        return call()


@torch.no_grad()
def broken_off(prediction: Prediction, call: Callable[[], Any]) -> None:
    """All of a prediction's passes but the last."""
    for around in prediction.before:
        around(call)
