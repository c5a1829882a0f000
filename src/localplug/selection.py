"""Which parameters, and which of their elements, a method trains: the `parameters=` option.

    None, "all"             every trainable parameter
    "lora"                  those of LoRA adapters (their names contain "lora_")
    "*.q_proj.*", [...]     those whose name matches one of the patterns (fnmatch)
    {"pattern": mask}       the elements where the mask, a boolean tensor of the parameter's shape, is true
    "smallest:0.2"          of each matrix the given share with the smallest magnitude at the start, and whatever moves
                            below that magnitude later (Sparse-MeZO, arXiv:2402.15751)
    "random:0.2"            of each parameter a random share, drawn once; "random:0.2:100" draws anew every 100 steps
    "NAME:0.1:500"          a plugin's selector, with numbers for its first options in their order
    a localplug.Selector    such as localplug.selector(NAME, option=...)

What is not selected is neither perturbed nor changed, nor decayed.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from localplug.contract import Run
from localplug.plugins import get
from localplug.recipes import selector as make_selector
from localplug.selectors import GivenMasks, RandomShare, Selector, Smallest, matches
from localplug.shards import is_sharded

Parameters = str | Sequence[str] | Mapping[str, Tensor] | Selector | None
"""What the option `parameters` takes."""


@final
class Selection:
    """The selected parameters of a run.

    Args:
        parameters: see the head of this file.

    Raises:
        ValueError: it is none of those, or a share is outside (0, 1].
        UnknownName, DuplicateName, PluginFailed: of "NAME:...", as in `localplug.get`.
    """

    def __init__(self, parameters: Parameters = None) -> None:
        self._given = parameters
        self._selector: Selector | None = None
        self._patterns: list[str] | None = None
        if isinstance(parameters, str):
            if ":" in parameters or parameters in ("smallest", "random"):
                self._selector = _by_name(parameters)
            else:
                self._patterns = None if parameters == "all" else ["*lora_*"] if parameters == "lora" else [parameters]
        elif isinstance(parameters, Selector):
            self._selector = parameters
        elif isinstance(parameters, Mapping):
            self._selector = GivenMasks(parameters)
        elif parameters is not None:
            self._patterns = list(parameters)
            if not self._patterns or not all(isinstance(p, str) for p in self._patterns):
                raise ValueError(f"parameters: expected names or patterns, got {parameters!r}")
        if self._selector is not None and self._selector.among is not None:
            self._patterns = list(self._selector.among)
        self.indices: list[int] = []
        """Numbers of the selected parameters in run.parameters."""

    @property
    def has_masks(self) -> bool:
        """Whether single elements are selected."""
        return self._selector is not None

    @property
    def changes(self) -> bool:
        """Whether the selected elements depend on the weights or the step."""
        return self._selector is not None and self._selector.changes

    def describe(self) -> str:
        """The selection in a few words; empty for everything."""
        if self._selector is not None:
            return self._selector.describe()
        if self._given is None or self._given == "all":
            return ""
        if isinstance(self._given, str):
            return self._given
        patterns = self._patterns or []
        return ", ".join(patterns[:3]) + (f", ... ({len(patterns)} names)" if len(patterns) > 3 else "")

    def problems(self, run: Run) -> list[str]:
        """What does not fit this model."""
        found = []
        names = [name for name, _ in run.parameters]
        patterns = self._patterns or []
        if empty := [p for p in patterns if not any(matches(name, p) for name in names)]:
            found.append(
                f"parameters: no trainable parameter matches {', '.join(map(repr, empty))}; the model has "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            )
        if self._selector is not None:
            found += self._selector.problems(run)
            if any(is_sharded(p) for _, p in run.parameters):
                found.append("parameters: elements of sharded parameters cannot be selected; select by name")
        return found

    def setup(self, run: Run) -> None:
        """Look the parameters up; magnitudes are measured now."""
        self._run = run
        self.indices = [
            i
            for i, (name, _) in enumerate(run.parameters)
            if self._patterns is None or any(matches(name, p) for p in self._patterns)
        ]
        if self._selector is not None:
            self._selector.setup(run, self.indices)

    def begin(self, run: Run) -> None:
        """A step begins, with the weights that the one before has left: elements may be selected anew."""
        if self._selector is not None:
            self._selector.begin(run)

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        """Which of some elements are selected. bool, shaped like `values`; None for all of them.

        Args:
            values: the unperturbed weights there, one-dimensional, from element `offset` of parameter `index`.
        """
        return None if self._selector is None else self._selector.mask(index, values, offset, step)

    def num_elements(self) -> int:
        """Elements selected, about."""
        if self._selector is not None:
            return sum(self._selector.num_elements(i) for i in self.indices)
        return sum(self._run.parameters[i][1].numel() for i in self.indices)

    def state_dict(self) -> dict[str, Any]:
        """The selector's."""
        return {} if self._selector is None else self._selector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._selector is not None:
            self._selector.load_state_dict(state)


def _by_name(text: str) -> Selector:
    """ "smallest:0.2", "random:0.2:100", or a plugin's: numbers stand for its first options."""
    name, *words = text.split(":")
    try:
        numbers = [int(word) if word.lstrip("-").isdigit() else float(word) for word in words]
    except ValueError:
        numbers = []
    if name in ("smallest", "random"):
        share, every = (*numbers, 0, 0)[:2]
        if not 0 < share <= 1 or every < 0 or int(every) != every or len(words) > (2 if name == "random" else 1):
            raise ValueError(
                f'parameters: expected a share in (0, 1], such as "smallest:0.2" or "random:0.2:100", got {text!r}'
            )
        return Smallest(float(share)) if name == "smallest" else RandomShare(float(share), int(every))
    options = list(inspect.signature(get(name, "selectors")).parameters)
    if len(numbers) != len(words) or len(words) > len(options):
        raise ValueError(
            f"parameters: expected {name}:NUMBER, with numbers for the first of its options {', '.join(options)}, got {text!r}"
        )
    return make_selector(name, **dict(zip(options, numbers, strict=False)))
