"""Steer a model that only runs inference: search a soft prompt by forward passes, as in black-box tuning (arXiv:2201.03514).

The prompt has 4 x 32 numbers; the search sees 16, which a fixed random matrix takes to them. Nothing of the model is trained,
and no graph is built.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localplug_blackbox import Box, DirectionalAttacks, minimize

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    initializer_range=0.3,
)
model = LlamaForCausalLM(config).eval()  # or from_pretrained(...)
wanted = torch.randint(0, 64, (6,))  # what the model should say after the prompt
matrix = torch.randn(16, 4 * config.hidden_size) / 16**0.5


@torch.no_grad()
def loss(z_ND):
    """(N,): the model's loss on the wanted tokens, for each of N prompts at once."""
    prompt = (z_ND.float() @ matrix).view(len(z_ND), 4, -1)
    ids = wanted.expand(len(z_ND), -1)
    said = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=torch.cat([prompt, said], 1)).logits[:, 3:-1]
    return torch.nn.functional.cross_entropy(logits.mT, ids, reduction="none").mean(1)


searcher = DirectionalAttacks(Box([-10.0] * 16, [10.0] * 16), step=1.0, attack_radius=0.5)
print(f"loss before {loss(torch.zeros(1, 16)).item():.3f}")
best = minimize(loss, searcher, 600, batch=8)
print(f"loss after {best.value:.3f}, with {searcher.num_evaluations} forward passes")
