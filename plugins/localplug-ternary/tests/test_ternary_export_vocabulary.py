"""A tokenizer in GGUF: what llama.cpp is told cuts text as the tokenizer does."""

import itertools
import json

import gguf
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localplug_ternary import TernaryConfig, export, ternarize_
from localplug_ternary.export import vocabulary as room
from localplug_ternary.export.vocabulary import vocabulary

TEXT = [
    "the quick brown fox jumps over the lazy dog", "they're 12345 years old, aren't they?", "hello hello world  world",
    "a tale of the towns that the others told", "\u00fcber stra\u00dfe \u4e2d\u6587 \U0001f600",
]  # fmt: skip


def byte_level(steps, ignore_merges=False, normalizer=None):
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    fast.add_tokens([AddedToken("<tool>", special=False)])
    fast.chat_template = "{{ messages }}"
    return fast


GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False)]


def split(pattern):
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def sentencepiece():
    """As converted from sentencepiece: merges by rank, unknown characters as bytes, a space before the text."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.train_from_iterator([line.replace("\u4e2d", "") for line in TEXT[:4]], trainer)
    learned = json.loads(backend.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    ids = {token: i for i, token in enumerate([*first, *learned["vocab"]])}
    merges = [
        (token[:i], token[i:])
        for token in map("".join, learned["merges"])
        for i in range(1, len(token))
        if token[:i] in ids and token[i:] in ids
    ]
    assert len(merges) > len(learned["merges"])
    whole = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    whole.normalizer = backend.normalizer
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def rows(n):
    return torch.nn.Embedding(n, 2)


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (byte_level(GPT2), "gpt-2"),
        (byte_level([pre_tokenizers.Digits(individual_digits=True), *GPT2]), "smollm"),
        (byte_level(split(room._QWEN2), normalizer=normalizers.NFC()), "qwen2"),
        (byte_level(split(room._LLAMA3), ignore_merges=True), "llama-bpe"),
    ],
)
def test_byte_level_rules_have_the_names_of_llama_cpp(tokenizer, name):
    fields, wrong = vocabulary(tokenizer, rows(340))
    assert not wrong and (fields["tokenizer_model"], fields["tokenizer_pre"]) == ("gpt2", name)
    tokens, kinds = fields["token_list"], fields["token_types"]
    assert all(tokens[i] == token for token, i in tokenizer.get_vocab().items())
    assert len(tokens) == len(kinds) == 340 and tokens[339] == "[PAD339]"
    CONTROL, USER, UNUSED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED
    assert (kinds[0], kinds[tokenizer.convert_tokens_to_ids("<tool>")], kinds[339]) == (CONTROL, USER, UNUSED)
    assert kinds.count(gguf.TokenType.NORMAL) == len(tokenizer) - 3
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (0, 1)
    assert fields["add_bos_token"] is True and fields["add_eos_token"] is False
    assert fields["chat_template"] == "{{ messages }}" and "pad_token_id" not in fields
    assert fields["token_merges"] and all(len(m.split(" ")) == 2 for m in fields["token_merges"])


def joined_by_score(text, fields):
    """Sentencepiece's own algorithm: join the neighbours that make the token of the highest score, the first of equals."""
    score = dict(zip(fields["token_list"], fields["token_scores"], strict=True))
    ids = {token: i for i, token in enumerate(fields["token_list"])}
    parts = list(("\u2581" if fields["add_space_prefix"] else "") + text.replace(" ", "\u2581"))
    while pairs := [(-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()])]


def test_sentencepiece_scores_join_as_the_merges_do():
    tokenizer = sentencepiece()
    fields, wrong = vocabulary(tokenizer, rows(400))
    assert not wrong and fields["tokenizer_model"] == "llama"
    assert fields["token_types"][:4] == [2, 3, 3, gguf.TokenType.BYTE]
    for text in TEXT:
        assert joined_by_score(text, fields) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert max(len(t) for t in fields["token_list"] if "PAD" not in t and not t.startswith("<")) > 4


@pytest.mark.parametrize("tokenizer", [byte_level(GPT2), sentencepiece()])
def test_the_reader_of_transformers_gets_the_same_tokenizer(tokenizer, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=400, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2
        )
        model = ternarize_(LlamaForCausalLM(config), TernaryConfig("twn"))
    path = export.gguf(model, tokenizer, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXT:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (byte_level(split(r"\p{N}+")), "no known name in llama.cpp"),
        (byte_level(split(room._LLAMA3)), "no known name in llama.cpp"),  # llama.cpp would look for whole words first
        (byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)]), "no known name"),
        (byte_level(GPT2, normalizer=normalizers.Lowercase()), "no known name"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))), "of type WordLevel"),
        (object(), "object is no fast tokenizer"),
    ],
)
def test_what_llama_cpp_would_cut_in_another_way_is_refused(tokenizer, words):
    fields, wrong = vocabulary(tokenizer, rows(400))
    assert not fields and len(wrong) == 1 and words in wrong[0] and "tokenizer=None" in wrong[0]


def test_more_tokens_than_rows_are_refused():
    assert vocabulary(byte_level(GPT2), rows(200))[1] == [
        "the tokenizer has ids up to 330, the model's embedding 200 rows"
    ]
