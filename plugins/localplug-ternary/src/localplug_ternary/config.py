"""TernaryConfig: every option of a ternary model, as transformers keeps it in config.json.

Importing this file registers nothing; localplug_ternary.quantizer does, and is imported when a configuration is made.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from transformers.utils.quantization_config import QuantizationConfigMixin

import localplug
from localplug import LocalPlugError, Quantizer

QUANT_METHOD = "localplug_ternary"
IMPORT = "import localplug_ternary.quantizer"

# Options of the methods here: {option: (whose it is, whether it may be 0)}. Those of other packages' methods go by `options`.
_OWNERS = {
    "lam": ("tequila", True),
    "residual": ("sherry", True),
    "temperature": ("annealed", False),
    "final_temperature": ("annealed", False),
}
OURS = ("tequila", "absmean", "twn", "sherry", "annealed")
GROUP_SIZES = (64, 128, 256)


@final
class TernaryConfig(QuantizationConfigMixin):
    """How a model's Linear layers become ternary, and in which form they are.

    Args:
        method: "tequila", "absmean", "twn", "sherry" or "annealed"; each has a file of its own with its equations. Or the name
            of another package's quantizer: whatever `localplug.quantizer` knows.
        group_size: inputs that share a scale: 256, 128 or 64, or None for a whole row. It must divide the inputs of every
            layer. 256 is exact in GGUF's TQ2_0, 128 and 64 in its Q2_0.
        modules_to_not_convert: names or patterns of layers to leave alone, besides embeddings, norms and the head, which
            always are.
        packed: two bits a weight that do not train, in the place of latent weights that do. From a full-precision checkpoint
            the layers are packed as soon as it is loaded; without training that ruins a model's answers.
        trainable: of packed layers: None, or "scales" for scales and biases in float32, the only parameters that then train.
        int8_activations: at inference packed layers on a CPU round activations to 8 bits for each token and use a
            compiled kernel, where one is there.
        lam: lambda of tequila, >= 0; by default 0.001.
        residual: of sherry, the largest factor of the fading residual, >= 0; by default 1.
        temperature: of annealed, the first one, > 0; by default 1.
        final_temperature: of annealed, the last one, > 0; by default 0.01.
        progress: how much of the training is done, in [0, 1], for methods that change on the way (sherry, annealed).
            `TernaryProgress` keeps it up.
        converted: names of the ternary layers. Written when a model is converted, so that a saved one loads again.
        options: of another package's method, {name: number, string, boolean or None}, besides group_size.

    Raises:
        ValueError: options are unknown, outside their range, or belong to another method, or nobody installed gives the
            method; lists all of them.

    Example:
        >>> config = TernaryConfig("tequila", group_size=128, lam=1e-3)
        >>> config.to_dict()["quant_method"]
        'localplug_ternary'
    """

    def __init__(
        self,
        method: str = "tequila",
        group_size: int | None = 256,
        modules_to_not_convert: Sequence[str] | None = None,
        packed: bool = False,
        trainable: Literal["scales"] | None = None,
        int8_activations: bool = False,
        lam: float | None = None,
        residual: float | None = None,
        temperature: float | None = None,
        final_temperature: float | None = None,
        progress: float = 0.0,
        converted: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        **saved: Any,
    ) -> None:
        given = {"lam": lam, "residual": residual, "temperature": temperature, "final_temperature": final_temperature}
        wrong = _problems(method, group_size, given, options, saved)
        for name, names in (("modules_to_not_convert", modules_to_not_convert), ("converted", converted)):
            if isinstance(names, str):
                wrong.append(f"{name} must be a list of names, got the string {names!r}")
            elif names is not None and not (_is_listed(names) and all(isinstance(each, str) for each in names)):
                wrong.append(f"{name} must be a list of names, got {names!r}")
        if trainable not in (None, "scales"):
            wrong.append(f'trainable must be None or "scales", got {trainable!r}')
        if trainable and not packed:
            wrong.append('trainable="scales" is for packed layers; set packed=True, or train all latent weights')
        if int8_activations and not packed:
            wrong.append("int8_activations is for packed layers; set packed=True")
        if not (isinstance(progress, int | float) and 0 <= progress <= 1):
            wrong.append(f"progress must be in [0, 1], got {progress!r}")
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # transformers' own are an enumeration
        self.method, self.group_size = method, group_size
        self.lam, self.residual = lam, residual
        self.temperature, self.final_temperature = temperature, final_temperature
        self.options = dict(options) if isinstance(options, Mapping) else None
        if not wrong:  # and only then can its maker be asked
            wrong = self._problems_of_making()
        if wrong:
            raise ValueError("TernaryConfig: " + "; ".join(wrong))
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.packed, self.trainable, self.int8_activations = packed, trainable, int8_activations
        self.progress = float(progress)
        self.converted = None if converted is None else list(converted)
        self.load_with = IMPORT  # for whoever reads config.json: transformers cannot know where this comes from
        importlib.import_module("localplug_ternary.quantizer")

    def make_method(self) -> Quantizer:
        """The method itself, with its options.

        Raises:
            UnknownName, DuplicateName, PluginFailed: see `localplug.get`.
        """
        mine = {name for name, (owner, _) in _OWNERS.items() if owner == self.method}
        given = {name: getattr(self, name) for name in sorted(mine) if getattr(self, name) is not None}
        return localplug.quantizer(self.method, group_size=self.group_size, **given, **(self.options or {}))

    def _problems_of_making(self) -> list[str]:
        """What the method itself has against its options; whatever a plugin raises is a line of the one error."""
        try:
            kept = self.make_method().group_size
        except Exception as error:
            return [f"method={self.method!r} cannot be made: {type(error).__name__}: {error}"]
        return (
            []
            if kept == self.group_size
            else [f"method={self.method!r} makes group_size={self.group_size} into {kept!r}"]
        )


def _is_listed(names: Any) -> bool:
    return isinstance(names, Sequence | set | frozenset)


def config_of(model: Any) -> TernaryConfig | None:
    """The configuration that a transformers model carries, if it is ternary."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    return config if isinstance(config, TernaryConfig) else None


def _problems(
    method: Any, group_size: Any, given: dict[str, float | None], options: Any, saved: dict[str, Any]
) -> list[str]:
    wrong = []
    if unknown := sorted(saved.keys() - {"quant_method", "load_with"}):
        wrong.append(f"unknown options {', '.join(unknown)}")
    if not isinstance(method, str):
        wrong.append(f"method must be a name, such as one of {', '.join(OURS)}, got {method!r}")
    else:
        try:
            localplug.get(method, "quantizers")
        except LocalPlugError as error:
            wrong.append(f"{error}; a saved model loads where the method that it was made with is installed")
    if group_size is not None and group_size not in GROUP_SIZES:
        wrong.append(f"group_size must be 256, 128, 64 or None for a whole row, got {group_size!r}")
    for name, value in given.items():
        if value is None:
            continue
        owner, may_be_0 = _OWNERS[name]
        if not isinstance(value, int | float):
            wrong.append(f"{name} must be a number, got {value!r}")
        elif not (value >= 0 if may_be_0 else value > 0) or value > 1e38:
            wrong.append(f"{name} must be {'at least 0' if may_be_0 else 'positive'}, got {value!r}")
        elif owner != method:
            wrong.append(f"{name} belongs to method={owner!r}, not to {method!r}")
    if options is not None and not isinstance(options, Mapping):
        wrong.append(f"options must be a dictionary {{name: value}}, got {options!r}")
    elif options and method in OURS:
        wrong.append(f"options is for other packages' methods; give {', '.join(map(str, options))} by its own argument")
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if not isinstance(name, str) or name == "group_size":
            wrong.append(f"options cannot hold {name!r}: its names are those of the method's own options")
        elif not isinstance(value, bool | int | float | str | None):
            wrong.append(f"options[{name!r}] must be a number, a string, a boolean or None, got {value!r}")
    first, last = given["temperature"] or 1.0, given["final_temperature"] or 0.01
    if isinstance(first, int | float) and isinstance(last, int | float) and 0 < first < last:
        wrong.append(f"final_temperature={last!r} must be at most temperature={first!r}")
    return wrong
