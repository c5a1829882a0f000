"""The scorer of tests/benchmarks/multiple_choice.py, against sums made by hand."""

import importlib.util
import pathlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOM = pathlib.Path(__file__).parents[3] / "tests" / "benchmarks" / "multiple_choice.py"


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, text):
        return [ord(c) - 32 for c in text]


@pytest.fixture(scope="module")
def room():
    spec = importlib.util.spec_from_file_location("multiple_choice", ROOM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            initializer_range=0.5,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@torch.no_grad()
def by_hand(model, text, answer):
    """log p of the answer, token by token, each by a forward pass of its own."""
    total = 0.0
    for i in range(len(answer)):
        ids = torch.tensor([Letters().encode(text + answer[:i])])
        total += float(model(ids).logits[0, -1].log_softmax(-1)[ord(answer[i]) - 32])
    return total


def test_sums_of_answers_of_several_lengths(room, model):
    pairs = [("What is it?", " a cat"), ("What is it?", " b"), ("Which?", " something longer")]
    found = room.log_likelihoods(model, Letters(), pairs)
    assert found == pytest.approx([by_hand(model, *pair) for pair in pairs], abs=1e-4)


def test_answers_of_one_token_share_one_pass(room, model):
    widths = []
    handle = model.register_forward_pre_hook(lambda m, a, k: widths.append(k["input_ids"].shape), with_kwargs=True)
    found = room.log_likelihoods(model, Letters(), [("So, is it?", "y"), ("So, is it?", "n")])
    handle.remove()
    assert widths == [(1, 10)]
    assert found == pytest.approx([by_hand(model, "So, is it?", c) for c in "yn"], abs=1e-4)


def test_a_space_at_the_end_of_the_text_is_the_answers(room, model):
    assert room.log_likelihoods(model, Letters(), [("It is ", "a")]) == pytest.approx(
        [by_hand(model, "It is", " a")], abs=1e-4
    )


def test_accuracy_by_sum_and_by_length(room, model, monkeypatch):
    sums = {" no": -4.0, " certainly": -9.0, " maybe so": -9.5}
    monkeypatch.setattr(room, "log_likelihoods", lambda model, tokenizer, pairs: [sums[a] for _, a in pairs])
    question = room.Question(tuple(("Well?", answer) for answer in sums), right=1)
    # By sum " no" is best; by length -4 / 2, -9 / 9 and -9.5 / 8, so " certainly".
    assert room.score(model, None, [question], True) == {
        "questions": 1,
        "accuracy": 0.0,
        "error": 0.0,
        "normalised": 1.0,
    }
    two = [question, room.Question(question.pairs, right=0)]
    assert room.score(model, None, two, False) == {"questions": 2, "accuracy": 0.5, "error": pytest.approx(0.3536)}


def test_the_same_questions_each_time(room):
    assert room.some(range(100), 5) == room.some(range(100), 5) != room.some(range(100), 5, seed=1)
