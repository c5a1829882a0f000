"""Masks of many parameters at one bit a weight: bit i % 8 of byte i // 8 says whether element i is in, row by row."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Run
from localplug_select.thresholds import CHUNK, chunks

_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


@final
class PackedMasks:
    """The masks of a run's parameters.

    Args:
        run: whose parameters they are for.
        indices: numbers of the parameters in run.parameters.
    """

    def __init__(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self.bits = {i: torch.zeros(0, dtype=torch.uint8) for i in indices}
        """One byte for 8 elements, on the parameter's device."""
        self._num = dict.fromkeys(indices, 0)

    @torch.no_grad()
    def choose(self, chosen: Callable[[int, Tensor], Tensor]) -> None:
        """Make them anew.

        Args:
            chosen: gets a parameter's number and |w| of some of its elements in float32; gives which are in, bool.
        """
        for i in self.bits:
            made = [_packed(chosen(i, piece.float().abs())) for piece in chunks(self._run.parameters[i][1].data)]
            self._put(i, torch.cat(made) if made else self.bits[i])

    def _put(self, index: int, bits: Tensor) -> None:
        self.bits[index] = bits
        table = torch.arange(256).unsqueeze(1).bitwise_and(torch.tensor(_BITS)).ne(0).sum(1)
        self._num[index] = int((torch.bincount(bits.cpu(), minlength=256) * table).sum())

    def slice(self, index: int, offset: int, num: int) -> Tensor:
        """Which of elements offset ... offset + num - 1 are in. bool, shape (num,)."""
        first = offset // 8
        some = self.bits[index][first : (offset + num + 7) // 8]
        weights = _bits(some.device)
        return some.unsqueeze(1).bitwise_and(weights).ne(0).view(-1)[offset - 8 * first :][:num]

    def num(self, index: int | None = None) -> int:
        """Elements that are in, of one parameter or of all."""
        return sum(self._num.values()) if index is None else self._num[index]

    def state_dict(self) -> dict[str, Any]:
        """{name of the parameter: its bytes}."""
        return {self._run.parameters[i][0]: bits for i, bits in self.bits.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: a mask is missing or of another size.
        """
        given = {i: state.get(self._run.parameters[i][0]) for i in self.bits}
        wrong = [
            self._run.parameters[i][0]
            for i, bits in given.items()
            if not isinstance(bits, Tensor)
            or bits.dtype != torch.uint8
            or bits.shape != (-(-self._run.parameters[i][1].numel() // 8),)
        ]
        if wrong:
            raise ValueError(f"the saved masks do not fit these parameters: {wrong[:3]}")
        for i, bits in given.items():
            assert bits is not None
            self._put(i, bits.to(self._run.parameters[i][1].device).clone())


@functools.lru_cache(maxsize=16)
def _bits(device: torch.device) -> Tensor:
    return torch.tensor(_BITS, dtype=torch.uint8, device=device)


assert CHUNK % 8 == 0  # else pieces of one parameter would not begin at a byte


def _packed(mask: Tensor) -> Tensor:
    """bool (n,) -> uint8 (ceil(n / 8),)."""
    whole = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
    whole[: mask.numel()] = mask
    return (whole.view(-1, 8) * _bits(mask.device)).sum(1, dtype=torch.uint8)
