"""Every block of the README runs, and its commands exist."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- continue -->\n)?```python\n(.*?)```", README, re.S)


def test_every_python_block_runs(tmp_path):
    assert len(BLOCKS) >= 3 and not BLOCKS[0][0]
    script = tmp_path / "readme.py"
    script.write_text("\n".join(code for _, code in BLOCKS))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = re.findall(r"^(localplug: mezo.*24,736 weights.*)$", README, re.M)
    assert line in done.stderr


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.M))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_every_link_to_a_file_resolves():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"^[A-Z_]{8,}$", README, re.M)
