"""The examples, as a reader runs them: in a process of their own, offline; and the third-party plugin among them."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import localplug
from localplug import plugins

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
SPSA = EXAMPLES / "localplug-spsa"


def run(*command, path=(), folder=EXAMPLES.parent):
    """The standard output of `python *command`, with more folders to import from."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(printed):
    """[(before, after)] of every run that an example prints."""
    before, after = (re.findall(rf"loss {when} ([\d.]+)", printed) for when in ("before", "after"))
    assert before and len(before) == len(after), printed
    return [(float(b), float(a)) for b, a in zip(before, after, strict=True)]


@pytest.fixture
def spsa(monkeypatch):
    """The plugin's module, in a host that forgets it afterwards."""
    monkeypatch.syspath_prepend(SPSA)
    yield importlib.import_module("localplug_spsa")
    sys.modules.pop("localplug_spsa")
    plugins.reload()


@pytest.mark.parametrize(
    ("example", "num_runs", "share"),
    [
        ("bare_loop", 1, 0.5),
        ("hf_finetune", 1, 0.9),
        ("lightning_fit", 2, 0.5),
        ("choose_what_to_train", 3, 0.5),
        ("self_tuning", 1, 0.9),
        ("soft_prompt", 1, 0.7),
    ],
)
def test_an_example_lowers_its_loss(example, num_runs, share):
    found = losses(run(EXAMPLES / f"{example}.py"))
    assert len(found) == num_runs
    assert all(after < share * before for before, after in found)


def test_the_spsa_plugin_passes_its_own_tests():
    printed = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", path=[SPSA], folder=SPSA)
    assert " passed" in printed or re.search(r"^\.+\s+\[100%\]", printed, re.MULTILINE), printed


def test_the_spsa_plugin_trains_by_name_once_its_module_is_registered(spsa):
    localplug.register(spsa)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x = torch.randn(64, 8)
    y = (x[:, :3].sum(1) > 0).long()
    seen = []
    with localplug.attach(model, "spsa", optimizer, c=1e-2):
        for _ in range(200):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
    assert seen[-1] < 0.6 * seen[0]


def test_the_spsa_plugin_is_found_by_its_entry_point(tmp_path):
    """As pip would leave it: a folder of metadata beside the module is all that an installation adds."""
    metadata = tmp_path / "localplug_spsa-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: localplug-spsa\nVersion: 0.1.0\n")
    declared = (SPSA / "pyproject.toml").read_text().split("[project.entry-points.localplug]\n")[1].split("\n\n")[0]
    (metadata / "entry_points.txt").write_text("[localplug]\n" + declared.replace('"', "") + "\n")
    (((before, after),)) = losses(run(EXAMPLES / "bare_loop.py", "spsa", path=[tmp_path, SPSA]))
    assert after < 0.5 * before


def test_the_spsa_plugin_uses_public_names_alone():
    source = (SPSA / "localplug_spsa.py").read_text()
    (imported,) = re.findall(r"^from localplug import (.+)$", source, re.MULTILINE)
    used = set(imported.split(", ")) | set(re.findall(r"\blocalplug\.(?!attach\()(\w+)", source))
    assert used <= set(localplug.__all__)
    assert not re.search(r"(from|import) localplug\.", source)


def test_spsa_is_spalls_equation(spsa):
    """On a linear loss the difference is exact: theta - a_k (sum Delta . slope) Delta, Delta of signs, c_k shrinking."""
    w = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    holder = nn.Module()
    holder.w = w
    slope = torch.arange(1.0, 6.0).double()
    optimizer = torch.optim.SGD([w], lr=0.5)
    engine = localplug.Engine(holder, spsa.SPSA(c=0.1, gamma=0.101), optimizer, seed=1)
    asked = []

    def loss():
        asked.append(holder.w.detach().clone())
        return (holder.w * slope).sum()

    for k in range(3):
        before = w.detach().clone()
        engine.step(loss, optimizer)
        plus, minus = asked[-2:]
        delta = (plus - minus) / (2 * 0.1 / (k + 1) ** 0.101)
        torch.testing.assert_close(delta.abs(), torch.ones(5).double())
        torch.testing.assert_close((plus + minus) / 2, before)
        torch.testing.assert_close(w.detach(), before - 0.5 * (delta @ slope) * delta, atol=1e-5, rtol=1e-5)
    assert not torch.equal(asked[0] - asked[1], asked[2] - asked[3])
