"""Several probes in one forward pass: the batch is evaluated at all of their weights at once.

torch.func.vmap carries the probes as one more dimension through the model as it is. A layer whose directions have low rank
multiplies all probes' inputs by the one weight matrix, W x + f_k A_k (B_k^T x), so that the weights are read once for all
probes: that is what a forward pass of few tokens spends its time on. Other parameters are made once for each probe.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from localplug import low_rank
from localplug.contract import Run
from localplug.directions import Directions
from localplug.shards import is_sharded
from localplug.substitution import Reads, substituted


@final
class Stack:
    """Evaluates a model at w + s_k z_jk for k = 0 ... K - 1 in one call.

    Args:
        run: whose model is evaluated.
        directions: what it is perturbed along.
        probes: (j_k, s_k): number of the direction over all workers, and scale.
        reads: of the model's evaluations before this one.
    """

    def __init__(
        self, run: Run, directions: Directions, probes: Sequence[tuple[int, float]], reads: Reads | None = None
    ) -> None:
        self._reads = reads
        self._run, self._directions, self._probes = run, directions, list(probes)
        self._stacked: dict[int, tuple[Tensor, Tensor]] = {}

    def evaluate(self, call: Callable[[], Any]) -> Any:
        """What `call` gives at the first probe's weights; all of them are kept for `split`.

        Args:
            call: a forward pass of the model, or whatever ends in tensors that come from some.
        """
        numbers = [j for j, _ in self._probes]
        alike = len(set(numbers)) == 1
        tensors, places = self._inputs(numbers[:1] if alike else numbers)
        found: list[Any] = []

        def one(scale: Tensor, made: list[Tensor]) -> list[Tensor]:
            # attention by matrix products: the kernels cannot carry one more dimension, and few tokens do not need them
            with self._perturbed(scale, made, places), sdpa_kernel(SDPBackend.MATH):
                leaves, spec = tree_flatten(call())
            found[:] = [spec, leaves]
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        device = self._run.parameters[0][1].device
        scales = torch.tensor([s for _, s in self._probes], dtype=torch.float32, device=device)
        results = iter(
            torch.func.vmap(one, in_dims=(0, None if alike else 0), randomness="same")(
                scales, [t[0] for t in tensors] if alike else tensors
            )
        )
        spec, leaves = found
        whole = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                stacked = next(results)
                leaf = stacked[0]  # noqa: PLW2901
                self._stacked[id(leaf)] = (leaf, stacked)  # held, so that the id stays its own
            whole.append(leaf)
        return tree_unflatten(whole, spec)

    def split(self, leaves: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each probe the values that it gave to some tensors of what `evaluate` returned.

        Raises:
            KeyError: a tensor is not one of those.
        """
        rows = [self._stacked[id(leaf)][1] for leaf in leaves]
        self._stacked = {}
        return [[row[k] for row in rows] for k in range(len(self._probes))]

    def _inputs(self, numbers: Sequence[int]) -> tuple[list[Tensor], dict[int, tuple[int, bool]]]:
        """Factors or noise of each parameter, one row for each direction, and {parameter: (place, has low rank)}."""
        tensors: list[Tensor] = []
        places: dict[int, tuple[int, bool]] = {}
        reached = {i for j in numbers for i in self._directions.reached(j)}
        for index in sorted(reached):
            factors = [self._directions.factors(index, j) for j in numbers]
            if all(f is not None and low_rank.is_low(*f) for f in factors):
                places[index] = (len(tensors), True)
                tensors += [torch.stack([f[side] for f in factors if f is not None]) for side in (0, 1)]
            else:
                places[index] = (len(tensors), False)
                tensors.append(torch.stack([self._directions.values(index, j) for j in numbers]))
        return tensors, places

    @contextlib.contextmanager
    def _perturbed(self, scale: Tensor, made: list[Tensor], places: dict[int, tuple[int, bool]]) -> Iterator[None]:
        index = {p: i for i, (_, p) in enumerate(self._run.parameters) if i in places}
        replaced: list[nn.Module] = []

        def dense(parameter: nn.Parameter, place: int, is_low: bool) -> Callable[[], Tensor]:
            def make() -> Tensor:
                z = made[place] @ made[place + 1].T if is_low else made[place]
                value = parameter.detach().float() + scale * z.view(parameter.shape)
                return value.to(parameter.dtype)

            return make

        able = [
            (module, weight, places[index[weight]][0])
            for module in self._run.model.modules()
            if low_rank.is_able(module)
            and isinstance(weight := module.weight, nn.Parameter)
            and weight in index
            and places[index[weight]][1]
        ]
        try:
            instead = {p: dense(p, *places[i]) for p, i in index.items()}
            with substituted(self._run.model, instead, [module for module, *_ in able], self._reads) as untouched:
                for module, weight, place in able:
                    forward = low_rank.low_rank_forward(module, [(made[place], made[place + 1], scale)])
                    module.forward = untouched(forward, weight)
                    replaced.append(module)
                yield
        finally:
            for module in replaced:
                del module.forward


def stack_problems(run: Run) -> list[str]:
    """Why this model cannot be evaluated so."""
    found = []
    if run.is_compiled:
        found.append("back-end 'stacked' goes through the model's modules one by one; leave torch.compile out")
    if any(is_sharded(p) for _, p in run.parameters):
        found.append("back-end 'stacked' needs whole parameters, and these are sharded; use another back-end")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in run.model.modules()):
        found.append("back-end 'stacked' cannot advance batch norm's running statistics; use another back-end")
    return found
