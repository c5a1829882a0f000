"""Measured numbers in pages by hand come from files of results; `make numbers` writes them, and this fails when they drift."""

import pathlib
import re
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "docs"))
from generate import numbers, results  # noqa: E402
from generate.claims import percent, ratio, said, so, whole  # noqa: E402


def text_of(page):
    return (REPOSITORY / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", numbers.pages())
def test_the_numbers_of_a_page_are_those_of_the_files_of_results(page):
    """After a new measurement: `make numbers`. After a new sentence: change its claim in docs/generate/claims_*.py."""
    text = text_of(page)
    found = numbers.numbers(text, numbers.CLAIMS.get(page, list)())
    assert not [(n.there, n.right) for n in found if n.there != n.right]
    assert numbers.written(page, text) == text


@pytest.mark.parametrize("page", numbers.pages())
def test_no_page_has_a_measured_number_that_comes_from_nowhere(page):
    """A new one gets a claim in docs/generate/claims_*.py; what nobody here measured is named in the page,
    `<!-- not measured here: 0.05; 90 % -->`, or in numbers.FACTS."""
    text = text_of(page)
    plain = " ".join(re.sub(r"<!--.*?-->", "", text, flags=re.S).split())
    assert not numbers.unclaimed(page, text)
    assert not [fact for fact in numbers.facts_of(page, text) if fact and fact not in plain]


@pytest.mark.parametrize("page", [page for page in numbers.CLAIMS if page in numbers.pages()])
def test_a_page_of_claims_names_the_files_that_they_come_from(page):
    """Directly, or by the list of all of them."""
    text = text_of(page)
    assert "tests/benchmarks/results/" in text or "tests/benchmarks/README.md" in text


def test_every_claim_is_about_a_page_that_there_is():
    assert set(numbers.CLAIMS) | set(numbers.FACTS) <= set(numbers.pages())


# ---- the checks above can fail ----------------------------------------------------------------------------------------------


def test_a_number_that_has_drifted_is_found_and_written(monkeypatch):
    text = text_of("README.md")
    wrong = text.replace("56.7 % | **80.0 %**", "56.7 % | **81.0 %**")
    assert wrong != text and numbers.written("README.md", wrong) == text
    changed = {**results.result("demo"), "accuracy_after": 0.9}
    monkeypatch.setattr(
        numbers.claims_of_readme, "result", lambda name: changed if name == "demo" else results.result(name)
    )
    assert "56.7 % | **90.0 %**" in numbers.written("README.md", text)


def test_words_that_are_no_longer_true_and_claims_that_are_not_in_the_page_are_refused():
    assert numbers.numbers("computes 7.4 (a)", [said("computes {}", "7.5")])[0].there == "7.4", "the whole number"
    text = "It takes 1.25 times\nas long, and is close. 3 of 4. 3 of 5."
    (number,) = numbers.numbers(text, [said("takes {} times as long", "1.31"), so("is close", True)])[:1]
    assert (number.there, number.right) == ("1.25", "1.31")
    with pytest.raises(ValueError) as error:
        numbers.numbers(text, [so("is close", False), said("costs {}", "1"), said("3 of {}.", "4"), said("{} of 5")])
    said_all = str(error.value)
    assert "it is no longer so: 'is close'" in said_all and "nothing in the page is like: 'costs {}'" in said_all
    assert "2 places in the page are like: '3 of {}.'" in said_all and "0 numbers for '{} of 5'" in said_all


@pytest.mark.parametrize(
    "planted", ["It is 3.5 times as fast.", "It reaches 71 %.", "It needs 1,234 steps.", "It takes 5 MB.", "| 0.97 |"]
)
def test_a_planted_measurement_is_found(planted):
    text = text_of("README.md")
    assert not numbers.unclaimed("README.md", text)
    (found,) = numbers.unclaimed("README.md", f"{text}\n{planted}\n")
    assert planted.split()[-2].strip(".") in found


@pytest.mark.parametrize(
    "harmless",
    [
        "Version 0.1.0 of 2.13.0.",
        "`lr=0.1`",
        "[a](https://arxiv.org/abs/2305.17333)",
        "arXiv:2510.18812",
        "MLP 784-256-10",
    ],
)
def test_versions_code_and_links_are_no_measurements(harmless):
    assert not numbers.unclaimed("docs/index.md", f"# A\n\n{harmless}\n\n```\n3.5 times\n```\n")


def test_a_table_that_is_made_is_written_between_its_marks(monkeypatch):
    monkeypatch.setitem(numbers.MADE, "some", lambda: "| 1.5 |")
    text = "a\n<!-- made: some -->\nold\n<!-- /made -->\nb"
    assert numbers.written("docs/index.md", text) == "a\n<!-- made: some -->\n| 1.5 |\n<!-- /made -->\nb"
    assert not numbers.unclaimed("docs/index.md", numbers.written("docs/index.md", text))
    two = f"{text}\n<!-- made: some -->\n<!-- /made -->\nc"
    assert numbers.written("docs/index.md", two.replace("old\n", "")).count("| 1.5 |") == 2 and "b" in two
    assert "\nb\n" in numbers.written("docs/index.md", two.replace("old\n", "")), (
        "an empty one takes nothing beyond its end"
    )
    with pytest.raises(KeyError):
        numbers.written("docs/index.md", text.replace("some", "none"))


def test_a_number_may_come_from_a_file_that_its_section_names():
    link = "[result](../tests/benchmarks/results/workers.json)"
    said = f"# A\n\nIt is 1.37 times as fast, sends 8.00 bytes, and has 6.84 weights ({link}).\n"
    assert not numbers.unclaimed("docs/index.md", said)
    assert len(numbers.unclaimed("docs/index.md", said.replace("1.37", "1.38"))) == 1
    assert len(numbers.unclaimed("docs/index.md", f"{said}\n## B\n\nIt is 1.37 times as fast.\n")) == 1


def test_a_page_may_say_what_nobody_measured():
    text = "# A\n\n<!-- not measured here: eps 0.05; 90 % of -->\n\nWith eps 0.05 for 90 % of all, 0.05.\n"
    assert len(numbers.unclaimed("docs/index.md", text)) == 1, "the last one"
    assert len(numbers.unclaimed("docs/index.md", text.replace("eps 0.05; ", ""))) == 2


def test_numbers_are_written_as_a_reader_expects():
    assert (percent(0.9605), percent(0.635, 0), ratio(1.025), ratio(9.95, 1), whole(65536)) == (
        "96.1",
        "64",
        "1.03",
        "10.0",
        "65,536",
    )
