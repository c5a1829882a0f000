"""Blocks of 256 weights with one float16 scale: TQ1_0 (1.6875 bits a weight) and TQ2_0 (2.0625), as llama.cpp reads them.

    block = codes of 256 inputs, in base 3 (TQ1_0, 5 a byte) or in 2 bits (TQ2_0), then s in 2 bytes

The quantizers of the gguf package take a block's largest magnitude for s. Here it is given: the codes alone go through them, as
weights of scale 1, and the layer's own scale is put where they put that 1. So no weight is rounded, and an s keeps its bits
where all codes of its block are 0.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 256
TYPES = ("TQ2_0", "TQ1_0")


def encode(codes_NK: Tensor, scales_NG: Tensor, type: str) -> Any:
    """uint8 array, (N, bytes of a row), of int8 codes and float16 scales of groups of 256 or of whole rows."""
    import gguf

    N, K = codes_NK.shape
    raw = gguf.quants.quantize(codes_NK.cpu().float().numpy(), gguf.GGMLQuantizationType[type])
    raw_NBb = raw.reshape(N, K // BLOCK, -1).copy()
    scales_NB = scales_NG.detach().cpu().half().expand(N, K // BLOCK).contiguous().numpy()
    raw_NBb[..., -2:] = scales_NB.view("uint8").reshape(N, K // BLOCK, 2)
    return raw_NBb.reshape(N, -1)


def decode(raw_Nb: Any, type: str) -> tuple[Tensor, Tensor]:
    """int8 codes, (N, K), and float16 scales, (N, K / 256)."""
    import gguf
    import numpy

    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    raw_NBb = numpy.array(raw_Nb).reshape(raw_Nb.shape[0], -1, size)
    scales_NB = numpy.ascontiguousarray(raw_NBb[..., -2:]).view("float16")[..., 0]
    raw_NBb[..., -2:] = numpy.ones(1, "float16").view("uint8")
    codes_NK = gguf.quants.dequantize(raw_NBb.reshape(raw_Nb.shape[0], -1), gguf.GGMLQuantizationType[type])
    return torch.from_numpy(codes_NK).to(torch.int8), torch.from_numpy(scales_NB.copy())
