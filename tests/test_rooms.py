"""Who may import whom, and who may do what: the tables of ARCHITECTURE.md, section 2, kept true by reading the code.

Imports inside functions count; those under `if TYPE_CHECKING:` do not.
"""

import ast
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
HOST = REPOSITORY / "src" / "localplug"
MEMBERS = sorted((REPOSITORY / "plugins").glob("*/src/*")) + sorted((REPOSITORY / "integrations").glob("*/src/*"))

# The rooms: which packages, besides the standard library, a file may import. "localplug" stands for public modules.
CORE = (
    "__init__",
    "cli",
    "commands",
    "compatibility",
    "errors",
    "hookspecs",
    "index",
    "plugins",
    "printable",
    "scaffold",
)  # what the listings need
CORE_MAY_IMPORT = {"pluggy", "tomli", *(f"localplug.{name}" for name in CORE)}
ALSO_MAY_IMPORT = {  # by a command when it runs, and torch with some of them
    "terminal": {"rich"},
    "completing": {"shtab"},
    "replaying": {"localplug.rebuild"},
    "scaffolding": {"localplug.scaffold"},
    "checking": {"localplug.testing"},
}
HOST_MAY_IMPORT = {
    "torch",
    "localplug",
    "safetensors",
}  # safetensors: the files that a replay reads and writes
KIT_MAY_IMPORT = {"torch", "localplug", "pytest"}
MEMBER_MAY_IMPORT = {
    "localplug_zo": {"localplug", "torch", "numpy"},  # numpy: the released MeZO draws its seeds with it
    "localplug_tpsgd": {"localplug", "torch"},
    "localplug_forward": {"localplug", "torch"},
    "localplug_noprop": {"localplug", "torch"},
    "localplug_greedy": {"localplug", "torch"},
    "localplug_graph": {"localplug", "torch", "torch_geometric"},
    "localplug_convex": {"localplug", "torch"},
    "localplug_credit": {"localplug", "torch"},
    "localplug_select": {"localplug", "torch"},
    "localplug_updates": {"localplug", "torch", "lion_pytorch", "prodigyopt", "dadaptation", "schedulefree"},
    "localplug_exact": {"localplug", "torch"},
    "localplug_experts": {"localplug", "torch", "highspy"},
    "localplug_rewards": {"localplug", "torch", "ot", "numpy", "scipy"},
    # searchers of others: those that are installed
    "localplug_blackbox": {"localplug", "torch", "botorch", "gpytorch", "cma", "nevergrad", "numpy"},
    "localplug_ternary": {"localplug", "torch", "transformers", "safetensors", "tqdm", "peft", "gguf", "numpy"},
    "localplug_transformers": {"localplug", "torch", "transformers"},
    "localplug_lightning": {"localplug", "torch", "lightning", "pytorch_lightning", "torchmetrics"},
    # optuna: the searches; matplotlib: the report; localplug_transformers: the demo's model without a hub, where it is
    # installed; the others: what a task is about, when it is used, the trainers whose logs an observer writes to, and the
    # counter of a GPU's energy
    "localplug_bench": {
        "localplug",
        "localplug_transformers",
        "torch",
        "matplotlib",
        "optuna",
        "numpy",
        "PIL",
        "torch_geometric",
        "transformers",
        "peft",
        "datasets",
        "pynvml",
        "rich",
        "lightning",
    },
}

# The floors of the host: a file imports only from the floors below its own.
FLOORS = (
    (
        "errors",
        "footprint",
        "hookspecs",
        "interrupts",
        "kernels",
        "printable",
        "quantizers",
        "shards",
        "strict_json",
        "substitution",
    ),
    ("compatibility", "encoding", "index"),
    ("checkpoint", "contract", "header", "low_rank", "noise", "plugins"),
    (
        "alarms",
        "carrier",
        "checks",
        "output",
        "parts",
        "rounding",
        "replay",
        "selectors",
        "trajectory",
        "owned",
        "units",
        "workers",
    ),
    ("signals",),
    ("distributions", "log", "objectives", "pending", "recipes", "stream", "tasks"),
    ("selection",),
    ("directions", "local", "predictor"),
    ("attachment", "prefix", "stacked", "tiles"),
    ("perturbation",),
    ("zeroth_order",),
    ("engine", "rebuild"),
    ("loop",),
    ("scaffold", "testing"),
    ("commands",),
    ("cli",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MECHANISMS = {
    "directions",
    "distributions",
    "footprint",
    "local",
    "low_rank",
    "owned",
    "parts",
    "pending",
    "perturbation",
    "prefix",
    "selection",
    "selectors",
    "signals",
    "stacked",
    "stream",
    "substitution",
    "tiles",
    "units",
    "zeroth_order",
}

# Who alone may do it, by file.
ONLY = {
    "entry points, pluggy's manager": {"plugins.py"},
    "the environment": {
        "cli.py",
        "plugins.py",
        "offline_models.py",
        "peak_memory.py",
    },  # cache folder; a child's malloc
    "print": {"terminal.py", "demo.py"},
    "standard output": {
        "peak_memory.py",
        "terminal.py",
    },  # its answer to its own parent process; whether it is a terminal
    "seeding a global generator": set(),
    "setting a global random state": {"replay.py"},
}


def read(path):
    return ast.parse(path.read_text(), str(path))


def runtime_nodes(tree):
    """Every node but those under `if TYPE_CHECKING:`."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    return [node for node in ast.walk(tree) if id(node) not in skipped]


def modules_of_localplug():
    return {p.stem for p in HOST.glob("*.py")} | {p.name for p in HOST.iterdir() if (p / "__init__.py").exists()}


def imports(tree):
    """The dotted names that a file imports; `from localplug import noise` is localplug.noise, where that is a module."""
    found = []
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            inside = modules_of_localplug() if module == "localplug" else ()
            found += [
                f"{module}.{a.name}" if a.name in inside or a.name.startswith("_") else module for a in node.names
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return found


def is_allowed(module, allowed):
    return module.split(".")[0] in sys.stdlib_module_names or any(
        module == name or module.startswith(f"{name}.") for name in allowed
    )


def room_violations(path, allowed, own=None):
    """What the file imports and may not: other rooms, relative imports, private names of localplug."""
    allowed = allowed | ({own} if own else set())
    bad = [module for module in imports(read(path)) if not is_allowed(module, allowed)]
    private = [m for m in imports(read(path)) if m.startswith("localplug.") and any(p[0] == "_" for p in m.split("."))]
    return sorted(set(bad + [m for m in private if own != "localplug"]))


def host_name(path):
    """engine.py -> "engine"; testing/method.py -> "testing"."""
    return path.relative_to(HOST).parts[0].removesuffix(".py")


def floor_violations(name, tree):
    """The host modules that a file imports from its own floor or above; and the mechanisms, if it is the engine."""
    found = []
    for module in imports(tree):
        if module.split(".")[0] != "localplug":
            continue
        other = module.split(".")[1] if "." in module else "__init__"
        is_below = other == name or FLOOR.get(other, len(FLOORS)) < FLOOR[name]
        if not is_below or (name == "engine" and other in MECHANISMS):
            found.append(module)
    return sorted(set(found))


def deeds(tree):
    """{what of ONLY the file does: the line numbers}."""
    found = {}
    for node in ast.walk(tree):
        words = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        names = {a.name for a in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
        last = words.rsplit(".", 1)[-1]
        does = {
            "entry points, pluggy's manager": {last, *names} & {"entry_points", "PluginManager"},
            "the environment": {last, *names} & {"environ", "getenv", "putenv"},
            "print": words == "print",
            "standard output": words in ("sys.stdout", "sys.__stdout__") or {"stdout"} & names,
            "seeding a global generator": words
            in ("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed", "random.seed")
            or words.startswith(("torch.cuda.manual_seed", "torch.cuda.seed", "numpy.random.seed", "np.random.seed"))
            or {"manual_seed", "manual_seed_all"} & names,
            "setting a global random state": {last, *names} & {"set_rng_state", "set_rng_state_all"},
        }
        for what, it_does in does.items():
            if it_does:
                found.setdefault(what, []).append(node.lineno)
    return found


def deed_violations(path):
    return {what: lines for what, lines in deeds(read(path)).items() if path.name not in ONLY[what]}


def files(*folders):
    found = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in found]


@pytest.mark.parametrize("path", [path for path in files(HOST) if host_name(path.values[0]) in CORE])
def test_the_core_of_the_host_imports_the_standard_library_and_pluggy(path):
    assert not room_violations(path, CORE_MAY_IMPORT | ALSO_MAY_IMPORT.get(path.stem, set()))


@pytest.mark.parametrize("path", files(HOST))
def test_the_host_imports_torch_and_no_framework_and_no_plugin(path):
    if host_name(path) not in CORE:
        assert not room_violations(
            path, KIT_MAY_IMPORT if host_name(path) == "testing" else HOST_MAY_IMPORT, "localplug"
        )


@pytest.mark.parametrize("path", files(*MEMBERS))
def test_a_plugin_imports_localplug_and_its_library_and_an_integration_its_framework(path):
    own = path.relative_to(REPOSITORY).parts[3]
    kit = {"pytest"} if path.name == "conformance.py" else set()  # imported by `localplug check` and by tests alone
    assert not room_violations(path, MEMBER_MAY_IMPORT[own] | kit, own)


@pytest.mark.parametrize("path", files(REPOSITORY / "examples"))
def test_an_example_may_import_everything_that_is_public(path):
    assert not [m for m in imports(read(path)) if m.startswith("localplug.") and "._" in m]


def test_every_file_of_the_host_has_a_floor():
    assert {host_name(p) for p in HOST.rglob("*.py")} == {*FLOOR, "__init__"}
    assert len(FLOOR) == sum(map(len, FLOORS))


@pytest.mark.parametrize("path", files(HOST))
def test_inside_the_host_imports_run_down_only(path):
    if path != HOST / "__init__.py":  # the door: lazily, it names all the others
        assert not floor_violations(host_name(path), read(path))


def test_no_mechanism_knows_the_engine():
    """And the engine knows no mechanism, which is among the floors' rules."""
    for name in MECHANISMS:
        assert FLOOR[name] < FLOOR["engine"]
        assert "localplug.engine" not in imports(read(HOST / f"{name}.py"))


@pytest.mark.parametrize("path", files(HOST, *MEMBERS))
def test_what_only_one_file_may_do_no_other_does(path):
    assert not deed_violations(path)


@pytest.mark.parametrize("what", [what for what, who in ONLY.items() if who])
def test_whoever_may_do_it_does_it(what):
    """Else the table allows what nobody needs."""
    doing = {p.name for folder in (HOST, *MEMBERS) for p in folder.rglob("*.py") if what in deeds(read(p))}
    assert doing == ONLY[what]


def test_files_are_short_and_are_named_after_what_they_hold():
    for folder in ("src", "plugins", "integrations"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc"), path
            assert len(path.read_text().splitlines()) <= 500, path


# The checks above can fail: every planted line is found.


@pytest.mark.parametrize(
    "allowed, own, line",
    [
        (CORE_MAY_IMPORT, None, "import torch"),
        (CORE_MAY_IMPORT, None, "from localplug import engine"),
        (CORE_MAY_IMPORT, None, "from localplug import Engine"),
        (HOST_MAY_IMPORT, "localplug", "import transformers"),
        (HOST_MAY_IMPORT, "localplug", "import pytest"),
        (HOST_MAY_IMPORT, "localplug", "def f():\n    from localplug_zo.mezo import MeZO"),
        (HOST_MAY_IMPORT, "localplug", "importlib.import_module('localplug_zo')"),
        (HOST_MAY_IMPORT, "localplug", "from . import engine"),
        (MEMBER_MAY_IMPORT["localplug_zo"], "localplug_zo", "import localplug_tpsgd"),
        (MEMBER_MAY_IMPORT["localplug_zo"], "localplug_zo", "import transformers"),
        (MEMBER_MAY_IMPORT["localplug_zo"], "localplug_zo", "from localplug import _HOME"),
        (MEMBER_MAY_IMPORT["localplug_zo"], "localplug_zo", "from localplug._private import x"),
        (MEMBER_MAY_IMPORT["localplug_lightning"], "localplug_lightning", "from localplug_zo.mezo import MeZO"),
        (MEMBER_MAY_IMPORT["localplug_lightning"], "localplug_lightning", "import transformers"),
        (MEMBER_MAY_IMPORT["localplug_transformers"], "localplug_transformers", "import lightning.pytorch"),
    ],
)  # fmt: skip
def test_a_planted_import_is_found(tmp_path, allowed, own, line):
    path = tmp_path / "planted.py"
    path.write_text(f"import os\nif TYPE_CHECKING:\n    import transformers\nimport {own or 'pluggy'}\n")
    assert not room_violations(path, allowed, own)
    path.write_text(path.read_text() + line + "\n")
    assert len(room_violations(path, allowed, own)) == 1


@pytest.mark.parametrize(
    "name, line",
    [
        ("noise", "from localplug.contract import Run"),
        ("contract", "from localplug import plugins"),
        ("engine", "from localplug import zeroth_order"),
        ("zeroth_order", "def f():\n    from localplug.engine import Engine"),
        ("local", "from localplug.zeroth_order import Projection"),
        ("loop", "from localplug import Engine"),
        ("loop", "import localplug.unheard_of"),
    ],
)
def test_a_planted_import_from_above_is_found(name, line):
    fine = "from localplug.errors import LocalPlugError\n" if name not in FLOORS[0] else ""
    assert not floor_violations(name, ast.parse(fine))
    assert len(floor_violations(name, ast.parse(fine + line))) == 1


@pytest.mark.parametrize(
    "what, line",
    [
        ("entry points, pluggy's manager", "from importlib.metadata import entry_points"),
        ("entry points, pluggy's manager", "importlib.metadata.entry_points()"),
        ("entry points, pluggy's manager", "pluggy.PluginManager('localplug')"),
        ("the environment", "os.environ['LOCALPLUG_BLOCK']"),
        ("the environment", "os.getenv('LOCALPLUG_BLOCK')"),
        ("print", "print('x')"),
        ("standard output", "sys.stdout.write('x')"),
        ("seeding a global generator", "torch.manual_seed(0)"),
        ("seeding a global generator", "torch.cuda.manual_seed_all(0)"),
        ("seeding a global generator", "from torch import manual_seed"),
        ("setting a global random state", "torch.set_rng_state(state)"),
        ("setting a global random state", "torch.cuda.set_rng_state_all(states)"),
    ],
)
def test_a_planted_deed_is_found(tmp_path, what, line):
    path = tmp_path / "planted.py"
    path.write_text(f"generator = torch.Generator().manual_seed(1)\n{line}\n")
    assert deed_violations(path) == {what: [2]}
