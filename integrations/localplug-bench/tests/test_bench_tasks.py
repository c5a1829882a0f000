"""The contract of a task, and each task of the bench from small files of its own format."""

import gzip
import importlib.util
import json
import pathlib
import re
import types
from typing import ClassVar

import numpy
import pytest
import torch
from torch import nn

import localplug
from localplug import Parts, Sealed, Task, Tensors

REPOSITORY = pathlib.Path(__file__).parents[3]
OWN_TASK = REPOSITORY / "examples" / "own_task.py"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


# ---- the contract ---------------------------------------------------------------------------------------------------------


def test_sealed_examples_are_handed_out_once_and_their_number_is_no_secret():
    sealed = Sealed(Tensors(torch.arange(3)))
    assert len(sealed) == 3 and sealed.num_looks == 0
    assert sealed.look().batch(torch.tensor([1]))[0].tolist() == [1]
    with pytest.raises(RuntimeError, match="looked at before"):
        sealed.look()


def test_parts_seal_the_test_examples():
    part = Tensors(torch.arange(3))
    assert isinstance(Parts(part, part, part).test, Sealed)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"one length, got \[3, 2\]"):
        Tensors(torch.zeros(3), torch.zeros(2))


def test_a_model_is_a_function_of_the_seed_and_the_global_random_state_stays():
    task = localplug.task("permutation")
    state = torch.get_rng_state()
    first, again, other = (task.fresh_model(seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_quality_is_of_the_whole_part_in_evaluation_mode_and_the_mode_comes_back():
    class Echo(Task):
        evaluation_batch = 4

        def model(self):
            return nn.Identity()

        def parts(self, seed):
            raise NotImplementedError

        def score(self, model, batch):
            assert not model.training and not torch.is_grad_enabled()
            return float(batch[0].sum()), len(batch[0])

    model = nn.Identity()
    assert Echo().quality(model, Tensors(torch.arange(10.0))) == 4.5
    assert model.training


def test_a_task_of_your_own_is_a_class_in_a_file_of_twenty_lines():
    task = localplug.task(f"{OWN_TASK}:Ring")
    assert isinstance(task, Task) and len(task.parts(0).test) == 300
    source = OWN_TASK.read_text().splitlines()
    assert len([line for line in source[source.index("class Ring(Task):") :] if line.strip()]) <= 20


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("nothing-like-it", {}, localplug.UnknownName, "no task named 'nothing-like-it'.*installed: .*digits"),
        ("nowhere.py:Ring", {}, FileNotFoundError, "nowhere.py is no file"),
        (f"{OWN_TASK}:Square", {}, TypeError, "no class 'Square'"),
        (f"{OWN_TASK}:nn", {}, TypeError, "no class 'nn'"),
        ("permutation", {"bits": 3}, TypeError, "no option 'bits'; it has: num_bits, width"),
        ("permutation", {"num_bits": 99}, ValueError, r"num_bits must be in \[2, 16\].*got 99"),
        ("mnist", {"network": "vgg"}, ValueError, "network must be .*got 'vgg'"),
    ],
)
def test_what_is_no_task_is_refused(name, options, error, said):
    with pytest.raises(error, match=said):
        localplug.task(name, **options)


@pytest.mark.parametrize(
    "name", ["vowels", "mnist", "fashion-mnist", "cifar10", "cora", "char-lm", "sst2", "rte", "trec", "boolq"]
)
def test_missing_files_are_named_with_what_to_fetch(name, tmp_path):
    for data in (None, tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            localplug.task(name, data=data).parts(0)
        assert re.search(r"--data DIR .*(They are|It is|the hub)", str(caught.value))


# ---- the tasks ------------------------------------------------------------------------------------------------------------


def learns(task, steps=3):
    """A few steps by backpropagation, so that model, batches, loss and score fit together."""
    parts, model = task.parts(0), task.fresh_model(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = parts.train.batch(torch.arange(min(task.batch_size, len(parts.train))))
    losses = []
    for _ in range(steps):
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert len(task.targets(batch)) == len(batch[0]) or task.targets(batch).shape[0] == len(batch[0])
    quality = task.quality(model, parts.validation)
    assert quality >= 0 if not task.higher_is_better else 0 <= quality <= 1
    return parts


def test_permutation_moves_every_bit_to_its_place_and_no_input_is_in_two_parts():
    task = localplug.task("permutation", num_bits=5)
    parts = learns(task)
    order = parts.train.columns[1].argmax(0)  # output j is the input bit whose basis vector has a 1 there
    inputs = set()
    for part in (parts.validation, parts.test.look()):
        for x, y in zip(*part.columns, strict=True):
            assert torch.equal(x[order] > 0, y > 0) and float(x.norm()) == pytest.approx(1)
            inputs.add(tuple((x > 0).tolist()))
    assert len(inputs) == 2**5 - 1 - 5


def test_permutation_is_solved_by_the_map_itself():
    task = localplug.task("permutation", num_bits=4)
    parts = task.parts(0)
    model = nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(parts.train.columns[1].T.clone())
    assert task.quality(model, parts.validation) == 1.0


def test_digits_are_read_in_the_order_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if scikit-learn were not installed
    rows = "\n".join(",".join([str(i % 17)] * 64 + [str(i % 10)]) for i in range(800))
    write(tmp_path / "digits" / "digits.csv.gz", gzip.compress(rows.encode()))
    parts = learns(localplug.task("digits", data=tmp_path))
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [100, 300, 400]
    x, y = parts.train.columns
    assert y[:3].tolist() == [0, 1, 2] and float(x.min()) == -0.5 and float(x.max()) == 0.5


def test_vowels_are_split_by_the_file_and_scaled_by_what_is_learned(tmp_path):
    head = "y;" + ";".join(f"x.{i}" for i in range(1, 11)) + ";is_train"
    rows = [f"{i % 11 + 1};" + ";".join(str(i + j / 7) for j in range(10)) + f";{int(i < 44)}" for i in range(66)]
    write(tmp_path / "vowel" / "uci_vowel.csv", "\r".join([head, *rows, ""]))
    parts = learns(localplug.task("vowels", data=tmp_path))
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [33, 11, 22]
    assert torch.allclose(parts.train.columns[0].mean(0), torch.zeros(10), atol=1e-5)


@pytest.mark.parametrize(("name", "network"), [("mnist", "mlp"), ("fashion-mnist", "cnn")])
def test_images_come_from_idx_files(name, network, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for part, num in (("train", 40), ("t10k", 20)):
        pixels = torch.randint(0, 256, (num * 784,), dtype=torch.uint8, generator=generator).numpy().tobytes()
        write(tmp_path / name / f"{part}-images-idx3-ubyte.gz", gzip.compress(bytes(16) + pixels))
        labels = bytes(i % 10 for i in range(num))
        write(tmp_path / name / f"{part}-labels-idx1-ubyte.gz", gzip.compress(bytes(8) + labels))
    task = localplug.task(name, data=tmp_path, network=network, num_train=20, num_validation=10, num_test=5)
    parts = learns(task)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [20, 10, 5]
    assert parts.train.columns[0].shape == (20, 1, 28, 28)
    assert abs(float(parts.train.columns[0].mean())) < 1e-4
    assert parts.validation.columns[1].tolist() == list(range(10)), "the last ten of training"


def test_cifar10_comes_from_binary_files_or_from_sheets(tmp_path):
    from PIL import Image

    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = b"".join(bytes([i]) + pixels[i].numpy().tobytes() for i in range(10))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        write(tmp_path / "binary" / "cifar10" / f"{name}.bin", rows)
    sheet = numpy.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()).reshape(320, 32, 3)
    for name in [*(f"train_{i}" for i in range(4)), "test_0"]:
        (tmp_path / "sheets" / "cifar10").mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(tmp_path / "sheets" / "cifar10" / f"cifar10_lossless_{name}.png")
    labels = {"train": numpy.arange(40) % 10, "test": numpy.arange(10)}
    numpy.savez(tmp_path / "sheets" / "cifar10" / "cifar10_lossless_labels.npz", **labels)
    binary, sheets = (
        learns(localplug.task("cifar10", data=tmp_path / kind, num_validation=10)).test.look().columns
        for kind in ("binary", "sheets")
    )
    assert torch.allclose(binary[0], sheets[0], atol=1e-3) and torch.equal(binary[1], sheets[1])


def test_cora_hides_the_labels_of_other_nodes(tmp_path):
    (tmp_path / "cora").mkdir()
    numpy.savez(
        tmp_path / "cora" / "cora.npz",
        x_data=numpy.ones(50), x_indices=numpy.arange(50) % 6, x_indptr=numpy.arange(51), x_shape=numpy.array([50, 6]),
        edge_index=numpy.stack([numpy.arange(50), (numpy.arange(50) + 6) % 50]), y=numpy.arange(50) % 6,
    )  # fmt: skip
    parts = learns(localplug.task("cora", data=tmp_path, width=8))
    labels = [p.batch(torch.arange(1)).labels for p in (parts.train, parts.validation, parts.test.look())]
    assert [int((y >= 0).sum()) for y in labels] == [32, 8, 10]
    assert int(sum(y >= 0 for y in labels).max()) == 1, "no node is in two parts"


def test_characters_are_predicted_in_bits(tmp_path):
    text = write(tmp_path / "tinyshakespeare" / "input.txt", "abcd" * 2000).parent
    task = localplug.task("char-lm", data=text, depth=1, width=32, context=16, num_evaluated=4)
    parts = learns(task)
    model = task.fresh_model(0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert task.quality(model, parts.validation) == pytest.approx(2.0), "four characters, equally likely"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a language model of transformers, and a tokenizer of whole words that begin with their space."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = " terrible great description thing abbreviation person place number a fine film dull It was is The answer"
    vocabulary = ["<unk>", "<end>", "No", "Yes", "\n", *(f" {word}" for word in words.split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^\s]+"), "isolated")
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


ROWS = {
    "sst2": {
        "train.tsv": "label\tsentence\n" + "1\ta fine film\n0\ta dull film with no end at all\n" * 20,
        "dev.tsv": "label\tcontent\n" + "1\tgreat fun\n" * 5,
    },
    "rte": {
        name: "index\tsentence1\tsentence2\tlabel\n" + f"0\tA cat sat.\tA cat.\t{label}\n" * num
        for name, num, label in (("train.tsv", 30, "entailment"), ("dev.tsv", 5, "not_entailment"))
    },
    "trec": {
        "TREC.train": "NUM:date When was it ?\nHUM:ind Who was it ?\n" * 20,
        "TREC.test": "LOC:city Where ?\n" * 5,
    },
    "boolq": {
        name: json.dumps({"passage": "Cats are animals.", "question": "are cats animals", "label": True}) + "\n"
        for name in ("train.jsonl", "dev32.jsonl", "val.jsonl")
    },
}


@pytest.mark.parametrize(
    ("name", "label", "last"), [("sst2", 1, " was"), ("rte", 0, "\n"), ("trec", 4, " a"), ("boolq", 1, "\n")]
)
def test_prompts_become_choices_of_one_word(name, label, last, tmp_path, tiny_model):
    for file, content in ROWS[name].items():
        write(tmp_path / name / file, content)
    task = localplug.task(name, data=tmp_path, model=tiny_model, num_validation=4, max_tokens=12)
    parts = learns(task)
    test = parts.test.look().batch(torch.arange(1))
    assert test.labels.tolist() == [label] and test.ids.shape[1] <= 12
    tokenizer = task._pretrained[1]
    assert tokenizer.convert_ids_to_tokens(test.ids[0].tolist())[-1] == last, "the answer comes next"
    body = task._pretrained[0].body
    answers = [tokenizer.convert_tokens_to_ids(word) for word in task.words]
    assert len(set(answers)) == len(task.words) and 0 not in answers
    fresh = task.fresh_model(0)
    assert torch.equal(fresh.words.weight, task._pretrained[0].words.weight) and fresh.body is not body


def test_a_language_model_that_is_not_there_is_named_with_what_to_do(tmp_path):
    for file, content in ROWS["sst2"].items():
        write(tmp_path / "sst2" / file, content)
    with pytest.raises(
        FileNotFoundError, match="no-such-model cannot be loaded .*pass model=FOLDER, or run: pip install"
    ):
        localplug.task("sst2", data=tmp_path, model=str(tmp_path / "no-such-model")).parts(0)


def test_a_word_of_two_tokens_is_refused(tiny_model, tmp_path):
    for file, content in ROWS["sst2"].items():
        write(tmp_path / "sst2" / file, content)
    task = localplug.task("sst2", data=tmp_path, model=tiny_model)
    task.words = (" terrible film", " great")
    with pytest.raises(ValueError, match="each word must be one token"):
        task.parts(0)


def test_padding_does_not_change_an_answer(tmp_path, tiny_model):
    for file, content in ROWS["sst2"].items():
        write(tmp_path / "sst2" / file, content)
    task = localplug.task("sst2", data=tmp_path, model=tiny_model, num_validation=4)
    part, model = task.parts(0).train, task.fresh_model(0).eval()
    lengths = [int(part.batch(torch.tensor([i])).mask.sum()) for i in range(len(part))]
    short, long = lengths.index(min(lengths)), lengths.index(max(lengths))
    alone = model(*part.batch(torch.tensor([short]))[:2])
    padded = model(*part.batch(torch.tensor([short, long]))[:2])
    torch.testing.assert_close(padded[:1], alone, atol=1e-4, rtol=1e-4)


def test_lora_trains_its_matrices_alone_and_begins_at_the_same_answers(tmp_path, tiny_model):
    for file, content in ROWS["sst2"].items():
        write(tmp_path / "sst2" / file, content)
    tasks = [localplug.task("sst2", data=tmp_path, model=tiny_model, num_validation=4, lora=rank) for rank in (0, 2)]
    for task in tasks:
        full, lora = (task.fresh_model(0) for task in tasks)
    names = [n for n, p in lora.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    batch = tasks[0].parts(0).train.batch(torch.arange(3))
    torch.testing.assert_close(full.eval()(*batch[:2]), lora.eval()(*batch[:2]))


def test_rows_of_the_hub_are_read_by_the_names_of_their_classes(monkeypatch, tiny_model):
    """A stand-in for the package `datasets`: GLUE numbers entailment 0, which must not become the label 0 ("No")."""

    class Split(list):
        features: ClassVar = {"label": types.SimpleNamespace(int2str=["entailment", "not_entailment"].__getitem__)}

    row = {"sentence1": "A cat sat.", "sentence2": "A cat.", "label": 0}
    asked = []

    def load_dataset(*name):
        asked.append(name)
        return {"train": Split([row] * 8), "validation": Split([{**row, "label": 1}] * 3)}

    monkeypatch.setitem(__import__("sys").modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = localplug.task("rte", model=tiny_model, num_validation=2, hub=True)
    parts = task.parts(0)
    assert asked == [("nyu-mll/glue", "rte")]
    assert set(parts.train.batch(torch.arange(6)).labels.tolist()) == {1}
    assert set(parts.test.look().batch(torch.arange(3)).labels.tolist()) == {0}
