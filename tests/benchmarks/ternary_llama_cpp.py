"""A ternary Llama in llama.cpp against the same model in torch: the likeliest next token at 256 positions of real text.

    pip install llama-cpp-python
    python tests/benchmarks/ternary_llama_cpp.py [--model DIR] [--text FILE] [--type TQ2_0] [--positions 256]

DIR is a saved ternary Llama whose inputs are multiples of 256, with its tokenizer. Without it the model is a random Llama, 256
wide, ternary by tequila with a lambda of 0.1, so that its folded biases matter, and the tokenizer is SmolLM2's. The text is
wikitext-2's valid.txt by default. Numbers: the share of positions where both have the same likeliest token, the distance of
the logits by the norm of torch's, the same two for the torch model without its folded biases, and whether llama.cpp cuts the
text into the same tokens. llama.cpp rounds activations to 8 bits, so that the distance is not 0. Bar: agreement of 0.98 at
least, and the same tokens.

This has not been run for lack of llama.cpp: no number of it is published.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import localplug_ternary.quantizer  # noqa: F401  (registers it)
from localplug_ternary import PackedTernaryLinear, TernaryConfig, export, freeze_, ternarize_
from localplug_transformers import offline_models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save


def loaded(folder):
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(offline_models.smollm2())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    return freeze_(ternarize_(LlamaForCausalLM(config).eval(), TernaryConfig("tequila", lam=0.1))), tokenizer


@torch.no_grad()
def in_torch(model, ids):
    return model(torch.tensor([ids])).logits[0].float().numpy()


def in_llama_cpp(path, ids, text):
    """Logits of the ids, and the ids that llama.cpp makes of the text."""
    from llama_cpp import Llama

    model = Llama(model_path=str(path), n_ctx=len(ids), logits_all=True, verbose=False)
    own_ids = model.tokenize(text.encode(), add_bos=False, special=False)
    model.eval(ids)
    return numpy.array(model.scores[: len(ids)]), list(own_ids)


def compared(logits, expected):
    return {
        "agreement": round(float((logits.argmax(-1) == expected.argmax(-1)).mean()), 4),
        "distance": round(float(numpy.linalg.norm(logits - expected) / numpy.linalg.norm(expected)), 5),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--type", default="TQ2_0", choices=("TQ2_0", "TQ1_0"))
    parser.add_argument("--positions", type=int, default=256)
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("llama-cpp-python is not installed, so nothing was compared; pip install llama-cpp-python builds it")
    text = options.text or pathlib.Path(__file__).parents[3] / "shared/data/wikitext2/valid.txt"
    model, tokenizer = loaded(options.model)
    text = text.read_text()[: 8 * options.positions]
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = whole[: options.positions]
    expected = in_torch(model, ids)
    with tempfile.TemporaryDirectory() as folder:
        path = export.gguf(model, tokenizer, pathlib.Path(folder) / "out", options.type)
        logits, own_ids = in_llama_cpp(path, ids, text)
    result = {
        "type": options.type,
        "positions": len(ids),
        **compared(logits, expected),
        "same_tokens": own_ids == whole,
    }
    for layer in model.modules():
        if isinstance(layer, PackedTernaryLinear):
            layer.bias = None
    result["without_biases"] = compared(in_torch(model, ids), expected)
    if options.model is None and options.text is None:
        save("ternary_llama_cpp", result)
    else:
        print(json.dumps(result, indent=1))
    return 0 if result["agreement"] >= 0.98 and result["same_tokens"] else 1


if __name__ == "__main__":
    sys.exit(main())
