"""Models of transformers as they come: every operation of four families has a rule, LFP trains them in an attached loop."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import localplug
from localplug_credit.attribution import relevance
from localplug_credit.lfp import LFP
from localplug_credit.rules import STOPS, TABLE, Rules
from localplug_credit.tape import name_of

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_positions": 32, "bos_token_id": 0, "eos_token_id": 1}),
    "LlamaForCausalLM": ("LlamaConfig", {"intermediate_size": 64, "num_key_value_heads": 2}),
    "OPTForCausalLM": ("OPTConfig", {"ffn_dim": 64, "max_position_embeddings": 32, "word_embed_proj_dim": 32}),
    "BertForSequenceClassification": ("BertConfig", {"intermediate_size": 64, "num_labels": 3}),
}
BESIDE = {
    "arange",
    "ones",
    "zeros",
    "full",
    "scalar_tensor",
    "bitwise_and",
    "bitwise_or",
    "le",
    "lt",
    "gt",
    "ge",
    "eq",
    "ne",
}
"""What makes masks and positions, which have no relevance."""


def model(family, attention="sdpa"):
    config, options = FAMILIES[family]
    made = getattr(transformers, config)(**SMALL, **options)
    made._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = getattr(transformers, family)(made)
        for name, p in found.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p, std=0.1)
    return found.eval()


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.names.add(name_of(function))
        return result


IDS = torch.arange(16).view(2, 8) + 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_has_a_rule_and_every_weight_gets_relevance(family, attention):
    net = model(family, attention)
    with torch.no_grad(), Names() as seen:
        net(input_ids=IDS)
    assert len(seen.names) > 8
    assert not {n for n in seen.names if n not in TABLE and n not in STOPS | BESIDE | {"cos", "sin"}}
    (embedding,) = (n for n, m in net.named_modules() if m is net.get_input_embeddings())
    found = relevance(net, input_ids=IDS, at=[embedding], rules=Rules(softmax="identity"))
    assert found.parameters.keys() == dict(net.named_parameters()).keys()
    assert found.modules[embedding].shape == (2, 8, 32)
    assert all(torch.isfinite(r).all() for r in found.parameters.values())


def test_all_relevance_of_a_model_without_biases_arrives_at_its_tokens():
    """Llama has none. By softmax="identity" everything is conserved, by "taylor" it is not."""
    net = model("LlamaForCausalLM")

    def last(output):
        return output.logits[:, -1].max(-1).values

    for softmax, is_conserved in (("identity", True), ("taylor", False)):
        rules = Rules(softmax=softmax, eps=1e-9)
        found = relevance(net, input_ids=IDS, select=last, at=["model.embed_tokens"], rules=rules)
        difference = (found.modules["model.embed_tokens"].sum((1, 2)) - found.result).abs().max()
        assert (float(difference) < 1e-3 * float(found.result.abs().max())) == is_conserved


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_lfp_trains_it_on_the_loss_that_it_makes_itself(family):
    net = model(family).train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    with localplug.attach(net, LFP(), optimizer):
        for _ in range(12):
            loss = net(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3, losses
