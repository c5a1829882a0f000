"""The inner loops of the noise on a CPU, compiled by numba where it is installed: the same bits as torch's, made faster.

Without numba (the extra `localplug[fast]`) every function here is absent (`AVAILABLE` is False), and localplug.noise works
in torch operations alone.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

AVAILABLE = importlib.util.find_spec("numba") is not None

logger = logging.getLogger("localplug")

SPLIT = 1 << 16  # elements that are worth a thread


def usable(tensor: Tensor) -> bool:
    """Whether the compiled loops can write this tensor: a plain contiguous float32 one in the memory of the CPU."""
    plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
    return AVAILABLE and plain and _loops() is not None


def add_normal_(target: Tensor, key: int, offset: int, table: Tensor, source: Tensor | None = None) -> None:
    """target <- source + table[16 bits], element by element, of the stream `key` from element `offset`.

    Args:
        source: by default target itself.
    """
    _add_noise(_loops().normal, _loops().normal_to, target, source, table.numpy(), key, offset)


def add_signs_(target: Tensor, key: int, offset: int, factor: float, source: Tensor | None = None) -> None:
    """target <- source + factor or source - factor, by one bit each, of the stream `key` from element `offset`."""
    value = torch.tensor(factor).numpy()[()]
    _add_noise(_loops().signs, _loops().signs_to, target, source, value, key, offset)


def _add_noise(
    loop: Callable[..., None],
    loop_from: Callable[..., None],
    target: Tensor,
    source: Tensor | None,
    scaled: Any,
    key: int,
    offset: int,
) -> None:
    """Run the loop in place, or the one from another array, over a stream's elements times a factor (`scaled`)."""
    place, given = target.numpy().reshape(-1), None if source is None else source.numpy().reshape(-1)

    def work(start: int, end: int) -> None:
        where = _unsigned(key), _unsigned(offset + start)
        if given is None:
            loop(place[start:end], scaled, *where)
        else:
            loop_from(place[start:end], given[start:end], scaled, *where)

    _spread(place.size, work)


def add_outer_(target: Tensor, a: Tensor, b: Tensor, factor: float, offset: int) -> None:
    """target += (factor * a) b^T, each product rounded before it is added; of the elements from `offset` on, row by row.

    Args:
        a, b: float32, shapes (m,) and (n,), contiguous.
    """
    place = target.numpy().reshape(-1)
    rows, columns = (a * factor).numpy(), b.numpy()
    _spread(place.size, lambda start, end: _loops().outer(place[start:end], rows, columns, offset + start))


def round_bfloat16_(target: Tensor, value: Tensor, key: int, offset: int) -> None:
    """target <- value, rounded by 16 bits of the stream `key` from element `offset`; see localplug.rounding.

    Args:
        target: bfloat16, contiguous; value: float32, as many elements.
    """
    import numpy

    place = target.view(torch.int16).numpy().reshape(-1).view(numpy.uint16)
    bits = value.numpy().reshape(-1).view(numpy.uint32)

    def work(start: int, end: int) -> None:
        _loops().round_(place[start:end], bits[start:end], _unsigned(key), _unsigned(offset + start))

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


@functools.lru_cache(maxsize=1)
def _loops() -> Any:
    """localplug.loops, or None where numba is installed and broken."""
    try:
        return importlib.import_module("localplug.loops")
    except ImportError as error:
        logger.warning("numba cannot be imported, and so noise is made by torch, which is slower: %s", error)
        return None
