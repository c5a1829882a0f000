"""Writes docs/doors.md from the tests: `python tests/doors_table.py`.

A test marked `door("feature")` fills the cells of that row for the doors that its parameter `door` goes through; one marked
`door("feature", "Fabric", ...)` fills those of the doors that the mark names. A test with a parameter `refusal` shows that
text instead of its name, and one that is expected to fail shows why.
"""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "doors.md"
DOORS = ("Trainer", "TRL", "Lightning", "Fabric", "Accelerate", "bare loop")
HEAD = """# Every feature, through every door

Written by `python tests/doors_table.py` from the tests, and never by hand: a cell names the tests that show that the
feature works there, or quotes, word for word, the error that refuses it. The doors are `transformers.Trainer` and
`trl.SFTTrainer` with `LocalPlugCallback`; `lightning.pytorch.Trainer` with `LocalPlugStrategy`; and loops with
`localplug.attach` by `lightning.fabric.Fabric`, by `accelerate.Accelerator`, and of plain torch.

"""


class Collected:
    """A pytest plugin that takes down the cells: {feature: {door: [what is said there]}}, in the order of the tests."""

    def __init__(self):
        self.rows = {}

    def pytest_collection_modifyitems(self, items):
        # the file of all doors gives the order of the rows, the others add to them
        for item in sorted(items, key=lambda item: item.path.name != "test_doors.py"):
            given = item.callspec.params if hasattr(item, "callspec") else {}
            for mark in item.iter_markers("door"):
                feature, *doors = mark.args
                for door in doors or [given["door"]]:
                    cell = self.rows.setdefault(feature, {}).setdefault(door, [])
                    if (said := _said(item, given, by_name=bool(doors))) not in cell:
                        cell.append(said)


def _said(item, given, by_name):
    link = f"../tests/{item.path.name}"
    if given.get("refusal"):
        return f'refused: ["{_plain(given["refusal"])}"]({link})'
    name = item.originalname if by_name else f"{item.originalname}[{given['door']}]"
    said = f"[{name.replace('[', chr(92) + '[').replace(']', chr(92) + ']')}]({link})"
    if (mark := item.get_closest_marker("xfail")) is not None:
        said = f"does not work yet: {_plain(mark.kwargs['reason'])} ({said})"
    return said


def _plain(text):
    return text.replace("|", "\\|").replace("_", "\\_").replace("<", "&lt;")


def table():
    """The whole document.

    Raises:
        ValueError: the tests cannot be collected, or leave a cell empty.
    """
    collected = Collected()
    files = [str(path) for path in sorted(HERE.glob("test_*.py")) if "mark.door(" in path.read_text()]
    quiet = ["--collect-only", "-qqq", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    if (status := pytest.main([*quiet, f"--rootdir={HERE.parent}", *files], plugins=[collected])) != pytest.ExitCode.OK:
        raise ValueError(f"pytest cannot collect {files}: {status!r}")
    lines = ["| feature | " + " | ".join(DOORS) + " |", "| --- " * (1 + len(DOORS)) + "|"]
    empty = []
    for feature, cells in collected.rows.items():
        empty += [f"{feature}: {door}" for door in DOORS if door not in cells]
        if unknown := set(cells) - set(DOORS):
            raise ValueError(f"{feature}: there is no door {unknown}")
        lines.append(f"| {feature} | " + " | ".join("<br>".join(cells.get(door, [])) for door in DOORS) + " |")
    if empty:
        raise ValueError(f"neither a test nor a refusal fills {empty}")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(table())
