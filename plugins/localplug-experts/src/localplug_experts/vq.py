"""VQ units: codebooks that learn by a moving average among units that learn from heads of their own.

    unit that gives the nearest of its codes (localplug_experts.codebook):   e <- moving average of what chose it
    unit below one:    J = CE(M y, y*) + beta mean |y - e_k|^2               (commitment; e_k the nearest code, constant)
    any other unit:    J = CE(M y, y*)                                       M a linear head that belongs to the method

The codebook's change is in closed form: with SGD at learning rate 1 it is the moving average itself, at another rate so much of
it. What comes after gets the codes, and no gradient has to pass them. References: moving average and commitment, van den Oord,
Vinyals, Kavukcuoglu, 2017, arXiv:1711.00937; heads, Belilovsky, Eickenberg, Oyallon, ICML 2019, arXiv:1812.11446.
"""

import itertools
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, noise, seeded
from localplug_experts.codebook import VectorQuantizer, moving_average


@final
class VQ(LocalMethod):
    """Codebooks by moving averages, layers by heads of their own and the commitment to the codebook above.

        N_k <- decay N_k + (1 - decay) n_k,   e_k <- (decay N_k e_k + (1 - decay) s_k) / N_k
        J = CE(M y, y*) + beta mean |y - e_k|^2

    One forward pass a step. Codebooks go by the trainer's optimizer: under SGD its learning rate is a factor on the moving
    average, so give them a group of their own at 1. Begin with codes at inputs, by localplug_experts.place_codes_. Of several
    micro-batches in a step the last one's shares count for N.

    Args:
        decay: of the moving average, in [0, 1). FORGE takes 0.8; on MNIST, in 50 steps, 0.8 reached 88.6 % and 0.99 77.8 %.
        commitment: beta, >= 0.
        revive: a code with less than this part of an equal share, N_k < revive / K, is put where an input of the batch is; in
            [0, 1), 0 for never.
        units: names of the modules that start a unit (* and ? match); by default every layer with weights starts one.
        num_classes: K of the labels; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Labels are integers (B,).

    Example:
        >>> import torch, localplug
        >>> from localplug_experts import VectorQuantizer
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), VectorQuantizer(16, 8), torch.nn.Linear(8, 2))
        >>> groups = [{"params": net[1].parameters(), "lr": 1.0}, {"params": [*net[0].parameters(), *net[2].parameters()]}]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1)
        >>> engine = localplug.Engine(net, VQ(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)

    Reference: see the head of this file.
    """

    reads_above = "the codes of a unit that comes right after, for the commitment"

    def __init__(
        self,
        decay: float = 0.99,
        commitment: float = 0.25,
        revive: float = 0.1,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        for name, value in (("decay", decay), ("revive", revive)):
            if not 0 <= value < 1:
                wrong.append(f"{name} must be in [0, 1), got {value!r}")
        if not commitment >= 0:
            wrong.append(f"commitment must not be negative, got {commitment!r}")
        if wrong:
            raise ValueError("VQ: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.decay, self.commitment, self.revive = decay, commitment, revive
        self._shares: dict[str, Tensor] = {}  # N of each codebook, by unit
        self._next: dict[str, Tensor] = {}
        self._above: dict[str, VectorQuantizer] | None = None

    def describe(self) -> str:
        options = f"decay {self.decay:g}, commitment {self.commitment:g}, revive {self.revive:g}"
        return f"vq, {options}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        found = []
        if not any(isinstance(unit.module, VectorQuantizer) for unit in units[:-1]):
            found.append(
                "no hidden unit is a localplug_experts.VectorQuantizer; put one into the model, or take mono-forward"
            )
        if isinstance(units[-1].module, VectorQuantizer):
            found.append("the last unit learns from the trainer's loss, which does not reach codes; end in a Linear")
        return found

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return not isinstance(unit.module, VectorQuantizer)

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        if isinstance(unit.module, VectorQuantizer):
            return None
        assert self.K is not None
        wide, classes = output.shape[-1], self.K
        return seeded(lambda: nn.Linear(wide, classes), output, seed=run.seed, name=unit.key)

    def signal(self, activity: Activity, run: Run) -> Signal | None:
        unit = activity.unit
        if isinstance(unit.module, VectorQuantizer):
            return self._codes(activity, unit.module, run) if unit.parameters else None
        assert unit.owned is not None
        y = activity.output
        labels = self.class_labels(run, y.device)
        scores = unit.owned(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)
        J = nn.functional.cross_entropy(scores.float(), labels)
        if (above := self._codebooks(run).get(unit.key)) is not None:
            J = J + self.commitment * (y - above(y).detach()).square().float().mean()
        return Signal(loss=J)

    def _codebooks(self, run: Run) -> dict[str, VectorQuantizer]:
        """{unit: the codebook right above it}."""
        if self._above is None:
            units = self.partition(run)
            pairs = itertools.pairwise(units)
            self._above = {a.key: b.module for a, b in pairs if isinstance(b.module, VectorQuantizer)}
        return self._above

    @torch.no_grad()
    def _codes(self, activity: Activity, module: VectorQuantizer, run: Run) -> Signal:
        key, e = activity.unit.key, module.codes.detach().float()
        x_BD = activity.input.reshape(-1, e.shape[1]).float()
        K = len(e)
        N_K = self._shares.get(key)
        N_K = torch.full((K,), 1 / K, device=e.device) if N_K is None else N_K.to(e.device)
        if (rare_K := self.revive / K > N_K).any():
            stream = noise.stream(run.seed, run.step, 0, f"vq {key}")
            which_K = (noise.uniform(stream, 0, K, e.device) * len(x_BD)).long().clamp(max=len(x_BD) - 1)
            e, N_K = torch.where(rare_K[:, None], x_BD[which_K], e), torch.where(rare_K, 1 / K, N_K)
        k_B = (e.square().sum(1) - 2 * x_BD @ e.T).argmin(1)
        moved, self._next[key] = moving_average(e, N_K, x_BD, k_B, self.decay)
        return Signal(delta={module.codes: (module.codes.detach() - moved).to(module.codes.dtype)})

    def stepped(self, run: Run) -> None:
        self._shares.update(self._next)
        self._next = {}

    def own_state(self) -> dict[str, Any]:
        return {"shares": dict(self._shares)} if self._shares else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._shares = dict(state.get("shares", {}))
