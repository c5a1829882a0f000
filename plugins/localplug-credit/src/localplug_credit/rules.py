"""How relevance goes back through one operation: the options, the table of rules, and the rules of what only moves numbers.

A rule gets a Step and the relevance of its results, and gives that of its arguments. Letters: R relevance, z a result, x an
argument that stands for the batch, W one that stands for parameters. Sources: Bach, Binder, Montavon, Klauschen, Mueller,
Samek: On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation, PLOS ONE 2015
(epsilon rule); rules for single operations: DynamicLRP, arXiv:2512.07010; softmax and products of activations: AttnLRP,
Achtibat et al., ICML 2024, arXiv:2402.05602.

    products       localplug_credit.products        sums   localplug_credit.sums
    activations    R_x = R                          the same for casts, copies and norms, whose statistics are constants
    routes         R_x = the operation's transpose of R      views, gathers, concatenations, padding, max
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from localplug import Unsupported
from localplug_credit.tape import Step, Value, functional


@final
@dataclasses.dataclass(frozen=True)
class Rules:
    """The options of a relevance pass.

        R_x = x . W^T (R / (z + eps sign(z)))

    Args:
        eps: added to each denominator, in the units of what is divided by; > 0. What it takes away is lost relevance.
        gamma: weights of products count as W + gamma max(W, 0); >= 0. It favours what speaks for the result, and is meant for
            inputs that are not negative.
        sums: how the sum of two activations divides: "absolute" by abs(a) : abs(b) (DynamicLRP), where shares are in [0, 1], or
            "signed" by a : b (the epsilon rule), where they may be large and cancel.
        softmax: "taylor" R_x = x (R - s sum R), s the result (AttnLRP, the paper of DynamicLRP), which does not conserve
            relevance, or "identity" R_x = R, which does.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> Rules(eps=1e-9, sums="signed").softmax
        'taylor'

    Reference: see the head of this file.
    """

    eps: float = 1e-6
    gamma: float = 0.0
    sums: Literal["absolute", "signed"] = "absolute"
    softmax: Literal["taylor", "identity"] = "taylor"

    def __post_init__(self) -> None:
        wrong = []
        if not self.eps > 0:
            wrong.append(f"eps must be positive, got {self.eps!r}")
        if not self.gamma >= 0:
            wrong.append(f"gamma must not be negative, got {self.gamma!r}")
        kinds = {f.name: get_args(f.type) for f in dataclasses.fields(self) if get_args(f.type)}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                wrong.append(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if wrong:
            raise ValueError("relevance rules: " + "; ".join(wrong))

    def over(self, R: Tensor, z: Tensor) -> Tensor:
        """R / (z + eps sign(z)), with 1 for sign(0)."""
        return R / torch.where(z < 0, z - self.eps, z + self.eps)


Backward = Callable[[Step, list[Tensor | None], Rules], dict[int, Any]]
"""(step, relevance of each result, options) -> {position of an argument: its relevance}; of a list of tensors, a list."""


@final
@dataclasses.dataclass(frozen=True)
class Rule:
    """What an operation does with relevance.

    backward: see Backward.
    needs: positions of arguments whose tensors it reads, or what gives them for a step.
    """

    backward: Backward
    needs: tuple[int, ...] | Callable[[Step], tuple[int, ...]] = ()


TABLE: dict[str, Rule] = {}
"""By the operation's name without overload and without the underscore of one in place. Others may add theirs."""

_STATISTICS = "rsqrt sqrt reciprocal var std var_mean linalg_vector_norm"
_LIKE = "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full bernoulli"
STOPS = frozenset(f"{_STATISTICS} {_LIKE}".split())
"""What a norm divides by is a constant: the norm then passes relevance on as it is. So is what takes only a shape."""


def needs(step: Step) -> Sequence[int]:
    """Positions of the arguments whose tensors the rule of a step reads; see Tape."""
    rule = TABLE.get(step.name)
    if rule is None:
        return ()
    return rule.needs if isinstance(rule.needs, tuple) else rule.needs(step)


def backward(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """The relevance of a step's arguments.

    Raises:
        Unsupported: there is no rule for the operation.
    """
    rule = TABLE.get(step.name)
    if rule is None:
        raise Unsupported(
            f"there is no relevance rule for the operation aten::{step.name}; add one to localplug_credit.rules.TABLE, or use "
            "other modules"
        )
    return rule.backward(step, R, rules)


def role(argument: Any) -> str:
    """ "activation" or "parameter" of a Value; "constant" of all else."""
    return argument.role if isinstance(argument, Value) else "constant"


def read(argument: Any, dtype: torch.dtype | None = None) -> Any:
    """An argument's tensor, at least in float32."""
    tensor = argument.tensor() if isinstance(argument, Value) else argument
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        return tensor.to(dtype or torch.promote_types(tensor.dtype, torch.float32))
    return tensor


def unbroadcast(R: Tensor, shape: Sequence[int]) -> Tensor:
    """Summed to the shape of an argument that was broadcast."""
    return R if R.shape == torch.Size(shape) else R.sum_to_size(tuple(shape))


def whole(R: list[Tensor | None], step: Step) -> Tensor:
    """The relevance of the first result, of operations whose other results (statistics, masks) have none."""
    (first, *_) = R
    assert first is not None, f"{step.name}: no relevance reached its first result"
    return first


# ---- what passes relevance on ------------------------------------------------------------------------------------------


def _passes(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    return {0: whole(R, step)}


def _normalises(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """R_x = R; a gain and a bias get their share of the result by the epsilon rule, beside that."""
    args, _ = step.arguments
    found = {0: whole(R, step)}
    at_gain, at_bias = (2, 3) if step.name in _OVER_LAST else (1, 2)
    gain, bias = (args[i] if i < len(args) else None for i in (at_gain, at_bias))
    bias = None if step.name == "_fused_rms_norm" else bias  # there eps is in its place
    if not (isinstance(gain, Value) or isinstance(bias, Value)):
        return found
    made = step.again()
    z = read(made[0] if isinstance(made, tuple | list) else made)
    s = rules.over(whole(R, step), z)
    over_last = (1,) * (z.dim() - len(args[1])) + tuple(args[1]) if step.name in _OVER_LAST else ()
    shape = over_last or (1, z.shape[1], *[1] * (z.dim() - 2))
    shift = read(bias).view(shape) if bias is not None else torch.zeros((), dtype=z.dtype, device=z.device)
    if isinstance(gain, Value):
        found[at_gain] = unbroadcast(s * (z - shift), shape).reshape(gain.shape)
    if isinstance(bias, Value):
        found[at_bias] = unbroadcast(s * shift, shape).reshape(bias.shape)
    return found


_OVER_LAST = ("native_layer_norm", "_fused_rms_norm")


# ---- what routes it ----------------------------------------------------------------------------------------------------


def _routes(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """The transpose of a linear operation that only moves numbers, by autograd on this one operation at zeros."""
    args, kwargs = step.arguments
    with torch.enable_grad():
        at: dict[int, Tensor] = {}

        def stand_in(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            if id(leaf) not in at:
                like = next(r for r in R if r is not None)
                at[id(leaf)] = torch.zeros(leaf.shape, dtype=like.dtype, device=like.device, requires_grad=True)
            return at[id(leaf)]

        moved = [[stand_in(x) for x in a] if isinstance(a, list | tuple) else stand_in(a) for a in args]
        results = functional(step.function)(*moved, **kwargs)
        results = list(results) if isinstance(results, list | tuple) else [results]
        pairs = [(y, r) for y, r in zip(results, R, strict=True) if r is not None]
        inputs = list(at.values())
        gradients = torch.autograd.grad([y for y, _ in pairs], inputs, [r for _, r in pairs], allow_unused=True)
    by_id = {
        key: g if g is not None else torch.zeros_like(x) for (key, x), g in zip(at.items(), gradients, strict=True)
    }
    found: dict[int, Any] = {}
    given: set[int] = set()  # an argument that stands twice gets it once
    for place, argument in enumerate(args):
        if isinstance(argument, Value) and id(argument) not in given:
            found[place] = by_id[id(argument)]
            given.add(id(argument))
        elif isinstance(argument, list | tuple) and any(isinstance(x, Value) for x in argument):
            several = []
            for x in argument:
                several.append(by_id[id(x)] if isinstance(x, Value) and id(x) not in given else None)
                given.add(id(x))
            found[place] = several
    return found


def _takes_the_largest(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """Winner takes all: the derivative of a maximum, at the argument as it was."""
    args, kwargs = step.arguments
    with torch.enable_grad():
        x = read(args[0]).detach().requires_grad_()
        results = step.function(x, *args[1:], **kwargs)
        largest = results[0] if isinstance(results, tuple) else results
        (found,) = torch.autograd.grad(largest, x, whole(R, step))
    return {0: found}


def _looks_up(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """The rows of a table that were looked up get their relevance."""
    args, _ = step.arguments
    table, rows = args[0], args[1]
    r = whole(R, step)
    found = torch.zeros(table.shape, dtype=r.dtype, device=r.device)
    return {0: found.index_add_(0, rows.reshape(-1), r.reshape(-1, r.shape[-1]))}


PASSES = """
relu gelu silu tanh sigmoid elu leaky_relu hardtanh hardswish hardsigmoid softplus mish celu selu log_sigmoid_forward erf exp
log1p pow abs heaviside sign round floor ceil trunc clamp clamp_min clamp_max neg _to_copy clone detach alias lift_fresh
lift_fresh_copy contiguous native_dropout
"""
NORMS = """
native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
cudnn_batch_norm _fused_rms_norm
"""
ROUTES = """
view _unsafe_view reshape _reshape_alias t transpose permute movedim expand squeeze unsqueeze slice select narrow index gather
index_select cat stack split split_with_sizes unsafe_split chunk unsafe_chunk unbind repeat constant_pad_nd reflection_pad2d
replication_pad2d masked_fill where flip roll as_strided diagonal unfold im2col pixel_shuffle tril triu
"""
LARGEST = "max amax min amin max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d topk"

TABLE.update({name: Rule(_passes) for name in PASSES.split()})
TABLE.update({name: Rule(_normalises, (0,)) for name in NORMS.split()})
TABLE.update({name: Rule(_routes) for name in ROUTES.split()})
TABLE.update({name: Rule(_takes_the_largest, (0,)) for name in LARGEST.split()})
TABLE["embedding"] = Rule(_looks_up)
