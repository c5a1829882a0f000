"""torch.compile of ternary models: the same numbers, and no break in the graph but at the compiled kernel."""

import pytest
import torch
from torch._inductor import cpp_builder, exc

from localplug_ternary import TernaryConfig, freeze_, set_progress_, ternarize_, train_scales_

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


def test_the_compiled_kernel_breaks_the_graph_and_computes_the_same():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(256, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    model = freeze_(ternarize_(model, TernaryConfig(group_size=None)), int8_activations=True).eval()
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x), rtol=1e-6, atol=1e-6)
