"""The layers before the perturbed ones are computed once an estimate, and nothing else changes for it."""

import copy
import itertools

import pytest
import torch
from torch import nn

import localplug
from localplug.perturbation import Perturbation
from localplug_zo.sparse import Layers
from problems import tiny_llama, weights

LATE = "*layers.2*"
TOKENS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def never(monkeypatch):
    """Calls a function while nothing is reused."""

    def call(function):
        with monkeypatch.context() as m:
            m.setattr(Perturbation, "_prefix_of", lambda *_: None)
            return function()

    return call


class Counter:
    """Counts real calls of some modules, by a leaf that each of them calls once."""

    def __init__(self, *modules):
        self.calls = [0] * len(modules)
        for number, module in enumerate(modules):
            self._count(number, module)

    def _count(self, number, module):
        kind = type(module)

        def forward(this, *args, **kwargs):
            self.calls[number] += 1
            return kind.forward(this, *args, **kwargs)

        module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def norms(model):
    return [layer.input_layernorm for layer in model.model.layers]


def llama(tied=False, **changes):
    return tiny_llama(num_hidden_layers=4, tie_word_embeddings=tied, **changes)


def llama_loss(model, **options):
    return lambda: model(input_ids=TOKENS, labels=TOKENS, **options).loss


def sequential(dropout=0.3):
    torch.manual_seed(0)
    widths = (6, 9, 8, 7, 5)
    blocks = [nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Dropout(dropout)) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*blocks, nn.Linear(5, 3))


def sequential_loss(model):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(7))
    return lambda: model(x).square().mean()


def trained(model, loss, name="mezo", steps=4, **options):
    """What some steps leave behind: losses, coefficients, weights, buffers, random state."""
    torch.manual_seed(11)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    engine = localplug.Engine(model, localplug.method(name, **options), optimizer, seed=3)
    closure = loss(model)
    found = []
    for _ in range(steps):
        found += [engine.step(closure, optimizer), torch.tensor(engine.gradient_norm)]
    return [*found, weights(model), *(b.clone() for b in model.buffers()), torch.get_rng_state()]


def attached(model, call, name="mezo", steps=4, **options):
    """The same through the hooks of an attached model."""
    torch.manual_seed(11)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    found = []
    with localplug.attach(model, optimizer=optimizer, method=localplug.method(name, **options), seed=3):
        for _ in range(steps):
            loss = call(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach().clone())
    return [*found, weights(model), *(b.clone() for b in model.buffers()), torch.get_rng_state()]


def assert_same(a, b):
    assert len(a) == len(b)
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(x, y), number


def assert_clean(model):
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks and not module._forward_pre_hooks


METHODS = {
    "block-zo": dict(name="block-zo", steps=9),
    "block-zo, 3 directions": dict(name="block-zo", num_directions=3, blocks=2),
    "lezo": dict(name="lezo", keep=1, parameters="*layers*"),
    "mezo": dict(parameters=[LATE]),
    "mezo, copy": dict(parameters=[LATE], backend="copy"),
    "mezo, low-rank": dict(parameters=[LATE], directions="rank-1"),
    "one-sided": dict(name="fzoo", num_directions=3, parameters=[LATE]),
    "curvature": dict(name="1.5-spsa", parameters=[LATE]),
    "conservative": dict(name="zo-sgd-conservative", parameters=[LATE]),
    "svrg": dict(name="svrg", parameters=[LATE], steps=8),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_a_llama_ends_with_the_same_bits(method, tied, never):
    options = METHODS[method]
    model = llama(tied, attention_dropout=0.2)
    plain = never(lambda: trained(copy.deepcopy(model), llama_loss, **options))
    counter = Counter(*norms(model))
    assert_same(trained(model, llama_loss, **options), plain)
    assert counter.calls[0] < counter.calls[3]
    assert_clean(model)


@pytest.mark.parametrize("use_cache", [False, True], ids=["no cache", "cache"])
def test_an_attached_llama_hands_out_the_same_bits_and_a_whole_cache(use_cache, never):
    model, caches = llama(attention_dropout=0.2), []

    def call(model):
        output = model(input_ids=TOKENS, labels=TOKENS, use_cache=use_cache)
        caches.append([(e.keys, e.values) for e in output.cache.layers] if use_cache else [])
        return output.loss

    plain = never(lambda: attached(copy.deepcopy(model), call, "block-zo", steps=9))
    counter = Counter(*norms(model))
    assert_same(attached(model, call, "block-zo", steps=9), plain)
    assert counter.calls[0] < 2 * 9
    for theirs, ours in zip(caches[:9], caches[9:], strict=True):
        assert len(theirs) == len(ours) == (4 if use_cache else 0)
        for a, b in zip(theirs, ours, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("driver", [trained, attached])
@pytest.mark.parametrize("name, options", [("block-zo", {}), ("mezo", {"parameters": ["3.*", "4.*"]})])
def test_dropout_draws_the_same_numbers_behind_the_skipped_layers(driver, name, options, never):
    model = sequential()
    loss = sequential_loss if driver is trained else lambda model: sequential_loss(model)()
    plain = never(lambda: driver(copy.deepcopy(model), loss, name, steps=6, **options))
    counter = Counter(model[0][0])
    assert_same(driver(model, loss, name, steps=6, **options), plain)
    assert counter.calls[0] < 2 * 6
    assert_clean(model)


def test_the_first_layer_is_called_once_when_later_layers_are_in_turn():
    model = llama()
    counter = Counter(*norms(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = localplug.Engine(model, localplug.method("block-zo"), optimizer)
    layers = list(engine.method.directions.distribution._layers)
    for step in range(len(layers)):
        (kept,) = engine.method.directions.distribution.kept(step)
        counter.calls = [0] * 4
        engine.step(llama_loss(model), optimizer)
        turn = int(kept.split(".")[-1])
        assert counter.calls == [1] * turn + [2] * (4 - turn)


def test_a_list_inside_the_first_perturbed_layer_is_looked_at_too(never):
    model = nn.Sequential(sequential(), nn.Linear(3, 2))
    plain = never(lambda: trained(copy.deepcopy(model), sequential_loss, parameters=["0.3.*"]))
    counter = Counter(model[0][0][0])
    assert_same(trained(model, sequential_loss, parameters=["0.3.*"]), plain)
    assert counter.calls == [4]


# ---- where nothing is reused -------------------------------------------------------------------------------------------


class Stacked(nn.Module):
    """Some layers in a list, called by `way`."""

    def __init__(self, way, layer=lambda: nn.Linear(6, 6), outside=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([layer() for _ in range(4)])
        self.side = nn.Linear(6, 6)
        self._way = (way,)

    def forward(self, x):
        return self._way[0](self, x)


def in_turn(model, x):
    for layer in model.layers:
        x = layer(x)
    return x


def first_twice(model, x):
    return in_turn(model, model.layers[0](x))


def residual_outside(model, x):
    for layer in model.layers:
        x = x + layer(x)
    return x


def kept_till_the_end(model, x):
    kept = []
    for layer in model.layers:
        x = layer(x)
        kept.append(x)
    return sum(kept)


def skip_connection(model, x):
    a = model.layers[0](x)
    b = model.layers[1](a)
    c = model.layers[2](b)
    return model.layers[3](c + a)


def read_between(model, x):
    total = x.new_zeros(())
    for layer in model.layers:
        x = layer(x)
        total = total + x.square().mean()
    return x + total


def side_first(model, x):
    return in_turn(model, model.side(x))


def side_read_first(model, x):
    return in_turn(model, x * model.side.bias)


def side_read_as_a_number_first(model, x):
    return in_turn(model, x * float(model.side.bias[0]))


def side_in_an_argument(model, x):
    scale = model.side(x)
    for layer in model.layers:
        x = layer(x, scale)
    return x


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)

    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Writing(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)

    def forward(self, x):
        return super().forward(x.mul_(2.0))


class Counting(nn.Linear):
    """Adds up what it saw, in an attribute that the model reads."""

    def __init__(self):
        super().__init__(6, 6)
        self.seen = 0.0

    def forward(self, x):
        y = super().forward(x)
        self.seen = self.seen + 1.0
        return y


class Listing(Counting):
    def __init__(self):
        super().__init__()
        self.seen = [0.0]

    def forward(self, x):
        self.seen.append(1.0)
        return nn.Linear.forward(self, x)


class Noisy(nn.Linear):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__(6, 6)
        self.generator = torch.Generator().manual_seed(1)

    def __deepcopy__(self, memo):
        other = Noisy()
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x):
        return super().forward(x) + torch.randn(x.shape, generator=self.generator)


class Pair(nn.Linear):
    """Gives something else beside the hidden state."""

    def __init__(self):
        super().__init__(6, 6)

    def forward(self, x):
        return super().forward(x), x.mean()


def pairs(model, x):
    total = 0.0
    for layer in model.layers:
        x, more = layer(x)
        total = total + more
    return x + total


def norm_layer():
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


REFUSED = {
    "first layer twice": (first_twice, {}),
    "residual outside the layers": (residual_outside, {}),
    "hidden states kept": (kept_till_the_end, {}),
    "skip connection": (skip_connection, {}),
    "hidden states read between": (read_between, {}),
    "batch norm": (in_turn, {"layer": norm_layer}),
    "attribute": (in_turn, {"layer": Counting}),
    "list": (in_turn, {"layer": Listing}),
    "own generator": (in_turn, {"layer": Noisy}),
    "second output": (pairs, {"layer": Pair}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_do_more_than_pass_on_one_tensor_are_not_skipped(case, never):
    way, options = REFUSED[case]
    model = Stacked(way, **options)
    plain = never(lambda: trained(copy.deepcopy(model), sequential_loss, parameters=["layers.3.*"]))
    counter = Counter(model.layers[0])
    assert_same(trained(model, sequential_loss, parameters=["layers.3.*"]), plain)
    assert counter.calls == [8 * (2 if "twice" in case else 1)]
    assert_clean(model)


@pytest.mark.parametrize("way", [side_first, side_in_an_argument, side_read_first, side_read_as_a_number_first])
def test_what_is_perturbed_before_the_layers_is_seen_though_it_is_registered_after_them(way, never):
    model = Stacked(way, layer=Scaled)
    plain = never(lambda: trained(copy.deepcopy(model), sequential_loss, parameters=["side.*"]))
    counter = Counter(model.layers[0])
    assert_same(trained(model, sequential_loss, parameters=["side.*"]), plain)
    assert counter.calls == [8]


def test_the_same_model_in_turn_is_reused():
    model = Stacked(in_turn)
    counter = Counter(model.layers[0], model.layers[3])
    trained(model, sequential_loss, parameters=["layers.3.*"])
    assert counter.calls == [4, 8]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("parameters", [None, ["*embed_tokens*", LATE]])
def test_with_a_perturbed_embedding_nothing_is_installed(tied, parameters, never, monkeypatch):
    model = llama(tied)
    plain = never(lambda: trained(copy.deepcopy(model), llama_loss, parameters=parameters))
    monkeypatch.setattr(localplug.prefix.Prefix, "evaluation", None)
    assert_same(trained(model, llama_loss, parameters=parameters), plain)


def test_hidden_states_that_are_asked_for_are_those_of_every_layer(never):
    model = llama()

    def loss(model):
        return lambda: sum(h.square().mean() for h in model(TOKENS, output_hidden_states=True).hidden_states)

    plain = never(lambda: trained(copy.deepcopy(model), loss, parameters=[LATE]))
    assert_same(trained(model, loss, parameters=[LATE]), plain)


def test_another_batch_in_a_later_evaluation_is_computed_as_a_whole(never):
    def loss(model):
        batches = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(7)).unbind()
        left = list(batches)
        return lambda: model(left.pop()).square().mean()

    model = sequential()
    plain = never(lambda: trained(copy.deepcopy(model), loss, parameters=["3.*"]))
    assert_same(trained(model, loss, parameters=["3.*"]), plain)


def test_a_perturbed_layer_that_writes_its_input_does_not_spoil_what_is_stored(never):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), Writing(), nn.Linear(6, 2))
    options = dict(parameters=["2.*"], num_directions=3)
    plain = never(lambda: trained(copy.deepcopy(model), sequential_loss, **options))
    counter = Counter(model[0])
    assert_same(trained(model, sequential_loss, **options), plain)
    assert counter.calls == [4]


def test_an_evaluation_that_perturbs_more_than_the_step_does_runs_as_a_whole(never):
    """svrg evaluates at its anchor, which other layers have left since."""
    model = llama()
    options = dict(name="svrg", steps=16, period=8, anchor_batches=2)
    layers = Layers(keep=1, with_rest=False)
    plain = never(lambda: trained(copy.deepcopy(model), llama_loss, directions=layers, **options))
    counter = Counter(*norms(model))
    assert_same(trained(model, llama_loss, directions=layers, **options), plain)
    assert counter.calls[0] < counter.calls[3]


@pytest.mark.parametrize("name", ["fzoo", "mezo"])
def test_parameters_that_are_read_outside_their_module_are_found_whatever_was_skipped_before(name, never):
    """nn.MultiheadAttention reads its out_proj.weight, which is too large to be held for a whole evaluation."""

    def run():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(192, 2, 64, dropout=0.1, batch_first=True)
        model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        layers = Layers(keep=1, with_rest=False)
        found = trained(model, encoder_loss, name, steps=8, num_directions=2, directions=layers)
        turns = [layers.kept(step)[0] for step in range(8)]
        assert turns[0] != "0" and "0" in turns
        return found

    assert_same(run(), never(run))


def encoder_loss(model):
    x = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(7))
    return lambda: model(x).square().mean()


# ---- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_a_fault_in_an_evaluation_leaves_the_model_as_it_was(evaluation):
    model = llama()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    engine = localplug.Engine(model, localplug.method("mezo", parameters=[LATE], num_directions=2), optimizer)
    closure, calls = llama_loss(model), []

    def failing():
        calls.append(1)
        loss = closure()
        if len(calls) == evaluation:
            raise RuntimeError("planted")
        return loss

    for _ in range(2):
        calls.clear()
        with pytest.raises(RuntimeError, match="planted"):
            engine.step(failing, optimizer)
        assert_clean(model)
        assert torch.equal(weights(model), before)
    calls.extend([1] * 10)
    engine.step(failing, optimizer)
    assert_clean(model)


def test_a_fault_inside_a_later_layer_does_so_too():
    model = sequential()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    engine = localplug.Engine(model, localplug.method("mezo", parameters=["3.*"]), optimizer)
    closure = sequential_loss(model)
    engine.step(closure, optimizer)
    model[4].weight = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(RuntimeError):
        engine.step(closure, optimizer)
    assert_clean(model)
