"""A method's state as text, for files that are JSON."""

import base64
import io
from typing import Any

import torch


def to_text(state: dict[str, Any]) -> str:
    """Base64 of torch.save; empty for an empty state.

    Args:
        state: numbers and tensors, by name.
    """
    if not state:
        return ""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def from_text(text: str) -> dict[str, Any]:
    """What `to_text` was given."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True) if text else {}
