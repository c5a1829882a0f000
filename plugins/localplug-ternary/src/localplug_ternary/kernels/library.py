"""The compiled kernels: csrc/ternary.c and csrc/dense.c, built when the package is installed where a C compiler is, and
called by ctypes.

torch is imported first: the kernel then shares its OpenMP runtime and its pool of threads.
"""

import ctypes
import functools
import logging
import pathlib
from typing import Any

import torch
from torch import Tensor

LIBRARY = pathlib.Path(__file__).with_name("_ternary.so")
ABI = 2  # of csrc/ternary.c
COMPILED = {"avx512vnni": 2, "avx2": 1, "portable": 0}  # fastest first; the numbers are those of csrc/ternary.c
KINDS = {torch.float32: 0, torch.bfloat16: 1}
_log = logging.getLogger("localplug")


class NoLibrary(Exception):
    """Why there is no compiled kernel."""


def load(path: pathlib.Path) -> ctypes.CDLL:
    """The library at path, its functions declared.

    Raises:
        NoLibrary: it is not there, does not load, or is of another version than this file.
    """
    if not path.exists():
        raise NoLibrary("it was installed without a C compiler")
    try:
        library = ctypes.CDLL(str(path))
        version = library.ternary_abi()
    except (OSError, AttributeError) as error:
        raise NoLibrary(f"{path.name} does not load: {error}") from error
    if version != ABI:
        raise NoLibrary(f"{path.name} has version {version}, {ABI} is needed")
    integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    weight: list[Any] = [pointer, pointer, pointer, size, size, size]
    tokens: list[Any] = [pointer, pointer, size]
    library.ternary_supports.argtypes = [integer]
    library.ternary_linear.argtypes = [integer, *weight, *tokens, integer, integer]
    library.dense_supports.argtypes = [integer]
    library.dense_linear.argtypes = [integer, pointer, size, size, size, integer, *tokens, integer]
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None, which is logged once."""
    try:
        return load(LIBRARY)
    except NoLibrary as why:
        _log.warning(
            "localplug-ternary has no compiled kernel (%s); packed layers run on torch's own operators, which is slower. "
            "With a C compiler: pip install --force-reinstall --no-deps --no-binary localplug-ternary localplug-ternary",
            why,
        )
        return None


@functools.cache
def bodies() -> tuple[str, ...]:
    """Names of the kernel's bodies that this machine can run, fastest first."""
    compiled = library()
    names = [name for name, number in COMPILED.items() if compiled and compiled.ternary_supports(number)]
    if _multiplies_integers():
        names.append("int_mm")
    return (*names, "dequantize")


def available() -> str:
    """Name of the fastest body here: "avx512vnni", "avx2" or "portable" (compiled), "int_mm" or "dequantize" (torch)."""
    return bodies()[0]


def call(body: str, codes: Tensor, scales: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> None:
    """y (..., N) <- x (..., K) W^T + bias by a compiled body: contiguous tensors of a CPU, x and y of one dtype of KINDS."""
    compiled = library()
    assert compiled is not None
    K = x.shape[-1]
    M = x.numel() // K
    failed = compiled.ternary_linear(
        COMPILED[body],
        codes.data_ptr(),
        scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.shape[-1],
        K,
        scales.shape[1],
        x.data_ptr(),
        y.data_ptr(),
        M,
        KINDS[x.dtype],
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for int8 activations of {M} tokens of {K} features")


def _multiplies_integers() -> bool:
    """Whether torch's product of int8 matrices works here."""
    one = torch.ones(1, 16, dtype=torch.int8)
    try:
        return int(torch._int_mm(one, one.t())) == 16
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
