"""Inference with packed ternary weights on a CPU: prepare once a module, then linear.

The kernel is compiled when the package is installed (csrc/), for any machine, and chooses its body by what the processor has.
Without a C compiler the same numbers come from torch's own operators.
"""

from localplug_ternary.kernels.dense import KINDS as DENSE_DTYPES
from localplug_ternary.kernels.dense import dense, dense_bodies
from localplug_ternary.kernels.kept import prepared_of
from localplug_ternary.kernels.layout import Prepared, dequantize, prepare
from localplug_ternary.kernels.library import available, bodies
from localplug_ternary.kernels.operators import OPERATORS
from localplug_ternary.kernels.product import linear

__all__ = [
    "DENSE_DTYPES",
    "OPERATORS",
    "Prepared",
    "available",
    "bodies",
    "dense",
    "dense_bodies",
    "dequantize",
    "linear",
    "prepare",
    "prepared_of",
]
