"""The search for a combination of scores, trials, and what a choice does in every way of training."""

import pytest
import torch
from torch import nn

import localplug
from localplug_select import ChosenUnits, Trial, choose, combine

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3].sum(1) > 0).long() + (X[:, 3] > 0).long()


def network():
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return net


def loss_of(net):
    return lambda: nn.functional.cross_entropy(net(X), Y)


# ---- the combination -----------------------------------------------------------------------------------------------------


def scores(num, seed):
    """Three scores, and what is observed: a weighted sum of them, one of which counts against, and some noise."""
    rows = torch.rand(3, num, generator=torch.Generator().manual_seed(seed))
    noise = 0.05 * torch.randn(num, generator=torch.Generator().manual_seed(seed + 1000))
    return rows.tolist(), (rows[0] - rows[1] + 0.2 * rows[2] + noise).tolist()


def test_a_combination_finds_what_no_score_alone_and_no_chance_finds():
    ranks = {"combined": [], "single": [], "random": []}
    for seed in range(12):
        rows, good = scores(60, seed)
        rank = {c: r for r, c in enumerate(sorted(range(60), key=lambda c: -good[c]))}
        ranks["combined"].append(rank[combine(rows, good.__getitem__, budget=10, seed=seed).best])
        ranks["single"] += [rank[max(range(60), key=row.__getitem__)] for row in rows]
        drawn = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:10].tolist()
        ranks["random"].append(min(rank[c] for c in drawn))
    mean = {name: sum(found) / len(found) for name, found in ranks.items()}
    assert mean["combined"] < 0.5 * mean["random"] < mean["single"]


@pytest.mark.parametrize("budget", [1, 2, 5, 30])
def test_no_candidate_is_observed_twice_and_the_budget_is_kept(budget):
    rows, good = scores(20, 0)
    asked = []

    def observe(number):
        asked.append(number)
        return good[number]

    found = combine(rows, observe, budget=budget)
    assert len(asked) == len(set(asked)) == min(budget, 20)
    assert found.best == max(asked, key=good.__getitem__)
    assert found.observed == {c: good[c] for c in asked} and sorted(found.ranking) == list(range(20))


def test_a_combination_is_a_function_of_the_seed():
    rows, good = scores(30, 0)
    one, two, other = (combine(rows, good.__getitem__, budget=6, seed=s) for s in (1, 1, 2))
    assert one == two and one.weights != other.weights


def test_what_is_not_finite_counts_as_the_lowest_and_a_score_of_equals_counts_nothing():
    good = [0.0, 1.0, 2.0, 3.0]
    rows = [[float("nan"), 1.0, 2.0, float("-inf")], [5.0] * 4]
    assert combine(rows, good.__getitem__, budget=4).best == 3
    assert combine([[5.0] * 4], good.__getitem__, budget=1).best == 0


@pytest.mark.parametrize(("rows", "budget"), [([], 3), ([[]], 3), ([[1.0], [1.0, 2.0]], 3), ([[1.0, 2.0]], 0)])
def test_scores_of_nothing_are_refused(rows, budget):
    with pytest.raises(ValueError, match="combine needs scores"):
        combine(rows, lambda c: 0.0, budget=budget)


# ---- choosing --------------------------------------------------------------------------------------------------------------


def test_one_score_chooses_its_largest_units_in_the_order_of_the_model():
    net = network()
    with torch.no_grad():
        net[4].weight.mul_(10)
        net[0].weight.mul_(5)
    chosen = choose(net, loss_of(net), 2, scores=["weight"], kind="layer")
    assert chosen.units == ("0", "4") and chosen.parameters == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert chosen.weights == {"weight": 1.0} and set(chosen.table["weight"]) == {"0", "2", "4"}


def test_a_score_of_ones_own_is_taken():
    def depth(scoring):
        return list(range(len(scoring.units)))

    net = network()
    assert choose(net, loss_of(net), scores=[depth], kind="layer").units == ("4",)


def test_the_gradient_finds_the_layer_that_was_broken():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        loss_of(net)().backward()
        optimizer.step()
        optimizer.zero_grad()
    for number in (0, 4):
        broken = network()
        broken.load_state_dict(net.state_dict())
        with torch.no_grad():
            broken[number].weight.copy_(broken[number].weight.flip(0))
        trial = Trial(broken, loss_of(broken), lr=0.1, steps=60)
        chosen = choose(broken, loss_of(broken), scores=["gradient", "ray", "newton"], observe=trial,
                        budget=3, kind="layer", num_probes=4)  # fmt: skip
        assert chosen.observed[chosen.units] == max(chosen.observed.values())
        assert len(chosen.observed) == 3 and set(chosen.weights) == {"gradient", "ray", "newton"}


def test_sets_of_units_are_compared_by_their_sums():
    net = network()
    asked = []

    def observe(parameters):
        asked.append(tuple(parameters))
        return len(asked)

    chosen = choose(net, loss_of(net), 2, scores=["weight", "ray"], observe=observe, budget=9, kind="layer")
    assert len(asked) == 3 and all(len(parameters) == 4 for parameters in asked)
    assert chosen.parameters == asked[-1] and len(chosen.units) == 2


def test_all_that_is_wrong_is_told_at_once():
    net = network()
    with pytest.raises(ValueError) as refused:
        choose(net, loss_of(net), 7, scores=["grasp", "weight"], kind="layer", eps=0.0, budget=0)
    for words in ("no score 'grasp'; there are weight", r"num must be in [1, 3]", "observe=", "eps must be positive"):
        assert words in str(refused.value)


# ---- trials ----------------------------------------------------------------------------------------------------------------


def test_a_trial_gains_and_leaves_every_bit():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    trial = Trial(net, loss_of(net), lr=0.1, steps=40)
    gains = {name: trial([f"{name}.weight", f"{name}.bias"]) for name in "024"}
    assert all(gain > 0 for gain in gains.values()) and len(set(gains.values())) == 3
    assert trial(["0.weight", "0.bias"]) == gains["0"]
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_trial_that_diverges_gains_minus_infinity_and_leaves_every_bit():
    net, values = network(), iter([1.0, float("nan")])
    before = [p.detach().clone() for p in net.parameters()]
    ends_badly = Trial(net, loss_of(net), lr=0.1, steps=2, validation=lambda: torch.tensor(next(values)))
    never_finite = Trial(net, lambda: loss_of(net)() * float("nan"), lr=0.1, steps=40, validation=loss_of(net))
    for trial in (ends_badly, never_finite):
        assert trial(["0.weight"]) == float("-inf")
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_a_trial_validates_on_what_it_is_given_in_eval_mode():
    net = nn.Sequential(network(), nn.Dropout(0.5))
    modes = []

    def validation():
        modes.append(net.training)
        return loss_of(net)()

    Trial(net, loss_of(net), lr=0.1, steps=2, validation=validation)(["0.weight", "0.bias"])
    assert modes == [False, False] and net.training


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": 0.1, "steps": 0}, {"lr": 0.1, "eps": -1.0}])
def test_a_trial_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="lr and eps must be positive and steps at least 1"):
        Trial(network(), lambda: torch.zeros(()), **options)


# ---- what a choice does ------------------------------------------------------------------------------------------------------


def moved(net, before):
    return {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}


def test_a_zeroth_order_method_trains_the_chosen_units_alone():
    net = network()
    chosen = choose(net, loss_of(net), scores=["weight"], kind="layer")
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    engine = localplug.Engine(net, localplug.method("mezo", parameters=chosen.parameters), optimizer)
    engine.step(loss_of(net), optimizer)
    assert moved(net, before) == set(chosen.parameters)


@pytest.mark.parametrize("method", ["tpsgd", "drtp", "dfa"])
def test_a_local_method_trains_the_chosen_units_alone(method):
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    chosen = ChosenUnits(("0", "4"), ("0.weight", "0.bias", "4.weight", "4.bias"))
    with chosen.alone(net):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        with localplug.attach(net, method, optimizer, targets=lambda args, kwargs: Y):
            for _ in range(2):
                loss_of(net)().backward()
                optimizer.step()
                optimizer.zero_grad()
    assert moved(net, before) == set(chosen.parameters)
    assert all(p.requires_grad for p in net.parameters())


def test_a_unit_without_weights_is_streamed_through_and_nothing_is_drawn_for_it():
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.MaxPool1d(2), nn.Conv1d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    x = X.unsqueeze(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    with localplug.attach(net, "tpsgd", optimizer, targets=lambda args, kwargs: Y, units=["0", "1", "2", "4"]):
        nn.functional.cross_entropy(net(x), Y).backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
    run = localplug.Run(net, list(net.named_parameters()), 0)
    assert localplug.Directions(run).num_elements == sum(p.numel() for p in net.parameters())


def test_a_choice_for_another_model_is_refused():
    with pytest.raises(ValueError, match=r"no trainable \['9.weight'\]"):
        with ChosenUnits(("9",), ("9.weight",)).alone(network()):
            pass


def test_names_are_those_of_the_wrapped_model_too():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return self.model(x)

    net = Wrapper()
    chosen = choose(net, loss_of(net), scores=["weight"], kind="layer")
    assert chosen.parameters == choose(net.model, loss_of(net.model), scores=["weight"], kind="layer").parameters
    assert not localplug.method("mezo", parameters=chosen.parameters).problems(
        localplug.Run(net, localplug.checks.trainable(net), 0)
    )
