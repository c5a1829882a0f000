"""Blocks of weights with one float16 scale, as llama.cpp reads them: TQ1_0, TQ2_0 and Q2_0.

    TQ1_0    256 weights in base 3, 5 a byte, then s               1.6875 bits a weight
    TQ2_0    256 weights in 2 bits, then s                         2.0625
    Q2_0     s, then 64 weights in 2 bits                          2.25

A group of several blocks has its s in each of them, so that Q2_0 holds groups of 64, 128 and 256 and whole rows, and the other
two groups of 256 and whole rows. No weight is rounded, and an s keeps its bits where all codes of its block are 0.

The quantizers of the gguf package take a block's largest magnitude for s. Here it is given: for TQ1_0 and TQ2_0 the codes alone
go through them, as weights of scale 1, and the layer's own scale is put where they put that 1. Q2_0 is packed here, since
released versions of the package do not know it. Input 4j + i of its block is in the bits 2i and 2i + 1 of byte j, as its code
+ 1, which is the layout of a packed layer; its fourth code, 2 s, is not used. (A fork of llama.cpp has the same number for
blocks of 128; it does not read these.)
"""

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from localplug_ternary.packed import pack, unpack


@final
class Format(NamedTuple):
    """A type of tensor."""

    number: int
    """Of the type, in the head of a tensor."""
    file_type: int
    """Of a file of such tensors, in its header."""
    weights: int
    """Of a block."""
    bytes: int
    """Of a block."""


FORMATS = {"TQ2_0": Format(35, 37, 256, 66), "TQ1_0": Format(34, 36, 256, 54), "Q2_0": Format(42, 41, 64, 18)}


def encode(codes_NK: Tensor, scales_NG: Tensor, type: str) -> Any:
    """uint8 array, (N, bytes of a row), of int8 codes and float16 scales.

    Args:
        codes_NK: K a multiple of the weights of a block.
        scales_NG: one for each group of one or several whole blocks.
    """
    N, K = codes_NK.shape
    num_blocks = K // FORMATS[type].weights
    scales_NB = in_blocks(scales_NG.detach().cpu().half(), num_blocks)
    s_NB2 = scales_NB.contiguous().numpy().view("uint8").reshape(N, num_blocks, 2)
    if type == "Q2_0":
        import numpy

        codes_NBb = pack(codes_NK.cpu()).numpy().reshape(N, num_blocks, -1)
        return numpy.concatenate([s_NB2, codes_NBb], axis=-1).reshape(N, -1)
    import gguf

    raw = gguf.quants.quantize(codes_NK.cpu().float().numpy(), gguf.GGMLQuantizationType[type])
    raw_NBb = raw.reshape(N, num_blocks, -1).copy()
    raw_NBb[..., -2:] = s_NB2
    return raw_NBb.reshape(N, -1)


def decode(raw_Nb: Any, type: str) -> tuple[Tensor, Tensor]:
    """int8 codes, (N, K), and float16 scales, one for each block."""
    import numpy

    N = raw_Nb.shape[0]
    raw_NBb = numpy.array(raw_Nb).reshape(N, -1, FORMATS[type].bytes)
    if type == "Q2_0":
        scales_NB = numpy.ascontiguousarray(raw_NBb[..., :2]).view("float16")[..., 0]
        codes_NK = unpack(torch.from_numpy(numpy.ascontiguousarray(raw_NBb[..., 2:]).reshape(N, -1)))
        return codes_NK, torch.from_numpy(scales_NB.copy())
    import gguf

    scales_NB = numpy.ascontiguousarray(raw_NBb[..., -2:]).view("float16")[..., 0]
    raw_NBb[..., -2:] = numpy.ones(1, "float16").view("uint8")
    codes = gguf.quants.dequantize(raw_NBb.reshape(N, -1), gguf.GGMLQuantizationType[type])
    return torch.from_numpy(codes).to(torch.int8), torch.from_numpy(scales_NB.copy())


def in_blocks(scales_NG: Tensor, num_blocks: int) -> Tensor:
    """(N, num_blocks): the scale of a group for each of its blocks."""
    return scales_NG.repeat_interleave(num_blocks // scales_NG.shape[1], dim=1)
