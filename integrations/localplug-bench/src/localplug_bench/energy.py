"""Joules that went into a span of time, by whatever counter there is; an estimate only if the user gives the watts.

"nvml": the GPU's own counter. "rapl": the processor package's, by Linux; it counts all that runs on the machine, also what
is not ours. "estimated": seconds of this process on its cores times the watts of a core that the user gave. None: nothing is
known, and no number is made up.
"""

import abc
import importlib
import pathlib
import time
from typing import Any, final

import torch

RAPL = pathlib.Path("/sys/class/powercap")


class Meter(abc.ABC):
    """A counter that only grows, in joules."""

    kind: str

    @abc.abstractmethod
    def joules(self) -> float:
        """Since some beginning."""


@final
class NVML(Meter):
    """An NVIDIA GPU's total energy counter."""

    kind = "nvml"

    def __init__(self, device: torch.device) -> None:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._pynvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.joules()

    def joules(self) -> float:
        return float(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000


@final
class PackageCounters(Meter):
    """Counters of the processor packages, which start again from 0 at the end of their range."""

    kind = "rapl"

    def __init__(self, folder: pathlib.Path = RAPL) -> None:
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        if not zones:
            raise OSError(f"no counter in {folder}")
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = [int(file.read_text()) for file in self._files]
        self._total = 0

    def joules(self) -> float:
        now = [int(file.read_text()) for file in self._files]
        for after, before, whole in zip(now, self._last, self._ranges, strict=True):
            self._total += (after - before) % (whole + 1)
        self._last = now
        return self._total / 1e6


@final
class Estimated(Meter):
    """Seconds of this process on all its cores, times watts."""

    kind = "estimated"

    def __init__(self, watts: float) -> None:
        self._watts = watts

    def joules(self) -> float:
        return time.process_time() * self._watts


def meter(device: str, watts: float | None = None) -> Meter | None:
    """The best counter for a device; None if there is none and the user gave no watts."""
    try:
        if torch.device(device).type == "cuda":
            return NVML(torch.device(device))
        return PackageCounters()
    except (ImportError, OSError, ValueError, RuntimeError):
        pass
    except Exception as error:  # pynvml's errors are of no common kind that could be named without it
        if type(error).__module__.split(".")[0] != "pynvml":
            raise
    return None if watts is None else Estimated(watts)


def spent(some: Any, before: float | None) -> float:
    """Joules since a reading."""
    return 0.0 if some is None or before is None else some.joules() - before
