"""LoRA over ternary layers, by peft: packed ones, which need their two bits a weight alone, or latent ones.

    y = base(x) + (alpha / r) B A x

Adapters stay beside the layers. Merged ones would be rounded to ternary, which changes the model: at the size that adapters
have, most weights keep their code and lose the change, and some jump by a whole scale.
"""

from typing import Any, final

from torch import Tensor, nn

from localplug.errors import Unsupported
from localplug_ternary.latent import TernaryLinear
from localplug_ternary.merging import REASON
from localplug_ternary.packed import PackedTernaryLinear

try:
    from peft import LoraConfig, PeftConfig, PeftModel
    from peft.tuners.lora.layer import LoraLayer
except ImportError as missing:
    raise ImportError("LoRA over ternary layers needs peft: pip install peft") from missing


def with_lora(config: LoraConfig) -> LoraConfig:
    """Let a LoRA configuration know ternary layers.

    Args:
        config: changed in place. target_modules may name ternary and other layers.

    Returns: the configuration, for peft.get_peft_model.

    Raises:
        ValueError: it asks for what needs the base layer's weights, such as DoRA; lists everything.

    Example:
        model = get_peft_model(model, with_lora(LoraConfig(target_modules=["q_proj", "v_proj"], r=8)))
    """
    wrong = []
    if config.init_lora_weights not in (True, False, "gaussian"):
        wrong.append(f"init_lora_weights={config.init_lora_weights!r} takes the weights apart; leave True")
    for option in ("use_dora", "alora_invocation_tokens", "layer_replication"):
        if getattr(config, option, None):
            wrong.append(f"{option} is not there for ternary layers; leave it out")
    if wrong:
        raise ValueError("with_lora: " + "; ".join(wrong))
    config._register_custom_module({PackedTernaryLinear: LoraTernary, TernaryLinear: LoraTernary})
    return config


def load_lora(model: nn.Module, path: str, is_trainable: bool = False, **options: Any) -> PeftModel:
    """Load a saved adapter onto a ternary model; peft's own PeftModel.from_pretrained does not know ternary layers.

    Args:
        model: the ternary model, without adapters.
        path: where the adapter was saved.
        is_trainable: whether to train it on.
        options: of PeftModel.from_pretrained.

    Returns: the model with its adapter.
    """
    config = PeftConfig.from_pretrained(path)
    config.inference_mode = not is_trainable
    return PeftModel.from_pretrained(model, path, is_trainable=is_trainable, config=with_lora(config), **options)


@final
class LoraTernary(nn.Module, LoraLayer):
    """An adapter beside a ternary layer. peft makes it; see `with_lora`."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.pop("adapter_names", None) is not None:
            raise Unsupported("LoRA over ternary layers takes one adapter a batch; call once for each adapter")
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.lora_A:
                A, B = self.lora_A[name], self.lora_B[name]
                dtype: Any = A.weight.dtype
                dropped = self.lora_dropout[name](self._cast_input_dtype(x, dtype))
                y = y + (B(A(dropped)) * self.scaling[name]).to(y.dtype)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise Unsupported(REASON)

    def unmerge(self) -> None:
        """Nothing is merged, ever."""
