"""Convert a model in place: ternarize_ for training, freeze_ for what comes after it."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from localplug import Quantizer, Unsupported
from localplug_ternary.config import TernaryConfig
from localplug_ternary.latent import TernaryLinear, linear_weight
from localplug_ternary.packed import PackedTernaryLinear
from localplug_ternary.scales import train_scales_
from localplug_ternary.selection import Filter, problems, refuse, selected


def ternarize_(model: nn.Module, config: TernaryConfig, filter_fn: Filter | None = None) -> nn.Module:
    """Make the Linear layers of a model ternary, in place.

    Embeddings, norms, the head (also one that shares its weight with the embedding) and subclasses of Linear stay as they
    are. Layers train in latent form, with all parameters they had, unless config.packed says otherwise. Of a transformers
    model the configuration is set too, so that it saves and loads again. As with all quantized models transformers then refuses
    .half() and .float(); .to(dtype) works.

    Args:
        model: any module with Linear layers, or transformers' Conv1D.
        config: the method and its options.
        filter_fn: gets (layer, name), and says whether to convert it.

    Returns: the model.

    Raises:
        ValueError: lists everything that stands against it; nothing was changed then.

    Example:
        >>> import torch
        >>> from localplug_ternary import TernaryConfig
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> net = ternarize_(net, TernaryConfig("tequila", group_size=None))
        >>> [type(m).__name__ for m in net]
        ['TernaryLinear', 'ReLU', 'Linear']
    """
    layers = selected(model, config, filter_fn)
    refuse("ternarize_", problems(model, layers, config))
    method = config.make_method()
    for name, layer in _bar(layers.items(), "ternarize", len(layers)):
        model.set_submodule(name, latent_of(layer, method, config.progress))
    tell(model, config, packed=False, converted=list(layers))
    return pack_(model, config.trainable, config.int8_activations) if config.packed else model


def freeze_(model: nn.Module, trainable: Literal["scales"] | None = None, int8_activations: bool = False) -> nn.Module:
    """Pack every latent layer of a model, in place: 2 bits a weight, and the dead zone in each layer's bias.

    Outputs stay what they were, bit by bit, unless int8_activations rounds them.

    Args:
        trainable: None, or "scales"; see `train_scales_`.
        int8_activations: see TernaryConfig; set_int8_activations_ changes it later.

    Returns: the model.

    Raises:
        ValueError: lists everything that stands against it; nothing was changed then.
    """
    latent = {name: m for name, m in model.named_modules() if isinstance(m, TernaryLinear)}
    wrong = [] if latent else ["there is no latent ternary layer; ternarize_ makes them"]
    if trainable not in (None, "scales"):
        wrong.append(f'trainable must be None or "scales", got {trainable!r}')
    if adapted := [n for n, m in model.named_modules() if isinstance(getattr(m, "base_layer", None), TernaryLinear)]:
        wrong.append(f"{adapted[0]!r} has an adapter that was trained on the latent weights; unload it first")
    unfinished = [m for m in latent.values() if not m.method.is_ternary(m.progress)]
    if unfinished:
        wrong.append(
            f"training ends at progress {unfinished[0].progress:g}, where {type(unfinished[0].method).__name__.lower()} "
            "does not compute with ternary weights yet, so packing would change the outputs; train on with "
            "TernaryProgress, or say set_progress_(model, 1.0) and evaluate again"
        )
    refuse("freeze_", wrong)
    return pack_(model, trainable, int8_activations)


def pack_(model: nn.Module, trainable: str | None, int8_activations: bool) -> nn.Module:
    """Pack the latent layers as they are, trained or not."""
    latent = {name: m for name, m in model.named_modules() if isinstance(m, TernaryLinear)}
    packed: dict[str, PackedTernaryLinear] = {}
    wrong = []
    for name, layer in _bar(latent.items(), "pack", len(latent)):
        try:
            packed[name] = PackedTernaryLinear.of(layer, int8_activations=int8_activations)
        except ValueError as error:
            wrong.append(f"{name!r}: {error}")
    refuse("the layers cannot be packed", wrong)
    for name, layer in packed.items():
        model.set_submodule(name, layer)
    tell(model, None, packed=True, int8_activations=int8_activations)
    if trainable == "scales":
        train_scales_(model)
    return model


def unfreeze_(model: nn.Module) -> nn.Module:
    """Refused: packed layers have no latent weights to go back to.

    Raises:
        localplug.Unsupported: always, with what to do instead.
    """
    raise Unsupported(
        "unfreeze_: packing keeps the sign of each weight and one scale a group; the latent weights, which training moves, are "
        "gone, and new ones made of them would start with an empty dead zone. Train on from the latent checkpoint (save it "
        "before freeze_), or train what is there: train_scales_(model) for the scales and biases, with_lora for adapters"
    )


def latent_of(layer: nn.Module, method: Quantizer, progress: float) -> TernaryLinear:
    """The latent layer in the place of a Linear or Conv1D, which shares its parameters where their layout allows."""
    weight, bias = linear_weight(layer), layer.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    is_transposed = not isinstance(layer, nn.Linear)
    N, K = weight.shape
    with torch.device("meta"):
        made = TernaryLinear(K, N, bias is not None, method=method, is_transposed=is_transposed, dtype=weight.dtype)
    if isinstance(weight, nn.Parameter):
        made.weight = weight
    else:
        assert isinstance(layer.weight, nn.Parameter)
        made.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=layer.weight.requires_grad)
    made.bias = bias
    made.progress = progress
    return made.train(layer.training)


def tell(model: nn.Module, config: TernaryConfig | None, **changed: Any) -> None:
    """Let a transformers model know what it has become, as from_pretrained does."""
    from localplug_ternary.quantizer import adopt  # which imports this file

    adopt(model, config, **changed)


def _bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return tqdm(items, desc=what, total=total, unit="layer", delay=1.0, leave=False)
