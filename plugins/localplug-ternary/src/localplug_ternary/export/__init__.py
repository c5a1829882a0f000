"""Ternary models in the formats of others: an ordinary Hugging Face model, llama.cpp's GGUF, transformers' own BitNet.

Each export lists everything that stands against it before it writes anything, reads back what it wrote, compares it with the
model, and leaves no half-written folder.
"""

from localplug_ternary.export.bitnet import bitnet
from localplug_ternary.export.gguf import gguf
from localplug_ternary.export.plain import plain

__all__ = ["bitnet", "gguf", "plain"]
