"""A run that is killed in the middle of a step goes on from its last checkpoint as if nothing had happened."""

import os
import signal
import subprocess
import sys

import torch

from localplug_transformers import LocalPlugCallback
from problems import fit, tiny_llama, weights

CHANGES = dict(max_steps=6, save_strategy="steps", save_steps=2, lr_scheduler_type="linear")


def train(folder, kill_at=None, resume=None):
    model = tiny_llama(attention_dropout=0.1)
    calls = [0]

    def dies(*_):
        calls[0] += 1
        if calls[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model.model.layers[1].register_forward_hook(dies)
    fit(model, folder, LocalPlugCallback("mezo"), resume=resume, **CHANGES)
    return weights(model)


def test_killed_in_the_second_evaluation_of_the_fifth_step(tmp_path):
    whole = train(tmp_path / "whole")
    command = [sys.executable, __file__, str(tmp_path / "killed"), "10"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoint-4").is_dir() and not (tmp_path / "killed/checkpoint-6").exists()
    resumed = train(tmp_path / "resumed", resume=str(tmp_path / "killed/checkpoint-4"))
    assert torch.equal(whole, resumed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], kill_at=int(sys.argv[2]))
