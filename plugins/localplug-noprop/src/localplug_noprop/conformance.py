"""The classes of the conformance kit for networks made of blocks: what needs options, or fails a check for a reason."""

import pytest
import torch
from torch import nn

from localplug.testing import CurvedProblem, LocalMethodTests, Problem
from localplug_noprop.blocks import Block
from localplug_noprop.ct import NoPropCT
from localplug_noprop.dt import NoPropDT
from localplug_noprop.embeddings import one_hot, orthogonal
from localplug_noprop.fm import NoPropFM
from localplug_noprop.network import NoPropCTNet, NoPropFMNet, NoPropNet


def block(dropout, takes_time=False):
    embed = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout))
    return Block(embed, embedded=16, z_dim=2, num_classes=2, width=16, takes_time=takes_time)


def discrete(depth, dropout, embedding=None):
    blocks = [block(dropout) for _ in range(depth)]
    return NoPropNet(blocks, one_hot(2) if embedding is None else embedding)


def continuous(depth, dropout):
    return NoPropCTNet(block(dropout, takes_time=True), one_hot(2), num_steps=10, max_signal=0.9)


def flow(depth, dropout, embedding=None):
    return NoPropFMNet(block(dropout, takes_time=True), one_hot(2) if embedding is None else embedding, num_steps=10)


def learned(make):
    return lambda depth, dropout: make(depth, dropout, nn.Parameter(orthogonal(2, 2)))


def problems(make, first="t001", times=1):
    """The kit's two problems with a network of ours; the examples of the first one repeated so many times."""

    class Ours:
        frozen_name = f"noprop.{first}.block.embed.0.bias"

        def network(self, depth, dropout):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(1)
                return make(depth, dropout)

    class Repeated(Ours, Problem):
        def data(self):
            (x_BD,), labels_B = super().data()
            return (x_BD.repeat(times, 1),), labels_B.repeat(times)

    return Repeated, type("OurCurvedProblem", (Ours, CurvedProblem), {})


class NoPropTests(LocalMethodTests):
    draws_per_example = True
    learning_steps = 200

    def _partition(self, problem):
        """What lies between the blocks is a unit, too, but has no weights."""
        return [unit for unit in super()._partition(problem) if unit.parameters]

    @pytest.mark.skip(
        reason="it reports the loss of samples of q(z | y), which the model alone, without labels, does not make"
    )
    def test_reports_the_loss_of_the_batch(self, make):
        pass


class TestDT(NoPropTests):
    names = ("noprop-dt",)
    problem, curved_problem = problems(discrete)

    @pytest.fixture
    def make(self):
        return lambda: NoPropDT(eta=1.0)


class Tied:
    """W_embed belongs to all units, and its gradient is a sum over them; the audit is of what each unit has for itself."""

    def _partition(self, problem):
        units = super()._partition(problem)
        for unit in units:
            unit.parameters = [p for p in unit.parameters if p is not problem.model.embedding]
        return [unit for unit in units if unit.parameters]


class TestDTWithLearnedEmbeddings(Tied, NoPropTests):
    problem, curved_problem = problems(learned(discrete))

    @pytest.fixture
    def make(self):
        return lambda: NoPropDT(eta=0.1)

    @pytest.mark.skip(
        reason="under plain SGD the embeddings come together before a block has learned: see the check below"
    )
    def test_lowers_the_loss(self, make):
        pass

    def test_lowers_the_loss_by_adam(self, make):
        """By Adam: under plain SGD with the kit's learning rate the embeddings come together before a block has learned."""
        problem = self.problem(make())
        problem.optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        first = problem.clean_loss()
        for _ in range(150):
            problem.step()
        assert problem.clean_loss() < 0.7 * first


class TestDTInTurns(NoPropTests):
    problem, curved_problem = problems(discrete)
    moves_everything = False

    @pytest.fixture
    def make(self):
        return lambda: NoPropDT(eta=1.0, block_steps=1)

    @pytest.mark.skip(reason="the other hidden units do not learn in the same step: see the check below")
    def test_a_unit_learns_without_the_units_above(self, make):
        pass

    def test_the_unit_in_turn_learns_without_the_units_above(self, make):
        """Of the hidden units only the one in turn learns: it is the same with other weights above it."""
        usual, problem = self._gradients(self.problem(make(), depth=3)), self.problem(make(), depth=3)
        with torch.no_grad():
            for name, p in problem.model.named_parameters():
                if "t001" not in name:
                    p.mul_(-1.5)
        found = self._gradients(problem)
        assert {name.split(".")[1] for name in found} == {"t001", "out"}
        assert all(torch.equal(found[n], usual[n]) for n in found if "t001" in n)


class OneBlockTests(NoPropTests):
    @pytest.mark.skip(
        reason="the network is one block, and inside it the gradient is back-propagated: see `backpropagates`"
    )
    def test_saved_tensors_do_not_grow_with_depth(self, make):
        pass


class TestCT(OneBlockTests):
    names = ("noprop-ct",)
    problem, curved_problem = problems(continuous, "denoiser", times=32)

    @pytest.fixture
    def make(self):
        return lambda: NoPropCT()

    @pytest.mark.skip(
        reason="gamma's gradient has a mean of about zero, and so falls with the batch: see the check below"
    )
    def test_a_batch_twice_over_gives_the_gradient_of_its_reduction(self, make):
        pass

    def test_a_batch_twice_over_gives_the_gradient_of_its_reduction_without_gamma(self, make):
        self.with_gamma = False
        super().test_a_batch_twice_over_gives_the_gradient_of_its_reduction(make)

    with_gamma = True

    def _gradients(self, problem):
        found = super()._gradients(problem)
        return {n: g for n, g in found.items() if self.with_gamma or "schedule" not in n}


class TestFM(OneBlockTests):
    names = ("noprop-fm",)
    problem, curved_problem = problems(flow, "velocity")

    @pytest.fixture
    def make(self):
        return lambda: NoPropFM()

    @pytest.mark.skip(reason="one unit learns")
    def test_a_unit_learns_without_the_units_above(self, make):
        pass


class TestFMWithLearnedEmbeddings(Tied, TestFM):
    problem, curved_problem = problems(learned(flow), "velocity")
