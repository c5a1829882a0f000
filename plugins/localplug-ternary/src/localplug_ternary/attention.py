"""Attention of one new token, for transformers: sdpa with the query heads that share keys side by side.

Grouped queries as torch's sdpa takes them (enable_gqa) read the keys once for each query head, and one query at a time. As rows
of one query matrix they read them once. The sums are the same; they are added in another order.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "localplug_ternary"
_CHANGES = ("softcap", "position_bias", "s_aux")  # options of sdpa under which its rows are not alike


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa, with a shorter way for one token on a CPU that sees all keys.

    Args:
        query: (B, H, L, D).
        key, value: (B, G, T, D), G a divisor of H: query head h reads head h G // H.
        options: of transformers' sdpa.

    Returns: the output, (B, L, H, D), and no weights.
    """
    (B, H, L, D), G = query.shape, key.shape[1]
    is_one_token = L == 1 and H > G and key.shape[0] == B and query.device.type == "cpu"
    changed = attention_mask is not None or dropout > 0 or any(options.get(name) is not None for name in _CHANGES)
    if changed or not is_one_token:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    rows = query.reshape(B, G, H // G, D)
    y = F.scaled_dot_product_attention(rows, key, value, scale=scaling)
    return y.reshape(B, 1, H, value.shape[-1]), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
