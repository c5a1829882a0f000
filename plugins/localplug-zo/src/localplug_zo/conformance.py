"""The classes of the conformance kit for this distribution: what needs options, or fails a check for a reason."""

import pytest
import torch

import localplug
from localplug.testing import (
    DistributionTests,
    EstimatorTests,
    MethodTests,
    ObjectiveTests,
    Problem,
    UpdateRuleTests,
    UpdateTests,
)
from localplug_zo.mezo import MeZO
from localplug_zo.sign import SignSGD
from localplug_zo.two_sided import TwoSided


class TestMeZO(MethodTests):
    names = ("mezo",)

    @pytest.fixture
    def make(self):
        return lambda: MeZO(eps=1e-3, num_directions=4)


class TestMeZOByTheTrainersOptimizer(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: MeZO(eps=1e-3, num_directions=4, update="trainer")


class TestStrictMeZO(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: MeZO(eps=1e-3, strict="mezo")

    @pytest.mark.xfail(reason="the released code evaluates in eval mode: dropout draws nothing", strict=True)
    def test_leaves_the_global_random_state_as_one_forward_pass_would(self, make):
        super().test_leaves_the_global_random_state_as_one_forward_pass_would(make)


RECIPES = {
    "zo": lambda: localplug.method(
        "zo", estimator=TwoSided(1e-3, 4), directions="rademacher", update="trainer-streamed"
    ),
    "zo-sgd": lambda: localplug.method("zo-sgd", num_directions=4, directions="sphere"),
    "zo-sgd-momentum": lambda: localplug.method("zo-sgd-momentum", num_directions=4, momentum=0.5, window=4),
    "zo-sgd-sign": lambda: localplug.method("zo-sgd-sign", num_directions=4),
    "zo-sgd-conservative": lambda: localplug.method("zo-sgd-conservative"),
    "zo-adam": lambda: localplug.method("zo-adam", num_directions=4, window=4),
    "zo-scalar-adam": lambda: localplug.method("zo-scalar-adam", num_directions=4),
    "forward-grad": lambda: localplug.method("forward-grad", num_directions=4),
    "hizoo": lambda: localplug.method("hizoo", num_directions=4, alpha=1e-3),
    "lozo": lambda: localplug.method("lozo", num_directions=4, refresh=5),
    "subzero": lambda: localplug.method("subzero", num_directions=4, rank=4, refresh=5),
    "tezo": lambda: localplug.method("tezo", num_directions=4, rank=8),
    "sparse-mezo": lambda: localplug.method("sparse-mezo", num_directions=4, keep=0.8),
    "random-sparse-zo": lambda: localplug.method("random-sparse-zo", num_directions=4, keep=0.8),
    "lezo": lambda: localplug.method("lezo", num_directions=4, keep=0.5),
    "block-zo": lambda: localplug.method("block-zo", num_directions=4),
    "fzoo": lambda: localplug.method("fzoo", num_directions=4),
    "svrg": lambda: localplug.method("svrg", period=6, anchor_batches=2),
    "es": lambda: localplug.method("es", num_directions=8, eps=1e-2),
    "1.5-spsa": lambda: localplug.method("1.5-spsa", num_directions=4, eps=1e-2),
    "cge": lambda: localplug.method("cge", num_directions=8),
    "elastic-zo": lambda: localplug.method("elastic-zo", num_directions=4),
    "addax": lambda: localplug.method("addax", num_directions=4, alpha=0.9, max_tokens=1),
    "rank-1": lambda: localplug.method("mezo", num_directions=4, directions="rank-1"),
    "copy": lambda: localplug.method("mezo", num_directions=4, backend="copy"),
}

PARTIAL = ("sparse-mezo", "random-sparse-zo", "lezo", "block-zo", "cge")
RELATIVE = ("zo-scalar-adam", "fzoo", "es")
WHOLE = tuple(name for name in RECIPES if name not in {*PARTIAL, *RELATIVE, "svrg"})


class RecipeTests(MethodTests):
    """A recipe is a function, and its docstring is what a user reads."""

    @pytest.fixture
    def documented(self, request, make):
        name = request.node.callspec.params["make"]
        return type(make()) if name in ("rank-1", "copy") else localplug.get(name)


class TestRecipes(RecipeTests):
    names = WHOLE

    @pytest.fixture(params=WHOLE)
    def make(self, request):
        return RECIPES[request.param]


class TestRecipesThatTakeAPartInTurn(RecipeTests):
    names = PARTIAL
    moves_everything = False

    @pytest.fixture(params=PARTIAL)
    def make(self, request):
        return RECIPES[request.param]


class TestRecipesThatDivideByTheSizeOfTheirEstimate(RecipeTests):
    names = RELATIVE
    is_linear = False

    @pytest.fixture(params=RELATIVE)
    def make(self, request):
        return RECIPES[request.param]


class TestSVRG(MethodTests):
    names = ("svrg",)
    resting_steps = 2

    @pytest.fixture
    def documented(self):
        return localplug.get("svrg")

    @pytest.fixture
    def make(self):
        return RECIPES["svrg"]

    @pytest.mark.skip(reason="the steps between two anchors share the anchor's estimate: see the check below")
    def test_steps_differ(self, make):
        pass

    def test_steps_between_two_anchors_are_alike_and_not_the_same(self, make):
        """All steps between two anchors share the anchor's estimate, and so are alike; they are not the same."""
        problem = Problem(make())
        self._rest(problem)
        start, moved = problem.weights(), []
        for _ in range(2):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(start.clone(), problem.model.parameters())
            problem.step()
            moved.append(problem.weights() - start)
        assert 0.5 < torch.nn.functional.cosine_similarity(*moved, dim=0) < 0.999


class TestResidual(MethodTests):
    names = ("residual-zo",)
    resting_steps = 1

    @pytest.fixture
    def documented(self):
        return localplug.get("residual-zo")

    @pytest.fixture
    def make(self):
        return lambda: localplug.method("residual-zo", eps=0.1)


class TestSignSGD(UpdateRuleTests):
    names = ("zo-sgd-sign",)

    @pytest.fixture
    def make(self):
        return lambda params: SignSGD(params, lr=1e-2)


ESTIMATORS = ("two-sided", "one-sided", "residual", "population", "curvature", "forward-gradient")
EXACT = ("gaussian", "rademacher", "sphere", "rank-1", "lozo", "layers")
PRODUCTS = ("subzero", "tezo")
UPDATES = ("sgd", "momentum", "adam", "scalar", "sign", "trainer", "trainer-streamed")


class TestEstimators(EstimatorTests):
    names = ESTIMATORS

    @pytest.fixture(params=ESTIMATORS)
    def make(self, request):
        return lambda: localplug.estimator(request.param)


class TestNormalizedOneSided(EstimatorTests):
    @pytest.fixture
    def make(self):
        return lambda: localplug.estimator("one-sided", num_directions=4, normalized=True)


class TestDistributions(DistributionTests):
    names = EXACT

    @pytest.fixture(params=EXACT)
    def make(self, request):
        return lambda: localplug.distribution(request.param)


class TestDistributionsByAMatrixProduct(DistributionTests):
    names = PRODUCTS
    rounding = 2e-6

    @pytest.fixture(params=PRODUCTS)
    def make(self, request):
        return lambda: localplug.distribution(request.param)


class TestUpdates(UpdateTests):
    names = UPDATES

    @pytest.fixture(params=UPDATES)
    def make(self, request):
        return lambda: localplug.update(request.param)


class TestObjectives(ObjectiveTests):
    names = ("accuracy", "f1")

    @pytest.fixture(params=("accuracy", "f1"))
    def make(self, request):
        return lambda: localplug.objective(request.param)
