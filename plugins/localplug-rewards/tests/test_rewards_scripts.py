"""The examples of rewards, as a reader runs them: in a process of their own; what they lower is lower afterwards."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(("name", "share"), [("ot_reward", 0.5), ("solver_reward", 0.95)])
def test_an_example_raises_its_reward(name, share):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (float(re.search(rf"loss {when} ([\d.]+)", done.stdout)[1]) for when in ("before", "after"))
    assert after < share * before, done.stdout
