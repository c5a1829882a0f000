"""Every quantizer against its equations, computed here weight by weight; the latent gradients against closed forms."""

import math

import pytest
import torch

from localplug import dequantize, straight_through
from localplug_ternary.absmean import Absmean
from localplug_ternary.annealed import Annealed
from localplug_ternary.config import TernaryConfig
from localplug_ternary.latent import TernaryLinear
from localplug_ternary.sherry import Sherry
from localplug_ternary.tequila import Tequila
from localplug_ternary.twn import TWN

ALL = [Tequila, Absmean, TWN, Sherry, Annealed]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def half(value):
    """What float16 makes of a number."""
    return torch.tensor(value, dtype=torch.float64).to(torch.float16).item()


def by_hand(name, w, lam=1e-3):
    """Codes, scale and C's share of one group, from the papers' formulas in plain Python."""
    g = len(w)
    mean = sum(abs(x) for x in w) / g
    if name in ("absmean", "annealed"):
        return [max(-1, min(1, round(x / mean))) for x in w], mean, 0.0
    if name == "tequila":
        t = [1 if x >= mean / 2 else -1 if x <= -mean / 2 else 0 for x in w]
        return t, mean, lam * sum(x for x, c in zip(w, t, strict=True) if c == 0)
    if name == "twn":
        t = [int(math.copysign(1, x)) if abs(x) > 0.7 * mean else 0 for x in w]
        kept = [abs(x) for x, c in zip(w, t, strict=True) if c]
        return t, sum(kept) / len(kept), 0.0
    t, total = [], 0.0
    for i in range(0, g, 4):
        four = w[i : i + 4]
        smallest = min(range(4), key=lambda j: abs(four[j]))
        t += [0 if j == smallest else int(math.copysign(1, four[j])) for j in range(4)]
        total += sum(abs(x) for j, x in enumerate(four) if j != smallest)
    return t, total / (g * 3 / 4), 0.0


@pytest.mark.parametrize("group_size", [8, None])
@pytest.mark.parametrize("method", ALL)
def test_codes_and_scales_are_those_of_the_paper(method, group_size):
    w_NK = random(5, 32)
    made = method(group_size).quantize(w_NK)
    g = group_size or 32
    for n in range(5):
        C = 0.0
        for i in range(32 // g):
            t, s, share = by_hand(method.__name__.lower(), w_NK[n, i * g : (i + 1) * g].tolist())
            C += share
            assert made.codes[n, i * g : (i + 1) * g].tolist() == t
            assert made.scales[n, i].item() == half(s)
        if method is Tequila:
            assert made.bias[n].item() == pytest.approx(C, abs=1e-15)
    assert made.codes.dtype == torch.int8 and made.scales.dtype == torch.float16
    assert (made.bias is None) == (method is not Tequila) == (not method.has_bias)


def test_golden_values():
    w = torch.tensor([[0.9, -0.2, 0.06, -1.1, 0.34, 0.0, -0.6, 0.8]])  # mean 0.5
    found = {m.__name__: m(None).quantize(w) for m in ALL}
    assert found["Tequila"].codes.tolist() == [[1, 0, 0, -1, 1, 0, -1, 1]]
    assert found["Tequila"].bias.item() == pytest.approx(1e-3 * (-0.2 + 0.06), rel=1e-6)
    assert found["TWN"].codes.tolist() == [[1, 0, 0, -1, 0, 0, -1, 1]]  # |0.34| is not above 0.7 * 0.5
    assert found["TWN"].scales.item() == half(3.4 / 4)
    assert found["Sherry"].codes.tolist() == [[1, -1, 0, -1, 1, 0, -1, 1]]
    assert found["Sherry"].scales.item() == pytest.approx(half(3.94 / 6), rel=1e-3)
    assert found["Absmean"].scales.item() == 0.5


def test_the_threshold_itself_belongs_to_tequilas_codes_and_to_absmeans_dead_zone():
    w = torch.tensor([[1.0, 0.25, -0.25, 0.5]])  # mean 0.5, so that 0.25 is on the threshold
    assert Tequila(None).quantize(w).codes.tolist() == [[1, 1, -1, 1]]
    assert Absmean(None).quantize(w).codes.tolist() == [[1, 0, 0, 1]]  # round(0.5) is 0


@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.7])
def test_tequilas_output_and_gradient_have_the_closed_form(lam):
    w, x, dy = random(6, 16), random(3, 16, seed=1), random(3, 6, seed=2)
    layer = TernaryLinear(16, 6, method=Tequila(8, lam), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(w)
    x.requires_grad_()
    y = layer(x)
    y.backward(dy)
    w_NGg = w.reshape(6, 2, 8)
    s = w_NGg.abs().mean(-1, keepdim=True)
    dead = (w_NGg.abs() < s / 2).reshape(6, 16)
    A = torch.where(dead, 0, w.sign()) * s.half().double().expand(6, 2, 8).reshape(6, 16)
    # the reference form: a second matrix product with ones, which the row sum stands for
    B = lam * w * dead
    expected = x @ A.T + torch.ones_like(x) @ B.T + layer.bias
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    closed = dy.T @ x.detach() + lam * dead.double() * dy.sum(0).unsqueeze(1)
    torch.testing.assert_close(layer.weight.grad, closed, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, dy @ A, rtol=0, atol=1e-10)
    assert 0 < dead.double().mean() < 1


@pytest.mark.parametrize("method", [Absmean, TWN])
def test_straight_through_gradient(method):
    w, x, dy = random(6, 16).requires_grad_(), random(3, 16, seed=1), random(3, 6, seed=2)
    A, C = method(8).latent(w, 0.0)
    (x @ A.T).backward(dy)
    assert C is None
    torch.testing.assert_close(w.grad, dy.T @ x, rtol=0, atol=1e-12)


def test_sherrys_residual_reaches_output_and_gradient_in_one_product():
    w, x, dy = random(6, 16).requires_grad_(), random(3, 16, seed=1), random(3, 6, seed=2)
    method = Sherry(8)
    progress = 0.55  # the middle of the cosine: eps is half of its largest value
    eps = method.epsilon(progress)
    A, _ = method.latent(w, progress)
    (x @ A.T).backward(dy)
    made = method.quantize(w)
    Q = dequantize(made.codes, made.scales, torch.float64)
    assert eps == pytest.approx(0.5)
    torch.testing.assert_close(x @ A.T, x @ Q.T + eps * x @ w.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(w.grad, (1 + eps) * dy.T @ x, rtol=0, atol=1e-10)


def test_sherrys_schedule_warms_up_and_ends_at_nothing():
    method = Sherry(None, residual=0.8)
    assert [method.epsilon(p) for p in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.4, 0.8])
    values = [method.epsilon(0.1 + 0.9 * i / 20) for i in range(21)]
    assert values == sorted(values, reverse=True)
    assert method.epsilon(1.0) == 0.0 and method.is_ternary(1.0)
    assert not any(method.is_ternary(p) for p in (0.0, 0.05, 0.5, 0.99))
    assert Sherry(None, residual=0).is_ternary(0.0)


def test_sherry_keeps_three_of_every_four_even_where_weights_are_zero():
    w = random(4, 64)
    w[0] = 0.0
    w[1, :8] = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, -1.0, 0.0, 0.0])
    t = Sherry(64).quantize(w).codes
    assert (t.reshape(4, 16, 4) == 0).sum(-1).eq(1).all()
    assert t[1, 3] == 1 and t[1, 5] == -1


def test_annealed_is_full_precision_then_soft_then_ternary():
    w = random(3, 16).requires_grad_()
    method = Annealed(8, temperature=0.5, final_temperature=0.02)
    assert method.latent(w, 0.0)[0] is w
    s = w.detach().reshape(3, 2, 8).abs().mean(-1, keepdim=True)

    def soft(T):
        z = w.detach().reshape(3, 2, 8) / s
        e = [torch.exp(-((z - c) ** 2) / T) for c in (-1, 0, 1)]
        return (s.half().double() * (e[2] - e[0]) / (e[0] + e[1] + e[2])).reshape(3, 16)

    torch.testing.assert_close(method.latent(w, 0.1)[0], (w + soft(0.5)) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(method.latent(w, 0.2)[0], soft(0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        method.latent(w, 0.5)[0], soft(0.1), rtol=0, atol=1e-12
    )  # the geometric mean of 0.5 and 0.02
    made = method.quantize(w)
    hard = dequantize(made.codes, made.scales, torch.float64)
    assert torch.equal(method.latent(w, 0.8)[0], hard)
    assert method.is_ternary(0.8) and method.is_ternary(1.0) and not method.is_ternary(0.79)


def test_annealed_stays_finite_and_hardens_at_low_temperatures():
    w = (random(2, 64, dtype=torch.float32) * 3).requires_grad_()
    method = Annealed(64, temperature=1.0, final_temperature=0.001)
    soft, _ = method.latent(w, 0.7999)
    soft.sum().backward()
    assert w.grad.isfinite().all()
    z = (w / w.abs().mean(-1, keepdim=True)).abs()
    settled = (z - 0.5).abs() > 0.01
    assert settled.float().mean() > 0.9
    torch.testing.assert_close(soft[settled], method.latent(w, 1.0)[0][settled], rtol=0, atol=1e-3)


def test_annealed_gradient_is_that_of_its_formula_with_the_scale_held():
    w, g = random(2, 8), random(2, 8, seed=3)
    method, T, h = Annealed(8, temperature=0.5, final_temperature=0.5), 0.5, 1e-6
    leaf = w.clone().requires_grad_()
    (method.latent(leaf, 0.5)[0] * g).sum().backward()
    s = w.abs().mean(-1, keepdim=True)

    def soft(v):
        e = [torch.exp(-((v / s - c) ** 2) / T) for c in (-1, 0, 1)]
        return s.half().double() * (e[2] - e[0]) / (e[0] + e[1] + e[2])

    slope = (soft(w + h) - soft(w - h)) / (2 * h)  # element by element: s is held
    torch.testing.assert_close(leaf.grad, g * slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("method", ALL)
def test_empty_groups_give_zeros_and_finite_gradients(method, progress):
    w = random(2, 16, dtype=torch.float32)
    w[0, :8] = 0.0
    w[1, :8] = 1e-12  # below the smallest float16
    w.requires_grad_()
    A, C = method(8).latent(w, progress)
    (A.sum() if C is None else A.sum() + C.sum()).backward()
    assert A.isfinite().all() and w.grad.isfinite().all()
    assert (A[0, :8] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ALL)
def test_training_computes_with_exactly_the_packed_weight(method, dtype):
    w = random(8, 64, dtype=dtype).requires_grad_()
    A, _ = method(32).latent(w, 1.0)
    made = method(32).quantize(w)
    assert A.dtype == dtype
    assert torch.equal(A, dequantize(made.codes, made.scales, dtype))


def test_scales_of_bfloat16_weights_are_means_in_float32():
    w = random(4, 256, dtype=torch.bfloat16)
    expected = w.double().abs().mean(-1).half()
    assert torch.equal(Absmean(256).quantize(w).scales.squeeze(-1), expected)
    in_bfloat16 = w.abs().mean(-1, dtype=torch.bfloat16).half()
    assert not torch.equal(in_bfloat16, expected)  # so the test can fail


def test_the_dead_share_of_gaussian_weights():
    t = Tequila(128).quantize(random(256, 512)).codes
    assert (t == 0).double().mean().item() == pytest.approx(0.309, abs=0.01)


def test_straight_through_has_a_tangent_and_a_batched_gradient():
    w, v = random(4, 8), random(4, 8, seed=5)
    method = Absmean(8)
    _, tangent = torch.func.jvp(lambda u: straight_through(u, method.quantize(w)), (w,), (v,))
    assert torch.equal(tangent, v)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(method="tequla", group_size=100, lam=-1.0, progress=2), ["tequla", "100", "lam must be", "progress"]),
        (
            dict(method="absmean", lam=0.1, residual=1.0),
            ["lam belongs to method='tequila'", "residual belongs to method='sherry'"],
        ),
        (dict(trainable="scales", int8_activations=True), ["packed=True, or train", "int8_activations is for packed"]),
        (dict(trainable="signs", packed=True), ['trainable must be None or "scales"']),
        (dict(modules_to_not_convert="lm_head"), ["must be a list"]),
        (dict(method="annealed", temperature=0.001), ["must be at most temperature"]),
        (
            dict(method="annealed", temperature=0.0, final_temperature="warm"),
            ["temperature must be positive", "a number"],
        ),
        (dict(grup_size=128), ["unknown options grup_size"]),
        (dict(lam=float("nan")), ["lam must be at least 0"]),
        (dict(lam=float("inf")), ["lam must be at least 0"]),
    ],
)
def test_options_are_checked_at_the_door_all_at_once(options, words):
    with pytest.raises(ValueError) as error:
        TernaryConfig(**options)
    assert all(word in str(error.value) for word in words), error.value


def test_every_option_is_documented_and_reaches_its_method():
    import inspect

    for name in inspect.signature(TernaryConfig).parameters:
        assert name == "saved" or f"{name}:" in TernaryConfig.__doc__
    assert TernaryConfig("tequila", lam=0.5).make_method().lam == 0.5
    assert TernaryConfig("sherry", residual=0.25).make_method().residual == 0.25
    annealed = TernaryConfig("annealed", temperature=2.0, final_temperature=0.5).make_method()
    assert (annealed.temperature, annealed.final_temperature) == (2.0, 0.5)
    for name in ("tequila", "absmean", "twn", "sherry", "annealed"):
        assert TernaryConfig(name, group_size=128).make_method().group_size == 128
