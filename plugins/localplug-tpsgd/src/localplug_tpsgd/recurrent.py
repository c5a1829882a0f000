"""Recurrent layers truncated in time: by default the gradient of h_s through W alone, with x_s and h_{s-1} held constant.

One step is taken at all times at once: the states are taken from a pass without a graph, and one batched step from each
constant (x_s, h_{s-1}) to h_s carries the only graph. Equations as in torch.nn.RNN, GRU and LSTM.

Shapes: T time steps, B examples, D inputs, H hidden units; everything here is (T, B, ...).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localplug import Unit


def _weights(module: nn.RNNBase, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(W_ih, W_hh, b_ih, b_hh) of one layer."""
    w_ih, w_hh = getattr(module, f"weight_ih_l{layer}"), getattr(module, f"weight_hh_l{layer}")
    if not module.bias:
        return w_ih, w_hh, None, None
    return w_ih, w_hh, getattr(module, f"bias_ih_l{layer}"), getattr(module, f"bias_hh_l{layer}")


def step(module: nn.RNNBase, layer: int, x_BD: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one layer: (h', c'). c is the cell state of an LSTM, and passed through by the others."""
    w_ih, w_hh, b_ih, b_hh = _weights(module, layer)
    a = nn.functional.linear(x_BD, w_ih, b_ih)
    b = nn.functional.linear(h_BH, w_hh, b_hh)
    if isinstance(module, nn.LSTM):
        i, f, g, o = (a + b).chunk(4, -1)
        c = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if isinstance(module, nn.GRU):
        a_r, a_z, a_n = a.chunk(3, -1)
        b_r, b_z, b_n = b.chunk(3, -1)
        z = torch.sigmoid(a_z + b_z)
        n = torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
        return (1 - z) * n + z * h_BH, c_BH
    squash = torch.relu if module.nonlinearity == "relu" else torch.tanh
    return squash(a + b), c_BH


def states(module: nn.RNNBase, layer: int, x_TBD: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without a graph: (previous h, previous c, h) at every step, each (T, B, H)."""
    before_h, before_c, after = [], [], []
    with torch.no_grad():
        for x_BD in x_TBD:
            before_h.append(h_BH)
            before_c.append(c_BH)
            h_BH, c_BH = step(module, layer, x_BD, h_BH, c_BH)
            after.append(h_BH)
    return torch.stack(before_h), torch.stack(before_c), torch.stack(after)


def truncated_outputs(module: nn.RNNBase, inputs: tuple[object, ...], steps: int = 1) -> list[Tensor]:
    """h of every layer at every step, (T, B, H) each, whose gradient goes back through up to `steps` time steps.

    With 1 it is d h_s / d W at constant x_s and h_{s-1}; with more, states are constants at every steps-th time step only. A
    layer's input is constant in either case.

    Args:
        inputs: as the module was called with: the input, and maybe the initial state.
        steps: >= 1.
    """
    x = inputs[0]
    assert isinstance(x, Tensor)
    x_TBD = x.transpose(0, 1) if module.batch_first else x
    h_LBH, c_LBH = _initial(module, inputs[1] if len(inputs) > 1 else None, x_TBD)
    outputs = []
    for layer in range(module.num_layers):
        h_BH, c_BH = h_LBH[layer], c_LBH[layer]
        if steps == 1:
            before_h, before_c, _ = states(module, layer, x_TBD, h_BH, c_BH)
            h_TBH, _ = step(module, layer, x_TBD, before_h, before_c)
        else:
            found = []
            for s, x_BD in enumerate(x_TBD):
                if s % steps == 0:
                    h_BH, c_BH = h_BH.detach(), c_BH.detach()
                h_BH, c_BH = step(module, layer, x_BD, h_BH, c_BH)
                found.append(h_BH)
            h_TBH = torch.stack(found)
        outputs.append(h_TBH)
        x_TBD = h_TBH.detach()
    return outputs


def _initial(module: nn.RNNBase, given: object, x_TBD: Tensor) -> tuple[Tensor, Tensor]:
    zeros = x_TBD.new_zeros(module.num_layers, x_TBD.shape[1], module.hidden_size)
    if given is None:
        return zeros, zeros
    if isinstance(given, tuple):
        return given[0], given[1]
    assert isinstance(given, Tensor)
    return given, zeros


def problems(module: nn.RNNBase, name: str) -> list[str]:
    """What one-step truncation does not cover."""
    found = []
    if module.bidirectional:
        found.append(f"{name!r} is bidirectional, and target projection goes forward in time only; use one direction")
    if module.dropout and module.num_layers > 1:
        found.append(
            f"{name!r} drops out between its layers, which cannot be repeated outside it; set its dropout to 0"
        )
    if isinstance(module, nn.LSTM) and module.proj_size:
        found.append(f"{name!r} has proj_size={module.proj_size}; use proj_size=0")
    return found


def unsupported(rule: str, units: Sequence[Unit]) -> list[str]:
    """A reason for each recurrent unit, of a rule that goes through a layer once."""
    return [
        f"{unit.name!r} is recurrent, and {rule} would go back through time in it; use tpsgd, which is truncated to one step"
        for unit in units
        if isinstance(unit.module, nn.RNNBase) and not unit.is_last
    ]
