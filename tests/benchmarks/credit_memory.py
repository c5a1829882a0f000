"""What the tape of a relevance pass holds at the end of a forward pass, over what autograd saves for a backward pass, in bytes.

    python tests/benchmarks/credit_memory.py

Each model with its weights at random, in training mode without dropout, the same batch for both; each storage counts once,
parameters and the batch itself do not. rebuild=0 keeps whatever a rule reads; rebuild=n makes again what n operations make. The
ratios depend on shapes alone, not on the machine. `passes` is the time of LFP's forward and relevance pass over that of
backpropagation's forward and backward pass, the least of five runs in turn, one thread.
"""

import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from localplug_credit.attribution import follow
from localplug_credit.rules import Rules
from localplug_credit.tape import kept_bytes
from localplug_credit.walk import predictions, walk
from mnist import cnn
from record import save

REBUILD = (0, 1, 2, 4, 8)


def models():
    import transformers as t

    torch.manual_seed(0)
    ids = torch.randint(0, 1000, (4, 128))
    small = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    gpt2 = t.GPT2Config(**small, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    llama = t.LlamaConfig(**small, intermediate_size=688, num_key_value_heads=4)
    bert = t.BertConfig(
        **small, intermediate_size=1024, hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=4
    )
    relu = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())]
    normed = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU())]
    labels = torch.randint(0, 4, (128,))
    tokens = {"input_ids": ids, "labels": ids}
    yield "MLP, ReLU", nn.Sequential(*relu, nn.Linear(256, 4)), (torch.randn(128, 256), labels)
    yield "MLP, norm and GELU", nn.Sequential(*normed, nn.Linear(256, 4)), (torch.randn(128, 256), labels)
    yield "CNN of MNIST", cnn(), (torch.randn(128, 1, 28, 28), labels)
    yield "GPT-2, 4 blocks", t.GPT2LMHeadModel(gpt2), tokens
    yield "Llama, 4 blocks", t.LlamaForCausalLM(llama), tokens
    yield (
        "BERT, 4 blocks",
        t.BertForSequenceClassification(bert),
        {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 3])},
    )


def loss_of(model, batch):
    return model(**batch).loss if isinstance(batch, dict) else F.cross_entropy(model(batch[0]), batch[1])


def saved_by_autograd(model, batch):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    own |= {x.untyped_storage().data_ptr() for x in (batch.values() if isinstance(batch, dict) else batch)}
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model, batch)
    total = sum(sizes.values())
    del loss
    return total


def taped(model, batch, rebuild):
    rules = Rules()
    with torch.no_grad(), follow(model, rebuild=rebuild) as tape:
        loss = loss_of(model, batch)
    top = tape.value(loss)
    held = kept_bytes([top], [*(batch.values() if isinstance(batch, dict) else batch), *model.buffers()])
    with torch.no_grad():
        walk({v: -v.tensor() * g for v, g in predictions(top, torch.ones(())).items()}, rules)
    return held


def least(action, times=5):
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = {}
    for name, model, batch in models():
        model.train()
        whole = saved_by_autograd(model, batch)
        row = {"autograd_bytes": whole}
        row |= {f"rebuild={n}": round(taped(model, batch, n) / whole, 3) for n in REBUILD}
        backprop = least(lambda model=model, batch=batch: loss_of(model, batch).backward())
        row["passes"] = round(least(lambda model=model, batch=batch: taped(model, batch, 1)) / backprop, 2)
        result[name] = row
        print(name, row, flush=True)
    save("credit_memory", result)
