"""ForwardGNN's top-to-input: single forward, where a layer sees the layer above of the step before besides the one below.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004, section 3.3; after the recurrent network of Hinton: The Forward-Forward Algorithm, 2022, arXiv:2212.13345.

The graph has virtual nodes as in localplug_graph.single_forward. The hidden layers l = 1 ... L have states H_l on it, which
live on from step to step. A step renews every second layer, and then those between:

    H_l <- layer_l( [ H_{l-1} / |H_{l-1}| ; H_{l+1} / |H_{l+1}| ] )           [ ; ]: columns side by side, held constant
    H_0 = x,   H_{L+1} = one-hot label, (1/K, ..., 1/K) for a node whose label is not shown; a virtual node has its own
    p_l(k | i) = softmax_k(h_i . c_k / tau)                                  h_i, c_k: rows of H_l
    J_l = -mean over labelled i of log p_l(y_i | i)
    prediction for i, with no labels at all: argmax_k of the sum of p_l(k | i) over all layers, and over the steps 2 ... 9

Shapes: N nodes, D features, K classes.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, noise
from localplug_graph import calls
from localplug_graph.class_nodes import log_mean
from localplug_graph.labels import UNLABELLED, node_labels
from localplug_graph.virtual_nodes import virtual_edges, virtual_features


@final
class TopDown(nn.Module):
    """A layer that sees the layer above: zeros stand for it wherever graph-top2input does not put it in.

    Args:
        layer: called with (x, ...), x being (N, num_below + num_above).
        num_below: features that come from below.
        num_above: features that come from above: as many as the next hidden layer gives; of the top one K, the classes.

    Raises:
        ValueError: it is called with another number of features than num_below, or both together.
    """

    def __init__(self, layer: nn.Module, num_below: int, num_above: int) -> None:
        super().__init__()
        self.layer, self.num_below, self.num_above = layer, num_below, num_above

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.shape[1] == self.num_below:
            x = torch.cat([x, x.new_zeros(len(x), self.num_above)], 1)
        if x.shape[1] != self.num_below + self.num_above:
            raise ValueError(
                f"the layer sees {self.num_below} features from below and {self.num_above} from above, got {x.shape[1]}"
            )
        return self.layer(x, *args, **kwargs)


@final
class TopToInput(LocalMethod):
    """Single forward in a network whose hidden layers see the layers above them, through TopDown.

        H_l <- layer_l([H_{l-1} ; H_{l+1}]),   J_l = cross entropy of (h_i . c_k / tau)_k against y_i

    Training goes on one graph, whose states (N + K, D) of all hidden layers are kept; another graph starts anew. A step is one
    pass in which the layers 0, 2, ... learn, one for 1, 3, ..., and the trainer's plain pass (with nothing from above), from
    whose loss the last layer learns. A prediction starts without states, for any graph, and is two passes for each of its
    steps; `scores` are the logarithms of the mean probabilities. Until a first training step it is the model's own.

    Args:
        temperature: tau > 0, in units of h . c.
        hidden_labels: share in [0, 1] of the labelled nodes, drawn once in a run, whose label the top layer never sees; they
            are learned from all the same. 0 is the paper's; then the layers learn to read the label from above, which is not
            there in a prediction: on Cora's validation nodes 74 % were right, and 85 % with 1, where labels enter by the
            virtual nodes alone.
        num_steps: of a prediction, >= 1.
        skip_steps: how many of them do not count yet, in [0, num_steps).
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every child
            of the model with weights, and every member of its containers, starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a torch.nn.Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> from torch_geometric.nn import GCNConv, Sequential
        >>> net = Sequential("x, edges", [
        ...     (TopDown(GCNConv(4 + 8, 8), 4, 8), "x, edges -> x"), torch.nn.ReLU(),
        ...     (TopDown(GCNConv(8 + 2, 8), 8, 2), "x, edges -> x"), torch.nn.ReLU(),
        ...     torch.nn.Linear(8, 2)])
        >>> x, edges = torch.eye(4), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> y = torch.tensor([0, -100, 1, -100])  # two labelled nodes
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> engine = localplug.Engine(net, TopToInput(), optimizer)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x, edges), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 2])
    """

    views = (View("even", ends="hidden"), View("odd", ends="hidden"), View("clean", learns=False))
    reads_above = "the state of the layer above, in a layer's input"

    def __init__(
        self,
        temperature: float = 1.0,
        hidden_labels: float = 1.0,
        num_steps: int = 10,
        skip_steps: int = 2,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not temperature > 0:
            wrong.append(f"temperature must be positive, got {temperature!r}")
        if not 0 <= hidden_labels <= 1:
            wrong.append(f"hidden_labels must be in [0, 1], got {hidden_labels!r}")
        if not num_steps >= 1:
            wrong.append(f"num_steps must be at least 1, got {num_steps!r}")
        if not 0 <= skip_steps < max(num_steps, 1):
            wrong.append(f"skip_steps must be in [0, num_steps = {num_steps}), got {skip_steps!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("TopToInput: " + "; ".join(wrong))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.temperature, self.hidden_labels = temperature, hidden_labels
        self.num_steps, self.skip_steps = num_steps, skip_steps
        passes = [f"{parity} {step}" for step in range(num_steps) for parity in ("even", "odd")]
        last = View(passes[-1], learns=False)
        self.prediction = (*(View(name, learns=False, ends="hidden") for name in passes[:-1]), last)
        self.states: dict[str, Tensor] = {}
        """H of each hidden layer, (N + K, D), after the last step."""
        self.classes: dict[str, Tensor] = {}
        """c of each layer, (K, D), as of the last step."""
        self._renewed: dict[str, Tensor] = {}  # states, in the step in work
        self._predicted: dict[str, Tensor] = {}  # states, in the prediction in work
        self._y_N: Tensor | None = None
        self._shown_N: Tensor | None = None  # y where the top layer sees it, else -100
        self._names: list[str] = []
        self._p_NK: list[Tensor] = []

    def describe(self) -> str:
        steps = f"predicts by steps {self.skip_steps} to {self.num_steps - 1}"
        return f"graph-top2input, temperature {self.temperature:g}, {steps}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        plain = [unit.name for unit in units if not unit.is_last and not isinstance(unit.module, TopDown)]
        found = (
            [f"units {plain} see no layer above; put each in a localplug_graph.top_to_input.TopDown"] if plain else []
        )
        return found + calls.problems(units, run, adds_edges=True)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return unit.is_last or unit.index % 2 == _parity(view)

    # ---- what a layer sees ------------------------------------------------------------------------------------------

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        is_step = view.name in ("even", "odd")
        if view.name == "clean" or unit.is_last or not (is_step or self.classes):
            return inputs, kwargs
        given = calls.node_features(inputs, kwargs)
        if unit.index == 0:
            self._begin(view, given, run, is_step=is_step)
            below = given
            if is_step:
                assert self.K is not None
                below = torch.cat([given, virtual_features(given, self.K, seed=run.seed)])
        else:
            state = self._state(unit.index - 1, len(given), is_step=is_step)
            below = calls.normalised(given if state is None else state.to(given))
        x = torch.cat([below, self._above(unit, below, is_step=is_step)], 1)
        if not is_step:
            return calls.exchanged(inputs, kwargs, [(given, x)])
        assert self._y_N is not None
        return calls.with_edges(inputs, kwargs, x, virtual_edges(self._y_N, "to virtual"))

    def _begin(self, view: View, x: Tensor, run: Run, *, is_step: bool) -> None:
        self._names = self._names or [unit.key for unit in self.partition(run) if not unit.is_last]
        if view.name == "even":
            self._renewed = {}
        elif view.name == "even 0":
            self._predicted, self._p_NK = {}, []
        if is_step:
            self._y_N = node_labels(run.targets, len(x), self.K, x.device)
            u_N = noise.uniform(noise.stream(run.seed, 0, 0, "hidden labels"), 0, len(x), x.device)
            self._shown_N = self._y_N.masked_fill(u_N < self.hidden_labels, UNLABELLED)

    def _state(self, index: int, num_rows: int, *, is_step: bool) -> Tensor | None:
        """H of a hidden layer, of this step or else of the one before; None if there is none yet."""
        name = self._names[index]
        state = self._renewed.get(name, self.states.get(name)) if is_step else self._predicted.get(name)
        return state if state is not None and len(state) == num_rows else None

    def _above(self, unit: Unit, below: Tensor, *, is_step: bool) -> Tensor:
        """What a layer sees of the layer above, with one row for each of `below`."""
        assert isinstance(unit.module, TopDown) and self.K is not None
        if unit.index < len(self._names) - 1:
            state = self._state(unit.index + 1, len(below), is_step=is_step)
            if state is None:
                return below.new_zeros(len(below), unit.module.num_above)
            return calls.normalised(state.to(below))
        labels_BK = below.new_full((len(below), self.K), 1 / self.K)
        if is_step:
            assert self._shown_N is not None
            y_B = torch.cat([self._shown_N, torch.arange(self.K, device=below.device)])
            known = y_B != UNLABELLED
            labels_BK[known] = nn.functional.one_hot(y_B[known], self.K).to(below.dtype)
        return labels_BK

    # ---- what it does with what it gives ----------------------------------------------------------------------------

    def signal(self, activity: Activity, run: Run) -> Signal:
        self._renewed[activity.unit.key] = activity.output.detach().clone()
        assert self._y_N is not None
        h_ND, c_KD = activity.output[: len(self._y_N)], activity.output[len(self._y_N) :]
        z_NK = h_ND @ c_KD.T / self.temperature
        return Signal(loss=nn.functional.cross_entropy(z_NK.float(), self._y_N, ignore_index=UNLABELLED))

    def observe(self, activity: Activity, run: Run) -> None:
        parity, _, step = activity.view.name.partition(" ")
        if parity == "clean" or not (step == "" or self.classes):
            return
        unit, output = activity.unit, activity.output
        is_turn, is_step = unit.index % 2 == _parity(activity.view), not step
        if not is_turn and self._state(unit.index, len(output), is_step=is_step) is not None:
            return
        (self._renewed if is_step else self._predicted)[unit.key] = output.clone()  # or its first state, out of turn
        if is_turn and int(step) >= self.skip_steps:
            c_KD = self.classes[unit.key].to(output)
            self._p_NK.append((output @ c_KD.T / self.temperature).float().softmax(-1))

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        p_NK, self._p_NK, self._predicted = self._p_NK, [], {}
        if not p_NK:
            return None
        return log_mean(p_NK, output)

    def stepped(self, run: Run) -> None:
        assert self.K is not None
        self.states, self._renewed = self._renewed, {}
        self.classes = {name: state[-self.K :].clone() for name, state in self.states.items()}

    def own_state(self) -> dict[str, Any]:
        return {"states": dict(self.states), "classes": dict(self.classes)}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.states, self.classes = dict(state["states"]), dict(state["classes"])


def _parity(view: View) -> int:
    """Of the numbers of the layers that are renewed in a view."""
    return 0 if view.name.startswith("even") else 1
