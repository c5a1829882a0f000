"""The loops of localplug.kernels, compiled by numba at their first call and kept in its cache for the processes after.

Imported when the first loop is wanted: numba takes a second and some tens of megabytes.
"""

from typing import Any

import numba
from numpy import float32, uint16, uint32, uint64

BLOCK = 1 << 13  # elements that stay in the first cache between a copy and an addition

# of SplitMix64; see localplug.noise
_GAMMA, _FIRST, _SECOND = uint64(0x9E3779B97F4A7C15), uint64(0xBF58476D1CE4E5B9), uint64(0x94D049BB133111EB)
# numba makes a float of a signed and an unsigned integer: every number here is unsigned
_ONE, _TWO, _LOW = uint64(1), uint64(2), uint64(0xFFFF)
_S6, _S16, _S27, _S30, _S31, _S32, _S48 = (uint64(n) for n in (6, 16, 27, 30, 31, 32, 48))
_INFINITE, _HALF, _ODD = uint32(0x7F80), uint32(0x7FFF), uint32(1)

_jit = numba.njit(nogil=True, cache=True)


@numba.njit(inline="always")
def _word(key: Any, number: Any) -> Any:
    x = key + number * _GAMMA
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return x ^ (x >> _S31)


@_jit
def normal(out: Any, table: Any, key: Any, offset: Any) -> None:
    size = uint64(out.size)
    i = uint64(0)
    while i < size and (offset + i) % uint64(4) != uint64(0):  # up to the next whole word
        at = offset + i
        out[i] += table[(_word(key, at >> _TWO) >> (_S16 * (at % uint64(4)))) & _LOW]
        i += _ONE
    number, body = (offset + i) >> _TWO, out[i:]
    for k in range(body.size // 4):
        x = _word(key, number + uint64(k))
        j = 4 * k
        body[j] += table[x & _LOW]
        body[j + 1] += table[(x >> _S16) & _LOW]
        body[j + 2] += table[(x >> _S32) & _LOW]
        body[j + 3] += table[x >> _S48]
    i += ((size - i) >> _TWO) << _TWO
    while i < size:
        at = offset + i
        out[i] += table[(_word(key, at >> _TWO) >> (_S16 * (at % uint64(4)))) & _LOW]
        i += _ONE


@_jit
def signs(out: Any, factor: Any, key: Any, offset: Any) -> None:
    size = uint64(out.size)
    i = uint64(0)
    while i < size:
        at = offset + i
        x = _word(key, at >> _S6)
        bit = at & uint64(63)
        num = min(uint64(64) - bit, size - i)
        x = x >> bit
        for b in range(num):
            out[i + uint64(b)] += factor * (float32(1) - float32(2) * float32((x >> uint64(b)) & _ONE))
        i += num


# From another array: block by block, copied into the cache and then added to. A loop over two arrays that might be one
# is not vectorised.
@_jit
def normal_to(out: Any, given: Any, table: Any, key: Any, offset: Any) -> None:
    for start in range(0, out.size, BLOCK):
        part = out[start : start + BLOCK]
        part[:] = given[start : start + BLOCK]
        normal(part, table, key, offset + uint64(start))


@_jit
def signs_to(out: Any, given: Any, factor: Any, key: Any, offset: Any) -> None:
    for start in range(0, out.size, BLOCK):
        part = out[start : start + BLOCK]
        part[:] = given[start : start + BLOCK]
        signs(part, factor, key, offset + uint64(start))


@_jit
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


@_jit
def round_(out: Any, bits: Any, key: Any, offset: Any) -> None:
    for i in range(out.size):
        at = offset + uint64(i)
        die = uint32((_word(key, at >> _TWO) >> (_S16 * (at % uint64(4)))) & _LOW)
        x = bits[i]
        upper, lower = x >> uint32(16), x & uint32(0xFFFF)
        away = upper + uint32(1)
        if (away & _INFINITE) == _INFINITE:  # the largest number, infinity or no number: to nearest
            if (upper & _INFINITE) == _INFINITE and (lower != 0 or (upper & uint32(0x7F)) != 0):
                out[i] = uint16(0x7FC0)
            else:
                out[i] = uint16((x + _HALF + (upper & _ODD)) >> uint32(16))
        else:
            out[i] = uint16(away if die < lower else upper)
