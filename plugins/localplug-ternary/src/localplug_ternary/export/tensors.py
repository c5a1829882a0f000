"""The tensors of a GGUF file, read back: names, types and bytes.

The gguf package's own reader refuses types that its version does not know, and Q2_0 is younger than its last release. This one
reads what this package has just written, little-endian, of version 3:

    magic, version, number of tensors, number of fields, fields, (name, dimensions, type, offset) of each tensor, padding, data
"""

import os
import struct
from typing import Any, final

from localplug_ternary.export.blocks import FORMATS

_MAGIC, _VERSION, _ALIGNMENT = 0x46554747, 3, 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# {number: (name, weights of a block, its bytes)}
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)}
_TYPES |= {format.number: (name, format.weights, format.bytes) for name, format in FORMATS.items()}
_NUMPY = {"F32": "float32", "F16": "float16"}


def tensors(path: str | os.PathLike[str]) -> dict[str, tuple[str, Any]]:
    """{name: (its type, array)}: float32 and float16 in their shape, others as uint8, (..., bytes of a row).

    The arrays are views of the file.
    """
    import numpy

    data: Any = numpy.memmap(path, mode="r")
    cursor = _Cursor(memoryview(data))
    if cursor.number("I") != _MAGIC or cursor.number("I") != _VERSION:
        raise ValueError(f"{os.fspath(path)!r} is no GGUF of version {_VERSION}")
    num_tensors, num_fields = cursor.number("Q"), cursor.number("Q")
    fields = dict(cursor.field() for _ in range(num_fields))
    heads = [cursor.head() for _ in range(num_tensors)]
    alignment = fields.get("general.alignment", _ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    found = {}
    for name, shape, number, offset in heads:
        kind, weights, size = _TYPES[number]
        rows = [*shape[:-1], shape[-1] // weights * size]
        raw = data[start + offset :][: int(numpy.prod(rows))].reshape(rows)
        found[name] = (kind, raw.view(_NUMPY[kind]) if kind in _NUMPY else raw)
    return found


@final
class _Cursor:
    """A place in a file."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.at = view, 0

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.view, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.at += length
        return str(self.view[self.at - length : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, length = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(length)]
        return self.number(_SCALARS[kind])

    def field(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("I"))

    def head(self) -> tuple[str, list[int], int, int]:
        """Name, dimensions with the rows first, number of the type, and offset of a tensor."""
        name, num_dimensions = self.text(), self.number("I")
        shape = [self.number("Q") for _ in range(num_dimensions)][::-1]
        return name, shape, self.number("I"), self.number("Q")
