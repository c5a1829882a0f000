"""Compiles the loops of the noise when a wheel or an editable install is made; without a C compiler the wheel is pure Python.

One library holds the bodies of all processors of an architecture and needs nothing of Python: its wheel is py3-none-PLATFORM.
"""

import pathlib
import platform
import subprocess
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "csrc/loops.c", "src/localplug/_loops.so"
# Neither -ffast-math nor contraction to fused multiply-add: the same bits as torch's operations.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def compilers() -> list[list[str]]:
    """The compiler that Python was built with, then the usual names."""
    own = str(sysconfig.get_config_var("CC") or "").split()[:1]
    return [[name] for name in dict.fromkeys([*own, "cc", "gcc", "clang"])]


def compile_library(source: pathlib.Path, library: pathlib.Path, candidates: list[list[str]]) -> str | None:
    """Build the library, for each generation of processors if it can be; None, or why not. What lay there before is removed."""
    library.unlink(missing_ok=True)
    reasons = []
    for compiler in candidates:
        for bodies in ([], ["-DONE_BODY"]):
            command = [*compiler, *FLAGS, *bodies, str(source), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                reasons.append(f"{compiler[0]}: {error.strerror}")
                break
            if done.returncode == 0:
                return None
            library.unlink(missing_ok=True)
            reasons.append(f"{' '.join([*compiler, *bodies])}: {done.stderr.strip().splitlines()[-1:]}")
    return "; ".join(reasons) or "no compiler"


class LoopsBuildHook(BuildHookInterface[Any]):
    """Adds the compiled loops to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = pathlib.Path(self.root)
        reason = compile_library(root / SOURCE, root / LIBRARY, compilers())
        if reason:
            self.app.display_warning(f"localplug: no compiled loops, the wheel is pure Python, and slower ({reason})")
            return
        target = sysconfig.get_platform().replace("universal2", platform.machine())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(LIBRARY)

    def clean(self, versions: list[str]) -> None:
        (pathlib.Path(self.root) / LIBRARY).unlink(missing_ok=True)
