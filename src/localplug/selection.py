"""Which parameters, and which of their elements, a method trains: the `parameters=` option.

    None, "all"             every trainable parameter
    "lora"                  those of LoRA adapters (their names contain "lora_")
    "*.q_proj.*", [...]     those whose name matches one of the patterns (fnmatch)
    {"pattern": mask}       the elements where the mask, a boolean tensor of the parameter's shape, is true
    "smallest:0.2"          of each matrix the given share with the smallest magnitude at the start, and whatever moves
                            below that magnitude later (Sparse-MeZO, arXiv:2402.15751)
    "random:0.2"            of each parameter a random share, drawn once; "random:0.2:100" draws anew every 100 steps

What is not selected is neither perturbed nor changed, nor decayed.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import noise
from localplug.contract import Run
from localplug.shards import is_sharded

Parameters = str | Sequence[str] | Mapping[str, Tensor] | None
"""What the option `parameters` takes."""


@final
class Selection:
    """The selected parameters of a run.

    Args:
        parameters: see the head of this file.

    Raises:
        ValueError: it is none of those, or a share is outside (0, 1].
    """

    def __init__(self, parameters: Parameters = None) -> None:
        self._given = parameters
        self._fraction = 1.0
        self._every = 0
        self._kind = "names"
        self._patterns: list[str] | None = None
        self._given_masks: dict[str, Tensor] = {}
        if isinstance(parameters, str) and parameters.split(":")[0] in ("smallest", "random"):
            self._kind, *numbers = parameters.split(":")
            self._parse(parameters, numbers)
        elif isinstance(parameters, str):
            self._patterns = None if parameters == "all" else ["*lora_*"] if parameters == "lora" else [parameters]
        elif isinstance(parameters, Mapping):
            self._kind, self._patterns = "mask", list(parameters)
            self._given_masks = dict(parameters)
            if wrong := [n for n, m in parameters.items() if not (isinstance(m, Tensor) and m.dtype == torch.bool)]:
                raise ValueError(f"parameters: the masks must be boolean tensors; these are not: {wrong}")
        elif parameters is not None:
            self._patterns = list(parameters)
            if not self._patterns or not all(isinstance(p, str) for p in self._patterns):
                raise ValueError(f"parameters: expected names or patterns, got {parameters!r}")
        self.indices: list[int] = []
        """Numbers of the selected parameters in run.parameters."""
        self._thresholds: dict[str, float] = {}
        self._masks: dict[int, Tensor] = {}
        self._keys: dict[tuple[int, int], int] = {}

    def _parse(self, text: str, numbers: list[str]) -> None:
        try:
            self._fraction = float(numbers[0])
            self._every = int(numbers[1]) if len(numbers) > 1 else 0
        except (IndexError, ValueError):
            self._fraction = 0.0
        if not 0 < self._fraction <= 1 or self._every < 0 or len(numbers) > (2 if self._kind == "random" else 1):
            raise ValueError(
                f'parameters: expected a share in (0, 1], such as "smallest:0.2" or "random:0.2:100", got {text!r}'
            )

    @property
    def has_masks(self) -> bool:
        """Whether single elements are selected."""
        return self._kind != "names"

    @property
    def changes(self) -> bool:
        """Whether the selected elements depend on the weights or the step."""
        return self._kind == "smallest" or self._every > 0

    def describe(self) -> str:
        """The selection in a few words; empty for everything."""
        if self._given is None or self._given == "all":
            return ""
        if self._kind == "mask":
            return f"masked elements of {len(self._given_masks)} names"
        if isinstance(self._given, str):
            return self._given
        patterns = self._patterns or []
        return ", ".join(patterns[:3]) + (f", ... ({len(patterns)} names)" if len(patterns) > 3 else "")

    def problems(self, run: Run) -> list[str]:
        """What does not fit this model."""
        found = []
        names = [name for name, _ in run.parameters]
        patterns = self._patterns or []
        if empty := [p for p in patterns if not any(_matches(name, p) for name in names)]:
            found.append(
                f"parameters: no trainable parameter matches {', '.join(map(repr, empty))}; the model has "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            )
        for pattern, mask in self._given_masks.items():
            wrong = [n for n, p in run.parameters if _matches(n, pattern) and p.shape != mask.shape]
            if wrong:
                found.append(f"parameters: the mask for {pattern!r} has shape {tuple(mask.shape)}, unlike {wrong[:3]}")
        if self.has_masks and any(is_sharded(p) for _, p in run.parameters):
            found.append("parameters: elements of sharded parameters cannot be selected; select by name")
        return found

    def setup(self, run: Run) -> None:
        """Look the parameters up; magnitudes are measured now."""
        self._run = run
        self.indices = [
            i
            for i, (name, _) in enumerate(run.parameters)
            if self._patterns is None or any(_matches(name, p) for p in self._patterns)
        ]
        for i in self.indices:
            name, parameter = run.parameters[i]
            if self._kind == "smallest" and parameter.dim() > 1:
                self._thresholds.setdefault(name, _quantile(parameter.data.abs(), self._fraction))
            for pattern, mask in self._given_masks.items():
                if _matches(name, pattern):
                    self._masks[i] = mask.to(parameter.device).reshape(-1)

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        """Which of some elements are selected. bool, shaped like `values`; None for all of them.

        Args:
            values: the unperturbed weights there, one-dimensional, from element `offset` of parameter `index`.
        """
        if self._kind == "names":
            return None
        name = self._run.parameters[index][0]
        if self._kind == "smallest":
            threshold = self._thresholds.get(name)
            return None if threshold is None else values.abs() <= threshold
        if self._kind == "mask":
            return self._masks[index][offset : offset + values.numel()]
        epoch = step // self._every if self._every else 0
        key = noise.stream(self._run.seed, epoch, _MASKS, name)
        return noise.uniform(key, offset, values.numel(), values.device) < self._fraction

    def num_elements(self) -> int:
        """Elements selected, about."""
        total = 0
        for i in self.indices:
            _, parameter = self._run.parameters[i]
            share = 1.0 if self._kind == "smallest" and parameter.dim() < 2 else self._fraction
            total += int(self._masks[i].sum()) if i in self._masks else round(parameter.numel() * share)
        return total

    def state_dict(self) -> dict[str, Any]:
        """The magnitudes measured at the start."""
        return {"thresholds": dict(self._thresholds)} if self._thresholds else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._thresholds.update(state.get("thresholds", {}))


_MASKS = -2  # the number of the stream that masks are drawn from; directions count from 0, rounding takes -1


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _quantile(values: Tensor, share: float) -> float:
    flat = values.float().reshape(-1)
    return float(flat.kthvalue(max(round(share * flat.numel()), 1)).values)
