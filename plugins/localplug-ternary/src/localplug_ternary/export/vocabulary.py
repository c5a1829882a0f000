"""A tokenizer as GGUF keeps it: tokens, their kinds, and merges (byte-level pairs) or scores (sentencepiece pairs).

llama.cpp splits text by rules of its own, which a name in the file chooses. A byte-level tokenizer is written if its rules are
those of a name that is known here. Scores of sentencepiece pairs are the ranks of merges, with a minus sign: llama.cpp joins
the pair of the highest score first, as the tokenizer does the one of the lowest rank.
"""

import json
from typing import Any

from torch import nn

# Token kinds of GGUF.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# (what cuts text before the byte level, in order; whether whole words that are tokens need no merges): llama.cpp's name
_RULES: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
    ((_QWEN2,), False): "qwen2",
    ((_LLAMA3,), True): "llama-bpe",
}


def vocabulary(tokenizer: Any, embedding: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Fields of the header, named as GGUFWriter's methods without "add_", and what stands against writing them."""
    weight: Any = embedding.weight
    num_rows = weight.shape[0]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}, [f"{type(tokenizer).__name__} is no fast tokenizer; tokenizer=None writes none"]
    spec = json.loads(backend.to_str())
    model = spec["model"]
    ids: dict[str, int] = tokenizer.get_vocab()
    wrong = []
    if model["type"] != "BPE":
        wrong.append(
            f"a tokenizer of type {model['type']} is not written, byte pairs (BPE) are; tokenizer=None writes none"
        )
    if ids and max(ids.values()) >= num_rows:
        wrong.append(f"the tokenizer has ids up to {max(ids.values())}, the model's embedding {num_rows} rows")
    if wrong:
        return {}, wrong
    own = _sentencepiece(spec, ids, num_rows) if model.get("byte_fallback") else _byte_level(spec)
    if isinstance(own, str):
        return {}, [f"{own}; tokenizer=None writes none"]
    tokens, kinds = _tokens(tokenizer, model, ids, num_rows)
    fields = {**own, "token_list": tokens, "token_types": kinds, **_special(tokenizer)}
    return fields, []


def _tokens(tokenizer: Any, model: dict[str, Any], ids: dict[str, int], num_rows: int) -> tuple[list[str], list[int]]:
    tokens, kinds = [f"[PAD{i}]" for i in range(num_rows)], [_UNUSED] * num_rows
    for token, i in ids.items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[i], kinds[i] = token, _BYTE if is_byte else _NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        kinds[i] = _CONTROL if added.special else _USER_DEFINED
    if (unknown := model.get("unk_token")) in ids:
        kinds[ids[unknown]] = _UNKNOWN
    return tokens, kinds


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    split = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in split]


def _flat(step: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[inside]) if step["type"] == "Sequence" else [step]


def _byte_level(spec: dict[str, Any]) -> dict[str, Any] | str:
    rules: list[str] = []
    is_byte_level = False
    for step in _flat(spec["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "ByteLevel":
            is_byte_level = not step["add_prefix_space"]
            rules += ["gpt2"] if step["use_regex"] else []
        elif step["type"] == "Split" and step["behavior"] == "Isolated":
            rules.append(step["pattern"].get("Regex", "another"))
        elif step["type"] == "Digits" and step["individual_digits"]:
            rules.append("digits")
        else:
            rules.append("another")
    whole_words = bool(spec["model"].get("ignore_merges"))
    normalizers = {step["type"] for step in _flat(spec["normalizer"], "normalizers")}
    name = _RULES.get((tuple(rules), whole_words))
    if not is_byte_level or name is None or normalizers - {"NFC"}:
        return f"the tokenizer cuts text by rules that have no known name in llama.cpp (known: {', '.join(_RULES.values())})"
    merges = [" ".join(pair) for pair in _pairs(spec["model"])]
    return {"tokenizer_model": "gpt2", "tokenizer_pre": name, "token_merges": merges}


def _sentencepiece(spec: dict[str, Any], ids: dict[str, int], num_rows: int) -> dict[str, Any] | str:
    steps = [*_flat(spec["normalizer"], "normalizers"), *_flat(spec["pre_tokenizer"], "pretokenizers")]
    kinds = {step["type"] for step in steps}
    marks = [s for s in steps if s["type"] == "Metaspace" or (s["type"] == "Replace" and s.get("content") == "\u2581")]
    if kinds - {"Prepend", "Replace", "Metaspace"} or not marks:
        return f"the tokenizer normalizes text by {', '.join(sorted(kinds)) or 'nothing'}, which is not sentencepiece's way"
    prefix = "Prepend" in kinds or any(s.get("prepend_scheme") in ("always", "first") for s in marks)
    scores = [-1e6] * num_rows  # of what no merge makes
    for rank, (left, right) in enumerate(_pairs(spec["model"])):  # all pairs that make one token stand together
        if left + right in ids:
            scores[ids[left + right]] = -float(rank)
    return {"tokenizer_model": "llama", "tokenizer_pre": "default", "token_scores": scores, "add_space_prefix": prefix}


def _special(tokenizer: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in ("bos", "eos", "unk", "pad"):
        if (i := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            fields[f"{name}_token_id"] = i
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    fields["add_bos_token"] = len(whole) > len(bare) and whole[0] == tokenizer.bos_token_id
    fields["add_eos_token"] = len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id
    if isinstance(template := getattr(tokenizer, "chat_template", None), str):
        fields["chat_template"] = template
    return fields
