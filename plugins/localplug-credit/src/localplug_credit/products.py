"""Rules for products: matrices, convolutions, attention, and elementwise products.

    z = x W (+ b)      R_x = x . ((R/z) W^T),    R_W = W . (x^T (R/z)),    R_b = b . (R/z)       R/z with eps, see Rules
    O = A V            R_A = A . ((R/2O) V^T),   R_V = V . (A^T (R/2O))                         two activations: half for each
    z = a b            R_a = R_b = R/2 elementwise;  a constant or a parameter leaves R to the other
    s = softmax(x)     R_x = x (R - s sum R), or R; see Rules

R_W and R_b are what a parameter had a part in: the relevance R_x once more, counted by weights and not by inputs. Only R_b is
taken out of what goes on to x. With gamma, z and W^T are those of W + gamma max(W, 0).
"""

from typing import Any

import torch
from torch import Tensor

from localplug import Unsupported
from localplug_credit.rules import TABLE, Rule, Rules, read, role, unbroadcast, whole
from localplug_credit.tape import Step, Value

MIXES = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "embedding"})
"""What makes an activation of a parameter and a tensor that nobody follows; see Tape."""


def _matrices(a: Any, b: Any, R: Tensor, rules: Rules, bias: Any = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Relevance of a (.., i, k), b (.., k, j) and bias in z = a b + bias."""
    x, W = read(a), read(b)
    modified = _favoured(W, rules) if role(b) == "parameter" else W
    z = x @ modified
    if bias is not None:
        z = z + read(bias)
    if role(a) == role(b) == "activation":
        R = R / 2
    s = rules.over(R, z)
    R_a, R_b = x * (s @ modified.mT), W * (x.mT @ s)
    if role(b) == "parameter" and rules.gamma:  # the weights' own part is by the epsilon rule
        R_b = W * (x.mT @ rules.over(R, x @ W + (0 if bias is None else read(bias))))
    return R_a, R_b, None if bias is None else read(bias) * s


def _favoured(W: Tensor, rules: Rules) -> Tensor:
    return W + rules.gamma * W.clamp(min=0) if rules.gamma else W


def _mm(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    (a, b), _ = step.arguments
    R_a, R_b, _ = _matrices(a, b, whole(R, step), rules)
    return {0: R_a, 1: R_b}


def _addmm(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    (bias, a, b, *_), kwargs = step.arguments
    if any(kwargs.get(name, 1) != 1 for name in ("beta", "alpha")):
        raise Unsupported(f"there is no relevance rule for {step.name} with factors of its own, {kwargs}")
    R_a, R_b, R_bias = _matrices(a, b, whole(R, step), rules, bias)
    assert R_bias is not None
    shape = bias.shape
    return {0: unbroadcast(R_bias, shape), 1: R_a, 2: R_b}


def _convolution(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    args, _ = step.arguments
    x_, W_, b_, *geometry = args
    x, W, b = read(x_), read(W_), None if b_ is None else read(b_)
    s = rules.over(whole(R, step), torch.ops.aten.convolution(x, _favoured(W, rules), b, *geometry))
    back = torch.ops.aten.convolution_backward
    R_x, _, _ = back(s, x, _favoured(W, rules), None, *geometry, [isinstance(x_, Value), False, False])
    if rules.gamma:
        s = rules.over(whole(R, step), torch.ops.aten.convolution(x, W, b, *geometry))
    _, R_W, _ = back(s, x, W, None, *geometry, [False, True, False])
    found = {1: W * R_W}
    if isinstance(x_, Value):
        found[0] = x * R_x
    if isinstance(b_, Value):
        found[2] = read(b_) * s.transpose(0, 1).flatten(1).sum(1)
    return found


def _elementwise(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """a b: half for each of two activations, all of it to one beside a constant or a parameter."""
    (a, b, *_), _ = step.arguments
    r, found = whole(R, step), {}
    roles = [role(a), role(b)]
    if a is b:
        return {0: r}
    for place, (one, other) in enumerate(((a, roles[1]), (b, roles[0]))):
        if isinstance(one, Value):
            half = one.role == other == "activation"
            found[place] = unbroadcast(r / 2 if half else r, one.shape)
    return found


def _divides(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """a / b: b is what a norm or a mean divides by, a constant."""
    (a, *_), _ = step.arguments
    return {0: unbroadcast(whole(R, step), a.shape)} if isinstance(a, Value) else {}


def _softmax(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    args, _ = step.arguments
    if rules.softmax == "identity":
        return {0: whole(R, step)}
    x = read(args[0])
    return {0: of_softmax(x, x.softmax(args[1]), whole(R, step), args[1])}


def of_softmax(x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
    """x (R - s sum R); 0 where x is masked by minus infinity, or by a number that leaves s at 0."""
    return torch.where(s > 0, x * (R - s * R.sum(dim, keepdim=True)), 0.0)


def _attention(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    """softmax(q k^T scale + mask) v in one operation: its parts' rules in their order."""
    given = _named(step)
    q_, k_, v_ = (given[name] for name in ("query", "key", "value"))
    if given.get("dropout_p", 0.0):
        raise Unsupported("there is no relevance rule for attention that drops out inside one operation; set it to 0")
    q, k, v = read(q_), read(k_), read(v_)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    products = q @ k.mT
    scale = given.get("scale")
    x = products * (q.shape[-1] ** -0.5 if scale is None else scale)
    mask = given.get("attn_mask", given.get("attn_bias"))
    if mask is not None:
        mask = read(mask)
        x = x.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else x + mask
    if given.get("is_causal"):
        x = x.masked_fill(torch.ones_like(x, dtype=torch.bool).triu(1), -torch.inf)
    s = x.softmax(-1)
    half = rules.over(whole(R, step) / 2, s @ v)
    R_s, R_v = s * (half @ v.mT), v * (s.mT @ half)
    R_x = R_s if rules.softmax == "identity" else of_softmax(x, s, R_s, -1)
    half = rules.over(R_x / 2, products)
    R_q, R_k = q * (half @ k), k * (half.mT @ q)
    if groups > 1:
        R_k, R_v = (r.view(r.shape[0], -1, groups, *r.shape[2:]).sum(2) for r in (R_k, R_v))
    return {place: r for place, (one, r) in enumerate(((q_, R_q), (k_, R_k), (v_, R_v))) if isinstance(one, Value)}


def _named(step: Step) -> dict[str, Any]:
    """All arguments of an operation by name, those of its schema that were given."""
    args, kwargs = step.arguments
    names = [a.name for a in step.function._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


TABLE["mm"] = Rule(_mm, (0, 1))
TABLE["bmm"] = Rule(_mm, (0, 1))
TABLE["addmm"] = Rule(_addmm, (0, 1, 2))
TABLE["baddbmm"] = Rule(_addmm, (0, 1, 2))
TABLE["convolution"] = Rule(_convolution, (0, 1, 2))
TABLE["mul"] = Rule(_elementwise)
TABLE["div"] = Rule(_divides)
TABLE["_softmax"] = Rule(_softmax, (0,))
TABLE["_safe_softmax"] = Rule(_softmax, (0,))
for _name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
    TABLE[f"_scaled_dot_product_{_name}"] = Rule(_attention, (0, 1, 2))
