"""docs/doors.md says what the tests say."""

import pathlib

import pytest

import doors_table

HERE = pathlib.Path(__file__).parent


def test_the_document_is_what_the_tests_say():
    assert doors_table.DOCUMENT.read_text() == doors_table.table(), "run python tests/doors_table.py"


def test_no_cell_is_empty():
    rows = [line for line in doors_table.DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").replace("\\|", "").split("|")]
        assert len(cells) == 1 + len(doors_table.DOORS) and all(cells), row


class Marked:
    """A test as pytest collects it."""

    path = HERE / "test_doors.py"
    originalname = "test_it"

    def __init__(self, *marks, **params):
        self.marks = [mark.mark for mark in marks]
        if params:
            self.callspec = type("CallSpec", (), {"params": params})

    def iter_markers(self, name):
        return (mark for mark in self.marks if mark.name == name)

    def get_closest_marker(self, name):
        return next(self.iter_markers(name), None)


def test_an_empty_cell_is_an_error(monkeypatch):
    monkeypatch.setattr(doors_table, "DOORS", (*doors_table.DOORS, "a seventh door"))
    with pytest.raises(ValueError, match="neither a test nor a refusal fills .*LoRA: a seventh door"):
        doors_table.table()


@pytest.mark.parametrize(
    "marks, params, door, said",
    [
        ([pytest.mark.door("it")], dict(door="TRL"), "TRL", "[test_it\\[TRL\\]](../tests/test_doors.py)"),
        ([pytest.mark.door("it", "Fabric")], {}, "Fabric", "[test_it](../tests/test_doors.py)"),
        (
            [pytest.mark.door("it")], dict(door="TRL", refusal="no a|b"), "TRL",
            'refused: ["no a\\|b"](../tests/test_doors.py)',
        ),
        (
            [pytest.mark.door("it"), pytest.mark.xfail(reason="why")], dict(door="TRL"), "TRL",
            "does not work yet: why ([test_it\\[TRL\\]](../tests/test_doors.py))",
        ),
    ],
    ids=["by its parameter", "by the mark", "refused", "expected to fail"],
)  # fmt: skip
def test_what_a_cell_says(marks, params, door, said):
    collected = doors_table.Collected()
    collected.pytest_collection_modifyitems([Marked(*marks, **params)])
    assert collected.rows == {"it": {door: [said]}}
