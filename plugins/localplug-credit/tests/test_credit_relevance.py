"""Relevance against closed forms (gradient times input, the epsilon rule by loops, attention by hand), and its conservation."""

import pytest
import torch
from torch import nn

from localplug import Unsupported
from localplug_credit.attribution import masks, relevance, scores, unit_scores
from localplug_credit.rules import Rules


def seeded(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / max(p[0].numel(), 1) ** 0.5)
    return net.double()


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bias_free_networks():
    def linear(a, b):
        return nn.Linear(a, b, bias=False)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = linear(6, 6)

        def forward(self, x):
            return x + self.inside(x).relu()

    def convolution(*args, **kwargs):
        return nn.Conv2d(*args, bias=False, **kwargs)

    return {
        "mlp": (nn.Sequential(linear(6, 9), nn.ReLU(), linear(9, 9), nn.ReLU(), linear(9, 3)), (4, 6)),
        "in place": (nn.Sequential(linear(6, 9), nn.ReLU(inplace=True), linear(9, 3)), (4, 6)),
        "sequence": (nn.Sequential(linear(6, 9), nn.ReLU(), linear(9, 3)), (2, 5, 6)),
        "residual": (nn.Sequential(linear(6, 6), Residual(), Residual(), linear(6, 3)), (4, 6)),
        "convolutions": (
            nn.Sequential(
                convolution(2, 4, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(2),
                convolution(4, 6, 3, padding=1, groups=2), nn.AvgPool2d(2), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(6, 3),
            ),
            (2, 2, 18, 18),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", bias_free_networks())
def test_without_biases_relevance_is_gradient_times_input_of_inputs_and_weights_alike(name):
    """LRP-0 on piecewise linear networks: Ancona et al., ICLR 2018, arXiv:1711.06104."""
    net, shape = bias_free_networks()[name]
    seeded(net)
    x = normal(*shape)
    found = relevance(net, x, rules=Rules(eps=1e-13, sums="signed"))
    at = x.clone().requires_grad_()
    net(at).max(-1).values.sum().backward()
    torch.testing.assert_close(found.inputs[0], at.grad * x, atol=1e-9, rtol=1e-7)
    assert found.parameters.keys() == dict(net.named_parameters()).keys()
    for key, p in net.named_parameters():
        torch.testing.assert_close(found.parameters[key], p.grad * p.detach(), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", bias_free_networks())
@pytest.mark.parametrize("sums", ["absolute", "signed"])
def test_without_biases_all_relevance_arrives_at_the_inputs(name, sums):
    net, shape = bias_free_networks()[name]
    seeded(net)
    found = relevance(net, normal(*shape), rules=Rules(eps=1e-12, sums=sums))
    rows = found.inputs[0].flatten(1).sum(1)
    torch.testing.assert_close(rows, found.result.reshape(len(rows), -1).sum(1), atol=1e-7, rtol=1e-7)


def test_with_biases_the_epsilon_rule_by_loops():
    net = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net.requires_grad_(False)
    x, eps = normal(5, 3), 0.3
    found = relevance(net, x, rules=Rules(eps=eps))
    R_x, R_W, R_b = torch.zeros_like(x), torch.zeros(2, 4).double(), torch.zeros(2).double()
    for n in range(5):
        h = net[1](net[0](x[n]))
        z = net[2](h)
        k = int(z.argmax())
        share = float(z[k]) / (float(z[k]) + eps * (1 if z[k] >= 0 else -1))
        R_h = [float(h[i] * net[2].weight[k, i]) * share for i in range(4)]
        for i in range(4):
            R_W[k, i] += R_h[i]
        R_b[k] += float(net[2].bias[k]) * share
        for i in range(4):
            a = float(net[0](x[n])[i])
            for d in range(3):
                R_x[n, d] += float(x[n, d] * net[0].weight[i, d]) * R_h[i] / (a + eps * (1 if a >= 0 else -1))
    torch.testing.assert_close(found.inputs[0], R_x)
    torch.testing.assert_close(found.parameters["2.weight"], R_W)
    torch.testing.assert_close(found.parameters["2.bias"], R_b)


def test_gamma_counts_positive_weights_more():
    net, x = seeded(nn.Linear(3, 1, bias=False)), normal(2, 3).abs()
    found = relevance(net, x, rules=Rules(eps=1e-12, gamma=0.5))
    favoured = net.weight.detach() + 0.5 * net.weight.detach().clamp(min=0)
    z = x @ favoured.T
    torch.testing.assert_close(found.inputs[0], x * favoured / z * found.result[:, None])
    torch.testing.assert_close(
        found.parameters["weight"], (x * net.weight.detach()).sum(0, keepdim=True), atol=1e-9, rtol=1e-9
    )


class Attention(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, q, k, v):
        if self.form == "one operation":
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores_ = q @ k.mT * q.shape[-1] ** -0.5
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        return scores_.masked_fill(~allowed, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("form", ["one operation", "several"])
@pytest.mark.parametrize("softmax", ["taylor", "identity"])
def test_attention_by_hand_and_the_same_in_one_operation(form, softmax):
    q, k, v = (normal(2, 2, 4, 3, seed=s) for s in (1, 2, 3))
    found = relevance(Attention(form), q, k, v, select=lambda o: o, rules=Rules(eps=1e-9, softmax=softmax))
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    x = (q @ k.mT / 3**0.5).masked_fill(~allowed, -torch.inf)
    A = x.softmax(-1)
    O, R = A @ v, A @ v  # noqa: E741 (the paper's letter)
    R_A, R_v = torch.zeros_like(A), torch.zeros_like(v)
    for i in range(4):
        for j in range(i + 1):
            part = A[..., i, j, None] * v[..., j, :] * R[..., i, :] / (2 * O[..., i, :])
            R_A[..., i, j], R_v[..., j, :] = part.sum(-1), R_v[..., j, :] + part
    R_x = R_A if softmax == "identity" else torch.where(allowed, x * (R_A - A * R_A.sum(-1, keepdim=True)), 0.0)
    share = R_x / (2 * (q @ k.mT))
    torch.testing.assert_close(found.inputs[2], R_v, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.inputs[0], q * (share @ k), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.inputs[1], k * (share.mT @ q), atol=1e-6, rtol=1e-5)
    total = sum(float(r.sum()) for r in found.inputs)
    expected = float(found.result.sum()) if softmax == "identity" else float(R_v.sum() + R_x.sum())
    assert total == pytest.approx(expected, abs=1e-5)


def test_a_sum_of_activations_divides_as_told():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a - b

    a, b = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    absolute = relevance(Sum(), a, b, rules=Rules(sums="absolute")).inputs
    signed = relevance(Sum(), a, b, rules=Rules(sums="signed")).inputs
    assert [float(r) for r in absolute] == pytest.approx([1.5, 0.5], rel=1e-5)
    assert [float(r) for r in signed] == pytest.approx([3.0, -1.0], rel=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), nn.BatchNorm1d(6)], ids=lambda n: type(n).__name__)
def test_a_norm_passes_relevance_on_and_its_gain_has_a_share(norm):
    net = seeded(nn.Sequential(nn.Linear(6, 6, bias=False), norm, nn.Linear(6, 2, bias=False))).eval()
    x = normal(3, 6)
    found = relevance(net, x, at=["1"], rules=Rules(eps=1e-12))
    torch.testing.assert_close(found.inputs[0].sum(1), found.result, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found.modules["1"].sum(1), found.result, atol=1e-8, rtol=1e-8)
    shares = [found.parameters[n].sum() for n in found.parameters if n.startswith("1.")]
    torch.testing.assert_close(sum(shares), found.result.sum(), atol=1e-7, rtol=1e-7)


def test_what_is_kept_does_not_change_the_result_and_rebuilding_keeps_less():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    net, x = seeded(nn.Sequential(layer, nn.Linear(8, 2))), normal(2, 5, 8)
    found = [relevance(net.train(), x, rebuild=n) for n in (0, 1, 4)]
    for other in found[1:]:
        torch.testing.assert_close(found[0].inputs[0], other.inputs[0])
    sizes = [f.kept_bytes for f in found]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_nothing_is_kept_of_what_no_result_depends_on():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(6, 6, bias=False)

        def forward(self, x):
            for _ in range(5):
                self.inside(self.inside(x))
            return self.inside(x)

    assert relevance(seeded(Wasteful()), normal(3, 6)).kept_bytes == 0


def test_the_global_random_state_and_autograd_are_left_alone():
    net, x = seeded(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))), normal(3, 6)
    before = torch.get_rng_state()
    found = relevance(net, x)
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()
    assert not found.result.requires_grad and not found.inputs[0].requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_operations_without_a_rule_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(Unsupported, match="linalg_inv_ex"):
        relevance(Odd(), torch.eye(3).unsqueeze(0))


def test_writing_into_a_part_of_a_tensor_is_refused():
    class Writes(nn.Module):
        def forward(self, x):
            y = torch.zeros_like(x)
            y[:, 0] = x[:, 1]
            return y * 2

    with pytest.raises(Unsupported, match="in place"):
        relevance(Writes(), normal(2, 3))


def test_options_and_names_are_checked_all_at_once():
    with pytest.raises(ValueError, match=r"eps must be positive, got 0; gamma .* got -1; sums must be .* got 'both'"):
        Rules(eps=0, gamma=-1, sums="both")
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no module is named"):
        relevance(net, torch.ones(1, 2), at=["nowhere"])
    with pytest.raises(TypeError, match="sequence of module names"):
        relevance(net, torch.ones(1, 2), at="")
    with pytest.raises(ValueError, match="does not depend"):
        relevance(net, torch.ones(1, 2), select=lambda o: torch.ones(2))
    with pytest.raises(ValueError, match="share"):
        masks({"weight": torch.ones(2)}, 0.0)


def test_scores_find_the_weights_that_a_result_needs():
    """Inputs 0 and 1 decide, through hidden units 0 and 1; the scores of all other weights are 0."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[2].weight.copy_(torch.tensor([[1.0, 0.5, 0, 0], [-1.0, 1.0, 0, 0]]))
    found = scores(net, [torch.ones(3, 4), (torch.ones(1, 4),), {"input": torch.ones(1, 4)}])
    torch.testing.assert_close(found["0.weight"], 5 * torch.diag(torch.tensor([1.0, 0.5, 0, 0])), atol=1e-4, rtol=0)
    chosen = masks(found, 4 / 24)
    assert int(sum(m.sum() for m in chosen.values())) == 4
    assert chosen["0.weight"][0, 0] and chosen["0.weight"][1, 1] and chosen["2.weight"][0, :2].all()
    assert not masks(found, 0.5, largest=False)["0.weight"][0, 0]
    assert unit_scores(net, found) == pytest.approx({"0": 0.5, "2": 0.5})
