"""Small problems: a tiny Llama, token data, a Trainer and what it leaves behind."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

transformers.utils.logging.set_verbosity_error()


def tiny_llama(seed=0, **changes):
    torch.manual_seed(seed)
    config = dict(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes}))


class Tokens(torch.utils.data.Dataset):
    """Random token sequences that follow one rule (each token is the one before plus a fixed stride), as a causal LM task."""

    def __init__(self, num=64, length=12, vocab=64, seed=1):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(3, vocab, (num, 1), generator=generator)
        self.x = 3 + (start + 5 * torch.arange(length)) % (vocab - 3)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(input_ids=self.x[i], attention_mask=torch.ones_like(self.x[i]), labels=self.x[i].clone())


def arguments(folder, **changes):
    given = dict(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, seed=0, disable_tqdm=True, weight_decay=0.0,
        dataloader_pin_memory=False, max_grad_norm=0.0,
    )  # fmt: skip
    return TrainingArguments(**{**given, **changes})


def fit(model, folder, callback, data=None, resume=None, trainer=Trainer, trainer_options=None, also=(), **changes):
    made = trainer(
        model,
        arguments(folder, **changes),
        train_dataset=data or Tokens(),
        callbacks=[callback, *also],
        **(trainer_options or {}),
    )
    made.remove_callback(transformers.PrinterCallback)
    made.train(resume_from_checkpoint=resume)
    return made


def weights(model):
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class SavedElements:
    """Counts the elements that autograd saves for a backward pass, and their peak while they live."""

    def __init__(self):
        self.total = 0

    def __enter__(self):
        def pack(x):
            self.total += x.numel()
            return x

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc):
        self._hooks.__exit__(*exc)
