"""transformers' BitNet format: what it holds, that it computes what it should, and what it cannot hold."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from localplug_ternary import TernaryConfig, export, freeze_, ternarize_
from localplug_ternary.export.bitnet import pack

# torch 2.13's compiler, imported by transformers' file of these layers
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
SIZES = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
S = 0.03125 * 1.5


def one_scale(method="twn", dtype=torch.float32, bias=False, **options):
    """A Llama whose weights are 0, S and -S, as those of BitNet; twn finds that scale again."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, attention_bias=bias, mlp_bias=bias)
        model = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "_proj.weight" in name:
                    p.copy_(torch.randint(-1, 2, p.shape) * S)
                elif name.endswith("bias"):
                    p.normal_()
    return ternarize_(model, TernaryConfig(method, **{"group_size": None, **options}))


@pytest.fixture(scope="module")
def theirs():
    from transformers.integrations import bitnet

    return bitnet


def test_the_bytes_are_those_of_transformers(theirs):
    codes = torch.randint(-1, 2, (12, 7), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(theirs.unpack_weights(pack(codes), torch.int8), codes)


@pytest.mark.parametrize("bias", [False, True])
def test_it_holds_codes_scale_and_bias_and_computes_with_them(bias, theirs, tmp_path):
    model = one_scale(bias=bias)
    written = AutoModelForCausalLM.from_pretrained(export.bitnet(model, tmp_path / "out"))
    layers = {name: m for name, m in written.named_modules() if isinstance(m, theirs.BitLinear)}
    assert len(layers) == 14 and type(written.lm_head) is torch.nn.Linear
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitnet"
    name = "model.layers.1.mlp.down_proj"
    assert layers[name].weight_scale.item() == pytest.approx(1 / S, rel=1e-7)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    a = 127 / x.abs().amax(-1, keepdim=True)
    w = model.get_submodule(name).weight.detach()
    expected = (x * a).round() / a @ w.T + (model.get_submodule(name).bias.detach() if bias else 0)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(layers[name](x), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_ternary_stay_linear(theirs, tmp_path):
    model = one_scale(modules_to_not_convert=["o_proj"])
    written = AutoModelForCausalLM.from_pretrained(export.bitnet(model, tmp_path / "out"))
    assert sum(isinstance(m, theirs.BitLinear) for m in written.modules()) == 12
    attention = written.model.layers[0].self_attn
    assert torch.equal(attention.o_proj.weight, model.model.layers[0].self_attn.o_proj.weight)


def test_what_it_cannot_hold_is_refused_all_at_once(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        several = LlamaForCausalLM._from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16)
    with pytest.raises(ValueError) as caught:
        export.bitnet(ternarize_(several, TernaryConfig("twn", group_size=None)), tmp_path / "out")
    assert "14 layers, such as 'model.layers.0.self_attn.q_proj', have scales that differ" in str(caught.value)
    assert "in torch.bfloat16 1 / s would be rounded" in str(caught.value)
    zero = freeze_(one_scale())
    zero.model.layers[0].mlp.up_proj.scales.data.zero_()
    with pytest.raises(ValueError, match=r"up_proj' has the scale 0"):
        export.bitnet(zero, tmp_path / "out")
    with torch.random.fork_rng():
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=64, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match=r"c_attn' is a Conv1D"):
        export.bitnet(ternarize_(gpt2, TernaryConfig("twn", group_size=None)), tmp_path / "out")
    assert not list(tmp_path.iterdir())
