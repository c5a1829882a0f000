"""Huge pages for weights that are read once a token, where Linux has them.

A pass over a large weight touches each of its pages of 4 KiB for some hundred nanoseconds, and looking up where a page lies
takes a good part of that. From pages of 2 MiB the same bytes arrive up to twice as fast. Contents and results stay.
"""

import ctypes
import errno
import functools
import mmap
import pathlib
import threading
from typing import Any

import torch
from torch import Tensor

PAGE = 1 << 21
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python has no name for
_REGION = 32 * PAGE  # of memory that small copies share; what nobody has written to takes none
_ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_lock = threading.Lock()
_region: Any = None
_used = 0


@functools.cache
def there_are() -> bool:
    """Whether this machine gives huge pages to programs that ask."""
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in _ENABLED.read_text()
    except OSError:
        return False


def collapse(t: Tensor) -> bool:
    """Move a large tensor of a CPU into huge pages, where it lies; what finds none free now is left to Linux.

    False where that cannot be: on Linux before 6.1, and in a mapped file, as weights lie that were loaded from one.
    """
    first = -(-t.data_ptr() // PAGE) * PAGE
    length = (t.data_ptr() + t.nbytes) // PAGE * PAGE - first
    if not there_are() or t.device.type != "cpu" or length <= 0:
        return True
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise(first, length, mmap.MADV_HUGEPAGE)
    return bool(advise(first, length, _COLLAPSE) == 0 or ctypes.get_errno() != errno.EINVAL)


def copied(t: Tensor) -> Tensor:
    """A contiguous copy of a tensor of a CPU, in huge pages if there are any; small ones share them."""
    if not there_are() or t.device.type != "cpu" or t.numel() == 0:
        return t.clone(memory_format=torch.contiguous_format)
    return _place(t.nbytes, t.dtype).view(t.shape).copy_(t)


def _place(size: int, dtype: torch.dtype) -> Tensor:
    """Room for a tensor. What was mapped lives as long as one of the tensors in it."""
    global _region, _used
    if size > _REGION // 4:
        whole, start = _mapped(size)
        return torch.frombuffer(whole, dtype=dtype, count=size // dtype.itemsize, offset=start)
    with _lock:
        if _region is None or _used + size > len(_region):
            _region, _used = _mapped(_REGION)
        offset, _used = _used, _used + -(-size // 64) * 64
        return torch.frombuffer(_region, dtype=dtype, count=size // dtype.itemsize, offset=offset)


def _mapped(size: int) -> tuple[Any, int]:
    """Memory that asks for huge pages, and where its first one begins."""
    made = mmap.mmap(-1, size + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_HUGEPAGE)
    return made, -torch.frombuffer(made, dtype=torch.uint8).data_ptr() % PAGE
