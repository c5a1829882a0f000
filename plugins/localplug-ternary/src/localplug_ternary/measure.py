"""What a ternary model is: bits per weight, dead weights, and how much the folded bias matters."""

import dataclasses
from typing import final

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from localplug import Ternary, dequantize
from localplug_ternary.latent import TernaryLinear, whole_bias
from localplug_ternary.packed import PackedTernaryLinear, unpack
from localplug_ternary.selection import refuse


@final
@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer."""

    name: str
    num_weights: int
    num_bits: int
    """Of codes, scales and bias, as packed."""
    dead_fraction: float
    """Share of codes that are 0, in [0, 1]."""
    bias_ratio: float
    """Norm of the bias by that of the rest of the output, for inputs of independent components of mean square 1."""

    @property
    def bits_per_weight(self) -> float:
        return self.num_bits / self.num_weights


@final
@dataclasses.dataclass(frozen=True)
class Report:
    """The layers, and what they come to together. Printed, it is a table."""

    layers: tuple[LayerReport, ...]
    num_other: int
    """Parameters outside ternary layers."""

    @property
    def num_weights(self) -> int:
        return sum(layer.num_weights for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Of ternary layers alone."""
        return sum(layer.num_bits for layer in self.layers) / self.num_weights

    @property
    def dead_fraction(self) -> float:
        return sum(layer.dead_fraction * layer.num_weights for layer in self.layers) / self.num_weights

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':{width}}  weights     bits/weight  dead   bias/output"]
        for x in self.layers:
            lines.append(
                f"{x.name:{width}}  {x.num_weights:<10,}  {x.bits_per_weight:<11.4f}  {x.dead_fraction:.3f}  {x.bias_ratio:.2e}"
            )
        lines.append(
            f"{'together':{width}}  {self.num_weights:<10,}  {self.bits_per_weight:<11.4f}  {self.dead_fraction:.3f}"
            f"  ({self.num_other:,} parameters are not ternary)"
        )
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Measure the ternary layers of a model, latent or packed.

    Raises:
        ValueError: it has none.

    Example:
        >>> import torch
        >>> from localplug_ternary import TernaryConfig, ternarize_
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False), torch.nn.Linear(32, 2))
        >>> print(report(ternarize_(net, TernaryConfig("absmean", group_size=64))).bits_per_weight)
        2.25
    """
    layers: list[LayerReport] = []
    inside: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in tqdm(modules.items(), desc="measure", unit="layer", delay=1.0, leave=False):
        if isinstance(module, TernaryLinear | PackedTernaryLinear):
            layers.append(_measured(name, module))
            inside.update(id(p) for p in module.parameters())
    refuse("report", [] if layers else ["the model has no ternary layer"])
    return Report(tuple(layers), sum(p.numel() for p in model.parameters() if id(p) not in inside))


@torch.no_grad()
def _measured(name: str, layer: TernaryLinear | PackedTernaryLinear) -> LayerReport:
    if isinstance(layer, PackedTernaryLinear):
        made = Ternary(unpack(layer.codes), layer.scales, layer.bias)
    else:
        made = layer.method.quantize(layer.weight)
        made = made._replace(bias=whole_bias(layer.bias, made.bias, torch.float32))
    codes_NK, scales_NG, bias_N = made
    bits = 2 * codes_NK.numel() + scales_NG.element_size() * 8 * scales_NG.numel()
    output = dequantize(codes_NK, scales_NG, torch.float32).norm()
    bias = 0.0 if bias_N is None else float(bias_N.float().norm() / output.clamp_min(1e-30))
    bits += 0 if bias_N is None else 32 * bias_N.numel()
    return LayerReport(name, codes_NK.numel(), bits, float((codes_NK == 0).float().mean()), bias)
