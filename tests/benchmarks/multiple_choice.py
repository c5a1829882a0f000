"""Multiple-choice questions, scored as the lm-evaluation harness scores them: the log-likelihood of each answer's tokens.

    accuracy               the answer of the largest sum of log p(token | question, tokens before)
    accuracy, normalised   the same by the number of characters of the answer

Prompts are the harness's own for these tasks, without examples before them (0-shot). In winogrande the question differs and the
answer is the same; its normalised number says nothing and is left out, as are those of tasks whose answers are single words.
"""

import csv
import dataclasses
import json
import math
import random

import torch


@dataclasses.dataclass(frozen=True)
class Question:
    """(text before, answer after it) of each choice, and the number of the right one."""

    pairs: tuple[tuple[str, str], ...]
    right: int


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _arc(name):
    def read(data):
        rows = _lines(data / f"arc/{name}.jsonl")
        return [Question(tuple((f"{r['query']}\nAnswer:", f" {c}") for c in r["choices"]), r["gold"]) for r in rows]

    return read


def openbookqa(data):
    rows = _lines(data / "openbookqa/openbook_qa.jsonl")
    return [Question(tuple((r["query"], f" {c}") for c in r["choices"]), r["gold"]) for r in rows]


def winogrande(data):
    rows = _lines(data / "winogrande/winogrande.jsonl")
    return [Question(tuple((o, f" {r['continuation']}") for o in r["context_options"]), r["gold"]) for r in rows]


def boolq(data):
    rows = _lines(data / "boolq/val.jsonl")
    return [
        Question(
            tuple((f"{r['passage']}\nQuestion: {r['question']}?\nAnswer:", word) for word in (" no", " yes")),
            int(str(r["label"]).lower() in ("true", "1")),
        )
        for r in rows
    ]


def rte(data):
    text = (data / "rte/dev.tsv").read_text().splitlines()
    return [
        Question(
            tuple(
                (f"{r['sentence1']}\nQuestion: {r['sentence2']} True or False?\nAnswer:", word)
                for word in (" True", " False")
            ),
            int(r["label"] != "entailment"),
        )
        for r in csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    ]


TASKS = {
    "arc_easy": _arc("arc_easy"),
    "arc_challenge": _arc("arc_challenge"),
    "openbookqa": openbookqa,
    "winogrande": winogrande,
    "boolq": boolq,
    "rte": rte,
}
TOGETHER = 4  # questions in one batch: packed layers are unpacked once for them
NORMALISED = ("arc_easy", "arc_challenge", "openbookqa")


def some(questions, count, seed=0):
    """`count` of them, the same ones for each model."""
    questions = list(questions)
    random.Random(seed).shuffle(questions)
    return questions[:count]


@torch.no_grad()
def log_likelihoods(model, tokenizer, pairs):
    """log p(answer | text) of each pair, summed over the answer's tokens, in one batch.

    Spaces at the end of the text belong to the answer, as in the harness; text and answer are cut into tokens together.
    """
    rows = []
    for text, answer in pairs:
        before, whole = tokenizer.encode(text.rstrip()), tokenizer.encode(text + answer)
        rows.append((whole[:-1], whole[len(before) :]))
    inputs = list(dict.fromkeys(tuple(given) for given, _ in rows))  # answers of one token after one text need it once
    longest = max(map(len, inputs))
    ids_BT = torch.tensor([[*given, *[0] * (longest - len(given))] for given in inputs], device=model.device)
    mask_BT = torch.tensor([[i < len(given) for i in range(longest)] for given in inputs], device=model.device).long()
    first = min(len(given) + 1 - len(answer) for given, answer in rows) - 1  # logits before that are of no answer
    kept = torch.arange(first, longest, device=model.device)
    logits_BtV = model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=kept).logits.float()
    found = []
    for given, answer in rows:
        end = len(given) - first
        log_p_tV = logits_BtV[inputs.index(tuple(given)), end - len(answer) : end].log_softmax(-1)
        found.append(float(log_p_tV.gather(-1, torch.tensor(answer, device=model.device)[:, None]).sum()))
    return found


def score(model, tokenizer, questions, is_normalised):
    """{"accuracy", "error", "normalised"}: shares in [0, 1]; error is one standard deviation of the accuracy."""
    was_training = model.training
    model.eval()
    right = right_normalised = 0
    by_size = sorted(questions, key=lambda q: max(len(text + answer) for text, answer in q.pairs))  # little padding
    for start in range(0, len(by_size), TOGETHER):
        together = by_size[start : start + TOGETHER]
        sums = iter(log_likelihoods(model, tokenizer, [pair for q in together for pair in q.pairs]))
        for question in together:
            found = [next(sums) for _ in question.pairs]
            # Characters of the answer without the space that joins it to the question, as the harness counts.
            by_length = [x / max(len(a) - 1, 1) for x, (_, a) in zip(found, question.pairs, strict=True)]
            right += found.index(max(found)) == question.right
            right_normalised += by_length.index(max(by_length)) == question.right
    model.train(was_training)
    p, n = right / len(questions), len(questions)
    result = {"questions": n, "accuracy": round(p, 4), "error": round(math.sqrt(p * (1 - p) / n), 4)}
    return {**result, "normalised": round(right_normalised / n, 4)} if is_normalised else result
