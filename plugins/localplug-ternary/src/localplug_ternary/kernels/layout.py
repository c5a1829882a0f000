"""A packed weight in the layout that the kernel reads.

The checkpoint has, a row (output channel), uint8 codes four to a byte along K (byte j holds features 4j .. 4j + 3, feature i of
them in bits 2i, code in {0, 1, 2}) and one float16 scale s a group of K: w = (code - 1) s.

Compiled bodies read tiles of 32 channels by chunks of 16 features, 4 bytes of each channel: the same bytes in another order,
(N / 32, K / 16, 32, 4), padded to whole tiles and chunks, with scales (N / 32, G, 32). "int_mm" keeps int8 weights, (G, N, g),
a byte each; "dequantize" keeps the checkpoint's own. Letters: N channels, K features, G groups of g features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from localplug_ternary.kernels import library
from localplug_ternary.kernels.huge_pages import copied

ROWS, CHUNK = 32, 16  # of csrc/ternary.h
LARGEST_K = 1 << 18  # up to which a compiled body's sums stay within int32


@dataclass(frozen=True)
class Prepared:
    """A packed weight, laid out for one body: what prepare returns and linear takes."""

    body: str
    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    out_features: int
    in_features: int
    group: int


def prepare(
    codes: Tensor, scales: Tensor, bias: Tensor | None, group: int | None, *, body: str | None = None
) -> Prepared:
    """Lay out a packed weight for the kernel, once a module.

        w_nk = (code_nk - 1) s_(n, k // g)

    Args:
        codes: uint8 (N, K / 4), or (N, ceil(K / 4)) if a row is one group.
        scales: floating-point (N, K / g), finite; kept as float16.
        bias: of the output channels, (N,), or None; kept as float32.
        group: g in features, a divisor of K; None, -1 or K takes the row as one group. Compiled bodies need a g that 16
            divides, or a row that is one group; others run on torch's operators.
        body: one of bodies(); by default the fastest that can do it on a CPU, and "dequantize" on other devices.

    Raises:
        ValueError: shapes, dtypes or values do not fit; lists all of them.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0b10010010]], dtype=torch.uint8)  # +1 -1 0 +1, the first in the lowest bits
        >>> prepared = prepare(codes, torch.tensor([[0.5]]), None, group=None)
        >>> dequantize(prepared).tolist()
        [[0.5, -0.5, 0.0, 0.5]]
    """
    wrong = _shapes(codes, scales, bias, group)
    if not wrong:
        K = _features(codes, group)
        width = K // scales.shape[1]
        wrong += _values(codes, scales, K) + _body(body, codes, width, K)
    if wrong:
        raise ValueError("prepare: " + "; ".join(wrong))
    body = body or next(name for name in library.bodies() if not _body(name, codes, width, K))
    N = codes.shape[0]
    codes, scales = codes.detach(), scales.detach().to(torch.float16)
    if body in library.COMPILED:
        codes, scales = (copied(t) for t in _tiled(codes, scales, K))
    elif body == "int_mm":
        codes = _signed(codes, K).unflatten(1, (-1, width)).transpose(0, 1)
    bias = None if bias is None else bias.detach().float().clone()
    return Prepared(body, codes.contiguous(), scales.contiguous(), bias, N, K, width)


def dequantize(prepared: Prepared, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (N, K) itself, each entry rounded once."""
    codes, scales, N, K = prepared.codes, prepared.scales, prepared.out_features, prepared.in_features
    if prepared.body in library.COMPILED:
        codes = codes.transpose(1, 2).flatten(2).flatten(0, 1)[:N]
        scales = scales.transpose(1, 2).flatten(0, 1)[:N]
    signed_NK = codes.transpose(0, 1).flatten(1) if prepared.body == "int_mm" else _signed(codes, K)
    w_NGg = signed_NK.unflatten(1, (-1, prepared.group)).float() * scales.float().unsqueeze(-1)
    return w_NGg.flatten(1).to(dtype)


def _signed(codes: Tensor, K: int) -> Tensor:
    """int8 (N, K) in {-1, 0, 1}."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device)
    fields = (codes.unsqueeze(-1) >> shifts) & 3
    return (fields.to(torch.int8) - 1).flatten(1)[:, :K]


def _tiled(codes: Tensor, scales: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The bytes of the checkpoint in the order of the compiled bodies."""
    rows, chunks = -codes.shape[0] % ROWS, -(-K // CHUNK)
    codes = pad(codes, (0, chunks * CHUNK // 4 - codes.shape[1], 0, rows))
    scales = pad(scales, (0, 0, 0, rows))
    return codes.view(-1, ROWS, chunks, 4).transpose(1, 2), scales.view(-1, ROWS, scales.shape[1]).transpose(1, 2)


def _features(codes: Tensor, group: int | None) -> int:
    """K: the last byte of a row that is one group may be partly used."""
    most = 4 * codes.shape[1]
    return group if group is not None and most - 4 < group <= most else most


def _shapes(codes: Tensor, scales: Tensor, bias: Tensor | None, group: int | None) -> list[str]:
    wrong = []
    if codes.dtype != torch.uint8 or codes.dim() != 2 or 0 in codes.shape:
        return [f"codes must be uint8 (N, K / 4), got {codes.dtype} {tuple(codes.shape)}"]
    N, K = codes.shape[0], _features(codes, group)
    if group not in (None, -1) and (group < 1 or K % group):
        return [f"group must divide the {K} features of a row, got {group}"]
    groups = 1 if group in (None, -1) else K // group
    if not scales.is_floating_point() or scales.shape != (N, groups):
        wrong.append(f"scales must be floating-point ({N}, {groups}), got {scales.dtype} {tuple(scales.shape)}")
    if bias is not None and (not bias.is_floating_point() or bias.shape != (N,)):
        wrong.append(f"bias must be floating-point ({N},), got {bias.dtype} {tuple(bias.shape)}")
    devices = {str(t.device) for t in (codes, scales, bias) if t is not None}
    if len(devices) > 1:
        wrong.append(f"codes, scales and bias must lie on one device, got {', '.join(sorted(devices))}")
    return wrong


def _values(codes: Tensor, scales: Tensor, K: int) -> list[str]:
    wrong: list[str] = []
    if codes.is_meta:
        return wrong
    if bool((codes & (codes >> 1) & 0b01010101).any()):
        wrong.append("codes must be 0, 1 or 2, some are 3")
    if not bool(scales.to(torch.float16).isfinite().all()):
        wrong.append("scales must be finite in float16, some are not")
    return wrong


def _body(body: str | None, codes: Tensor, width: int, K: int) -> list[str]:
    """Why this body cannot take the weight."""
    if body is None or body == "dequantize":
        return []
    if body not in library.bodies():
        return [f"body must be one of {', '.join(library.bodies())} here, got {body!r}"]
    if codes.device.type != "cpu":
        return [f"body {body!r} runs on a CPU, codes are on {codes.device}"]
    if body in library.COMPILED and width != K and width % CHUNK:
        return [f"body {body!r} needs groups of a multiple of {CHUNK} features, got {width}"]
    if body in library.COMPILED and K > LARGEST_K:
        return [f"body {body!r} takes up to {LARGEST_K} features, got {K}"]
    return []
