"""Small models and data that the whole suite shares."""

import gc
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

REPOSITORY = pathlib.Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for the problems that tests share


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection():
    """Each training of a Trainer collects garbage; without what the imports left, that is nine tenths quicker."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread_and_a_fresh_random_state():
    torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """The folder with real data sets and small checkpoints; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return SHARED


@pytest.fixture
def fresh_plugins(monkeypatch):
    """Plugins loaded anew, in an environment that says nothing about them."""
    from localplug import plugins

    for variable in ("PLUGINS", "BLOCK", "STRICT"):
        monkeypatch.delenv(f"LOCALPLUG_{variable}", raising=False)
    plugins.reload()
    yield
    plugins.reload()
