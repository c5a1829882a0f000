"""Counter-based noise: a pure function of (seed, step, direction, parameter name, element index).

Element i of a stream with key k reads 16 bits of the 64-bit word

    word(k, i // 4) = mix64(k + (i // 4) * 0x9E3779B97F4A7C15)

where mix64 is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
2014). All of it is exact integer arithmetic, so that the bits are the same on every device, in any order and for any
chunking; only the chunk in work is held. The normal distribution is a table of its 65,536 quantile midpoints, scaled
to unit variance: mean exactly 0, fourth moment 2.997 (3 in the limit), largest value 4.33. Random signs take one bit each:
bit i % 64 of word(k, i // 64), 1 for -1.
"""

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from localplug import kernels

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_PER_WORD = 4  # 16-bit values in one 64-bit word
_CHUNK_CPU = 1 << 17  # elements in work at once, for each thread: fits the cache of a core
_CHUNK_ACCELERATOR = 1 << 24


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, which is what torch.int64 holds."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix64(value: int) -> int:
    """SplitMix64's finaliser on one unsigned 64-bit integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@functools.lru_cache(maxsize=65536)
def _name_key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def stream(seed: int, step: int, direction: int, name: str) -> int:
    """The 64-bit key of one stream. Python integers of any size and sign are taken modulo 2**64."""
    key = _name_key(name)
    for part in (seed, step, direction):
        key = mix64((key + _GAMMA) ^ mix64(part + _GAMMA))
    return key


@functools.lru_cache(maxsize=16)
def _normal_table(device: torch.device) -> Tensor:
    """Quantiles of the normal distribution, indexed by the 16 bits read as an unsigned integer. float32, shape (65536,)."""
    midpoints = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(midpoints)
    quantiles = (quantiles - quantiles.flip(0)) / 2  # exactly antisymmetric, so that the mean is exactly zero
    quantiles /= quantiles.square().mean().sqrt()
    return quantiles.to(torch.float32).to(device)


@functools.lru_cache(maxsize=16)
def _weyl(device: torch.device, num_words: int) -> Tensor:
    """(0, 1, 2, ...) * gamma modulo 2**64."""
    return torch.arange(num_words, dtype=torch.int64, device=device) * _signed(_GAMMA)


def chunk_size(device: torch.device) -> int:
    """Elements that this file works on at once; a multiple of 64. No value depends on it."""
    if device.type != "cpu":
        return _CHUNK_ACCELERATOR
    return _CHUNK_CPU * (torch.get_num_threads() if kernels.AVAILABLE else 1)


@torch.no_grad()
def bits16(key: int, offset: int, num: int, device: torch.device) -> Tensor:
    """Elements offset ... offset + num - 1 of a stream, as integers in [0, 65535]. int32, shape (num,)."""
    first = offset // _PER_WORD
    lead = offset - first * _PER_WORD
    num_words = (lead + num + _PER_WORD - 1) // _PER_WORD
    if num_words <= chunk_size(device) // _PER_WORD + 1:
        ramp = _weyl(device, chunk_size(device) // _PER_WORD + 1)[:num_words]
    else:
        ramp = torch.arange(num_words, dtype=torch.int64, device=device) * _signed(_GAMMA)
    return _mixed_(ramp + _signed(key + first * _GAMMA))[lead : lead + num]


def _mixed_(word: Tensor) -> Tensor:
    """`mix64` of each word, in place; its four 16-bit values one after another. int32, four times as long."""
    shifted = torch.empty_like(word)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        torch.bitwise_right_shift(word, shift, out=shifted)
        shifted &= (1 << (64 - shift)) - 1  # torch shifts arithmetically; the mask makes it logical
        word ^= shifted
        if factor is not None:
            word *= _signed(factor)
    return word.view(torch.uint16).to(torch.int32)


@torch.no_grad()
def normals(keys: Sequence[int], sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """The first sizes[i] elements of stream keys[i], for many short streams at the price of one. float32."""
    num_words = [-(-size // _PER_WORD) for size in sizes]
    ramp, stream = _ramps(tuple(num_words), device)
    starts = torch.tensor([_signed(key) for key in keys], device=device)
    flat = torch.index_select(_normal_table(device), 0, _mixed_(ramp + starts.index_select(0, stream)))
    pieces = flat.split([n * _PER_WORD for n in num_words])
    return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]


@functools.lru_cache(maxsize=64)
def _ramps(num_words: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(0, 1, ..., n_0 - 1, 0, 1, ..., n_1 - 1, ...) * gamma, and the number of the run that each belongs to."""
    runs = torch.tensor(num_words)
    stream = torch.repeat_interleave(torch.arange(len(runs)), runs)
    place = torch.arange(len(stream)) - (runs.cumsum(0) - runs)[stream]
    return (place * _signed(_GAMMA)).to(device), stream.to(device)


@torch.no_grad()
def normal(key: int, offset: int, num: int, device: torch.device, table: Tensor | None = None) -> Tensor:
    """Elements offset ... offset + num - 1 of a standard normal stream. float32, shape (num,).

    Args:
        table: of `normal_table`, to get a multiple of the noise in one look-up.
    """
    return torch.index_select(_normal_table(device) if table is None else table, 0, bits16(key, offset, num, device))


@torch.no_grad()
def add_normal_(target: Tensor, key: int, offset: int, factor: float, source: Tensor | None = None) -> None:
    """target <- source + factor * z, z being elements offset ... offset + target.numel() - 1 of a standard normal stream.

    The product is rounded before it is added, not fused: the same bits on every device and for any chunking.

    Args:
        target: contiguous, float32 or float64.
        source: shaped and typed like target, contiguous; by default target itself.
    """
    table = normal_table(target.device, factor)
    if kernels.usable(target):
        kernels.add_normal_(target, key, offset, table, source)
    else:
        (target if source is None else target.copy_(source)).view(-1).add_(
            normal(key, offset, target.numel(), target.device, table)
        )


@torch.no_grad()
def signs(key: int, offset: int, num: int, device: torch.device) -> Tensor:
    """Elements offset ... offset + num - 1 of a stream of random signs, -1 or +1, one bit each. float32, shape (num,)."""
    first = offset // 64
    lead = offset - first * 64
    num_words = (lead + num + 63) // 64
    ramp = torch.arange(num_words, dtype=torch.int64, device=device) * _signed(_GAMMA)
    # a word's 64 bits in order, from its four 16-bit values
    values = _mixed_(ramp + _signed(key + first * _GAMMA)).view(-1, 1)
    bits = (values >> torch.arange(16, dtype=torch.int32, device=device)) & 1
    return (1 - 2 * bits).view(-1)[lead : lead + num].to(torch.float32)


@torch.no_grad()
def signs_of(
    names: Sequence[str],
    sizes: Sequence[int],
    factors: Sequence[float],
    where: tuple[int, int, int],
    device: torch.device,
) -> list[Tensor]:
    """The first sizes[i] signs of the stream (*where, names[i]), times factors[i], for many short streams at the price of one.

    Args:
        where: (seed, step, direction).

    Returns: float32 tensors of one dimension, which lie one after another in memory.
    """
    flat = torch.empty(sum(sizes), device=device)
    if kernels.usable(flat):
        parts = (mix64(where[0] + _GAMMA), mix64(where[1] + _GAMMA), mix64(where[2] + _GAMMA))
        kernels.signs_(flat, *_shape_of(tuple(names), tuple(sizes), tuple(factors)), parts)
        return list(flat.split(list(sizes)))
    pieces = list(flat.split(list(sizes)))
    for name, piece, factor in zip(names, pieces, factors, strict=True):
        piece.copy_(signs(stream(*where, name), 0, piece.numel(), device) * factor)
    return pieces


@functools.lru_cache(maxsize=256)
def _shape_of(
    names: tuple[str, ...], sizes: tuple[int, ...], factors: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `kernels.signs_` asks for."""
    keys = torch.tensor([_signed(_name_key(name)) for name in names])
    return keys, torch.tensor(sizes), torch.tensor(factors, dtype=torch.float32)


@torch.no_grad()
def add_signs_(target: Tensor, key: int, offset: int, factor: float, source: Tensor | None = None) -> None:
    """target <- source + factor * s, of the stream of `signs`. Arguments: see `add_normal_`."""
    if kernels.usable(target):
        kernels.add_signs_(target, key, offset, factor, source)
    else:
        (target if source is None else target.copy_(source)).view(-1).add_(
            signs(key, offset, target.numel(), target.device) * factor
        )


@functools.lru_cache(maxsize=8)  # the same factor serves every parameter, tile and looked-up row of an evaluation
@torch.no_grad()
def normal_table(device: torch.device, factor: float) -> Tensor:
    """The table that makes `normal` give factor * z, rounded as that product is. float32, shape (65536,)."""
    return _normal_table(device) * factor


@torch.no_grad()
def uniform(key: int, offset: int, num: int, device: torch.device) -> Tensor:
    """The same of a uniform stream: midpoints of 65,536 cells of (0, 1). float32, shape (num,)."""
    return (bits16(key, offset, num, device).to(torch.float32) + 0.5) / (1 << 16)
