"""Weights laid out for the kernel, kept beside the checkpoint's own tensors as long as those live and stay as they are."""

import weakref
from typing import Any

from torch import Tensor

from localplug_ternary.kernels.layout import Prepared, prepare

_kept: dict[int, tuple[Any, tuple[Any, ...], Prepared]] = {}


def prepared_of(codes: Tensor, scales: Tensor, bias: Tensor | None, group: int) -> Prepared:
    """prepare() of these tensors, made again when one of them was written to or is another one.

    Raises:
        ValueError: see `prepare`.
    """
    key, now = id(codes), (_state(codes), _state(scales), None if bias is None else _state(bias), group)
    found = _kept.get(key)
    if found is not None and found[0]() is codes and found[1] == now:
        return found[2]
    made = prepare(codes, scales.detach(), None if bias is None else bias.detach(), group)
    _kept[key] = weakref.ref(codes, lambda gone: _forget(key, gone)), now, made
    return made


def _state(t: Tensor) -> tuple[int, int]:
    """Where it lies, and how often it was written to; what was made in inference mode has no such number."""
    return t.data_ptr(), -1 if t.is_inference() else t._version


def _forget(key: int, gone: Any) -> None:
    if (found := _kept.get(key)) is not None and found[0] is gone:
        del _kept[key]
