"""torch.compile of ternary models: the same numbers, and no break in the graph."""

import pytest
import torch
from torch._inductor import cpp_builder, exc

from localplug_ternary import (
    TernaryConfig,
    dense,
    freeze_,
    kernels,
    set_progress_,
    speed_up_,
    ternarize_,
    train_scales_,
)

METHODS = ("tequila", "absmean", "twn", "sherry", "annealed")
# torch's own, of its tracing of autograd functions
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def net(method="tequila"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.Linear(16, 2)
        )
    model = ternarize_(model, TernaryConfig(method, None))
    set_progress_(model, 0.5)  # sherry has its residual there, and annealed a temperature
    return model


def inputs():
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def results(model, call):
    """Outputs, and the gradients of what trains."""
    y = call(inputs())
    trained = [p for p in model.parameters() if p.requires_grad]
    return [y, *(torch.autograd.grad(y.square().sum(), trained) if trained else ())]


def same(model, backend, rtol=1e-5, atol=1e-6):
    torch.compiler.reset()
    expected = results(model, model)
    got = results(model, torch.compile(model, backend=backend, fullgraph=True))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("method", METHODS)
def test_latent_layers_are_one_graph(method):
    same(net(method), "aot_eager")


@pytest.mark.parametrize("trains", [False, True])
def test_packed_layers_are_one_graph(trains):
    model = freeze_(net())
    same(train_scales_(model) if trains else model, "aot_eager")


def test_packed_layers_above_one_that_trains_pass_gradients_on():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), *freeze_(net()))
    same(model, "aot_eager")


def has_compiler():
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor imports
@pytest.mark.skipif(not has_compiler(), reason="inductor finds no C++ compiler")
@pytest.mark.parametrize("form", ["latent", "packed", "scales"])
def test_inductor_computes_the_same(form):
    model = net()
    if form != "latent":
        freeze_(model)
    # It adds in an order of its own, so that a latent layer's mean may round to the float16 beside.
    loose = {"rtol": 5e-3, "atol": 5e-4} if form == "latent" else {}
    same(train_scales_(model) if form == "scales" else model, "inductor", **loose)


def test_the_compiled_kernels_are_operators_in_one_graph():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(256, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    model = freeze_(ternarize_(model, TernaryConfig(group_size=None)), int8_activations=True).eval()
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        model[0].scales.mul_(2.0)  # what is written afterwards counts too
        assert torch.equal(compiled(x), model(x))
        torch.testing.assert_close(compiled(x[:1]), model(x[:1]), rtol=1e-6, atol=1e-6)


def test_a_large_dense_layer_is_an_operator_for_one_token(monkeypatch):
    monkeypatch.setattr(dense, "LEAST_WEIGHTS", 1)
    model = speed_up_(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)))
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    for rows in (1, 5):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        with torch.no_grad():
            assert torch.equal(compiled(x), model(x))
    assert ["localplug_ternary.dense" in graph for graph in graphs] == ["avx2" in kernels.dense_bodies(), False]


@pytest.mark.skipif(not kernels.dense_bodies(), reason="installed without a C compiler")
def test_the_operators_are_what_torch_expects_of_them():
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    layer = freeze_(net()).requires_grad_(False)[0]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    weights = layer.codes, layer.scales, layer.bias, 64
    torch.library.opcheck(torch.ops.localplug_ternary.linear.default, (x, *weights), test_utils=checks)
    torch.library.opcheck(torch.ops.localplug_ternary.linear.default, (x.bfloat16(), *weights), test_utils=checks)
    weight, bias = torch.randn(3, 64), torch.randn(3)
    torch.library.opcheck(torch.ops.localplug_ternary.dense.default, (x, weight, bias), test_utils=checks)
    torch.library.opcheck(torch.ops.localplug_ternary.dense.default, (x, weight, None), test_utils=checks)
