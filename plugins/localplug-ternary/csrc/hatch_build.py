"""Compiles the kernel when a wheel or an editable install is made; without a C compiler the wheel is pure Python.

One library holds the bodies of all processors of an architecture and needs nothing of Python: its wheel is py3-none-PLATFORM.
"""

import pathlib
import platform
import subprocess
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES, LIBRARY = ("csrc/ternary.c", "csrc/dense.c"), "src/localplug_ternary/kernels/_ternary.so"
# Neither -ffast-math nor contraction to fused multiply-add: every body gives the same bits.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def compilers() -> list[list[str]]:
    """The compiler that Python was built with, then the usual names."""
    own = str(sysconfig.get_config_var("CC") or "").split()[:1]
    return [[name] for name in dict.fromkeys([*own, "cc", "gcc", "clang"])]


def compile_library(sources: list[pathlib.Path], library: pathlib.Path, candidates: list[list[str]]) -> str | None:
    """Build the library, with OpenMP if it can be; None, or why not. What lay there before is removed."""
    library.unlink(missing_ok=True)
    reasons = []
    for compiler in candidates:
        for openmp in (["-fopenmp"], []):
            command = [*compiler, *FLAGS, *openmp, *map(str, sources), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                reasons.append(f"{compiler[0]}: {error.strerror}")
                break
            if done.returncode == 0:
                return None
            library.unlink(missing_ok=True)
            reasons.append(f"{' '.join([*compiler, *openmp])}: {done.stderr.strip().splitlines()[-1:]}")
    return "; ".join(reasons) or "no compiler"


class TernaryBuildHook(BuildHookInterface[Any]):
    """Adds the compiled kernel to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = pathlib.Path(self.root)
        reason = compile_library([root / source for source in SOURCES], root / LIBRARY, compilers())
        if reason:
            self.app.display_warning(f"localplug-ternary: no compiled kernel, the wheel is pure Python ({reason})")
            return
        target = sysconfig.get_platform().replace("universal2", platform.machine())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(LIBRARY)

    def clean(self, versions: list[str]) -> None:
        (pathlib.Path(self.root) / LIBRARY).unlink(missing_ok=True)
