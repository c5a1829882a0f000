"""The inner loops of the noise on a CPU, compiled by numba where it is installed: the same bits as torch's, made faster.

Without numba (the extra `localplug[fast]`) every function here is absent (`AVAILABLE` is False), and localplug.noise works
in torch operations alone.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

try:
    import numba

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

SPLIT = 1 << 16  # elements that are worth a thread
BLOCK = 1 << 13  # elements that stay in the first cache between a copy and an addition


def usable(tensor: Tensor) -> bool:
    """Whether the compiled loops can write this tensor: a plain contiguous float32 one in the memory of the CPU."""
    return AVAILABLE and tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def add_normal_(target: Tensor, key: int, offset: int, table: Tensor, source: Tensor | None = None) -> None:
    """target <- source + table[16 bits], element by element, of the stream `key` from element `offset`.

    Args:
        source: by default target itself.
    """
    place, values = target.numpy().reshape(-1), table.numpy()
    given = None if source is None else source.numpy().reshape(-1)

    def work(start: int, end: int) -> None:
        where = _unsigned(key), _unsigned(offset + start)
        if given is None:
            _compiled().normal(place[start:end], values, *where)
        else:
            _compiled().normal_to(place[start:end], given[start:end], values, *where)

    _spread(place.size, work)


def add_signs_(target: Tensor, key: int, offset: int, factor: float, source: Tensor | None = None) -> None:
    """target <- source + factor or source - factor, by one bit each, of the stream `key` from element `offset`."""
    place, value = target.numpy().reshape(-1), torch.tensor(factor).numpy()[()]
    given = None if source is None else source.numpy().reshape(-1)

    def work(start: int, end: int) -> None:
        where = _unsigned(key), _unsigned(offset + start)
        if given is None:
            _compiled().signs(place[start:end], value, *where)
        else:
            _compiled().signs_to(place[start:end], given[start:end], value, *where)

    _spread(place.size, work)


def add_outer_(target: Tensor, a: Tensor, b: Tensor, factor: float, offset: int) -> None:
    """target += (factor * a) b^T, each product rounded before it is added; of the elements from `offset` on, row by row.

    Args:
        a, b: float32, shapes (m,) and (n,), contiguous.
    """
    place = target.numpy().reshape(-1)
    rows, columns = (a * factor).numpy(), b.numpy()
    _spread(place.size, lambda start, end: _compiled().outer(place[start:end], rows, columns, offset + start))


def round_bfloat16_(target: Tensor, value: Tensor, key: int, offset: int) -> None:
    """target <- value, rounded by 16 bits of the stream `key` from element `offset`; see localplug.rounding.

    Args:
        target: bfloat16, contiguous; value: float32, as many elements.
    """
    import numpy

    place = target.view(torch.int16).numpy().reshape(-1).view(numpy.uint16)
    bits = value.numpy().reshape(-1).view(numpy.uint32)

    def work(start: int, end: int) -> None:
        _compiled().round(place[start:end], bits[start:end], _unsigned(key), _unsigned(offset + start))

    _spread(place.size, work)


def _spread(size: int, work: Callable[[int, int], None]) -> None:
    """work(start, end) over an array, shared among as many threads as torch uses; the loops hold no interpreter lock."""
    num = min(torch.get_num_threads(), max(size // SPLIT, 1))
    if num == 1:
        work(0, size)
        return
    each = -(-size // (num * 64)) * 64
    others = [_pool(num - 1).submit(work, start, min(start + each, size)) for start in range(each, size, each)]
    work(0, each)  # this thread takes its part: waking one costs as much as some ten thousand elements
    for other in others:
        other.result()


@functools.lru_cache(maxsize=1)
def _pool(num: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num, thread_name_prefix="localplug-noise")


def _unsigned(value: int) -> Any:
    import numpy

    return numpy.uint64(value & ((1 << 64) - 1))


class _Compiled:
    """The loops, compiled at the first use (about a second)."""

    def __init__(self) -> None:
        from numpy import float32, uint16, uint32, uint64

        gamma, first, second = uint64(0x9E3779B97F4A7C15), uint64(0xBF58476D1CE4E5B9), uint64(0x94D049BB133111EB)
        one, two, low = uint64(1), uint64(2), uint64(0xFFFF)
        by = {n: uint64(n) for n in (6, 16, 27, 30, 31, 32, 48)}
        s6, s16, s27, s30, s31, s32, s48 = (by[n] for n in (6, 16, 27, 30, 31, 32, 48))
        jit = numba.njit(nogil=True)

        @numba.njit(inline="always")
        def word(key: Any, number: Any) -> Any:
            x = key + number * gamma
            x = (x ^ (x >> s30)) * first
            x = (x ^ (x >> s27)) * second
            return x ^ (x >> s31)

        @jit
        def normal(out: Any, table: Any, key: Any, offset: Any) -> None:
            size = uint64(out.size)
            i = uint64(0)
            while i < size and (offset + i) % uint64(4) != uint64(0):  # up to the next whole word
                at = offset + i
                out[i] += table[(word(key, at >> two) >> (s16 * (at % uint64(4)))) & low]
                i += one
            number, body = (offset + i) >> two, out[i:]
            for k in range(body.size // 4):
                x = word(key, number + uint64(k))
                j = 4 * k
                body[j] += table[x & low]
                body[j + 1] += table[(x >> s16) & low]
                body[j + 2] += table[(x >> s32) & low]
                body[j + 3] += table[x >> s48]
            i += ((size - i) >> two) << two
            while i < size:
                at = offset + i
                out[i] += table[(word(key, at >> two) >> (s16 * (at % uint64(4)))) & low]
                i += one

        @jit
        def signs(out: Any, factor: Any, key: Any, offset: Any) -> None:
            size = uint64(out.size)
            i = uint64(0)
            while i < size:
                at = offset + i
                x = word(key, at >> s6)
                bit = at & uint64(63)
                num = min(uint64(64) - bit, size - i)
                x = x >> bit
                for b in range(num):
                    out[i + uint64(b)] += factor * (float32(1) - float32(2) * float32((x >> uint64(b)) & one))
                i += num

        # From another array: block by block, copied into the cache and then added to. A loop over two arrays that might be one
        # is not vectorised.
        @jit
        def normal_to(out: Any, given: Any, table: Any, key: Any, offset: Any) -> None:
            for start in range(0, out.size, BLOCK):
                part = out[start : start + BLOCK]
                part[:] = given[start : start + BLOCK]
                normal(part, table, key, offset + uint64(start))

        @jit
        def signs_to(out: Any, given: Any, factor: Any, key: Any, offset: Any) -> None:
            for start in range(0, out.size, BLOCK):
                part = out[start : start + BLOCK]
                part[:] = given[start : start + BLOCK]
                signs(part, factor, key, offset + uint64(start))

        @jit
        def outer(out: Any, rows: Any, columns: Any, offset: Any) -> None:
            width = columns.size
            i = 0
            while i < out.size:
                row, column = (offset + i) // width, (offset + i) % width
                part, other = out[i : i + width - column], columns[column:]
                value = rows[row]
                for j in range(part.size):
                    part[j] += value * other[j]
                i += part.size

        infinite, half, odd = uint32(0x7F80), uint32(0x7FFF), uint32(1)

        @jit
        def round_(out: Any, bits: Any, key: Any, offset: Any) -> None:
            for i in range(out.size):
                at = offset + uint64(i)
                die = uint32((word(key, at >> two) >> (s16 * (at % uint64(4)))) & low)
                x = bits[i]
                upper, lower = x >> uint32(16), x & uint32(0xFFFF)
                away = upper + uint32(1)
                if (away & infinite) == infinite:  # the largest number, infinity or no number: to nearest
                    if (upper & infinite) == infinite and (lower != 0 or (upper & uint32(0x7F)) != 0):
                        out[i] = uint16(0x7FC0)
                    else:
                        out[i] = uint16((x + half + (upper & odd)) >> uint32(16))
                else:
                    out[i] = uint16(away if die < lower else upper)

        self.normal, self.signs, self.outer, self.round = normal, signs, outer, round_
        self.normal_to, self.signs_to = normal_to, signs_to


@functools.lru_cache(maxsize=1)
def _compiled() -> _Compiled:
    return _Compiled()
