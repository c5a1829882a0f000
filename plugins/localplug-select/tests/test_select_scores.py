"""Forward-only scores against autograd and against numbers by hand."""

import pytest
import torch
from torch import nn

import localplug
from localplug_select import SCORES, Scoring
from localplug_select.choosing import candidates


class Net(nn.Module):
    """Two trained layers, a frozen one, pooling, dropout and a batch norm in between."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.pool = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.MaxPool1d(2)
        self.frozen, self.drop, self.last = nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        h = self.pool(torch.tanh(self.norm(self.first(x))).unsqueeze(1)).squeeze(1)
        return self.last(self.drop(torch.tanh(self.frozen(h))))


@pytest.fixture
def scoring():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x, y = Net().double(), torch.randn(16, 6, dtype=torch.float64), torch.arange(16) % 3
    made = Scoring(net, candidates(net, kind="layer"), lambda: nn.functional.cross_entropy(net(x), y), num_probes=200)
    made.x = x
    return made


def gradients(scoring):
    """d loss / d weights of each unit, in eval mode."""
    scoring.model.eval()
    loss = scoring._loss()
    found = [torch.autograd.grad(loss, unit.parameters, retain_graph=True) for unit in scoring.units]
    scoring.model.train()
    return [torch.cat([g.flatten() for g in gs]) for gs in found]


def flat(unit):
    return torch.cat([p.detach().flatten() for p in unit.parameters])


def test_units_without_trainable_weights_are_no_candidates(scoring):
    assert [unit.name for unit in scoring.units] == ["first", "last"]
    pooled = nn.Sequential(nn.Linear(2, 2), nn.MaxPool1d(2), nn.ReLU(), nn.Linear(1, 2))
    assert [unit.name for unit in candidates(pooled, units=["0", "1", "2", "3"])] == ["0", "3"]


def test_a_tied_weight_belongs_to_its_first_unit():
    net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    assert [unit.name for unit in candidates(net, kind="layer")] == ["0", "1"]


def test_weight_is_the_root_mean_square(scoring):
    assert SCORES["weight"](scoring) == pytest.approx([float(flat(u).square().mean().sqrt()) for u in scoring.units])
    assert scoring.num_forwards == 0


def test_ray_is_the_slope_along_the_weights(scoring):
    wanted = [abs(float(flat(u) @ g)) for u, g in zip(scoring.units, gradients(scoring), strict=True)]
    assert SCORES["ray"](scoring) == pytest.approx(wanted, rel=2e-3)
    assert scoring.num_forwards == 4


def test_gradient_is_the_gradients_norm(scoring):
    wanted = [float(g.norm()) for g in gradients(scoring)]
    assert SCORES["gradient"](scoring) == pytest.approx(wanted, rel=0.2)
    assert scoring.num_forwards == 2 * 2 * 200 + 1


def test_newton_is_the_decrease_along_a_line():
    """L = 1/2 h (w - t)^2 in each of two numbers: g^2 / 2h is what the best step gains."""
    net = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight.fill_(3.0)

    def loss():
        return 0.5 * 4.0 * net[0].weight.sum() ** 2 + 0.5 * 0.5 * net[1].weight.sum() ** 2

    scoring = Scoring(net, candidates(net, kind="layer"), loss, num_probes=2)
    assert SCORES["newton"](scoring) == pytest.approx([2.0, 2.25], rel=4e-3)  # d, a thousandth of the mean


def test_ablation_is_the_loss_without_the_unit(scoring):
    found = SCORES["ablation"](scoring)
    for unit, value in zip(scoring.units, found, strict=True):
        kept = [p.detach().clone() for p in unit.parameters]
        with torch.no_grad():
            for p in unit.parameters:
                p.zero_()
        assert value == pytest.approx(abs(scoring.evaluated() - scoring.clean))
        with torch.no_grad():
            for p, w in zip(unit.parameters, kept, strict=True):
                p.copy_(w)


def test_activation_is_the_log_determinant_of_the_outputs_kernel(scoring):
    found = SCORES["activation"](scoring)
    h = scoring.model.first(scoring.x).detach()
    kernel = h @ h.T / 8 + 1e-6 * torch.eye(16, dtype=h.dtype)
    assert found[0] == pytest.approx(float(torch.logdet(kernel)) / 16, rel=1e-4)
    assert scoring.num_forwards == 1
    assert all(not m._forward_hooks for m in scoring.model.modules())


def test_activation_of_a_unit_that_the_loss_does_not_use_is_the_lowest():
    net = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
    scoring = Scoring(net, candidates(net, kind="layer"), lambda: net["used"](torch.ones(4, 3)).sum())
    assert SCORES["activation"](scoring)[1] == float("-inf")


@pytest.mark.parametrize("name", SCORES)
def test_nothing_is_left_behind(scoring, name):
    scoring.num_probes = 2
    state = {k: v.clone() for k, v in scoring.model.state_dict().items()}
    modes, random = [m.training for m in scoring.model.modules()], torch.get_rng_state()
    values = SCORES[name](scoring)
    assert len(values) == 2 and all(v == v for v in values)
    assert all(torch.equal(v, state[k]) for k, v in scoring.model.state_dict().items())
    assert [m.training for m in scoring.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in scoring.model.parameters())


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_a_function_of_the_seed(scoring, name):
    def again(seed):
        made = Scoring(scoring.model, scoring.units, scoring._loss, num_probes=4, seed=seed)
        return SCORES[name](made)

    assert again(0) == again(0)
    assert (again(0) != again(1)) == (name in ("gradient", "newton"))


@pytest.mark.parametrize("kind", ["block", "layer"])
def test_a_language_model_of_transformers_has_scores(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    net, x = transformers.LlamaForCausalLM(config), torch.arange(24).view(2, 12)
    scoring = Scoring(net, candidates(net, kind=kind), lambda: net(input_ids=x, labels=x).loss, num_probes=1)
    for name in SCORES:
        assert len([v for v in SCORES[name](scoring) if v > float("-inf")]) == len(scoring.units)
    every = [name for unit in scoring.units for name in scoring.names(unit)]
    assert set(every) == {name for name, _ in scoring.run.parameters}
    assert not localplug.method("mezo", parameters=scoring.names(scoring.units[1])).problems(scoring.run)
