"""LightningCLI with a YAML file: the strategy by name, or as a class with options."""

import os
import pathlib
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_problems import WARNINGS, data, module
from problems import weights

pytestmark = WARNINGS


class Net(L.LightningModule):
    def __init__(self, lr: float = 1e-2):
        super().__init__()
        self.net, self.lr = module().net, lr

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return data()


DEFAULTS = dict(
    max_steps=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip

BY_NAME = """
trainer:
  strategy: localplug_mezo
"""
BY_CLASS = """
trainer:
  strategy:
    class_path: localplug_lightning.LocalPlugStrategy
    init_args:
      method: mezo
      seed: 3
    dict_kwargs:
      eps: 0.01
      num_directions: 2
"""
BY_METHOD = """
trainer:
  strategy:
    class_path: localplug_lightning.LocalPlugStrategy
    init_args:
      seed: 3
      method:
        class_path: localplug_zo.mezo.MeZO
        init_args: {eps: 0.01, num_directions: 2}
"""
OTHERS = """
trainer:
  strategy:
    class_path: localplug_lightning.LocalPlugStrategy
    init_args: {method: tpsgd}
    dict_kwargs: {loss: l1}
"""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])  # pytest's arguments are none of LightningCLI's
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls in it


def cli(folder, config, *also):
    path = folder / "config.yaml"
    path.write_text(config)
    return LightningCLI(
        Net,
        Data,
        args=["fit", "--config", str(path), f"--trainer.default_root_dir={folder}", *also],
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults=DEFAULTS,
    )


@pytest.mark.parametrize(
    "config, said",
    [
        (BY_NAME, "mezo, eps 0.001, 1 direction(s)"),
        (BY_CLASS, "mezo, eps 0.01, 2 direction(s)"),
        (BY_METHOD, "mezo, eps 0.01, 2 direction(s)"),
        (OTHERS, "tpsgd, local loss l1"),
    ],
    ids=["name", "class", "method", "another method"],
)
def test_a_yaml_file_chooses_the_method_and_its_options(config, said, tmp_path):
    made = cli(tmp_path, config)
    engine = made.trainer.strategy.engine
    assert engine.method.describe().startswith(said) and engine.run.step == made.trainer.global_step == 2
    assert engine.run.seed == (3 if "seed" in config else 0)
    assert not torch.equal(weights(made.model), weights(module()))


def test_both_ways_to_give_options_train_alike_and_the_command_line_overrides_them(tmp_path):
    first, second = cli(tmp_path, BY_CLASS), cli(tmp_path, BY_METHOD)
    assert torch.equal(weights(first.model), weights(second.model))
    overridden = cli(tmp_path, BY_CLASS, "--trainer.strategy.dict_kwargs.eps=0.02")
    assert overridden.trainer.strategy.engine.method.describe().startswith("mezo, eps 0.02, 2 direction(s)")


@pytest.mark.parametrize(
    "config, said",
    [
        (BY_CLASS.replace("eps:", "epss:"), "mezo has no option 'epss'. Did you mean 'eps'"),
        (BY_CLASS.replace("0.01", "-1"), "eps must be positive, got -1"),
        (BY_METHOD.replace("eps:", "epss:"), "Option 'epss' is not accepted"),
        (BY_METHOD.replace("0.01", "much"), "much"),
        (BY_CLASS.replace("seed: 3", "seed: 3\n      eps: 0.01"), "Option 'eps' is not accepted"),
        (BY_CLASS.replace("method: mezo", "method: nezo"), "nezo"),
        (BY_NAME.replace("mezo", "nezo"), "localplug_nezo"),
    ],
    ids=["option", "range", "typed option", "type", "place", "method", "name"],
)
def test_what_is_wrong_is_said_clearly(config, said, tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as raised:  # the parser ends the program; Lightning raises for names
        cli(tmp_path, config)
    assert said in capsys.readouterr().err + str(raised.value)


def test_a_script_of_a_user(tmp_path):
    (tmp_path / "given.yaml").write_text(BY_CLASS)
    script = tmp_path / "script.py"
    script.write_text(
        "import localplug_lightning\n"
        "from lightning.pytorch.cli import LightningCLI\n"
        "from test_lightning_cli import DEFAULTS, Data, Net\n"
        "if __name__ == '__main__':\n"
        "    made = LightningCLI(Net, Data, trainer_defaults=DEFAULTS)\n"
        "    print(made.trainer.strategy.engine.method.describe())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "fit", "--config", "given.yaml"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(pathlib.Path(__file__).parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "mezo, eps 0.01, 2 direction(s)" in done.stdout
    saved = (tmp_path / "config.yaml").read_text()  # what LightningCLI writes down of every run
    assert "num_directions: 2" in saved and "class_path: localplug_lightning.LocalPlugStrategy" in saved
