"""Every block of the README and of the pages in docs/ runs, and its commands and links exist."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}


def blocks(page):
    """The Python blocks of a page; each after the first goes on from the one before."""
    found = re.findall(r"(<!-- continue -->\n)?```python\n(.*?)```", page, re.S)
    assert [bool(goes_on) for goes_on, _ in found] == [i > 0 for i in range(len(found))]
    return [code for _, code in found]


def run(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page)))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_every_python_block_of_the_readme_runs(tmp_path):
    assert len(blocks(README)) >= 3
    stderr = run(README, tmp_path)
    (line,) = re.findall(r"^(localplug: mezo.*24,736 weights.*)$", README, re.M)
    assert line in stderr


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_every_python_block_of_the_docs_runs(page, tmp_path):
    assert blocks(PAGES[page])
    run(PAGES[page], tmp_path)


def test_the_guides_and_the_first_steps_have_blocks():
    for page in ("loops.md", "methods.md", "first-steps/fine-tune.md"):
        assert blocks(PAGES[page])


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.M))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_every_link_to_a_file_resolves():
    """Those of docs/ lead to pages of the site, some of them made by its build: tests/test_docs.py follows them."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"^[A-Z_]{8,}$", README, re.M)
