"""Replaying a logged run (localplug.trajectory) on the weights it began with: the trained weights, bit for bit.

    theta_0 = the weights of BASE;   theta_{t+1} = method.replay(theta_t, coefficients_t, lr_t, weight_decay_t)

No model is built and nothing is evaluated: parameters are looked up by their names, and a step costs one sweep of noise.
"""

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug.checkpoint import Checkpoint
from localplug.contract import Groups, Method, Run
from localplug.header import Header, LoggedParameter
from localplug.recipes import method as make_method
from localplug.trajectory import LoggedStep, Trajectory, checksum, read_log

Path = str | os.PathLike[str]
Progress = Callable[[Sequence[LoggedStep]], Iterable[LoggedStep]]
"""Gives the steps one after another and shows how far it has come, as tqdm.tqdm does."""


@final
@dataclasses.dataclass(frozen=True)
class Replayed:
    """What a replay did."""

    num_steps: int
    num_weights: int
    """Elements of the trained parameters."""
    seconds: float
    ignored: int
    """Bytes at the end of the log that are an incomplete record."""
    files: tuple[pathlib.Path, ...] = ()
    """The files with weights that were written."""


def replay_log(model: nn.Module, log: Path, *, until: int | None = None, method: Method | None = None) -> Replayed:
    """Repeat a logged run on a model that holds the weights it began with, in place.

    Args:
        model: its parameters are found by the names that they had in the run.
        log: the file that `log=` wrote, or a folder with one.
        until: the step before which to stop; by default all are replayed.
        method: made as in the run; by default by its name and options, which the log holds unless the run was given an
            object.

    Raises:
        OSError: the log cannot be read.
        ValueError: it is damaged, or the model or `until` do not fit it; lists every reason. The model is as it was, unless
            a step cannot be repeated: it then stands before or in that step, which the message names.
        UnknownName, DuplicateName, PluginFailed: the method's plugin is not there; see `localplug.get`.
    """
    path = find_log(log)
    trajectory = read_log(path)
    names = dict(model.named_parameters(remove_duplicate=False))
    found, wrong = [], []
    for logged in trajectory.header.parameters:
        known = next((names[name] for name in logged.full_names if name in names), None)
        if known is None:
            wrong.append(f"the model has no {logged.full_names[0]}")
        else:
            found.append(known)
    _refuse(wrong, path)
    return _replay(model, found, trajectory, path, until, method)


def replay_checkpoint(
    base: Path,
    log: Path,
    out: Path,
    *,
    until: int | None = None,
    method: Method | None = None,
    progress: Progress = iter,
) -> Replayed:
    """Repeat a logged run on the weights of a checkpoint, and write the checkpoint that the run would have saved.

    Args:
        base: what the run began with: a folder as `save_pretrained` writes it (one file or several), or one .safetensors,
            .pt or .bin file of a state dict.
        log: the file that `log=` wrote, or a folder with one, such as a checkpoint of `checkpoints="log"`.
        out: a folder. Gets the weights, and of base's other files those that it does not have yet.
        until, method: see `localplug.replay_log`.
        progress: such as tqdm.tqdm; shows how far the replay has come.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the log or base is damaged, base or `until` do not fit it, or out holds weights already; lists every reason.
        UnknownName, DuplicateName, PluginFailed: the method's plugin is not there; see `localplug.get`.
    """
    path, folder = find_log(log), pathlib.Path(out)
    trajectory = read_log(path)
    weights = Checkpoint(pathlib.Path(base))
    taken = [str(folder / f.name) for f in weights.files if os.path.lexists(folder / f.name)]
    _refuse([f"{name} is there already, and would be overwritten; choose another folder" for name in taken], path)
    keys, wrong = [], []
    for logged in trajectory.header.parameters:
        same = [key for name in logged.full_names for key in _spellings(name) if key in weights.tensors]
        keys.append(list(dict.fromkeys(same)))
        if not same:
            wrong.append(f"{base} has no {logged.full_names[0]}")
    told = [key for same in keys for key in same]
    wrong += [
        f"{base} has one {key} for several parameters of the run" for key in sorted(set(told)) if told.count(key) > 1
    ]
    _refuse(wrong, path)
    bare = nn.Module()
    found = []
    for logged, (key, *_) in zip(trajectory.header.parameters, keys, strict=True):
        parameter = nn.Parameter(weights.tensors[key], requires_grad=weights.tensors[key].is_floating_point())
        _put(bare, logged.full_names[0], parameter)
        found.append(parameter)
    done = _replay(bare, found, trajectory, path, until, method, progress)
    with torch.no_grad():
        for parameter, same in zip(found, keys, strict=True):
            for key in same:  # several of a tied weight that the file holds twice
                weights.tensors[key].copy_(parameter)
    return dataclasses.replace(done, files=tuple(weights.write(folder)))


def find_log(path: Path) -> pathlib.Path:
    """The log itself, or the one in a folder.

    Raises:
        ValueError: the folder has none, or several.
    """
    given = pathlib.Path(path)
    if not given.is_dir():
        return given
    logs = sorted(given.glob("*.lplog"))
    if len(logs) != 1:
        raise ValueError(f"{given} has {[log.name for log in logs] or 'no .lplog file'}; give the file itself")
    return logs[0]


def _replay(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    trajectory: Trajectory,
    path: pathlib.Path,
    until: int | None,
    method: Method | None,
    progress: Progress = iter,
) -> Replayed:
    header = trajectory.header
    wrong = [
        problem for p, logged in zip(parameters, header.parameters, strict=True) for problem in _misfits(p, logged)
    ]
    end = trajectory.end if until is None else until
    if not header.step <= end <= trajectory.end:
        wrong.append(f"it holds the steps {header.step} to {trajectory.end}, and until is {end}")
    if method is None and header.method is None:
        wrong.append(
            f"the run was given a method object ({header.description}); make it anew and pass it to "
            "localplug.replay_checkpoint or localplug.replay_log as method="
        )
    _refuse(wrong, path)
    changed = [
        logged.name
        for p, logged in zip(parameters, header.parameters, strict=True)
        if logged.checksum is not None and checksum(p) != logged.checksum
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        wrong.append(
            f"these are not the weights that the run began with at step {header.step}: other values in "
            f"{', '.join(changed[:5])}{more}"
        )
    _refuse(wrong, path)
    made = method if method is not None else _made(header, path)
    q = made.num_coefficients
    uneven = [s.number for s in trajectory.steps if s.coefficients is not None and len(s.coefficients) % max(q, 1)]
    if q < 1:
        wrong.append(f"{header.recipe()} has no coefficients, by which a run could be repeated")
    elif uneven:
        wrong.append(
            f"step {uneven[0]} has a number of coefficients that {header.recipe()} has not ({q} for each worker)"
        )
    _refuse(wrong, path)
    run = Run(model, [(p.name, q) for p, q in zip(header.parameters, parameters, strict=True)], header.seed)
    run.step = header.step
    run.num_workers_apart = max(header.num_coefficients // made.num_coefficients, 1)
    started = time.perf_counter()
    with torch.no_grad():
        made.setup(run)
        if header.state:
            _restore(made, header, path)
        try:
            _run_through(run, made, trajectory, end, progress)
        except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: step {run.step} cannot be repeated here: {error}") from error
        finally:
            made.teardown()
    weights = sum(p.numel() for p in parameters)
    return Replayed(end - header.step, weights, time.perf_counter() - started, trajectory.ignored)


def _restore(method: Method, header: Header, path: pathlib.Path) -> None:
    state = header.method_state()
    try:
        method.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} has a state that does not fit {header.recipe()}: {error}") from error


def _run_through(run: Run, method: Method, trajectory: Trajectory, end: int, progress: Progress) -> None:
    header = trajectory.header
    spare = [nn.Parameter(torch.empty(0)) for _ in range(header.num_groups)]  # of groups without a trained parameter
    rates, groups = None, Groups()
    for step in progress(trajectory.steps[: end - header.step]):
        run.step = step.number
        if step.rates is not rates:
            rates = step.rates
            each: list[dict[str, Any]] = [{"lr": lr, "weight_decay": decay} for lr, decay in rates]
            groups = dict(zip(spare, each, strict=False))
            groups.update({q: each[p.group] for p, (_, q) in zip(header.parameters, run.parameters, strict=True)})
        if step.coefficients is not None:
            run.num_workers_apart = max(len(step.coefficients) // method.num_coefficients, 1)
        method.replay(run, step.coefficients, groups)
    run.step = end


def _made(header: Header, path: pathlib.Path) -> Method:
    assert header.method is not None
    try:
        return make_method(header.method, **header.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} was written by a method that cannot be made here: {error}") from error


def _misfits(parameter: Tensor, logged: LoggedParameter) -> list[str]:
    """What the run had otherwise."""
    found, dtype = [], str(parameter.dtype).removeprefix("torch.")
    if list(parameter.shape) != logged.shape:
        found.append(f"{logged.name} has shape {list(parameter.shape)}, and had {logged.shape} in the run")
    if dtype != logged.dtype:
        found.append(
            f"{logged.name} is {dtype}, and was {logged.dtype} in the run; save the base in the dtype that was trained"
        )
    return found


def _refuse(reasons: Sequence[str], log: pathlib.Path) -> None:
    if reasons:
        raise ValueError(f"{log} cannot be replayed here:\n" + "\n".join(f"  - {reason}" for reason in reasons))


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    module.register_parameter(last, parameter)


def _spellings(name: str) -> list[str]:
    """The names that a file may have for a parameter: its own, without wrappers, without the adapter's name as PEFT."""
    plain = ".".join(part for part in name.removeprefix("module.").split(".") if part != "_orig_mod")
    return [name, plain, re.sub(r"(\.lora_\w+)\.[^.]+", r"\1", plain)]
