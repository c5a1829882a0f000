"""Several processes train one model, over gloo on one machine: what they exchange, that they agree, and what ends them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import worker_scenarios
from problems import tiny_llama

HERE = pathlib.Path(__file__).parent
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no",
    ],
}  # fmt: skip


def launched(folder, *scenarios, launcher="torchrun"):
    """{scenario: what each of two workers found}."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    port = ["--main_process_port", str(_free_port())] if launcher == "accelerate" else []
    command = [*LAUNCHERS[launcher], *port, str(HERE / "worker_scenarios.py"), str(folder), *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(f"{folder}/{name}.{rank}.pt") for rank in range(2)] for name in scenarios}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("plain"), *worker_scenarios.PLAIN)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("torchrun"), *worker_scenarios.TRAINER, "accelerate")


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("accelerate"), "trainer_200_steps", "accelerate", launcher="accelerate")


def one_worker(scenario, folder):
    return getattr(worker_scenarios, scenario)(str(folder))


def close(two, one, start, within):
    """Two runs are as near to each other as `within` of the way from the start."""
    way = (one - start).norm()
    assert way > 0
    assert (two - one).norm() < within * way, float((two - one).norm() / way)


@pytest.mark.door("two processes, as one with the whole batch", "Trainer")
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_replicas_under_the_trainer_are_equal_to_the_last_bit_after_200_steps(launcher, request):
    first, second = request.getfixturevalue(launcher)["trainer_200_steps"]
    assert first["workers"] == 2 and first["wrapper"] == "DistributedDataParallel"
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["weights"], worker_scenarios.weights(tiny_llama()))
    assert len(first["grad_norm"]) == 200
    # all that DistributedDataParallel looks after is one parameter, because it insists on one
    assert first["bucket_elements"] == first["smallest"] and first["buffers_sent_round"] == 0


def test_two_workers_with_half_the_batch_equal_one_with_the_whole(torchrun, tmp_path):
    two, one = torchrun["trainer_few_steps"][0], one_worker("trainer_few_steps", tmp_path)
    for name in ("plain", "accumulated", "q=3"):
        start = worker_scenarios.weights(tiny_llama())
        close(two[name], one[name], start, within=2e-3)  # float32 differences of losses, divided by 2 eps
    way = two["lora"].norm()
    assert (two["lora"] - one["lora"]).norm() < 2e-3 * way
    for name in ("plain loss", "lora loss"):
        torch.testing.assert_close(two[name], one[name], atol=2e-3, rtol=0)  # the Trainer logs four digits


def test_a_step_sends_a_few_bytes_a_direction_whatever_the_size_of_the_model(plain):
    small, large = plain["bytes_on_the_wire"][0].values()
    assert large["weights"] > 50 * small["weights"]
    for found in (small, large):
        assert found["calls"] == 1
        assert found["payload"] == 4 * (2 + 1)  # two directions, and one number that tells whether all are in step
    # what goes over the network interface is that and what gloo and TCP put round it; a gradient would be 90 kB
    assert large["traffic"] < 2_000 < 0.05 * 4 * large["weights"]
    assert large["traffic"] < 2 * small["traffic"] + 500


@pytest.mark.door("two processes, as one with the whole batch", "bare loop")
def test_plain_loops_agree_with_one_process_and_workers_with_each_other(plain, tmp_path):
    first, second = plain["plain_loops"]
    one = one_worker("plain_loops", tmp_path)
    start = worker_scenarios.weights(worker_scenarios.net())
    for name, found in first.items():
        assert torch.equal(found, second[name]), name
    for name in ("same", "adam"):
        close(first[name], one[name], start, within=1e-2 if name == "adam" else 1e-3)
    close(first["tpsgd"], one["tpsgd"], start, within=1e-5)  # gradients are averaged, there is no finite difference
    for name in ("different", "different q=2"):
        assert (first[name] - first["same"]).norm() > 0.1 * (first["same"] - start).norm()


def test_different_directions_are_those_of_all_workers_each_on_its_own_part_of_the_batch(plain, tmp_path):
    two = plain["plain_loops"][0]["different"]
    one = one_worker("different_directions_by_hand", tmp_path)["weights"]
    close(two, one, worker_scenarios.weights(worker_scenarios.net()), within=1e-3)


@pytest.mark.door("two processes, as one with the whole batch", "Accelerate")
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_attached_before_accelerate_wraps_the_model(launcher, request, tmp_path):
    first, second = request.getfixturevalue(launcher)["accelerate"]
    one = one_worker("plain_loops", tmp_path)["same"]
    assert first["wrapper"] == "DistributedDataParallel" and first["bucket_elements"] == 2
    assert torch.equal(first["weights"], second["weights"])
    close(first["weights"], one, worker_scenarios.weights(worker_scenarios.net()), within=1e-3)


def test_fully_sharded_parameters_train_as_replicas_do_bit_for_bit(plain, tmp_path):
    first, second = plain["sharded"]
    one = one_worker("sharded", tmp_path)
    start = worker_scenarios.weights(worker_scenarios.net(hidden=67))
    for name in ("sgd", "bf16", "adam", "clipped"):
        assert torch.equal(first[name + " sharded"], first[name]), name
        assert torch.equal(first[name + " sharded"], second[name + " sharded"]), name
        if name != "bf16":
            close(first[name + " sharded"], one[name], start, within=1e-2)
    assert "cannot draw different directions" in first["apart"]
    assert "layer-local methods need whole parameters" in first["tpsgd"]


def test_shards_of_columns_are_refused(plain):
    (problem,) = plain["sharded_by_columns"][0]["problems"]
    assert "sharded by rows" in problem and "0.weight" in problem


def test_workers_that_do_not_start_alike(plain):
    first, second = plain["unlike"]
    assert not torch.equal(first["before"], second["before"])
    assert torch.equal(second["after"], first["before"]) and torch.equal(first["after"], first["before"])
    for found in (first, second):
        assert "the workers differ in the seed" in found["seed"]
        assert found["alarm"] and "attach to the model before it is wrapped" in found["wrapped"][0]


def test_attaching_before_the_processes_know_each_other_is_an_error(plain):
    for found in plain["too_late"]:
        assert "this worker would train alone" in found["error"]


def test_a_dead_worker_ends_the_others_and_the_checkpoint_resumes_on_one_or_two(tmp_path):
    """Two processes without a launcher that would end the survivor; one is killed in its sixth step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(_free_port())
    command = [sys.executable, str(HERE / "worker_scenarios.py"), str(tmp_path), "dying"]
    workers = [subprocess.Popen(command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [w.wait(timeout=120) for w in workers] == [3, -9]
    message, step = json.loads((tmp_path / "survivor.json").read_text())
    assert "worker 0 of 2 lost the others in step 5" in message and "last checkpoint" in message and step == 5
    begin = worker_scenarios.weights(tiny_llama())
    whole = one_worker("uninterrupted", tmp_path)["weights"]
    close(one_worker("resumed", tmp_path)["weights"], whole, begin, within=5e-3)
    first, second = launched(tmp_path, "resumed")["resumed"]
    assert torch.equal(first["weights"], second["weights"])
    close(first["weights"], whole, begin, within=5e-3)


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
