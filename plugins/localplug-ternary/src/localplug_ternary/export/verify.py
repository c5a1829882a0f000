"""Compare what was written with the model it came from: every tensor bit by bit, and the outputs.

Outputs of the written model are those of the source for token ids spread over the vocabulary. Both compute the same products in
the same order, so that they differ by nothing, or by little where the machine orders sums in another way.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from localplug.errors import LocalPlugError
from localplug_ternary.export.source import own_buffers, set_buffers
from localplug_ternary.packed import PackedTernaryLinear

NUM_TOKENS = 16


def same(name: str, got: Tensor, expected: Tensor) -> None:
    """Raise unless two tensors have the same bits.

    Raises:
        LocalPlugError: they do not.
    """
    got, expected = got.detach().cpu(), expected.detach().cpu()
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise LocalPlugError(
            f"export: {name!r} was written as {got.dtype} {tuple(got.shape)}, read back from {expected.dtype} "
            f"{tuple(expected.shape)}; nothing was kept. Please report this"
        )
    if not torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)):
        raise LocalPlugError(f"export: {name!r} does not read back as it was; nothing was kept. Please report this")


def same_names(got: set[str], expected: set[str]) -> None:
    """Raise unless all tensors are there, and no other.

    Raises:
        LocalPlugError: they are not.
    """
    if got != expected:
        some = ", ".join(sorted(got ^ expected)[:8])
        raise LocalPlugError(
            f"export: tensors are missing from the file or were not meant to be: {some}; nothing was kept"
        )


def same_outputs(
    source: PreTrainedModel, written: PreTrainedModel, rounds_scales: bool, bound: float | None = None
) -> None:
    """Raise unless two models answer alike. A model that does not read token ids alone is not run.

    Args:
        rounds_scales: the format stores scales that train in float16.
        bound: the norm of the difference by that of the outputs, at most; by default 1e-5, or 0.02 in 16 bits.

    Raises:
        LocalPlugError: they do not.
    """
    if source.main_input_name != "input_ids" or source.config.is_encoder_decoder:
        return
    with _exact(source):
        expected = outputs(source, rounded(source) if rounds_scales else {})
    nn.Module.to(written, source.device).eval()
    set_buffers(written, own_buffers(source))  # a cast of the source has rounded its frequencies too
    got = outputs(written, {})
    error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
    if bound is None:
        bound = 1e-5 if source.dtype in (torch.float32, torch.float64) else 0.02
    if not error <= bound:
        raise LocalPlugError(
            f"export: the written model's outputs are off by {error:.2g} of their norm (at most {bound:g} was expected); "
            "nothing was kept. Please report this"
        )


@torch.no_grad()
def outputs(model: PreTrainedModel, tensors: dict[str, Tensor]) -> Tensor:
    """Logits, or last hidden states, in float32, with some of its parameters taken from `tensors`."""
    embedding: Any = model.get_input_embeddings()
    vocabulary = embedding.weight.shape[0]
    ids_BT = torch.linspace(0, vocabulary - 1, NUM_TOKENS, device=model.device).long().unsqueeze(0)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    made: Any = torch.func.functional_call(model, tensors, (), inputs, tie_weights=False)
    first: Tensor = made[0]
    return first.float()


def rounded(model: PreTrainedModel) -> dict[str, Tensor]:
    """The scales of packed layers that train, as they are in float16."""
    return {
        f"{name}.scales": m.scales.detach().half()
        for name, m in model.named_modules()
        if isinstance(m, PackedTernaryLinear) and m.trains_scales
    }


@contextlib.contextmanager
def _exact(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and no rounding of activations, for a while."""
    training = [m for m in model.modules() if m.training]
    rounding = [m for m in model.modules() if isinstance(m, PackedTernaryLinear) and m.int8_activations]
    for layer in rounding:
        layer.int8_activations = False
    model.eval()
    try:
        yield
    finally:
        for layer in rounding:
            layer.int8_activations = True
        for m in training:
            m.training = True
