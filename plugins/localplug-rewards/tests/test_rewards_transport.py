"""Transport costs against POT and closed forms; rewards made of them, and training towards one."""

import numpy
import ot
import pytest
import torch
from torch import nn

import localplug
from localplug_rewards import transport
from localplug_rewards.distribution import SampleTransport
from localplug_rewards.mapped import GaussianMap, MappedSimilarity
from localplug_rewards.tokens import TokenTransport, aligned, fused


def points(num, D, seed, scale=1.0):
    drawn = torch.randn(num, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * drawn + seed


# ---- costs ------------------------------------------------------------------------------------------------------------------


def test_the_exact_cost_is_that_of_the_best_permutation():
    """Of sets of equal size some permutation is optimal (Birkhoff): all 720 are tried."""
    import itertools

    x, y = points(6, 2, 0), points(6, 2, 1)
    cost = torch.cdist(x, y).square()
    best = min(float(cost[range(6), list(p)].mean()) for p in itertools.permutations(range(6)))
    assert transport.exact(x, y) == pytest.approx(best, rel=1e-9)


def test_points_that_ran_away_cost_infinitely_much_and_far_ones_what_they_cost():
    x, y = points(5, 2, 0), points(5, 2, 1)
    for bad in (float("nan"), float("inf"), 1e200):
        assert transport.exact(x * bad, y) == float("inf")
    assert transport.exact(1e9 * x, 1e9 * y) == pytest.approx(1e18 * transport.exact(x, y), rel=1e-9)


@pytest.mark.parametrize(("N", "M"), [(7, 7), (5, 8), (1, 4)])
def test_a_line_agrees_with_exact_plans_and_with_pot(N, M):
    x, y = points(N, 1, 0), points(M, 1, 2, scale=0.3)
    found = float(transport.line(x[:, 0], y[:, 0]))
    assert found == pytest.approx(transport.exact(x, y), rel=1e-9)
    assert found == pytest.approx(ot.emd2_1d(x[:, 0].numpy(), y[:, 0].numpy(), metric="sqeuclidean"), rel=1e-9)


def test_slices_are_lines_and_the_same_each_time():
    x, y = points(9, 3, 0), points(6, 3, 1)
    assert transport.sliced(x, y, seed=3) == transport.sliced(x, y, seed=3) != transport.sliced(x, y, seed=4)
    assert transport.sliced(x, y, num_lines=4000) == pytest.approx(
        ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=4000, seed=0) ** 2, rel=0.05
    )
    one = transport.sliced(x[:, :1], y[:, :1], num_lines=3)
    assert one == pytest.approx(float(transport.line(x[:, 0], y[:, 0])))


def test_the_gaussian_cost_is_bures_and_a_translation_costs_its_square():
    x, y = points(40, 3, 0), points(50, 3, 1, scale=2.0)
    (mx, Sx), (my, Sy) = transport.moments(x), transport.moments(y)
    by_pot = ot.gaussian.bures_wasserstein_distance(*(t.numpy() for t in (mx, my, Sx, Sy))) ** 2
    assert transport.gaussian(x, y) == pytest.approx(float(by_pot), rel=1e-6)
    assert transport.gaussian(x, x + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25.0)
    assert numpy.allclose(Sx.numpy(), numpy.cov(x.T.numpy(), bias=True))
    assert transport.exact(x, y) > transport.gaussian(x, y), (
        "Gelbrich: Gaussians with these moments are the least that it can cost"
    )


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
def test_unbalanced_plans_are_those_of_pot():
    """PISCES's iteration with exponent 0.9 is POT's with rho = eps m / (1 - m); it moves more than 0.9."""
    cost = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plans = transport.unbalanced(cost, max_iterations=5000, tolerance=0.0)
    for C, P in zip(cost, plans, strict=True):
        a, b = numpy.full(5, 1 / 5), numpy.full(7, 1 / 7)
        wanted = ot.unbalanced.sinkhorn_unbalanced(
            a, b, C.numpy(), reg=0.05, reg_m=0.45, reg_type="entropy", numItermax=5000, stopThr=1e-15
        )
        assert numpy.allclose(P.numpy(), wanted, atol=1e-12)
    balanced = transport.unbalanced(cost, exponent=1.0, max_iterations=5000, tolerance=1e-12)
    torch.testing.assert_close(balanced.sum(2), torch.full((2, 5), 1 / 5).double(), atol=1e-6, rtol=0)


def test_padding_takes_no_part_in_a_plan():
    cost = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.full((1, 6, 7), float("inf"), dtype=torch.float64)
    padded[:, :4, :5] = cost
    plan = transport.unbalanced(padded)
    torch.testing.assert_close(plan[:, :4, :5], transport.unbalanced(cost), atol=1e-9, rtol=0)
    assert not plan[:, 4:].any() and not plan[:, :, 5:].any()
    with pytest.raises(ValueError, match="eps must be positive, exponent in"):
        transport.unbalanced(cost, eps=0.0)


# ---- rewards ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["exact", "sliced", "gaussian"])
def test_samples_are_rewarded_by_their_cost(cost):
    examples, samples = points(20, 2, 0), points(30, 2, 1)
    reward = SampleTransport(examples, cost)
    assert reward({"samples": samples}, {}) == -{
        "exact": transport.exact,
        "sliced": transport.sliced,
        "gaussian": transport.gaussian,
    }[cost](samples, examples)
    assert reward({"samples": samples}, {}) < reward({"samples": examples}, {}) == pytest.approx(0, abs=1e-9)
    assert reward({"samples": samples * float("nan")}, {}) == float("-inf")


def test_one_good_sample_again_and_again_is_no_distribution():
    examples = torch.tensor([[-1.0], [1.0]])
    reward = SampleTransport(examples)
    assert reward({"samples": torch.tensor([[1.0], [1.0]])}, {}) == -2.0 < reward({"samples": examples * 0.9}, {})


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cost must be one of exact, sliced, gaussian, got 'l2'"):
        SampleTransport(cost="l2")
    with pytest.raises(ValueError, match=r"needs 'samples' in the model's output, and examples=.*has \['x'\]"):
        localplug.objective("ot-samples")({"logits": torch.ones(2, 2)}, {"x": 1})
    with pytest.raises(ValueError, match="samples have 2 numbers each, examples 3"):
        SampleTransport(torch.ones(2, 3))({"samples": torch.ones(2, 2)}, {})


class Generator(nn.Module):
    """From noise to points of the plane."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, noise):
        samples = self.net(noise)
        return {"loss": samples.square().mean(), "samples": samples}


def test_a_generator_learns_a_distribution_from_evaluations_alone():
    angles = torch.arange(16) * (2 * torch.pi / 16)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Generator()
    reward, optimizer = SampleTransport(circle), torch.optim.SGD(model.parameters(), lr=0.02)
    before = reward(model(noise), {})
    with localplug.attach(model, "mezo", optimizer, objective=reward, num_directions=2, eps=1e-2):
        for _ in range(40):
            model(noise)["loss"].backward()
            optimizer.step()
    assert reward(model(noise), {}) > 0.5 * before  # both are negative


# ---- tokens -----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
def test_the_token_reward_is_its_formula_with_pots_plan():
    similarity = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan, found = aligned(similarity, weight=0.3)
    i, j = numpy.arange(4)[:, None] / 3, numpy.arange(6)[None] / 5
    C = 1 - similarity.numpy() + 0.3 * numpy.abs(i - j)
    raw, C = C, (C - C.min()) / (C.max() - C.min())
    P = ot.unbalanced.sinkhorn_unbalanced(
        numpy.full(4, 1 / 4), numpy.full(6, 1 / 6), C, reg=0.05, reg_m=0.45, reg_type="entropy", numItermax=5000
    )
    P = P / P.sum(1, keepdims=True)
    assert numpy.allclose(plan.numpy(), P, atol=5e-3)  # it stops at a tolerance of 1e-3, as PISCES does
    assert numpy.allclose(found.numpy(), 1 - (P * raw).sum(1), atol=5e-3)
    torch.testing.assert_close(plan.sum(1), torch.ones(4).double())


def test_a_token_at_another_place_costs_its_way_and_no_more():
    wanted = torch.tensor([1, 2, 3, 4, 5, 6])
    for weight in (0.2, 1.0):
        reward = TokenTransport(weight=weight)
        same, turned, swapped, wrong = (
            reward.of_pair(torch.tensor(w), wanted)
            for w in ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [2, 1, 3, 4, 5, 6], [9, 9, 9, 9, 9, 9])
        )
        assert same == pytest.approx(1, abs=1e-3) and wrong <= 0
        assert swapped == pytest.approx(1 - weight * 2 / 5 / 6, abs=0.01)  # two of six tokens, a fifth of the way
        assert turned == pytest.approx(1 - weight * (5 + 3 + 1) * 2 / 5 / 6, abs=0.05 * weight + 0.01)
    assert TokenTransport().of_pair(torch.tensor([], dtype=torch.long), wanted) == 0.0
    twice = torch.tensor([1, 1])
    near, far = (aligned((twice[:, None] == torch.tensor(w)).double())[1].mean() for w in ([1, 1], [1, 9]))
    assert near > far


def test_labels_are_read_where_they_count_and_shifted_as_a_language_model_is():
    labels = torch.tensor([[-100, -100, 3, 1]])
    logits = nn.functional.one_hot(torch.tensor([[0, 3, 1, 0]]), 4).float()
    shifted, not_shifted = TokenTransport(), TokenTransport(shifts=False)
    model = nn.Identity()
    assert shifted({"logits": logits}, {"labels": labels}, model) == pytest.approx(1, abs=1e-6)
    assert not_shifted({"logits": logits}, {"labels": labels}, model) < 0.8
    with pytest.raises(ValueError, match=r"needs `logits` \(B, T, V\).*has \['x'\]"):
        shifted({"logits": logits}, {"x": labels}, model)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        TokenTransport(weight=-1)


def test_embeddings_say_what_is_alike_and_a_writer_of_ones_own_is_asked():
    table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    near, far = (
        TokenTransport(table, write=lambda model, batch, w=w: [(torch.tensor([w]), torch.tensor([0]))])(None, {}, None)
        for w in (1, 2)
    )
    assert near > 0.98 and far == pytest.approx(0, abs=1e-6)


def test_attention_fused_with_a_plan_is_their_product():
    A, P = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), torch.rand(3, 4)
    product = (A + 1e-6) * (P + 1e-6)
    torch.testing.assert_close(fused(A, P), product / product.sum(-1, keepdim=True))


# ---- maps -------------------------------------------------------------------------------------------------------------------


def test_the_map_between_gaussians_is_pots_and_carries_the_moments_over():
    x, y = points(60, 3, 0), points(80, 3, 1) @ torch.tensor([[2.0, 0.3, 0], [0, 0.5, 0], [0, 0, 1]]).double()
    mapping = GaussianMap(x, y, ridge=1e-12)
    (mx, Sx), (my, Sy) = transport.moments(x), transport.moments(y)
    A, b = ot.gaussian.bures_wasserstein_mapping(*(t.numpy() for t in (mx, my, Sx, Sy)))
    assert numpy.allclose(mapping(x).numpy(), x.numpy() @ A + b, atol=1e-6)
    m, S = transport.moments(mapping(x))
    torch.testing.assert_close(m, my, atol=1e-8, rtol=0)
    torch.testing.assert_close(S, Sy, atol=1e-6, rtol=0)
    cost = (mapping(x) - x).square().sum(1).mean()
    assert float(cost) == pytest.approx(transport.gaussian(x, y), rel=1e-6), "and moves no further than it must"


def test_outputs_where_the_prompts_are_mapped_to_are_rewarded():
    x = points(50, 3, 0)
    mapping = GaussianMap(x, 2 * x + 1)
    reward = MappedSimilarity(mapping, lambda outputs, batch: (batch["prompt"], outputs))
    right, shuffled = (reward(made, {"prompt": x}) for made in (mapping(x), x.roll(1, 0)))
    assert right == pytest.approx(1) and shuffled < 0.9
    with pytest.raises(ValueError, match=r"two clouds .* got \(50, 3\), \(50, 2\) and 1e-06"):
        GaussianMap(x, x[:, :2])
    with pytest.raises(ValueError, match="must be finite"):
        GaussianMap(x * float("inf"), x)
