"""What a step holds and computes, against numbers made by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Parts, Task, Tensors
from localplug_bench import peak_memory
from localplug_bench.costs import costs, saved_bytes
from localplug_bench.specs import parsed


class Deep(Task):
    """16 -> 16 -> ... -> 2 with tanh."""

    batch_size = 8

    def __init__(self, depth=2):
        self.depth = depth

    def model(self):
        hidden = [layer for _ in range(self.depth) for layer in (nn.Linear(16, 16), nn.Tanh())]
        return nn.Sequential(*hidden, nn.Linear(16, 2))

    def parts(self, seed):
        part = Tensors(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
        return Parts(part, part, part)


def test_a_storage_that_several_tensors_share_counts_once_and_weights_and_batch_do_not():
    model, x = nn.Linear(16, 4), torch.randn(8, 16, requires_grad=True)
    with saved_bytes(model, (x,)) as peak:
        model(x)  # saves the batch and the weights
    assert peak == [0]
    with saved_bytes(model, (x,)) as peak:
        z = (x * 2).exp()  # saves its output
        other, same = z.view(4, 32).exp(), z.view(4, 32).sin()  # saves another output; saves z again
    assert peak == [2 * 8 * 16 * 4] and other.shape == same.shape


def test_what_is_freed_counts_no_more():
    model = nn.Identity()
    x = torch.randn(8, 16, requires_grad=True)
    with saved_bytes(model, ()) as peak:
        for _ in range(3):
            (x + 0).exp().sum().backward()
    assert peak == [8 * 16 * 4]


def found(spec, depth=2):
    return costs(Deep(depth), parsed(spec), batch_size=8)


def test_backprop_saves_more_with_depth_and_local_and_zeroth_order_methods_do_not():
    layer = 8 * 16 * 4  # bytes of one output
    assert found("backprop", 8)["saved_bytes"] - found("backprop", 2)["saved_bytes"] == 6 * layer
    assert found("tpsgd", 8)["saved_bytes"] == found("tpsgd", 2)["saved_bytes"] > 0
    assert found("mezo", 8)["saved_bytes"] == 0


def test_operations_are_those_of_the_products():
    forward = 2 * 8 * (16 * 16 * 2 + 16 * 2)
    below = 2 * 8 * 16 * 16  # the gradient of the input of the first layer, which nobody needs
    assert found("backprop")["flops_forward"] == forward
    assert found("backprop")["flops_step"] == 3 * forward - below
    assert found("mezo")["flops_step"] == 2 * forward
    assert found("tpsgd")["flops_step"] > forward


def test_what_is_stored_is_the_weights_and_what_prediction_needs_and_a_log_is_a_few_bytes_a_step():
    weights = 4 * (2 * (16 * 16 + 16) + 16 * 2 + 2)
    mezo = found("mezo")
    assert mezo["stored_bytes"] == weights and 0 < mezo["log_bytes_a_step"] < 32
    assert found("backprop")["stored_bytes"] == weights and found("backprop")["log_bytes_a_step"] is None
    assert found("mono-forward:predict=sum")["stored_bytes"] == weights + 4 * 2 * 2 * 16  # two heads (2, 16)


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    """An MLP whose activations are far larger than its weights: backpropagation holds them, inference and mezo do not."""
    file = tmp_path / "wide.py"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom localplug import Parts, Task, Tensors\n"
        "class Wide(Task):\n"
        "    def model(self):\n"
        "        return nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 2))\n"
        "    def parts(self, seed):\n"
        "        part = Tensors(torch.zeros(16384, 64), torch.zeros(16384, dtype=torch.long))\n"
        "        return Parts(part, part, part)\n"
    )
    peaks = {
        spec: peak_memory.measured(f"{file}:Wide", None, spec, batch_size=16384, threads=1)
        for spec in ("backprop", "inference")
    }
    activation = 16384 * 64 * 4  # bytes; twelve of them are saved
    assert peaks["backprop"]["peak_bytes"] > 10 * activation > 2 * peaks["inference"]["peak_bytes"]
    assert peaks["backprop"]["memory_kind"] == "rss" and peaks["backprop"]["saved_bytes"] >= 12 * activation
    assert "saved_bytes" not in peaks["inference"]


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="(?s)measuring mezo on no-such-task failed: .*no task named"):
        peak_memory.measured("no-such-task", None, "mezo", batch_size=8)


def test_the_loss_is_the_tasks():
    task = Deep()
    model, batch = task.fresh_model(0), task.parts(0).train.batch(torch.arange(8))
    assert torch.equal(task.loss(model, batch), F.cross_entropy(model(batch[0]), batch[1]))
