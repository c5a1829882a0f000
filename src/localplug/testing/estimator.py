"""Checks that every estimator must pass: localplug.Estimator, on a bowl whose gradient is known."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from localplug.contract import Estimate, Run
from localplug.directions import Directions
from localplug.parts import Estimator
from localplug.perturbation import Perturbation
from localplug.testing.bowl import Bowl, elements, gradient, reloaded, run_of, weights
from localplug.testing.conformance import Documented, in_one_line, pickled

Make = Callable[[], Estimator]
DRAWS = 250  # directions that are averaged


class EstimatorTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your estimator."""

    def test_points_along_the_gradient(self, make: Make) -> None:
        """(1/q) sum_j c_j z_j, averaged over steps, has the gradient's direction; its length is the estimator's own."""
        estimator, run = make(), run_of(Bowl())
        probe = _Probe(estimator, run)
        total = torch.zeros_like(gradient(run))
        for _ in range(max(DRAWS // estimator.num_directions, 20)):
            total += probe.step()
        cosine = float(torch.nn.functional.cosine_similarity(total, gradient(run), dim=0))
        assert cosine > 0.7, f"the mean of {DRAWS} directions and the gradient have cosine {cosine:.2f}"

    def test_evaluates_as_often_as_it_says(self, make: Make) -> None:
        estimator = make()
        probe = _Probe(estimator, run_of(Bowl()))
        for _ in range(3):
            said = estimator.num_evaluations
            probe.step()
            assert probe.evaluated == said

    def test_gives_as_many_numbers_as_it_says(self, make: Make) -> None:
        """num_fields for each direction, float32, and a coefficient for each direction, finite."""
        estimator, run = make(), run_of(Bowl())
        probe, q = _Probe(estimator, run), estimator.num_directions
        assert q >= 1 and estimator.num_fields >= 1
        for _ in range(2):
            raw = probe.numbers()
            assert raw.shape == (estimator.num_fields * q,) and raw.dtype == torch.float32
            shaped = estimator.coefficients(run, raw.tolist())
            assert len(shaped) == q and torch.isfinite(torch.tensor(shaped)).all()
            variance = estimator.variance(shaped, 19.0)
            assert 0 <= variance < float("inf")
            run.step += 1

    def test_numbers_of_micro_batches_add_up(self, make: Make) -> None:
        """They are linear in the loss, so that those of two batches, or of a scaled loss, are the numbers of their sum."""
        found = []
        for factors in ((1.0,), (0.25, 0.75)):
            probe = _Probe(make(), run_of(Bowl()))
            found.append(torch.stack([probe.numbers(f) for f in factors]).sum(0))
        torch.testing.assert_close(found[1], found[0], atol=2e-2 * float(found[0].abs().max()) + 1e-6, rtol=0)
        probe = _Probe(make(), run_of(Bowl()))
        estimate = probe.estimate()
        once, thrice = (estimate.pull_back([torch.tensor(s)]) for s in (1.0, 3.0))
        assert once is not None and thrice is not None
        torch.testing.assert_close(thrice, 3 * once)

    def test_reports_the_loss_of_the_batch(self, make: Make) -> None:
        run = run_of(Bowl())
        clean = float(run.model().detach())
        probe = _Probe(make(), run)
        values = probe.estimate().values
        reported = float(values[0]) if values else probe.last
        assert abs(reported - clean) < 0.1 * clean, f"it reports the loss {reported}, which is {clean}"

    def test_says_truly_whether_scale_matters(self, make: Make) -> None:
        """is_scale_free: whether clipping, which scales the numbers, changes nothing."""
        shaped = []
        for factor in (1.0, 3.0):
            estimator, run = make(), run_of(Bowl())
            probe = _Probe(estimator, run)
            probe.step()  # the first has nothing to compare with, for some
            shaped.append(estimator.coefficients(run, [factor * c for c in probe.numbers().tolist()]))
        one, three = (torch.tensor(cs) for cs in shaped)
        is_same = torch.allclose(one, three, rtol=1e-4, atol=1e-6)
        assert is_same == make().is_scale_free, f"is_scale_free is {make().is_scale_free}, coefficients: {shaped}"

    def test_an_evaluation_that_fails_leaves_nothing_perturbed(self, make: Make) -> None:
        for failing in range(1, make().num_evaluations + 1):
            run = run_of(Bowl())
            clean, before = run.model().detach(), weights(run)
            probe = _Probe(make(), run)
            with pytest.raises(RuntimeError, match="out of memory"):
                probe.estimate(failing=failing)
            assert torch.equal(weights(run), before) and torch.equal(run.model().detach(), clean), (
                f"evaluation {failing} of the estimate"
            )
            assert all(p.grad is None for p in run.model.parameters())

    def test_the_same_seed_repeats_the_estimate_and_another_does_not(self, make: Make) -> None:
        rows = [_Probe(make(), run_of(Bowl(), seed=seed)).rows(3) for seed in (1, 1, 2)]
        assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])

    def test_a_second_worker_evaluates_its_own_directions_or_is_refused(self, make: Make) -> None:
        """run.first_direction numbers them; coefficients come of the numbers of both, field by field."""
        estimator, run = make(), run_of(Bowl(), workers=2)
        if estimator.problems(run):
            return
        q, numbers = estimator.num_directions, []
        for first in (0, q):
            run = run_of(Bowl(), workers=2)
            run.first_direction = first
            probe = _Probe(make(), run)
            numbers.append(probe.numbers().view(-1, q))
        assert not torch.allclose(numbers[0], numbers[1]), "the second worker evaluates the first one's directions"
        both = torch.cat(numbers, dim=1)
        assert len(estimator.coefficients(run, both.flatten().tolist())) == 2 * q

    def test_resumes_from_its_state_dict(self, make: Make) -> None:
        whole, run = make(), run_of(Bowl())
        probe = _Probe(whole, run)
        probe.rows(3)
        resumed = make()
        again = _Probe(resumed, run_of(Bowl(), step=run.step))
        resumed.load_state_dict(reloaded(whole.state_dict()))
        assert torch.equal(again.rows(2), probe.rows(2))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_losses_of_half_precision_are_read_in_float32_or_refused(self, make: Make, dtype: torch.dtype) -> None:
        run = run_of(Bowl(dtype))
        estimator = make()
        if estimator.problems(run):
            return
        before, probe = weights(run), _Probe(estimator, run)
        raw = probe.numbers()
        assert raw.dtype == torch.float32 and torch.isfinite(raw).all()
        assert torch.equal(weights(run), before)

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        probe, before = _Probe(make(), run_of(Bowl())), torch.get_rng_state()
        probe.step()
        assert torch.equal(before, torch.get_rng_state())

    def test_memory_does_not_grow(self, make: Make) -> None:
        estimator, sizes = make(), []
        probe = _Probe(estimator, run_of(Bowl()))
        for _ in range(12):
            probe.step()
            sizes.append(elements([vars(estimator), estimator.state_dict()]))
        assert max(sizes[6:]) <= max(sizes[:6]), f"it grew from {max(sizes[:6])} to {max(sizes[6:])} elements"

    def test_can_be_pickled(self, make: Make) -> None:
        rows = [_Probe(estimator, run_of(Bowl())).rows(2) for estimator in (make(), pickled(make()))]
        assert torch.equal(rows[0], rows[1])

    def test_describes_itself_in_one_line(self, make: Make) -> None:
        assert in_one_line(make().describe())


class _Probe:
    """Makes an estimator's evaluations on a bowl, along Gaussian directions."""

    def __init__(self, estimator: Estimator, run: Run) -> None:
        if found := estimator.problems(run):
            pytest.fail(f"it cannot be used on a small model: {'; '.join(found)}")
        self.estimator, self.run = estimator, run
        self.directions = Directions(run)
        self.perturbed = Perturbation(run, self.directions)
        self.evaluated, self.last = 0, float("nan")

    @torch.no_grad()
    def estimate(self, factor: float = 1.0, failing: int = 0) -> Estimate:
        self.evaluated = 0
        estimating = self.estimator.estimate(self.run, self.perturbed)

        def evaluate() -> Tensor:
            self.evaluated += 1
            found: Tensor = self.run.model(factor)
            if self.evaluated == failing:
                raise RuntimeError("out of memory")
            return found

        try:
            around = next(estimating)
            while True:
                leaf = evaluate() if around is None else around(evaluate)
                self.last = float(leaf)
                around = estimating.send([leaf])
        except StopIteration as stop:
            done: Estimate = stop.value
            return done
        finally:
            estimating.close()

    def numbers(self, factor: float = 1.0) -> Tensor:
        found = self.estimate(factor).pull_back([torch.tensor(1.0)])
        assert found is not None, "an estimator's estimate comes down to numbers"
        return found

    def step(self) -> Tensor:
        """(1/q) sum_j c_j z_j of what is trained, in one vector; the weights stay."""
        shaped = self.estimator.coefficients(self.run, self.numbers().tolist())
        found = _sum(self.directions, shaped)
        self.run.step += 1
        return found

    def rows(self, num: int) -> Tensor:
        return torch.stack([self.step() for _ in range(num)])


def _sum(directions: Directions, coefficients: Sequence[float]) -> Tensor:
    """(1/q) sum_j c_j z_j of the step in work."""
    parts = []
    for index in directions.indices:
        parts.append(sum(c * directions.values(index, j).flatten() for j, c in enumerate(coefficients)))
    return torch.cat([torch.as_tensor(p) for p in parts]) / len(coefficients)
