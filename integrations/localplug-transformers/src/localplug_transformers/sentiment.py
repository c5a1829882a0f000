"""The demo's task: is a review positive or negative? Asked as "<review> It was", answered by " great" or " terrible".

The prompt and the label words are MeZO's for SST-2 (Malladi et al., 2023, table 14), and so is the loss: cross entropy
over the two label words at the last token. The language model becomes an ordinary sequence-classification model whose
two output rows are the language-model head's rows of the two words, so that it starts at the zero-shot answer.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

PROMPT = "{text} It was"
WORDS = (" terrible", " great")  # label 0, label 1
LABELS = {"negative": 0, "positive": 1, "0": 0, "1": 1}
OUR_DATA = pathlib.Path(__file__).parent / "reviews.jsonl"


@dataclasses.dataclass
class Review:
    """One example; label 1 is positive."""

    text: str
    label: int


def read(path: pathlib.Path) -> tuple[list[Review], list[Review]]:
    """(train, held out) rows of a .jsonl or .tsv file with a text (or sentence) and a label.

    A field or column `split` with "train" and anything else tells them apart; without it every second row is held out.

    Raises:
        ValueError: the file is of another kind, lacks a column, holds another label, or one side is empty.
    """
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    elif path.suffix == ".tsv":
        rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    else:
        raise ValueError(f"--data must be a .jsonl or .tsv file, got {path.name}")
    train: list[Review] = []
    held_out: list[Review] = []
    for number, row in enumerate(rows, 1):
        text = row.get("text", row.get("sentence"))
        label = LABELS.get(str(row.get("label")).lower())
        if text is None or label is None:
            raise ValueError(
                f"{path.name}, row {number}: needs 'text' (or 'sentence') and a 'label' out of {sorted(LABELS)}, has {row}"
            )
        is_train = row["split"] == "train" if "split" in row else number % 2 == 1
        (train if is_train else held_out).append(Review(text.strip(), label))
    if not train or not held_out:
        raise ValueError(f"{path.name}: {len(train)} training rows and {len(held_out)} held-out rows; both are needed")
    return train, held_out


class Prompts(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised prompts with their labels.

    Args:
        max_tokens: longer prompts lose their beginning.
    """

    def __init__(self, reviews: Sequence[Review], tokenizer: Any, max_tokens: int = 64) -> None:
        self.rows = [
            {
                "input_ids": tokenizer.encode(PROMPT.format(text=r.text), add_special_tokens=False)[-max_tokens:],
                "labels": r.label,
            }
            for r in reviews
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


def classifier(name: str, words: Sequence[str] = WORDS) -> tuple[Any, Any]:
    """(model, tokenizer): a causal language model by name or folder as a classifier of reviews, in float32.

    Args:
        words: the answer that stands for each label.

    Raises:
        ValueError: the tokenizer cuts a label word in pieces, so that the prompt does not fit the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    language_model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    config = language_model.config
    config.num_labels = len(words)
    config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config)
    setattr(model, model.base_model_prefix, language_model.base_model)
    with torch.no_grad():
        model.score.weight.copy_(language_model.get_output_embeddings().weight[_answer_tokens(tokenizer, words)])
    return model, tokenizer


def _answer_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    tokens = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    if any(len(t) != 1 for t in tokens):
        raise ValueError(f"the tokenizer makes {tokens} of {words}; the demo needs a model where each is one token")
    return [t[0] for t in tokens]


def collator(pad: int) -> Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]:
    """Pads on the right with the token `pad`: input_ids and attention_mask (B, T), labels (B,)."""

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(r["input_ids"]) for r in rows)
        return {
            "input_ids": torch.tensor([r["input_ids"] + [pad] * (longest - len(r["input_ids"])) for r in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
            ),
            "labels": torch.tensor([r["labels"] for r in rows]),
        }

    return collate


@torch.no_grad()
def accuracy(model: Any, data: Prompts, batch_size: int = 32) -> float:
    """Share of the rows whose right label has the larger logit. In [0, 1]."""
    was_training = model.training
    model.eval()
    collate = collator(model.config.pad_token_id)
    rows = sorted(data.rows, key=lambda row: len(row["input_ids"]))  # little padding
    right = 0
    for start in range(0, len(rows), batch_size):
        batch = {k: v.to(model.device) for k, v in collate(rows[start : start + batch_size]).items()}
        labels_B = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels_B).sum())
    model.train(was_training)
    return right / len(rows)
