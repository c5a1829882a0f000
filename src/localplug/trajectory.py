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
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Sequence
from typing import final, overload

from torch import Tensor

from localplug.header import CODES, Header, parse
from localplug.shards import is_sharded

MAGIC = b"\x89lplog\n\x01"  # the last byte is the version of the format
NAME = "trajectory.lplog"
"""The file's usual name."""
_LENGTH, _CRC32, _CRC16, REWIND = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<QI")

Rates = Sequence[tuple[float, float]]
"""(lr, weight_decay) of each parameter group."""


@final
class OneRate(Sequence[tuple[float, float]]):
    """The rates of groups that share an lr, each with its own weight decay; as small as a number, however many there are."""

    def __init__(self, lr: float, like: Rates) -> None:
        self.lr = lr
        self._like: Rates = like._like if isinstance(like, OneRate) else like

    def __len__(self) -> int:
        return len(self._like)

    @overload
    def __getitem__(self, at: int) -> tuple[float, float]: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[tuple[float, float], ...]: ...
    def __getitem__(self, at: int | slice) -> tuple[float, float] | tuple[tuple[float, float], ...]:
        if isinstance(at, slice):
            return tuple((self.lr, decay) for _, decay in self._like[at])
        return self.lr, self._like[at][1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


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
        OSError: the file cannot be read, or is no regular one.
        ValueError: it is no log of this format, or is damaged before its end; says at which byte.
    """
    file = pathlib.Path(path)
    if file.exists() and not file.is_file():
        raise OSError(f"{path} is no regular file")  # a pipe or a device may never end
    data = file.read_bytes()
    header, offset = _header_of(data, path)
    form = _Form(header)
    rates: Rates = ((0.0, 0.0),) * header.num_groups
    last_group = max((p.group for p in header.parameters), default=-1)
    steps: list[LoggedStep] = []
    while offset < len(data):
        body = _body(data, offset, form)
        if body is None:
            if _goes_on(data, offset, form):
                raise ValueError(f"{path} is damaged at byte {offset}: the record there is wrong, and others follow it")
            break
        kind, number = body[:1], header.step + len(steps)
        numbers: tuple[float, ...] = ()
        if kind == b"r":
            number, form.count = REWIND.unpack(body[1:])
            if not header.step <= number <= header.step + len(steps):
                raise ValueError(
                    f"{path} is damaged at byte {offset}: it goes to step {number}, and has no step before"
                )
            del steps[number - header.step :]
        elif kind == b"g":
            numbers = struct.unpack(f"<{(len(body) - 3) // 8}d", body[3:])
            rates = tuple(zip(numbers[::2], numbers[1::2], strict=True))
            if len(rates) <= last_group:
                raise ValueError(f"{path} is damaged at byte {offset}: it has no rates for group {last_group}")
        elif kind == b"n":
            steps.append(LoggedStep(number, None, rates))
        else:
            coefficients = numbers = struct.unpack_from(f"<{form.count}{form.code}", body, 1)
            if kind == b"l":
                (lr,) = struct.unpack("<d", body[-8:])
                rates, numbers = OneRate(lr, rates), (*coefficients, lr)
            steps.append(LoggedStep(number, coefficients, rates))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{path} is damaged at byte {offset}: a number there is not finite, which no run writes")
        offset += len(body) + _CRC16.size
    return Trajectory(header, steps, form.count, rates, offset, len(data) - offset)


@final
class _Form:
    """What the length of a record depends on."""

    def __init__(self, header: Header) -> None:
        self.count, self.code = header.num_coefficients, CODES[header.precision]

    def length(self, data: bytes, offset: int) -> int | None:
        """Bytes of the body after its kind; None of a kind that there is not."""
        numbers = struct.calcsize(f"<{self.code}") * self.count
        groups = 16 * int.from_bytes(data[offset + 1 : offset + 3], "little")
        sizes = {b"s": numbers, b"l": numbers + 8, b"g": 2 + groups, b"n": 0, b"r": REWIND.size}
        return sizes.get(data[offset : offset + 1])


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
    return parse(data[start:end], f"the header of {path}"), end + _CRC32.size


def _body(data: bytes, offset: int, form: _Form, before: bytes | None = None) -> bytes | None:
    """The record at this place without its CRC, None where there is no whole and right one.

    Args:
        form: of the records here.
        before: the two bytes that its CRC begins with; by default those that stand before it.
    """
    body, crc = _uncut(data, offset, form)
    if not crc:
        return None
    return body if crc == crc_after(body, before or data[offset - 2 : offset]) else None


def _uncut(data: bytes, offset: int, form: _Form) -> tuple[bytes, bytes]:
    """What would be the body and the CRC of a record at this place; both empty where there is not enough for one."""
    length = form.length(data, offset)
    if length is None or offset + 1 + length + _CRC16.size > len(data):
        return b"", b""
    end = offset + 1 + length
    return data[offset:end], data[end : end + _CRC16.size]


def crc_after(body: bytes, before: bytes) -> bytes:
    """The CRC of a record that follows these two bytes."""
    return _CRC16.pack(binascii.crc_hqx(body, _CRC16.unpack(before)[0]))


def _goes_on(data: bytes, offset: int, form: _Form) -> bool:
    """Whether right records come later, which of a write that was broken off cannot be."""
    body, crc = _uncut(data, offset, form)
    if crc and _body(data, offset + len(body) + _CRC16.size, form, crc_after(body, data[offset - 2 : offset])):
        return True  # the CRC itself is wrong
    left = 64 * (len(data) - offset) + 2**20  # bytes to look at: more is no accident, and could take days
    for later in range(offset + 1, len(data)):
        left -= len(_uncut(data, later, form)[0])
        if left < 0:
            return True
        found = _body(data, later, form)
        if found is not None:
            end = later + len(found) + _CRC16.size
            if end == len(data) or _body(data, end, form) is not None:  # two, as one may be so by chance
                return True
    return False


def packed(header: Header) -> bytes:
    """The beginning of a file."""
    text = header.as_json()
    data = MAGIC + _LENGTH.pack(len(text)) + text
    return data + _CRC32.pack(zlib.crc32(data))


def checksum(tensor: Tensor) -> int | None:
    """CRC-32 of the bytes of a tensor's elements, row by row; None of a sharded one."""
    if is_sharded(tensor):
        return None
    flat = tensor.detach().cpu().contiguous()
    size = flat.numel() * flat.element_size()
    return zlib.crc32((ctypes.c_ubyte * size).from_address(flat.data_ptr())) if size else 0
