"""Scores of what a language model writes, as objectives: exact match and F1 of the words.

A batch as for supervised fine-tuning: input_ids (B, T) of prompt and answer, labels (B, T), -100 on the prompt. The model is
given the prompt alone, writes greedily, and is compared with the answer.
"""

import abc
import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn


class _Generation(abc.ABC):
    """What both scores share: from a batch to (written, right) texts.

    Args:
        tokenizer: of the model.
        max_new_tokens: to write at most.
    """

    def __init__(self, tokenizer: Any, max_new_tokens: int = 16) -> None:
        if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise ValueError(f"max_new_tokens must be an integer of at least 1, got {max_new_tokens!r}")
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens

    def __call__(self, batch: Mapping[str, Any], model: nn.Module) -> float:
        pairs = self._written(batch, model)
        return sum(self.score(written, right) for written, right in pairs) / len(pairs)

    @abc.abstractmethod
    def score(self, written: str, right: str) -> float:
        """Of one row, higher is better."""

    @torch.no_grad()
    def _written(self, batch: Mapping[str, Any], model: Any) -> list[tuple[str, str]]:
        ids, labels = batch["input_ids"], batch["labels"]
        mask = batch.get("attention_mask")
        prompts, answers = [], []
        for row in range(len(ids)):
            counted = (labels[row] != -100).nonzero().flatten()
            if not len(counted):
                raise ValueError("a row has no label but -100, and so no answer to compare with")
            before = ids[row, : counted[0]]
            prompts.append(before if mask is None else before[mask[row, : counted[0]].bool()])
            answers.append(labels[row, counted])
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        longest = max(map(len, prompts))
        padded = torch.full((len(prompts), longest), pad, dtype=ids.dtype, device=ids.device)
        seen = torch.zeros_like(padded)
        for row, prompt in enumerate(prompts):  # on the left, so that the answers begin at one place
            padded[row, longest - len(prompt) :], seen[row, longest - len(prompt) :] = prompt, 1
        was_training = model.training
        model.eval()
        try:
            whole = model.generate(
                input_ids=padded,
                attention_mask=seen,
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        finally:
            model.train(was_training)
        written = self._tokenizer.batch_decode(whole[:, longest:], skip_special_tokens=True)
        right = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return list(zip(written, right, strict=True))


@final
class ExactMatch(_Generation):
    """Share of the rows whose written text is the answer, both normalised. In [0, 1].

    Args:
        tokenizer: of the model.
        max_new_tokens: to write at most, >= 1.

    Example:
        LocalPlugCallback("mezo", objective=ExactMatch(tokenizer, max_new_tokens=8), num_directions=8)
    """

    def score(self, written: str, right: str) -> float:
        """1 or 0."""
        return float(_words(written) == _words(right))


@final
class TokenF1(_Generation):
    """Mean over the rows of the F1 of their words, 2 |both| / (|written| + |answer|), counted with repetitions. In [0, 1].

    Moves with single words, where ExactMatch does not move at all; arguments as there.
    """

    def score(self, written: str, right: str) -> float:
        """Of one row."""
        left, wanted = collections.Counter(_words(written)), collections.Counter(_words(right))
        if not left or not wanted:
            return float(left == wanted)
        return 2 * (left & wanted).total() / (left.total() + wanted.total())


def _words(text: str) -> Sequence[str]:
    """Lower case, no punctuation, no articles (Rajpurkar et al., SQuAD, EMNLP 2016)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
