"""speed_up_ of models of transformers: the same outputs, checkpoints and adapters."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import localplug_ternary.quantizer  # noqa: F401  (registers it)
from localplug_ternary import TernaryConfig, attention, export, freeze_, kernels, speed_up_, ternarize_
from localplug_ternary import dense as room
from localplug_ternary.dense import DenseLinear

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def llama(heads=4, keys=2, tied=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
            num_key_value_heads=keys, tie_word_embeddings=tied, initializer_range=0.3,
        )  # fmt: skip
        return freeze_(ternarize_(LlamaForCausalLM(config), TernaryConfig(group_size=64))).eval()


@torch.no_grad()
def decoded(model):
    """Logits of the tokens one by one, with a cache."""
    cache, logits = None, []
    for token in IDS[0]:
        out = model(token[None, None], cache=cache, use_cache=True)
        cache = out.cache
        logits.append(out.logits[0, 0])
    return torch.stack(logits)


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch):
    monkeypatch.setattr(room, "LEAST_WEIGHTS", 1)


@pytest.mark.parametrize(("heads", "keys"), [(4, 1), (4, 2), (4, 4)])
def test_decoding_gives_the_same_logits(heads, keys, monkeypatch):
    model = llama(heads, keys)
    before = decoded(model)
    assert speed_up_(model) is model and type(model.lm_head) is DenseLinear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda q, *args, **options: (calls.append((q.shape[1:3], options)), sdpa(q, *args, **options))[1],
    )  # fmt: skip
    torch.testing.assert_close(decoded(model), before, rtol=1e-5, atol=1e-5)
    assert {shape for shape, _ in calls} == {(keys, heads // keys)}
    assert not any(options.get("enable_gqa") for _, options in calls)
    speed_up_(model, on=False)
    assert model.config._attn_implementation == "sdpa" and torch.equal(decoded(model), before)


def test_prompts_masks_and_generation_are_as_before():
    model = llama()
    padded = {"input_ids": IDS.repeat(2, 1), "attention_mask": torch.tensor([[0] * 3 + [1] * 5, [1] * 8])}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        before = model(**padded).logits, model.generate(**padded, **options), model.generate(IDS, **options)
        speed_up_(model)
        after = model(**padded).logits, model.generate(**padded, **options), model.generate(IDS, **options)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("change", ["mask", "dropout", "softcap", "many tokens", "other batch"])
def test_attention_of_other_kinds_is_transformers_own(change, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **options: asked.append(options))
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    mask, options = None, {}
    if change == "mask":
        mask = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    elif change == "dropout":
        options = {"dropout": 0.5}
    elif change == "softcap":
        options = {"softcap": 30.0}
    elif change == "many tokens":
        query = torch.randn(1, 4, 3, 8)
    else:
        key = torch.randn(3, 2, 5, 8)
    attention.attention(torch.nn.Module(), query, key, key, mask, **options)
    assert len(asked) == 1


def test_another_attention_stays():
    model = llama()
    model.set_attn_implementation("eager")
    speed_up_(model)
    assert model.config._attn_implementation == "eager"
    speed_up_(model, on=False)
    assert model.config._attn_implementation == "eager"


def test_checkpoints_are_those_of_any_other_model(tmp_path):
    model = llama()
    expected = decoded(model)
    speed_up_(model).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(again.lm_head) is torch.nn.Linear and again.config._attn_implementation == "sdpa"
    assert torch.equal(decoded(again), expected)
    export.plain(model, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(decoded(plain), expected, rtol=1e-5, atol=1e-5)


def test_it_exports_to_gguf_as_before(tmp_path):
    pytest.importorskip("gguf")
    model = llama()
    before = export.gguf(model, None, tmp_path / "before", "Q2_0").read_bytes()
    assert export.gguf(speed_up_(model), None, tmp_path / "after", "Q2_0").read_bytes() == before


def test_layers_that_were_sped_up_become_ternary_like_others():
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    ternarize_(speed_up_(net), TernaryConfig(group_size=64))
    assert [type(m).__name__ for m in net] == ["TernaryLinear", "ReLU", "DenseLinear"]


def test_adapters_go_over_the_head():
    peft = pytest.importorskip("peft")
    model = llama(tied=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(
            speed_up_(model), peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)
        ).eval()
    fast = decoded(adapted)
    torch.testing.assert_close(fast, decoded(speed_up_(adapted, on=False)), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("avx2" not in kernels.dense_bodies(), reason="no fast body here")
def test_in_bfloat16_the_head_is_off_by_one_rounding_at_most():
    head = speed_up_(torch.nn.ModuleList([torch.nn.Linear(512, 300, bias=False).bfloat16()])).requires_grad_(False)[0]
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.nn.functional.linear(x.double(), head.weight.double())
    error = (head(x).double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-6).all()
