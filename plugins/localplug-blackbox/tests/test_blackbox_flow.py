"""FlowOpt on flows whose answer is known: between Gaussians an Euler sampler is a matrix, and its inverse is exact."""

import itertools
import math

import pytest
import torch

from localplug_blackbox import FlowOpt, euler_inversion, euler_process, pipeline_process, step_bound

TIMES = [1.0, 0.75, 0.5, 0.25, 0.0]


def gaussian_flow(scales, mean):
    """The velocity of the straight flow from N(0, I) at t = 1 to N(mean, diag(scales^2)) at t = 0.

    x_t = t z + (1 - t) d: v = E[z - d | x_t], linear in x_t by the conditional mean of joint Gaussians.
    """

    def velocity(x, t):
        variance = t**2 + (1 - t) ** 2 * scales**2
        centred = x - (1 - t) * mean
        return (t - (1 - t) * scales**2) / variance * centred - mean

    return velocity


def matrix(scales):
    """The diagonal of what Euler's method makes of it, by multiplying its steps."""
    found = torch.ones_like(scales)
    for t, following in itertools.pairwise(TIMES):
        found = found * (1 + (following - t) * (t - (1 - t) * scales**2) / (t**2 + (1 - t) ** 2 * scales**2))
    return found


SCALES, MEAN = torch.tensor([0.6, 0.9, 1.3, 2.0]).double(), torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
PROCESS = euler_process(gaussian_flow(SCALES, MEAN), TIMES)
A = matrix(SCALES)
Z = torch.tensor([0.3, -1.0, 2.0, 0.1]).double()
ZERO = torch.zeros(4).double()


def test_the_process_of_this_file_is_the_matrix():
    assert float(A.min()) > 0.3 and torch.allclose(PROCESS(Z) - PROCESS(ZERO), A * Z)


def test_the_input_is_found_from_the_residual_alone():
    y = PROCESS(Z)
    result = FlowOpt(PROCESS).run(y, ZERO, max_evaluations=200, tolerance=1e-16)
    assert result.stopped == "the error is small enough"
    torch.testing.assert_close(result.best.z, Z, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.best.output, y, atol=1e-7, rtol=0)
    assert result.errors == sorted(result.errors, reverse=True)


def test_each_step_is_the_equation_and_costs_one_evaluation():
    calls = []
    flow = FlowOpt(lambda z: calls.append(z.clone()) or A * z, step_size=0.25)
    y, start = torch.ones(4).double(), torch.full((4,), 0.5).double()
    z = start
    for number, step in enumerate(flow.steps(y, start)):
        torch.testing.assert_close(step.z, z, rtol=1e-12, atol=0)
        torch.testing.assert_close(step.output, A * z, rtol=1e-12, atol=0)
        assert step.num_evaluations == len(calls) == number + 1 and step.step_size == 0.25
        if number == 3:
            break
        z = z - 0.25 * (A * z - y)


@pytest.mark.parametrize("share, converges", [(0.95, True), (1.05, False)])
def test_the_largest_step_that_contracts_is_two_over_the_largest_eigenvalue(share, converges):
    eta = share * 2 / float(A.max())
    result = FlowOpt(PROCESS, step_size=eta).run(PROCESS(Z), ZERO, max_evaluations=120, tolerance=0.0)
    assert (result.errors[-1] < 1e-3 * result.errors[0]) == converges


def test_the_estimated_bound_is_an_upper_one_of_the_largest_and_exact_along_one_direction():
    bounds = [step_bound(PROCESS, Z, num_pairs=n, seed=1) for n in (1, 8, 200)]
    assert bounds[0] >= bounds[1] >= bounds[2] >= 2 / float(A.max())
    assert bounds[2] < 1.15 * 2 / float(A.max())
    assert step_bound(lambda z: 5 * z, Z) == pytest.approx(0.4)
    assert step_bound(lambda z: -z, Z) == 0.0 and step_bound(lambda z: 0 * z, Z) == math.inf


def test_the_bound_between_two_iterates_costs_nothing_and_lowers_the_step():
    """A process that is steep away from the start: the estimate there is too large."""
    steep = lambda z: torch.where(z.abs() < 1, z, 9 * z - 8 * z.sign())  # noqa: E731
    steps = FlowOpt(steep, radius=0.01).steps(torch.full((3,), 20.0), torch.zeros(3))
    first, second, third = (next(steps) for _ in range(3))
    assert math.isnan(first.bound) and first.step_size == pytest.approx(1.0)
    dz, df = second.z - first.z, second.output - first.output
    assert second.bound == pytest.approx(2 * float(dz @ df) / float(df @ df)) and second.bound < 1
    assert second.step_size == pytest.approx(second.bound / 2) and third.num_evaluations == second.num_evaluations + 1


def test_a_walk_can_be_watched_and_stopped():
    seen = []
    result = FlowOpt(PROCESS).run(PROCESS(Z), ZERO, watch=lambda step: seen.append(step.error) or len(seen) == 3)
    assert result.stopped == "watch has seen enough" and result.errors == seen and len(seen) == 3
    assert FlowOpt(PROCESS).run(PROCESS(Z), ZERO, max_evaluations=5).stopped == "the evaluations are spent"
    assert FlowOpt(PROCESS).run(PROCESS(Z), ZERO, max_evaluations=5).num_evaluations == 5


def test_what_no_step_contracts_is_said():
    result = FlowOpt(lambda z: -z).run(torch.ones(3), torch.zeros(3))
    assert result.stopped == "no step contracts" and result.num_evaluations == 3


def test_an_output_that_is_not_finite_ends_the_walk_at_the_best_before():
    broken = lambda z: torch.where(z.abs() > 2, float("nan"), 0.5 * z)  # noqa: E731
    result = FlowOpt(broken, step_size=1.0).run(torch.full((2,), 9.0), torch.zeros(2))
    assert result.stopped == "the output is not finite" and math.isfinite(result.best.error)
    with pytest.raises(ValueError, match="not finite at the start"):
        FlowOpt(lambda z: z * float("nan"), step_size=1.0).run(torch.ones(2), torch.zeros(2))


def test_the_process_sees_the_dtype_of_the_start_and_sums_are_kept_wider():
    seen = set()
    flow = FlowOpt(lambda z: seen.add(z.dtype) or z * 1.0, step_size=0.001)
    result = flow.run(torch.ones(4, dtype=torch.float16), torch.zeros(4, dtype=torch.float16), max_evaluations=10)
    assert seen == {torch.float16} and result.best.z.dtype == torch.float32
    assert 0 < float(result.best.z[0]) < 0.01  # nine steps, each below what float16 resolves near 1


def test_no_graph_is_built():
    weight = torch.nn.Parameter(torch.tensor(2.0))
    result = FlowOpt(lambda z: weight * z).run(torch.ones(3), torch.zeros(3))
    assert not result.best.z.requires_grad and not result.best.output.requires_grad and weight.grad is None


def test_euler_backwards_is_close_and_starts_the_search_nearer():
    velocity = gaussian_flow(SCALES, MEAN)
    y = PROCESS(Z)
    start = euler_inversion(velocity, TIMES, y)
    assert float((start - Z).norm()) < float((ZERO - Z).norm())
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).double()
    one_step = euler_inversion(lambda x, t: 2 * x, [1.0, 0.5], x)
    torch.testing.assert_close(one_step, x + 0.5 * 2 * x)


def test_a_pipeline_is_called_for_latents_and_searched():
    class Pipeline:
        """Stands in for one of diffusers: classifier-free guidance over a flow between Gaussians."""

        def __call__(self, prompt, num_inference_steps, latents=None, output_type="pil", return_dict=True):
            assert prompt == "a cat" and output_type == "latent" and not return_dict and not torch.is_grad_enabled()
            return (euler_process(gaussian_flow(SCALES.float(), MEAN.float()), TIMES)(latents),)

    process = pipeline_process(Pipeline(), {"prompt": "a cat", "num_inference_steps": 4})
    y = process(Z.float())
    result = FlowOpt(process).run(y, torch.zeros(4), max_evaluations=100, tolerance=1e-9)
    torch.testing.assert_close(result.best.z, Z.float(), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="call must not have latents, output_type"):
        pipeline_process(Pipeline(), {"latents": y, "output_type": "pil"})


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: FlowOpt(3, step_size=0, num_pairs=0, radius=0), 4),
        (lambda: FlowOpt(PROCESS).steps(torch.ones(2), torch.ones(2, dtype=torch.int64)), 1),
        (lambda: FlowOpt(PROCESS).steps(torch.tensor([math.nan]), 3.0), 2),
        (lambda: FlowOpt(PROCESS).steps(torch.ones(2), torch.ones(3)), 1),
        (lambda: FlowOpt(PROCESS).run(Z, Z, max_evaluations=2, tolerance=-1), 2),
        (lambda: step_bound(PROCESS, Z, num_pairs=0, radius=-1), 2),
        (lambda: euler_process(lambda x, t: x, [0.0, 1.0]), 1),
        (lambda: FlowOpt(lambda z: z[:1]).run(Z, Z), 1),
    ],
)
def test_bad_arguments_are_refused_all_at_once(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert len(str(error.value).split("; ")) == said, error.value
