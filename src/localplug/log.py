"""Writing a run down while it trains, in the format of localplug.trajectory."""

import importlib.metadata
import json
import logging
import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug.contract import Method, Run
from localplug.encoding import to_text
from localplug.errors import Unsupported
from localplug.header import CODES, Header, LoggedParameter
from localplug.trajectory import REWIND, Rates, checksum, crc_after, packed, read_log

logger = logging.getLogger("localplug")


@final
class Log:
    """Writes a run to a file, each step by one unbuffered write: valid whenever the process dies.

    Opened by the first step. A file that is there already must be of the same run, which goes on in it: from the end or from
    any step before.

    Args:
        path: of the file; its folder is made.
        method: the method's name, with which a replay makes it again; None or an object if it was made by hand.
        options: those it was made with.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        method: str | Method | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = pathlib.Path(path)
        given = dict(options or {})
        self._method = method if isinstance(method, str) and _is_plain(given) else None
        self._options: dict[str, Any] = json.loads(json.dumps(given)) if self._method else {}
        self._checksums: list[int | None] = []
        self._header: Header | None = None
        self._descriptor: int | None = None
        self._placed: list[int] = []  # number of the group of each parameter
        self._members: list[tuple[int, int]] = []  # which lists of parameters the groups were, and how long
        self._rates: Rates = ()
        self._next = self._count = self._size = 0
        self._tail = b""  # the last two bytes of the file

    def problems(self, run: Run, method: Method) -> list[str]:
        """Every reason why this run cannot be written there, as far as it is known before the first step."""
        found = method.replay_problems(run)
        if not found and self.path.exists():
            try:
                header = self._describe(run, method, [-1] * len(run.parameters), 0)
                found = _unlike(read_log(self.path).header, header, self.path, knows_all=False)
            except (OSError, ValueError) as error:
                found = [f"{error}; remove it or give another path"]
        return [f"log: {problem}" for problem in found]

    def weigh(self, run: Run) -> None:
        """Before the first evaluation of a step: take the checksums of the weights, as long as the file is not open."""
        if self._header is None:
            self._checksums = [checksum(p) for _, p in run.parameters]

    def begin(self, run: Run, method: Method, groups: Sequence[dict[str, Any]], coefficients: Tensor) -> None:
        """Before each update: open the file, or go back in it if the run went back.

        Args:
            groups: the optimizer's param_groups.
            coefficients: of the step that comes.

        Raises:
            Unsupported: the file is of another run, or lacks steps before this one.
            OSError: it cannot be read or written.
        """
        members = [(id(group["params"]), len(group["params"])) for group in groups]
        if self._header is None or members != self._members:  # else nothing has been moved since the last step
            number_of = {p: number for number, group in enumerate(groups) for p in group["params"]}
            placed = [number_of[p] for _, p in run.parameters]
            if self._header is None:
                self._open(self._describe(run, method, placed, len(groups), coefficients))
                self._placed = placed
            elif placed != self._placed:
                raise Unsupported(f"log: the optimizer's parameter groups are not those that {self.path} began with")
            self._members = members
        if (run.step, len(coefficients)) != (self._next, self._count):
            self._rewind(run.step, len(coefficients))

    def step(self, coefficients: Sequence[float] | None, groups: Sequence[dict[str, Any]]) -> None:
        """A step is done.

        Args:
            coefficients: that the update got; None if they were not finite and there was no update.
            groups: the optimizer's param_groups.

        Raises:
            OSError: the file cannot be written; it then ends with the step before.
        """
        assert self._header is not None
        if coefficients is None:
            self._write([b"n"])
        else:
            now = tuple((float(group["lr"]), float(group.get("weight_decay", 0.0))) for group in groups)
            numbers = b"".join(struct.pack("<" + CODES[self._header.precision], c) for c in coefficients)
            if now == self._rates:
                self._write([b"s" + numbers])
            elif len({lr for lr, _ in now}) == 1 and [wd for _, wd in now] == [wd for _, wd in self._rates]:
                self._write([b"l" + numbers + struct.pack("<d", now[0][0])])
            else:
                flat = [number for pair in now for number in pair]
                self._write([b"g" + struct.pack(f"<H{len(flat)}d", len(now), *flat), b"s" + numbers])
            self._rates = now
        self._next += 1

    def close(self) -> None:
        """Close the file. The next step would open it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._header = None

    def _open(self, header: Header) -> None:
        for logged, crc in zip(header.parameters, self._checksums, strict=True):
            logged.checksum = crc
        if not self.path.exists():
            data = packed(header)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(self.path.name + ".new")  # a header is there as a whole or not at all
            new.write_bytes(data)
            new.replace(self.path)
        found = read_log(self.path)
        wrong = _unlike(found.header, header, self.path, knows_all=True)
        if not found.header.step <= header.step <= found.end:
            wrong.append(
                f"{self.path} holds the steps {found.header.step} to {found.end}, and this run goes on at step {header.step}: "
                "what lies between is missing. Remove it or give another path"
            )
        if wrong:
            raise Unsupported("this cannot be logged:\n" + "\n".join(f"  - log: {reason}" for reason in wrong))
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        if found.ignored:
            logger.warning("%s ended in %d bytes of an incomplete record, now removed", self.path, found.ignored)
            os.ftruncate(descriptor, found.size)
        with open(self.path, "rb") as file:
            file.seek(found.size - 2)
            self._tail = file.read(2)
        self._next, self._count, self._rates, self._size = found.end, found.num_coefficients, found.rates, found.size
        self._header, self._descriptor = found.header, descriptor

    def _rewind(self, step: int, count: int) -> None:
        assert self._header is not None
        if not self._header.step <= step <= self._next:
            raise Unsupported(
                f"log: {self.path} holds the steps {self._header.step} to {self._next}, and the run is at step {step}"
            )
        self._write([b"r" + REWIND.pack(step, count)])
        self._next, self._count = step, count

    def _write(self, bodies: Sequence[bytes]) -> None:
        assert self._descriptor is not None
        tail, data = self._tail, b""
        for body in bodies:
            tail = crc_after(body, tail)
            data += body + tail
        left = data
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._tail, self._size = tail, self._size + len(data)

    def _describe(
        self, run: Run, method: Method, placed: list[int], num_groups: int, coefficients: Tensor | None = None
    ) -> Header:
        full: dict[Tensor, list[str]] = {}
        for name, p in run.model.named_parameters(remove_duplicate=False):
            full.setdefault(p, []).append(name)
        is_fresh = self._method is not None and run.step == 0  # then its state is what `setup` gives
        return Header(
            version=importlib.metadata.version("localplug"),
            method=self._method,
            options=self._options,
            description=method.describe(),
            seed=run.seed,
            step=run.step,
            state="" if coefficients is None or is_fresh else to_text(method.state_dict()),
            precision="float64" if coefficients is not None and coefficients.dtype == torch.float64 else "float32",
            num_coefficients=0 if coefficients is None else len(coefficients),
            num_groups=num_groups,
            parameters=[
                LoggedParameter(name, full[p], list(p.shape), str(p.dtype).removeprefix("torch."), group, None)
                for (name, p), group in zip(run.parameters, placed, strict=True)
            ],
        )


def _unlike(old: Header, new: Header, path: pathlib.Path, *, knows_all: bool) -> list[str]:
    """What makes the two headers those of different runs, in one reason."""
    differences = [
        f"{what} was {before}, is {now}"
        for what, before, now in (
            ("the method", old.recipe(), new.recipe()),
            ("the seed", old.seed, new.seed if knows_all else old.seed),
            ("the precision", old.precision, new.precision if knows_all else old.precision),
        )
        if before != now
    ]
    before, now = {p.name: p for p in old.parameters}, {p.name: p for p in new.parameters}
    both = [(before[n], now[n]) for n in now if n in before]
    is_start = knows_all and old.step == new.step
    for what, names in (
        ("it also trained", [n for n in before if n not in now]),
        ("it did not train", [n for n in now if n not in before]),
        (
            "it had in another shape or dtype",
            [b.name for a, b in both if (a.shape, a.dtype) != (b.shape, b.dtype)],
        ),
        ("it had in another group of the optimizer", [b.name for a, b in both if b.group not in (-1, a.group)]),
        ("it began with other values of", [b.name for a, b in both if is_start and a.checksum != b.checksum]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            differences.append(f"{what} {', '.join(names[:3])}{more}")
    if not differences and list(before) != list(now):
        differences.append("it had the parameters in another order")
    if not differences:
        return []
    return [f"{path} is of another run: {'; '.join(differences)}. Remove it or give another path"]


def _is_plain(value: object) -> bool:
    """Whether JSON gives it back."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
