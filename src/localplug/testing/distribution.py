"""Checks that every distribution of directions must pass: localplug.Distribution, the hook `localplug_perturbations`."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from localplug.contract import Run
from localplug.directions import Directions
from localplug.parts import Distribution, Piece, Term
from localplug.testing.bowl import Bowl, elements, reloaded, run_of
from localplug.testing.conformance import Documented, in_one_line, pickled

Make = Callable[[], Distribution]


class DistributionTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your distribution."""

    is_isotropic = True
    """Whether E[z z^T] is the identity on what a direction reaches; False for one whose docstring says what it is instead."""
    draws = 2000
    """Directions that moments are taken of."""
    rounding = 0.0
    """How far the elements of a piece may be from those of the whole, relative to 1; 0 is bit for bit. Leave it at 0 unless a
    matrix product makes them, whose rounding depends on its shape."""
    most_kept = 1 << 23
    """Elements that it may keep of directions that were made."""

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_any_cutting_gives_the_same_elements(self, make: Make, size: int) -> None:
        """Whoever makes a piece: chunks of one worker, or shards of several that know nothing of each other."""
        run = _layers()
        distribution = _set_up(make(), run)
        for index, (_, parameter) in enumerate(run.parameters):
            whole = _drawn(distribution, index, 0, parameter.numel())
            other = _set_up(make(), _layers())  # another worker's, which has made nothing before
            starts = list(range(0, parameter.numel(), size))[::-1]  # and in another order
            pieces = [_drawn(other, index, s, min(size, parameter.numel() - s)) for s in starts]
            error = float((torch.cat(pieces[::-1]) - whole).abs().max())
            assert error <= self.rounding, f"parameter {index} in pieces of {size} differs by {error:.1g}"

    def test_a_direction_is_a_function_of_seed_step_and_number(self, make: Make) -> None:
        """Whatever was made before; and each of them makes another one."""
        first = _whole(_set_up(make(), _layers()))
        used = _set_up(make(), _layers())
        _whole(used, step=3, direction=2)
        assert torch.equal(_whole(used), first)
        others = {
            "step": _whole(used, step=1),
            "number": _whole(used, direction=1),
            "seed": _whole(_set_up(make(), _layers(seed=2))),
        }
        for what, other in others.items():
            cosine = float(torch.nn.functional.cosine_similarity(other, first, dim=0))
            assert abs(cosine) < 0.99, f"another {what} gives the same direction"

    def test_follows_the_seed_of_a_resumed_run(self, make: Make) -> None:
        """The engine puts a checkpoint's seed into the run after `setup`."""
        run = _layers(seed=1)
        distribution = _set_up(make(), run)
        _whole(distribution)
        run.seed = 2
        assert torch.equal(_whole(distribution), _whole(_set_up(make(), _layers(seed=2))))

    def test_parameters_have_noise_of_their_own(self, make: Make) -> None:
        """Equal shapes, other names: the layers' directions differ."""
        run = _layers()
        distribution = _set_up(make(), run)
        rows = [_drawn(distribution, i, 0, p.numel(), step) for step in range(8) for i, (n, p) in _weights(run)]
        moved = [row for row in rows if row.any()]
        assert len(moved) >= 2, "no direction reaches a layer"
        assert all(not torch.equal(a, b) for k, a in enumerate(moved) for b in moved[:k])

    def test_adds_factor_times_z(self, make: Make) -> None:
        """Into float32, and into float64 of a model in float64; a factor of 0 adds nothing."""
        run = _layers()
        distribution = _set_up(make(), run)
        for index, (_, parameter) in enumerate(run.parameters):
            num = parameter.numel()
            z = _drawn(distribution, index, 0, num)
            start = torch.linspace(-1, 1, num)
            for factor in (0.0, -0.5, 2.0):
                for dtype in (torch.float32, torch.float64):
                    target = start.to(dtype, copy=True)
                    distribution.add_(target, Piece(index, 0, 0, 0), factor)
                    wanted = start.to(dtype) + factor * z.to(dtype)
                    torch.testing.assert_close(target, wanted, atol=2e-6, rtol=1e-5)

    def test_add_to_gives_the_bits_of_add(self, make: Make) -> None:
        run = _layers()
        distribution = _set_up(make(), run)
        for index, (_, parameter) in enumerate(run.parameters):
            source = torch.linspace(-1, 1, parameter.numel())
            before, target, piece = source.clone(), torch.full_like(source, 9.0), Piece(index, 0, 0, 0)
            distribution.add_to_(target, source, piece, 0.25)
            distribution.add_(wanted := source.clone(), piece, 0.25)
            assert torch.equal(target, wanted) and torch.equal(source, before)

    def test_the_second_moment_is_the_identity(self, make: Make) -> None:
        """E[z z^T] over the directions that reach an element, or over all of them; means are zero."""
        if not self.is_isotropic:
            pytest.skip("it says that its second moment is not the identity")
        z_NE = self._many(make)
        num, d = z_NE.shape
        assert (z_NE.mean(0).abs() < 6 * z_NE.std(0) / math.sqrt(num) + 1e-6).all(), "the mean is not zero"
        outer = torch.einsum("ni,nj->nij", z_NE, z_NE)
        share_E = (z_NE != 0).float().mean(0)
        slack = 6 * outer.std(0) / math.sqrt(num) + 1e-5
        found, eye = outer.mean(0), torch.eye(d)
        wrong = [((found - eye * scale).abs() > slack).any() for scale in (1.0, share_E[:, None])]
        assert not all(wrong), f"diagonal of the second moment: {[round(float(v), 2) for v in found.diagonal()]}"

    def test_kappa_is_as_said(self, make: Make) -> None:
        """E ||<g, z> z||^2 / ||g||^2, for a gradient in a matrix; no less, and no more than half as much again."""
        if not self.is_isotropic:
            pytest.skip("kappa is said of directions whose second moment is the identity")
        z_NE = self._many(make)
        d = z_NE.shape[1]
        g = torch.zeros(d)
        g[:12] = torch.randn(12, generator=torch.Generator().manual_seed(0))
        z_NE = z_NE[moving := z_NE[:, :12].any(1)]  # of directions that reach it, if each step has its own
        samples = (z_NE @ g).square() * z_NE.square().sum(1) / g.square().sum()
        first = int(moving.nonzero()[0])
        distribution = _set_up(make(), run_of(Bowl(), seed=first, step=first))
        said, found = distribution.kappa(d), float(samples.mean())
        slack = 5 * float(samples.std()) / math.sqrt(len(samples)) + 1e-3 * said
        assert found < said + slack, f"kappa({d}) is {said:.1f}, and {found:.1f} was found"
        assert found > said / 1.5 - slack, f"kappa({d}) is {said:.1f}, and {found:.1f} was found"

    def test_moves_what_it_says_it_reaches(self, make: Make) -> None:
        run = _layers()
        distribution = _set_up(make(), run)
        for step in range(4):
            reached = distribution.reached(step, 0)
            indices = range(len(run.parameters)) if reached is None else reached
            moved = [i for i, (_, p) in enumerate(run.parameters) if _drawn(distribution, i, 0, p.numel(), step).any()]
            assert sorted(indices) == moved, f"it reaches {sorted(indices)}, and moves {moved}"

    def test_factors_make_the_same_z(self, make: Make) -> None:
        """A B^T, float32, of the parameter read as a matrix of shape[0] rows."""
        run = _layers()
        distribution = _set_up(make(), run)
        for index, (_, parameter) in enumerate(run.parameters):
            found = distribution.factors(index, 0, 0)
            if found is None:
                continue
            a, b = found
            assert a.dtype == b.dtype == torch.float32
            assert a.shape == (parameter.shape[0], a.shape[1]) and b.shape == (parameter[0].numel(), a.shape[1])
            z = _drawn(distribution, index, 0, parameter.numel()).view(len(a), len(b))
            torch.testing.assert_close(a @ b.T, z, atol=1e-4, rtol=1e-4)

    def test_takes_some_of_the_parameters(self, make: Make) -> None:
        """Those in `indices` alone are trained."""
        run = _layers()
        distribution = make()
        distribution.setup(run, [0, 2])
        assert set(distribution.reached(0, 0) or ()) <= {0, 2}
        assert any(_drawn(distribution, i, 0, run.parameters[i][1].numel(), s).any() for i in (0, 2) for s in range(4))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_direction_does_not_depend_on_the_weights_dtype(self, make: Make, dtype: torch.dtype) -> None:
        """In float32, whatever the weights are kept in; and adding it to those leaves them finite."""
        whole, half = Directions(_layers(), make()), Directions(_layers(dtype=dtype), make())
        for index in whole.indices:
            assert torch.equal(whole.values(index, 0), half.values(index, 0))
            added = half.added(half._run.parameters[index][1].data, index, [Term(0, 1e-2)])
            assert added.dtype == dtype and torch.isfinite(added).all()

    def test_resumes_from_its_state_dict(self, make: Make) -> None:
        one, two = _set_up(make(), _layers()), _set_up(make(), _layers())
        for step in range(3):
            _whole(one, step)
        two.load_state_dict(reloaded(one.state_dict()))
        assert torch.equal(_whole(two, 3), _whole(one, 3))

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        distribution, before = make(), torch.get_rng_state()
        _whole(_set_up(distribution, _layers()))
        assert torch.equal(before, torch.get_rng_state())

    def test_memory_does_not_grow(self, make: Make) -> None:
        """Directions are made again, and not kept; at most `most_kept` elements of them."""
        run = run_of(nn.Linear(1024, 1024, bias=False))
        distribution = _set_up(make(), run)
        for step in range(24):
            distribution.add_(torch.zeros(4), Piece(0, 0, step, 0), 1.0)
            kept = elements([vars(distribution), distribution.state_dict()])
            assert kept <= self.most_kept, f"it keeps {kept:,} elements after {step + 1} directions of {1 << 20:,}"

    def test_can_be_pickled(self, make: Make) -> None:
        assert torch.equal(_whole(_set_up(pickled(make()), _layers())), _whole(_set_up(make(), _layers())))

    def test_describes_itself_in_one_line(self, make: Make) -> None:
        assert in_one_line(make().describe())

    def _many(self, make: Make) -> Tensor:
        """(draws, 17) directions of the bowl, each of a seed and a step of its own."""
        run = run_of(Bowl())
        distribution = _set_up(make(), run)
        rows = torch.zeros(self.draws, 17)
        for step in range(self.draws):
            run.seed = step
            distribution.add_(rows[step, :12], Piece(0, 0, step, 0), 1.0)
            distribution.add_(rows[step, 12:], Piece(1, 0, step, 0), 1.0)
        return rows


def _layers(seed: int = 1, dtype: torch.dtype = torch.float32) -> Run:
    """Three layers of one shape, and a head."""
    with torch.device("meta"):
        model: nn.Module = nn.Sequential(*(nn.Linear(9, 9) for _ in range(3)), nn.Linear(9, 4)).to(dtype)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return run_of(model, seed=seed)


def _weights(run: Run) -> list[tuple[int, tuple[str, nn.Parameter]]]:
    return [(i, (n, p)) for i, (n, p) in enumerate(run.parameters) if p.shape == (9, 9)]


def _set_up(distribution: Distribution, run: Run) -> Distribution:
    distribution.setup(run, range(len(run.parameters)))
    return distribution


def _drawn(distribution: Distribution, index: int, offset: int, num: int, step: int = 0, direction: int = 0) -> Tensor:
    """z of a piece, float32."""
    z = torch.zeros(num)
    distribution.add_(z, Piece(index, offset, step, direction), 1.0)
    return z


def _whole(distribution: Distribution, step: int = 0, direction: int = 0) -> Tensor:
    """z of the parameters of `_layers`, in one vector."""
    sizes = [p.numel() for _, p in _layers().parameters]
    return torch.cat([_drawn(distribution, i, 0, num, step, direction) for i, num in enumerate(sizes)])
