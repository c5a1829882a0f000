"""Where a benchmark's numbers go: one JSON file with what made them."""

import json
import pathlib
import platform
import sys
import time
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def earlier(name: str, setting: dict[str, Any], *, quick: bool = False) -> dict[str, Any]:
    """What runs of this setting have left in results/NAME.json, to go on from; of a quick run and of a first one, the setting.

    Raises:
        SystemExit: the file is of another setting.
    """
    path = RESULTS / f"{name}.json"
    if quick or not path.exists():
        return {"setting": setting}
    result: dict[str, Any] = json.loads(path.read_text())["result"]
    if result["setting"] != setting:
        sys.exit(f"{path} is of another setting, {result['setting']}; move it away")
    return result


def save(name: str, result: Any) -> None:
    """Write results/NAME.json with versions, command and date, and print it."""
    import torch
    import transformers

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    whole = {
        "command": " ".join(["python", "tests/benchmarks/" + pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "versions": versions,
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole))
