"""What a language model writes, scored as an objective: prompts, padding, normalisation, training through the callback."""

import pytest
import torch

from localplug_transformers import ExactMatch, LocalPlugCallback, TokenF1
from problems import fit, logged, tiny_llama, weights


class Words:
    """A tokenizer of numbered words; token 0 pads and ends, and is skipped."""

    pad_token_id, eos_token_id = None, 0

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(f"w{int(t)}" for t in row if int(t) != 0) for row in rows]


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


def written_by(model, prompts, count):
    """Greedy continuations, one prompt at a time and without any padding."""
    found = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(count):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


def batch_of(prompts, answers):
    """Padded on the right with 0, as collators do."""
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    rows = {"input_ids": [], "labels": [], "attention_mask": []}
    for p, a in zip(prompts, answers, strict=True):
        rest = longest - len(p) - len(a)
        rows["input_ids"].append([*p, *a, *[0] * rest])
        rows["labels"].append([*[-100] * len(p), *a, *[-100] * rest])
        rows["attention_mask"].append([*[1] * (len(p) + len(a)), *[0] * rest])
    return {k: torch.tensor(v) for k, v in rows.items()}


def test_what_is_written_is_the_greedy_answer_to_each_prompt_alone():
    model = tiny_llama().train()
    answers = written_by(model, PROMPTS, 3)
    score = ExactMatch(Words(), max_new_tokens=3)
    batch = batch_of(PROMPTS, answers)
    assert score(batch, model) == 1.0 and model.training
    del batch["attention_mask"]
    assert score(batch, model) == 1.0
    answers[1][0] += 1
    assert score(batch_of(PROMPTS, answers), model) == pytest.approx(2 / 3)
    assert TokenF1(Words(), max_new_tokens=3)(batch_of(PROMPTS, answers), model) > 2 / 3


@pytest.mark.parametrize(
    "written, right, exact, f1",
    [
        ("The  cat.", "cat", 1, 1.0),
        ("a cat sat", "cat", 0, 2 / 3),
        ("Cat cat dog", "cat dog dog", 0, 2 / 3),
        ("dog", "cat", 0, 0.0),
        ("the", "", 1, 1.0),
        ("", "cat", 0, 0.0),
    ],
)
def test_scores_of_one_row(written, right, exact, f1):
    assert ExactMatch(Words()).score(written, right) == exact
    assert TokenF1(Words()).score(written, right) == pytest.approx(f1)


def test_a_row_without_an_answer_is_refused():
    batch = batch_of(PROMPTS, [[1], [2], [3]])
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match="no answer to compare with"):
        ExactMatch(Words())(batch, tiny_llama())
    with pytest.raises(ValueError, match="max_new_tokens must be an integer of at least 1, got 0"):
        TokenF1(Words(), max_new_tokens=0)


def test_the_score_of_what_is_written_rises_in_an_unmodified_trainer(tmp_path):
    """Sixteen prompts whose answer is the word that the model writes after some of them already."""
    model = tiny_llama(vocab_size=16)
    prompts = [[i, j, 3] for i in range(6, 10) for j in range(10, 14)]
    first = [row[0] for row in written_by(model, prompts, 1)]
    answer = max(set(first), key=first.count)
    rows = [{k: v[0] for k, v in batch_of([prompt], [[answer]]).items()} for prompt in prompts]
    score = TokenF1(Words(), max_new_tokens=1)
    everything = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
    before, start = score(everything, model), weights(model)
    callback = LocalPlugCallback("mezo", objective=score, num_directions=4, eps=1e-2)
    trainer = fit(model, tmp_path, callback, rows, max_steps=60, learning_rate=1e-3, per_device_train_batch_size=16)
    assert not torch.equal(weights(model), start)
    assert before < 0.7 and score(everything, model) > 0.9
    assert all(-1 <= loss <= 0 for loss in logged(trainer, "loss"))
    assert callback.engine.run.num_forwards == 60 * 8


def test_accuracy_by_name_through_the_callback_and_its_checkpoint(tmp_path):
    model = tiny_llama()
    callback = LocalPlugCallback("mezo", objective="accuracy", eps=0.02, num_directions=2)
    trainer = fit(model, tmp_path, callback, max_steps=3, save_strategy="steps", save_steps=2)
    assert all(-1 <= loss <= 0 for loss in logged(trainer, "loss"))
    assert callback.state()["args"]["objective"] == "accuracy"
    with pytest.raises(TypeError, match="a name or a callable"):
        LocalPlugCallback("mezo", objective=3)
