"""The inner loops of the noise on a CPU, compiled from csrc/loops.c when the package was installed: the same bits as torch's.

Without a C compiler, and without a wheel that holds them, there are none (`AVAILABLE` is False), and localplug.noise works in
torch operations alone, which takes about four times as long.
"""

import ctypes
import functools
import logging
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

LIBRARY = pathlib.Path(__file__).parent / "_loops.so"
AVAILABLE = LIBRARY.exists()

logger = logging.getLogger("localplug")

SPLIT = 1 << 16  # elements that are worth a thread

_POINTER, _SIZE, _WORD = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
_ARGUMENTS = {
    "localplug_add_normal": (_POINTER, _POINTER, _SIZE, _POINTER, _WORD, _WORD),
    "localplug_add_signs": (_POINTER, _POINTER, _SIZE, ctypes.c_float, _WORD, _WORD),
    "localplug_add_outer": (_POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE),
    "localplug_add_outers": (_POINTER, _SIZE, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE),
    "localplug_signs": (_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _WORD, _WORD, _WORD),
    "localplug_round_bfloat16": (_POINTER, _POINTER, _SIZE, _WORD, _WORD),
}


def usable(tensor: Tensor) -> bool:
    """Whether the compiled loops can write this tensor: a plain contiguous float32 one in the memory of the CPU."""
    plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
    return AVAILABLE and plain and type(tensor) in (Tensor, torch.nn.Parameter) and _loops() is not None


def add_normal_(target: Tensor, key: int, offset: int, table: Tensor, source: Tensor | None = None) -> None:
    """target <- source + table[16 bits], element by element, of the stream `key` from element `offset`.

    Args:
        source: by default target itself.
    """
    out, given, values = target.data_ptr(), (target if source is None else source).data_ptr(), table.data_ptr()

    def work(start: int, end: int) -> None:
        _loops().localplug_add_normal(out + 4 * start, given + 4 * start, end - start, values, key, offset + start)

    _spread(target.numel(), work)


def add_signs_(target: Tensor, key: int, offset: int, factor: float, source: Tensor | None = None) -> None:
    """target <- source + factor or source - factor, by one bit each, of the stream `key` from element `offset`."""
    out, given = target.data_ptr(), (target if source is None else source).data_ptr()

    def work(start: int, end: int) -> None:
        _loops().localplug_add_signs(out + 4 * start, given + 4 * start, end - start, factor, key, offset + start)

    _spread(target.numel(), work)


def add_outer_(target: Tensor, a: Tensor, b: Tensor, offset: int) -> None:
    """target += a b^T, each product rounded before it is added; of the elements from `offset` on, row by row.

    Args:
        a, b: float32, shapes (m,) and (n,), contiguous.
    """
    out, width = target.data_ptr(), b.numel()
    left, right = a.data_ptr(), b.data_ptr()

    def work(start: int, end: int) -> None:
        _loops().localplug_add_outer(out + 4 * start, end - start, left, right, width, offset + start)

    _spread(target.numel(), work)


def add_outers_(target: Tensor, rows: Tensor, columns: Tensor, keeps: Tensor) -> None:
    """target <- target * keeps[k] + rows[k] columns[k]^T for each k in turn, every product and sum rounded, in one sweep.

    Args:
        target: m n elements, row by row.
        rows, columns, keeps: float32, shapes (K, m), (K, n) and (K,), contiguous.
    """
    out, left, right, kept = target.data_ptr(), rows.data_ptr(), columns.data_ptr(), keeps.data_ptr()
    num, height, width = len(rows), rows.shape[1], columns.shape[1]

    def work(start: int, end: int) -> None:
        _loops().localplug_add_outers(out + 4 * start, end - start, left, right, kept, num, height, width, start)

    _spread(target.numel(), work)


def signs_(target: Tensor, names: Tensor, sizes: Tensor, scales: Tensor, parts: tuple[int, int, int]) -> None:
    """target <- the first sizes[k] signs of each stream times scales[k], one stream after another.

    Args:
        names, sizes, scales: int64, int64 and float32, shape (K,), contiguous.
        parts: what the streams have in common, mixed; see localplug.noise.
    """
    pointers = (t.data_ptr() for t in (target, names, sizes, scales))
    _loops().localplug_signs(*pointers, len(names), *parts)


def round_bfloat16_(target: Tensor, value: Tensor, key: int, offset: int) -> None:
    """target <- value, rounded by 16 bits of the stream `key` from element `offset`; see localplug.rounding.

    Args:
        target: bfloat16, contiguous; value: float32, as many elements.
    """
    out, given = target.data_ptr(), value.data_ptr()

    def work(start: int, end: int) -> None:
        _loops().localplug_round_bfloat16(out + 2 * start, given + 4 * start, end - start, key, offset + start)

    _spread(target.numel(), work)


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


@functools.lru_cache(maxsize=1)
def _loops() -> Any:
    """The library, or None where it is there and cannot be loaded. Its calls hold no interpreter lock."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError) as error:
        logger.warning("%s cannot be loaded, and so noise is made by torch, which is slower: %s", LIBRARY.name, error)
        return None
    return library
