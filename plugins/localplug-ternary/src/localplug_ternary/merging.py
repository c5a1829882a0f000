"""Why adapters are not merged into ternary layers, and who says so.

peft's own adapter of a Linear fits a latent layer too, since that is a Linear, and merges by adding to its weight. The sum
would be rounded to ternary in the next forward pass, and the outputs would change without a word.
"""

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from localplug.errors import Unsupported

REASON = (
    "adapters are not merged into ternary layers: the sum would be rounded to ternary again, which changes the outputs. Keep "
    "the adapter beside the model (save_pretrained and load_lora), or dequantize the model first"
)


def refuse_merge(*args: Any, **kwargs: Any) -> None:
    """In the place of an adapter's `merge`.

    Raises:
        localplug.Unsupported: always.
    """
    raise Unsupported(REASON)


def keep_adapters_beside(kind: type[nn.Module]) -> None:
    """From now on, whatever takes a layer of this kind as its `base_layer` refuses to merge.

    That is how all adapters of peft hold the layer they belong to. A layer is not told who holds it, and torch's hook on
    registrations is the one place that is.
    """

    def look(holder: nn.Module, name: str, held: Any) -> None:
        if name == "base_layer" and isinstance(held, kind) and hasattr(holder, "merge"):
            holder.merge = refuse_merge  # type: ignore[assignment]

    register_module_module_registration_hook(look)
