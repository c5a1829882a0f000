"""TRL's SFTTrainer, unmodified: its loss is not the model's own, and the first backward call shows which leaf it uses."""

import pytest
import torch

from localplug_transformers import LocalPlugCallback
from problems import tiny_llama, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # trl 1.16's own


def test_supervised_fine_tuning(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(61))]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    rows = [{"text": " ".join(words[3 + (i + 5 * k) % 61] for k in range(10))} for i in range(16)]
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, max_length=16,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, max_grad_norm=0.0, activation_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    model, callback = tiny_llama(), LocalPlugCallback("mezo")
    start = weights(model)
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[callback]
    )
    trainer.train()
    assert callback.engine.run.num_forwards in (6, 8)  # 8 if the first step had to be repeated on another leaf
    assert not torch.equal(weights(model), start)
    assert not trainer.optimizer.state and all(p.grad is None for p in model.parameters())
