"""Inference with packed ternary weights on a CPU: prepare once a module, then linear.

The kernel is compiled when the package is installed (csrc/), for any machine, and chooses its body by what the processor has.
Without a C compiler the same numbers come from torch's own operators.
"""

from localplug_ternary.kernels.layout import Prepared, dequantize, prepare
from localplug_ternary.kernels.library import available, bodies
from localplug_ternary.kernels.product import linear

__all__ = ["Prepared", "available", "bodies", "dequantize", "linear", "prepare"]
