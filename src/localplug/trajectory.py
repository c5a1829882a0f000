"""The run as a file: a zeroth-order training is its coefficients and learning rates, some bytes a step.

    file    MAGIC, length of the header (8 bytes), header (JSON), CRC-32 of all that, then records, in the order of writing
    record  kind (1 byte), body, CRC-16

    kind  body                                     meaning
    s     q coefficients                           a step at the learning rates in force
    l     q coefficients, lr                       a step, from which on lr is that of every parameter group
    g     number n, n times (lr, weight_decay)     what is in force for the parameter groups from here on
    n                                              a step whose estimate was not finite, and which was not updated
    r     step, q                                  the next record is that of this step, with q coefficients

All little-endian. Coefficients are float32 (float64 of a model in float64), lr and weight_decay float64: exactly the numbers
that the update used. In force at the beginning are zeros. A record's CRC begins with the two bytes before the record, so that
none can be lost, doubled or moved unnoticed. A run that goes on from an earlier step writes `r`; what it supersedes stays in
the file and is dropped in reading.
"""

import binascii
import ctypes
import dataclasses
import json
import os
import pathlib
import struct
import zlib
from typing import Any, final

from torch import Tensor

from localplug.encoding import from_text
from localplug.shards import is_sharded

MAGIC = b"\x89lplog\n\x01"  # the last byte is the version of the format
NAME = "trajectory.lplog"
"""The file's usual name."""
CODES = {"float32": "f", "float64": "d"}
_LENGTH, _CRC32, _CRC16, REWIND = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<QI")

Rates = tuple[tuple[float, float], ...]
"""(lr, weight_decay) of each parameter group."""


@final
@dataclasses.dataclass
class LoggedParameter:
    """A trained parameter, as the run knew it."""

    name: str
    """In run.parameters: what its noise is a function of."""
    full_names: list[str]
    """In model.named_parameters(), all of a tied one."""
    shape: list[int]
    dtype: str
    group: int
    """Number of its group of the optimizer; -1 if not known yet."""
    checksum: int | None
    """CRC-32 of its bytes at the first step; None of a sharded one."""


@final
@dataclasses.dataclass
class Header:
    """What a run is made of besides its steps."""

    version: str
    """Of localplug."""
    method: str | None
    """Its name; None of a method object that was made by hand, or with options that are no plain values."""
    options: dict[str, Any]
    description: str
    seed: int
    step: int
    """The first one of the log."""
    state: str
    """Of the method at that step, as base64 of torch.save; empty where it has none."""
    precision: str
    """Of the coefficients: "float32" or "float64"."""
    num_coefficients: int
    num_groups: int
    parameters: list[LoggedParameter]

    def method_state(self) -> dict[str, Any]:
        """The method's state at the first step."""
        return from_text(self.state)

    def recipe(self) -> str:
        """The method in words."""
        if self.method is None:
            return self.description
        return f"{self.method}({', '.join(f'{k}={v!r}' for k, v in sorted(self.options.items()))})"


@final
@dataclasses.dataclass(frozen=True)
class LoggedStep:
    """One step of the optimizer."""

    number: int
    coefficients: tuple[float, ...] | None
    """As `Method.update` got them; None if they were not finite and nothing was updated."""
    rates: Rates


@final
@dataclasses.dataclass
class Trajectory:
    """What a log holds."""

    header: Header
    steps: list[LoggedStep]
    """Those that count, one after another; what a resumed run superseded is left out."""
    num_coefficients: int
    """Of the next step."""
    rates: Rates
    """In force for the next step."""
    size: int
    """Bytes up to the last whole record."""
    ignored: int
    """Bytes of an incomplete record after that: what a run was writing when it was killed."""

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.header.step + len(self.steps)


def read_log(path: str | os.PathLike[str]) -> Trajectory:
    """The header and the steps of a log. A last record that was not written to its end is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no log of this format, or is damaged before its end; says at which byte.
    """
    data = pathlib.Path(path).read_bytes()
    header, offset = _header_of(data, path)
    count, rates = header.num_coefficients, ((0.0, 0.0),) * header.num_groups
    code = CODES[header.precision]
    steps: list[LoggedStep] = []
    while offset < len(data):
        body = _body(data, offset, struct.calcsize(f"<{count}{code}"))
        if body is None:
            if _goes_on(data, offset, struct.calcsize(f"<{count}{code}")):
                raise ValueError(f"{path} is damaged at byte {offset}: the record there is wrong, and others follow it")
            break
        kind, number = body[:1], header.step + len(steps)
        if kind == b"r":
            number, count = REWIND.unpack(body[1:])
            if not header.step <= number <= header.step + len(steps):
                raise ValueError(
                    f"{path} is damaged at byte {offset}: it goes to step {number}, and has no step before"
                )
            del steps[number - header.step :]
        elif kind == b"g":
            numbers = struct.unpack(f"<{(len(body) - 3) // 8}d", body[3:])
            rates = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        elif kind == b"n":
            steps.append(LoggedStep(number, None, rates))
        else:
            coefficients = struct.unpack_from(f"<{count}{code}", body, 1)
            if kind == b"l":
                (lr,) = struct.unpack("<d", body[-8:])
                rates = tuple((lr, weight_decay) for _, weight_decay in rates)
            steps.append(LoggedStep(number, coefficients, rates))
        offset += len(body) + _CRC16.size
    return Trajectory(header, steps, count, rates, offset, len(data) - offset)


def _header_of(data: bytes, path: str | os.PathLike[str]) -> tuple[Header, int]:
    """The header, and where the records begin."""
    if not data.startswith(MAGIC[:-1]):
        raise ValueError(f"{path} is no log of a localplug run")
    if data[len(MAGIC) - 1 : len(MAGIC)] != MAGIC[-1:]:
        raise ValueError(
            f"{path} is a log of another format than {MAGIC[-1]}; read it with the localplug that wrote it"
        )
    start = len(MAGIC) + _LENGTH.size
    end = start + (_LENGTH.unpack(data[len(MAGIC) : start])[0] if len(data) >= start else 0)
    if len(data) < end + _CRC32.size or zlib.crc32(data[:end]) != _CRC32.unpack(data[end : end + _CRC32.size])[0]:
        raise ValueError(f"{path} is damaged in its header")
    fields = json.loads(data[start:end])
    parameters = [LoggedParameter(**p) for p in fields.pop("parameters")]
    return Header(parameters=parameters, **fields), end + _CRC32.size


def _body(data: bytes, offset: int, numbers: int, before: bytes | None = None) -> bytes | None:
    """The record at this place without its CRC, None where there is no whole and right one.

    Args:
        numbers: bytes of the coefficients of a step.
        before: the two bytes that its CRC begins with; by default those that stand before it.
    """
    body, crc = _uncut(data, offset, numbers)
    if not crc:
        return None
    return body if crc == crc_after(body, before or data[offset - 2 : offset]) else None


def _uncut(data: bytes, offset: int, numbers: int) -> tuple[bytes, bytes]:
    """What would be the body and the CRC of a record at this place; both empty where there is not enough for one."""
    kind = data[offset : offset + 1]
    groups = 16 * int.from_bytes(data[offset + 1 : offset + 3], "little")
    length = {b"s": numbers, b"l": numbers + 8, b"g": 2 + groups, b"n": 0, b"r": REWIND.size}.get(kind)
    if length is None or offset + 1 + length + _CRC16.size > len(data):
        return b"", b""
    end = offset + 1 + length
    return data[offset:end], data[end : end + _CRC16.size]


def crc_after(body: bytes, before: bytes) -> bytes:
    """The CRC of a record that follows these two bytes."""
    return _CRC16.pack(binascii.crc_hqx(body, _CRC16.unpack(before)[0]))


def _goes_on(data: bytes, offset: int, numbers: int) -> bool:
    """Whether right records come later, which of a write that was broken off cannot be."""
    body, crc = _uncut(data, offset, numbers)
    if crc and _body(data, offset + len(body) + _CRC16.size, numbers, crc_after(body, data[offset - 2 : offset])):
        return True  # the CRC itself is wrong
    for later in range(offset + 1, len(data)):
        found = _body(data, later, numbers)
        if found is not None:
            end = later + len(found) + _CRC16.size
            if end == len(data) or _body(data, end, numbers) is not None:  # two, as one may be so by chance
                return True
    return False


def packed(header: Header) -> bytes:
    """The beginning of a file."""
    text = json.dumps(dataclasses.asdict(header), separators=(",", ":")).encode()
    data = MAGIC + _LENGTH.pack(len(text)) + text
    return data + _CRC32.pack(zlib.crc32(data))


def checksum(tensor: Tensor) -> int | None:
    """CRC-32 of the bytes of a tensor's elements, row by row; None of a sharded one."""
    if is_sharded(tensor):
        return None
    flat = tensor.detach().cpu().contiguous()
    size = flat.numel() * flat.element_size()
    return zlib.crc32((ctypes.c_ubyte * size).from_address(flat.data_ptr())) if size else 0
