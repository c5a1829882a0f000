"""A method's state as text, for files that are JSON. Reading it back runs no code: it is JSON, and bytes of tensors in base64.

null, true, false, numbers, strings, lists    themselves
{"tuple": [...]}                              a tuple
{"dict": [[key, value], ...]}                 a dictionary
{"tensor": [dtype, shape, device, bytes]}     a dense tensor; its elements row by row, little-endian
"""

import base64
import binascii
import ctypes
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from localplug import strict_json

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


def to_text(state: Mapping[str, Any]) -> str:
    """The state; empty for an empty one.

    Args:
        state: numbers, strings, tensors and None, by name, in dictionaries, lists and tuples.

    Raises:
        TypeError: it holds something else; says where.

    Example:
        >>> from_text(to_text({"count": 3, "past": [(1, 0.5)]}))
        {'count': 3, 'past': [(1, 0.5)]}
    """
    return json.dumps(_encoded(dict(state), "state"), separators=(",", ":")) if state else ""


def from_text(text: str) -> dict[str, Any]:
    """What `to_text` was given. Tensors are on the device that they were on, or on the CPU if it is not here.

    Raises:
        ValueError: the text is not what `to_text` gives; says what is wrong and where.
    """
    if not text:
        return {}
    try:
        found = _decoded(strict_json.parse(text, "the method's state"), "state")
    except RecursionError as error:
        raise ValueError("the method's state is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"the method's state must be a dictionary, it is {type(found).__name__}")
    return found


def _encoded(value: Any, place: str) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": _tensor_encoded(value, place)}
    if isinstance(value, Mapping):
        pairs = [(_encoded(k, f"a key of {place}"), _encoded(v, f"{place}[{k!r}]")) for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        each = [_encoded(v, f"{place}[{i}]") for i, v in enumerate(value)]
        return each if isinstance(value, list) else {"tuple": each}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"a method's state is numbers, strings, tensors and None in dictionaries, lists and tuples; {place} is {value!r}"
    )


def _tensor_encoded(tensor: Tensor, place: str) -> list[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(f"a method's state has dense tensors with values; {place} is {tensor.layout}, {dtype}")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    size = flat.numel() * flat.element_size()
    content = ctypes.string_at(flat.data_ptr(), size) if size else b""
    if sys.byteorder == "big":
        raise TypeError("tensors are stored little-endian, which this machine is not")
    return [dtype, list(flat.shape), str(tensor.device), base64.b64encode(content).decode()]


def _decoded(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_decoded(v, f"{place}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"the method's state is damaged: {place} is neither a tuple, a dict nor a tensor")
    ((kind, content),) = value.items()
    if kind not in ("tuple", "dict", "tensor") or not isinstance(content, list):
        raise ValueError(f"the method's state is damaged: {place} is neither a tuple, a dict nor a tensor")
    if kind == "tuple":
        return tuple(_decoded(v, f"{place}[{i}]") for i, v in enumerate(content))
    if kind == "tensor":
        return _tensor_decoded(content, place)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
        raise ValueError(f"the method's state is damaged: {place} has entries that are no pairs")
    pairs = [(_decoded(key, f"a key of {place}"), _decoded(v, f"{place}[{key!r}]")) for key, v in content]
    if not all(key is None or isinstance(key, str | int | float) for key, _ in pairs):
        raise ValueError(f"the method's state is damaged: {place} has keys that are no names or numbers")
    return dict(pairs)


def _tensor_decoded(content: list[Any], place: str) -> Tensor:
    wrong = f"the method's state is damaged: the tensor {place}"
    if len(content) != 4 or not all(isinstance(content[i], str) for i in (0, 2, 3)):
        raise ValueError(f"{wrong} is not written as dtype, shape, device and bytes")
    name, shape, device, text = content
    if name not in _DTYPES:
        raise ValueError(f"{wrong} has the dtype {name!r}; there are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 64:
        raise ValueError(f"{wrong} has the shape {shape!r}")
    try:
        data = bytearray(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{wrong} is no base64: {error}") from error
    dtype = _DTYPES[name]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{wrong} has {len(data)} bytes, which is not what {name} of shape {shape} has")
    if not data:
        return torch.empty(0, dtype=dtype).reshape(_empty(shape, wrong))
    made = torch.frombuffer(data, dtype=dtype).reshape(shape)
    return made.to(device) if _is_here(device) else made


def _empty(shape: list[int], wrong: str) -> list[int]:
    if max(shape) >= 2**31:  # torch multiplies the dimensions
        raise ValueError(f"{wrong} has the shape {shape!r}")
    return shape


def _is_here(device: str) -> bool:
    kind, _, number = device.partition(":")
    return kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count()
