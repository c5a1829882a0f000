"""What the host does with a selector: the kit on its own ones, the name with numbers, and when it is told of a step."""

import pytest
import torch
from torch import nn

import localplug
from localplug.selection import Selection
from localplug.selectors import GivenMasks, RandomShare, Smallest
from localplug.testing import SelectorTests


class TestSmallest(SelectorTests):
    @pytest.fixture
    def make(self):
        return lambda: Smallest(0.3)


class TestRandomShare(SelectorTests):
    @pytest.fixture
    def make(self):
        return lambda: RandomShare(0.3, 2)


class TestGivenMasks(SelectorTests):
    @pytest.fixture
    def make(self):
        return lambda: GivenMasks({"1.weight": torch.eye(7, dtype=torch.bool), "2.bias": torch.arange(9) % 2 == 0})

    def test_memory_does_not_grow_at_all(self, make):
        """The kit's own check has layers of another width."""
        made = make()
        assert made.state_dict() == {}

    @pytest.mark.skip(reason="its masks are of one shape")
    def test_memory_does_not_grow(self, make):
        """Not by a mark on the kit's own function, which every other class would have too."""


class Even(localplug.Selector):
    """Every other element of the first layer; notes when it is told of a step, and what the weights were."""

    among = ("0.*",)

    def __init__(self, share=0.5, offset=0):
        self.share, self.offset, self.told = share, offset, []

    def describe(self):
        return "even"

    def setup(self, run, indices):
        self.indices = list(indices)

    def begin(self, run):
        self.told.append((run.step, run.num_forwards, float(run.parameters[0][1].detach().sum())))

    def mask(self, index, values, offset, step):
        return (torch.arange(offset, offset + values.numel()) + self.offset) % 2 == 0

    def num_elements(self, index):
        return 3


def engine_of(selector, **options):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, localplug.Engine(net, localplug.method("mezo", parameters=selector, **options), optimizer)


def test_it_is_told_of_a_step_before_the_first_evaluation_and_the_update():
    net, optimizer, engine = engine_of(selector := Even())
    sums = []
    for _ in range(2):
        sums.append(float(net[0].weight.detach().sum()))
        for _ in range(2):  # micro-batches
            engine.evaluate(lambda: net(torch.ones(2, 3)).square().mean(), scale=0.5)
        engine.apply(optimizer)
    assert [(step, forwards) for step, forwards, _ in selector.told] == [(0, 0), (0, 2), (0, 4), (1, 4), (1, 6), (1, 8)]
    assert [total for *_, total in selector.told] == [sums[0]] * 3 + [sums[1]] * 3


def test_parameters_that_it_does_not_look_at_stay():
    net, optimizer, engine = engine_of(Even())
    before = [p.detach().clone() for p in net.parameters()]
    engine.step(lambda: net(torch.ones(2, 3)).square().mean(), optimizer)
    changed = [int((p != b).sum()) for p, b in zip(net.parameters(), before, strict=True)]
    assert changed == [3, 1, 0, 0]
    assert "trains even" in engine.method.describe()


@pytest.fixture
def even(fresh_plugins):
    module = type("even_plugin", (), {})()
    module.localplug_selectors = localplug.hookimpl(lambda: {"even": Even})
    module.localplug_selectors.__name__ = "localplug_selectors"
    localplug.register(module, "even-plugin")


def test_numbers_behind_the_name_stand_for_its_first_options(even):
    made = Selection("even:0.25:1")._selector
    assert (made.share, made.offset) == (0.25, 1) and isinstance(made.offset, int)
    for text in ("even:", "even:x", "even:1:2:3"):
        with pytest.raises(
            ValueError, match="expected even:NUMBER, with numbers for the first of its options share, offset"
        ):
            Selection(text)


def test_a_selector_by_name_is_one_or_is_refused(even):
    assert localplug.selector("even", offset=1).offset == 1
    with pytest.raises(TypeError, match=r"expected a name or a localplug.Selector, got 3"):
        localplug.selector(3)
    with pytest.raises(localplug.UnknownName, match="no selector named 'evan'; did you mean 'even'"):
        localplug.selector("evan")
    with pytest.raises(TypeError, match="even has no option 'ofset'. Did you mean 'offset'"):
        localplug.selector("even", ofset=1)
