"""Whether packed layers round activations to 8 bits at inference, for the compiled kernels."""

from torch import nn

from localplug_ternary.config import config_of
from localplug_ternary.packed import PackedTernaryLinear
from localplug_ternary.selection import refuse


def set_int8_activations_(model: nn.Module, on: bool = True) -> nn.Module:
    """Switch a packed model, such as one just loaded, to the compiled kernels, or back to exact activations.

    It concerns inference on a CPU, of layers whose scales do not train; all else unpacks the weights as before.

    Returns: the model.

    Raises:
        ValueError: the model has no packed layer.
    """
    layers = [m for m in model.modules() if isinstance(m, PackedTernaryLinear)]
    refuse("set_int8_activations_", [] if layers else ["there is no packed layer; freeze_ makes them"])
    for layer in layers:
        layer.int8_activations = on
    if (config := config_of(model)) is not None:
        config.int8_activations = on
    return model
