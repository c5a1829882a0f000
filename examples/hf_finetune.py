"""An unmodified Hugging Face Trainer that trains a Llama without backpropagation: one callback, and nothing else changed.

The model is a tiny random one, made from its configuration, so that nothing is downloaded; put your own
AutoModelForCausalLM.from_pretrained(...) in its place. It learns sequences in which every token is its predecessor plus 5.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from localplug_transformers import LocalPlugCallback


def sequences(num: int = 64, length: int = 12, vocabulary: int = 32) -> list[dict[str, torch.Tensor]]:
    start = torch.randint(vocabulary, (num, 1), generator=torch.Generator().manual_seed(1))
    tokens = (start + 5 * torch.arange(length)) % vocabulary
    return [{"input_ids": row, "labels": row} for row in tokens]


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.1,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=150,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            max_grad_norm=0.0,
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        data = sequences()
        callback = LocalPlugCallback("mezo", eps=1e-3, num_directions=2)
        trainer = Trainer(
            LlamaForCausalLM(config), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback]
        )
        print(f"loss before {trainer.evaluate()['eval_loss']:.4f}")
        trainer.train()
        print(f"loss after {trainer.evaluate()['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
