"""DGL against its equations on vectors, feature maps and sequences; its heads; what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine
from localplug_greedy.dgl import DGL
from localplug_greedy.infopro import InfoPro
from localplug_greedy.predsim import PredSim


def mlp():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip


def vectors(n=9):
    return torch.randn(n, 8), torch.randint(0, 3, (n,))


def images(n=5):
    return torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,))


def gradients(model, x, y, method):
    engine = Engine(model, method)
    engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    return method.owned_modules.modules, {n: p.grad for n, p in model.named_parameters()}


def assert_gradients(J, parameters, compared):
    for p, expected in zip(parameters, torch.autograd.grad(J, parameters), strict=True):
        torch.testing.assert_close(compared(p), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("joins_head", [True, False])
def test_each_block_follows_the_cross_entropy_of_its_own_head(joins_head):
    """The head is written out from its weights: ReLU hidden layers, a linear read-out."""
    model, (x, y) = mlp(), vectors()
    heads, found = gradients(model, x, y, DGL(joins_head=joins_head))
    assert list(heads) == (["0"] if joins_head else ["0", "2"])
    names = {p: n for n, p in model.named_parameters()}
    h = x
    for i, head in heads.items():
        layer = model[int(i)]
        out = torch.tanh(layer(h))
        W1, b1, W2, b2, W3, b3 = head.parameters()
        z = F.relu(out @ W1.T + b1)
        z = F.relu(z @ W2.T + b2)
        J = -(z @ W3.T + b3).log_softmax(1)[range(len(y)), y].mean()
        assert_gradients(
            J, [*layer.parameters(), *head.parameters()], lambda p: found[names[p]] if p in names else p.grad
        )
        h = out.detach()
    last = model[2 * len(heads) :]  # learns from the trainer's own loss, through the model's own head
    assert_gradients(F.cross_entropy(last(h), y), list(last.parameters()), lambda p: found[names[p]])


def test_a_convolutional_head_is_convolutions_an_average_and_a_read_out():
    model, (x, y) = cnn(), images()
    heads, found = gradients(model, x, y, DGL(num_layers=1, width=7))
    assert list(heads) == ["0"]
    K1, b1, W, b = heads["0"].parameters()
    assert K1.shape == (7, 4, 3, 3) and W.shape == (3, 7 * 4)
    h = model[:3](x)
    z = F.relu(F.conv2d(h, K1, b1, padding=1))  # (B, 7, 4, 4)
    quarters = torch.stack([z[:, :, r : r + 2, c : c + 2].mean((2, 3)) for r in (0, 2) for c in (0, 2)], -1)
    J = F.cross_entropy(quarters.flatten(1) @ W.T + b, y)
    assert_gradients(J, list(model[0].parameters()), lambda p: found["0.weight" if p.dim() > 1 else "0.bias"])
    assert_gradients(J := F.cross_entropy(quarters.detach().flatten(1) @ W.T + b, y), [W, b], lambda p: p.grad)


def test_an_mlp_head_on_a_feature_map_sees_a_quarter_of_its_sides():
    model, (x, y) = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)), images()
    heads, found = gradients(model, x, y, DGL(head="mlp", num_layers=1, joins_head=False))
    K1, b1, W, b = heads["0"].parameters()
    assert K1.shape == (4, 4, 1, 1)
    h = F.relu(model[0](x))  # (B, 4, 8, 8), averaged to (B, 4, 2, 2)
    small = h.view(5, 4, 2, 4, 2, 4).mean((3, 5))
    z = F.relu(torch.einsum("oc,bcij->boij", K1[:, :, 0, 0], small) + b1[:, None, None])
    J = F.cross_entropy(z.flatten(1) @ W.T + b, y)
    assert_gradients(J, [model[0].weight], lambda p: found["0.weight"])


def test_a_flattened_feature_map_is_one_again():
    """Of a square map the sides come back, and another one is a column; a vector of channels stays what it is."""
    for size, pool, weight in (((8, 8), 1, (4, 4, 3, 3)), ((8, 6), 1, (4, 4, 3, 3)), ((8, 8), 8, (4, 4))):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(pool), nn.Flatten(), nn.LazyLinear(3))
        x, y = torch.randn(5, 1, *size), torch.randint(0, 3, (5,))
        net(x)
        heads, found = gradients(net, x, y, DGL(num_layers=1, joins_head=False))
        head = heads["0"]
        assert head[0].weight.shape == weight
        h = net[1](net[0](x))
        h = h.flatten(1) if pool == 8 else h if size == (8, 8) else h.view(5, 4, 48, 1)
        assert_gradients(F.cross_entropy(head(h), y), [net[0].weight], lambda p, found=found: found["0.weight"])


def test_a_rank_makes_the_read_out_of_two_matrices():
    model, (x, y) = mlp(), vectors()
    heads, found = gradients(model, x, y, DGL(head="linear", rank=2))
    U, V, b = heads["0"].parameters()
    assert U.shape == (2, 12) and V.shape == (3, 2)
    J = F.cross_entropy(torch.tanh(model[0](x)) @ U.T @ V.T + b, y)
    assert_gradients(J, [model[0].weight], lambda p: found["0.weight"])


@pytest.mark.parametrize(
    ("pool", "pooled"),
    [("mean", lambda h: h.mean(1)), ("first", lambda h: h[:, 0]), ("last", lambda h: h[:, -1])],
    ids=["mean", "first", "last"],
)
def test_one_vector_of_a_sequence_goes_with_the_label_of_an_example(pool, pooled):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.out = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 3)

        def forward(self, x):
            for block in self.blocks:
                x = torch.tanh(block(x))
            return self.out(x.mean(1))

    model, x, y = Net(), torch.randn(6, 5, 4), torch.randint(0, 3, (6,))
    heads, found = gradients(model, x, y, DGL(head="linear", pool=pool))
    norm, linear = next(iter(heads.values()))
    J = F.cross_entropy(linear(norm(pooled(torch.tanh(model.blocks[0](x))))), y)
    assert_gradients(J, [model.blocks[0].weight], lambda p: found["blocks.0.weight"])


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_layer_is_averaged_over_time_in_either_layout(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 5, batch_first=batch_first), nn.Linear(5, 3)

        def forward(self, x):
            h = self.rnn(x)[0]
            return self.out(h[:, -1] if batch_first else h[-1])

    model, x_BTD, y = Net(), torch.randn(6, 7, 4), torch.randint(0, 3, (6,))
    x = x_BTD if batch_first else x_BTD.transpose(0, 1)
    heads, found = gradients(model, x, y, DGL(head="linear", joins_head=False))
    h = model.rnn(x)[0].mean(1 if batch_first else 0)
    norm, linear = next(iter(heads.values()))
    assert_gradients(F.cross_entropy(linear(norm(h)), y), [model.rnn.weight_hh_l0], lambda p: found["rnn.weight_hh_l0"])


def test_examples_without_a_label_count_for_nothing():
    (x, y), found = vectors(), []
    for given, labels in ((x, y), (torch.cat([x, torch.randn(2, 8)]), torch.cat([y, torch.tensor([-100, -100])]))):
        torch.manual_seed(3)
        found.append(gradients(mlp(), given, labels, DGL())[1]["0.weight"])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_heads_are_as_precise_as_the_models_weights(how):
    (x, y), method = vectors(), DGL()
    model = mlp() if how == "autocast" else mlp().bfloat16()
    engine = Engine(model, method)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        engine.evaluate(lambda: F.cross_entropy(model(x.to(model[0].weight.dtype)).float(), y), targets=y)
    (head,) = method.owned_modules.modules.values()
    assert head[0].weight.dtype == model[0].weight.dtype
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in (*head.parameters(), *model.parameters()))


def test_other_seeds_make_other_heads_and_the_same_seed_the_same():
    (x, y), weights = vectors(), {}
    for seed in (0, 0, 1):
        model, method = mlp(), DGL()
        Engine(model, method, seed=seed).evaluate(lambda m=model: F.cross_entropy(m(x), y), targets=y)
        weights.setdefault(seed, []).append(method.owned_modules.modules["0"][0].weight.detach())
    assert torch.equal(*weights[0]) and not torch.equal(weights[0][0], weights[1][0])


def test_the_names_lead_to_the_methods():
    for name, kind in (("dgl", DGL), ("predsim", PredSim), ("infopro", InfoPro)):
        assert type(localplug.method(name)) is kind


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        DGL(head="tied", num_layers=0, width=0, rank=-1, num_classes=0, kind="blocks", pool="max")
    for part in ("num_layers", "width", "rank", "num_classes", "kind must be", "pool must", "head='tied' has none"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="head must be"):
        DGL(head="vit")


def test_what_cannot_work_is_refused_with_the_way_out():
    with pytest.raises(localplug.Unsupported, match="at least 2 units"):
        Engine(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), DGL())
    with pytest.raises(localplug.Unsupported, match="get_output_embeddings.*use 'linear'"):
        Engine(mlp(), DGL(head="tied"))
    with pytest.raises(ValueError, match="'cnn' needs feature maps"):
        gradients(mlp(), *vectors(), DGL(head="cnn"))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.rand(9), TypeError, "as an integer tensor, got torch.float32"),
        ([0] * 9, TypeError, "as an integer tensor, got list"),
        (torch.full((9,), 3), ValueError, r"in \[0, 3\), got 3 to 3"),
        (torch.full((9,), -1), ValueError, r"in \[0, 3\), got -1 to -1"),
        (torch.zeros(9, 2, dtype=torch.long), ValueError, r"unit '0' gives \(9, 12\) and the labels are \(9, 2\)"),
        (torch.zeros(8, dtype=torch.long), ValueError, "gives 9 rows, and there are 8 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, error, message):
    model, (x, y) = mlp(), vectors()
    engine = Engine(model, DGL())
    with pytest.raises(error, match=message):
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=labels)
