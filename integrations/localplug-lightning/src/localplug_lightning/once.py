"""training_step runs several times for one batch, and what it does besides computing its loss must count once.

The first evaluation logs and updates its metrics as always. The later ones run `muted`: they log nothing, and every
torchmetrics.Metric of the module is afterwards what it was before.
"""

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

_LOGGING = ("log", "log_dict")


@contextlib.contextmanager
def muted(module: nn.Module) -> Iterator[None]:
    """While this is open, the LightningModule's `self.log` and `self.log_dict` do nothing; when it closes, the metrics in
    it are put back."""
    own = {name: module.__dict__[name] for name in _LOGGING if name in module.__dict__}
    counted = [_Counted(m) for m in module.modules() if isinstance(m, Metric | MetricCollection)]
    module.__dict__.update(dict.fromkeys(_LOGGING, _nothing))
    try:
        yield
    finally:
        for name in _LOGGING:
            del module.__dict__[name]
        module.__dict__.update(own)
        for metric in counted:
            metric.put_back()


def _nothing(*_: Any, **__: Any) -> None:
    pass


@final
class _Counted:
    """Everything that one metric knows, to be put back in place: the metrics of a collection share their states."""

    def __init__(self, metric: nn.Module) -> None:
        self._metric = metric
        self._known = dict(metric.__dict__)
        # a state is a tensor, written in place or replaced, or a list that grows by a tensor with every batch
        self._tensors = [(x, x.detach().clone()) for x in self._known.values() if isinstance(x, Tensor)]
        self._lists = [(x, list(x)) for x in self._known.values() if isinstance(x, list)]
        self._mappings = [(x, dict(x)) for x in self._known.values() if isinstance(x, MutableMapping)]

    def put_back(self) -> None:
        for listed, items in self._lists:
            listed[:] = items
        for mapping, entries in self._mappings:
            mapping.clear()
            mapping.update(entries)
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        self._metric.__dict__.clear()
        self._metric.__dict__.update(self._known)
