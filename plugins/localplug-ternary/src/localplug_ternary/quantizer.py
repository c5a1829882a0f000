"""The quantizer that transformers knows as "localplug_ternary". Importing this file registers it.

import localplug_ternary.quantizer
model = AutoModelForCausalLM.from_pretrained(path)                                       # a saved ternary model
model = AutoModelForCausalLM.from_pretrained(path, quantization_config=TernaryConfig())  # any model, to be trained
"""

import copy
import logging
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from localplug_ternary.config import IMPORT, QUANT_METHOD, TernaryConfig, config_of
from localplug_ternary.convert import latent_of, pack_
from localplug_ternary.latent import TernaryLinear, linear_weight
from localplug_ternary.packed import PackedTernaryLinear
from localplug_ternary.scales import train_scales_
from localplug_ternary.selection import problems, refuse, selected

logger = logging.getLogger("localplug")


@final
class TernaryQuantizer(HfQuantizer):
    """Swaps layers before the weights are loaded.

    A full-precision checkpoint loads into latent layers under its own names; with config.packed they are packed after that,
    so loading needs the memory of the full-precision model then. A saved ternary model loads into the layers it was saved from.

    Args:
        quantization_config: a TernaryConfig; a copy is kept.

    Raises:
        ValueError: when a model's layers do not fit the configuration, or a packed checkpoint is damaged; lists all of them.
    """

    def __init__(self, quantization_config: TernaryConfig, **kwargs: Any) -> None:
        super().__init__(copy.deepcopy(quantization_config), **kwargs)
        self.config: TernaryConfig = self.quantization_config  # type: ignore[assignment]

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        layers = selected(model, self.config)
        refuse("from_pretrained", problems(model, layers, self.config))
        method = self.config.make_method()
        for name, layer in layers.items():
            if self.pre_quantized and self.config.packed:
                N, K = linear_weight(layer).shape
                has_bias = method.has_bias or layer.bias is not None
                made: nn.Module = PackedTernaryLinear(
                    K,
                    N,
                    has_bias,
                    self.config.group_size,
                    self.config.trainable == "scales",
                    self.config.int8_activations,
                    is_transposed=not isinstance(layer, nn.Linear),
                    device="meta",
                )
            else:
                made = latent_of(layer, method, self.config.progress)
            model.set_submodule(name, made)
        self.config.converted = list(layers)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if not self.config.packed:
            return model
        if self.pre_quantized:
            refuse("from_pretrained", _damaged(model))
        if not self.pre_quantized:
            pack_(model, self.config.trainable, self.config.int8_activations)
        elif self.config.trainable == "scales":
            train_scales_(model)
        else:
            for layer in model.modules():
                if isinstance(layer, PackedTernaryLinear):
                    layer.requires_grad_(False)  # the loader makes new parameters, which would train
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        module, tensor = get_module_from_name(model, param_name)
        return isinstance(module, TernaryLinear) and module.is_transposed and tensor == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        return _Transpose()

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for name, layer in list(model.named_modules()):
            packed = PackedTernaryLinear.of(layer) if isinstance(layer, TernaryLinear) else layer
            if isinstance(packed, PackedTernaryLinear):
                model.set_submodule(name, plain(packed, dtype or model.dtype))
        for option in ("attention_bias", "mlp_bias"):  # so that a Llama with folded biases saves and loads again
            if hasattr(model.config, option) and self.config.make_method().has_bias:
                setattr(model.config, option, True)
        _warn_of_lost_biases(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        return None, {"load_with": IMPORT}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return not self.config.packed or self.config.trainable == "scales"

    @property
    def is_compileable(self) -> bool:
        return True


def _damaged(model: nn.Module) -> list[str]:
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, PackedTernaryLinear)]
    return [f"{name!r} is damaged: {problem}" for name, layer in layers for problem in layer.problems()]


@final
class _Transpose(ConversionOps):
    """(inputs, outputs) of a Conv1D's checkpoint becomes (outputs, inputs)."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        ((name, tensors),) = input_dict.items()
        weight: Tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {name: weight.T.contiguous()}


def plain(layer: PackedTernaryLinear, dtype: torch.dtype) -> nn.Module:
    """The full-precision Linear, or Conv1D, with the same outputs."""
    A_NK = layer.dequantized(dtype).detach()
    b_N = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    made: nn.Module
    with torch.device("meta"):
        if layer.is_transposed:
            made = Conv1D(layer.out_features, layer.in_features)  # it has a bias always
        else:
            made = nn.Linear(layer.in_features, layer.out_features, b_N is not None)
    made.weight = nn.Parameter(A_NK.T.contiguous() if layer.is_transposed else A_NK, requires_grad=False)
    made.register_parameter("bias", b_N)
    return made.train(layer.training)


def _warn_of_lost_biases(model: PreTrainedModel) -> None:
    """Say which biases the model's class has no place for; a checkpoint of it would lose them without a word."""
    with torch.device("meta"):
        known = type(model)(copy.deepcopy(model.config)).state_dict().keys()
    if lost := [name for name in model.state_dict() if name.endswith(".bias") and name not in known]:
        logger.warning(
            "%d layers have a folded bias now that %s has no place for, such as %s: the model computes with them, but would "
            "lose them when it is saved and loaded",
            len(lost),
            type(model).__name__,
            lost[0],
        )


def adopt(model: nn.Module, config: TernaryConfig | None, **changed: Any) -> None:
    """Give a model that was converted in place what from_pretrained would have given it.

    Args:
        config: None for the one that it has.
        changed: options of it that are other now.
    """
    if not isinstance(model, PreTrainedModel):
        return
    config = copy.deepcopy(config or config_of(model))
    if config is None:
        return
    for name, value in changed.items():
        setattr(config, name, value)
    quantizer = TernaryQuantizer(config, pre_quantized=True)
    there = {"hf_quantizer": quantizer, "is_quantized": True, "quantization_method": QUANT_METHOD}
    for name, value in there.items():
        setattr(model, name, value)
    model.config.quantization_config = quantizer.quantization_config
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True


# Assignments, not transformers' decorators: those raise where a notebook or a reload imports this file twice.
AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = TernaryConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = TernaryQuantizer
