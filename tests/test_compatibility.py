"""The contract with plugins: its version, its deprecations, its text; and plugins of earlier releases still load and train."""

import importlib.util
import inspect
import pathlib
import sys
import types
import warnings

import pytest
import torch
from torch.nn import functional as F

import localplug
import surface
from localplug import cli, compatibility, hookspecs, plugins
from localplug.compatibility import LocalPlugDeprecationWarning, Moved, deprecated
from localplug.testing import kinds

RELEASED = pathlib.Path(__file__).parent / "released"
NOW = surface.surface()


# ---- the text of the contract ------------------------------------------------------------------------------------------------


def test_the_contract_is_as_it_was_reviewed():
    """It changed if this fails: see CONTRIBUTING.md, "The contract", then `python tests/surface.py`, and commit its text."""
    before = surface.RECORDED.read_text()
    what, reasons = surface.needed(before, NOW)
    assert before == NOW, f"the contract has changed ({what or 'its version'}):\n" + "\n".join(reasons)


def test_the_version_of_the_contract_has_grown_as_it_has_to_since_the_last_release():
    frozen = sorted(RELEASED.glob("*/surface.txt"), key=lambda path: tuple(map(int, path.parent.name.split("."))))
    for path in frozen[-1:]:
        what, reasons = surface.needed(path.read_text(), NOW)
        assert surface.is_kept(path.read_text(), NOW), f"a {what} change since {path.parent.name}:\n" + "\n".join(
            reasons
        )


BEFORE = """contract 1.2
Method: abstractmethod setup(self, run: Run) -> None
function attach(model: nn.Module) -> None
hook a()
"""


@pytest.mark.parametrize(
    "change, what, version",
    [
        (("", ""), None, "1.2"),
        (("hook a()", "hook a()\nhook b()"), "minor", "1.3"),
        (("hook a()", "hook a()\nMethod: cost(self) -> str"), "minor", "1.3"),
        (("hook a()", "hook a()\nMethod: abstractmethod cost(self) -> str"), "major", "2.0"),
        (("hook a()", "hook a()\nclass New(abc.ABC)\nNew: abstractmethod make(self) -> str"), "minor", "1.3"),
        (("hook a()", ""), "major", "2.0"),
        (("hook a()", "hook a(model)"), "major", "2.0"),
        (("model: nn.Module", "module: nn.Module"), "major", "2.0"),
        (("run: Run", "run: Run, seed: int=0"), "major", "2.0"),
    ],
)
def test_what_a_change_asks_of_the_version(change, what, version):
    after = BEFORE.replace(*change) if change[0] else BEFORE
    assert surface.needed(BEFORE, after)[0] == what
    for tried in ("1.2", "1.3", "2.0", "2.1", "3.0"):
        assert surface.is_kept(BEFORE, after.replace("contract 1.2", f"contract {tried}")) == (tried == version)


def test_the_text_has_every_hook_public_name_method_and_check():
    """By what Python finds at run time; the text is read from the source."""
    told = set(NOW.splitlines())
    assert {f"hook localplug_{kind}()" for kind in plugins.KINDS} <= told
    for name in localplug.__all__:
        value = getattr(localplug, name)
        if inspect.isclass(value) and value.__module__.startswith("localplug"):
            own = [m for m in vars(value) if not m.startswith("_") and inspect.isfunction(vars(value)[m])]
            missing = [m for m in own if not any(line.startswith(f"{name}: ") and f"{m}(" in line for line in told)]
            assert not missing and any(f"class {name}(" in line for line in told)
    for kits in kinds.CLASSES.values():
        for kit in kits:
            checks = [name for name in vars(kit) if name.startswith("test_")]
            assert {f"kit {kit.__name__}: {check}" for check in checks} <= told


# ---- the version -------------------------------------------------------------------------------------------------------------


def plugin(contract=None, hook="localplug_methods", name="made-up"):
    """A module with one hook, which says that it was made for a version of the contract."""
    module = types.ModuleType(f"plugin_{name.replace('-', '_')}")
    if contract is not None:
        module.localplug_contract = contract

    def answer():
        return {name: lambda: None}

    setattr(module, hook, localplug.hookimpl(answer, specname=hook))
    return module


@pytest.mark.parametrize("contract", [None, "1.0", "1.4", "1.5"])
def test_a_plugin_made_for_this_contract_or_an_earlier_one_is_taken(contract, fresh_plugins, monkeypatch):
    monkeypatch.setattr(compatibility, "CONTRACT_VERSION", "1.5")
    localplug.register(plugin(contract))
    assert callable(localplug.get("made-up"))


@pytest.mark.parametrize(
    "contract, said",
    [
        ("1.6", r"made for version 1\.6 .* keeps 1\.5; pip install --upgrade localplug"),
        ("2.0", r"made for version 2\.0 .* pip install --upgrade localplug"),
        ("0.9", r"made for version 0\.9 .* has removed some of that; install a later release of the plugin"),
        (1.5, r'must be "MAJOR.MINOR", .* got 1\.5'),
        ("1", r'must be "MAJOR.MINOR"'),
        ("1.5.2", r'must be "MAJOR.MINOR"'),
    ],
)
def test_a_plugin_made_for_another_contract_is_refused_with_the_way_out(contract, said, fresh_plugins, monkeypatch):
    monkeypatch.setattr(compatibility, "CONTRACT_VERSION", "1.5")
    with pytest.raises(localplug.PluginFailed, match=said):
        localplug.register(plugin(contract))
    with pytest.raises(localplug.UnknownName):
        localplug.get("made-up")


# ---- deprecations ------------------------------------------------------------------------------------------------------------


def test_a_deprecated_hook_warns_in_the_plugins_file_and_still_works(fresh_plugins, monkeypatch):
    def localplug_old_things():
        """Give old things."""

    warning = deprecated("localplug_old_things", since="0.2", until="0.3", instead="answer localplug_methods")
    hook = hookspecs.hookspec(warn_on_impl=warning)(localplug_old_things)
    monkeypatch.setattr(hookspecs, "localplug_old_things", hook, raising=False)
    monkeypatch.setattr(plugins, "KINDS", (*plugins.KINDS, "old_things"))
    plugins.reload()
    said = (
        r"^localplug_old_things is deprecated since localplug 0\.2 and will be gone in 0\.3: answer localplug_methods$"
    )
    with pytest.warns(LocalPlugDeprecationWarning, match=said) as caught:
        localplug.register(plugin(hook="localplug_old_things"))
    assert [w.filename for w in caught] == [__file__]
    assert callable(localplug.get("made-up", "old_things"))
    with warnings.catch_warnings():  # and a plugin without it does not
        warnings.simplefilter("error")
        localplug.register(plugin(name="another"))


def test_a_name_that_has_moved_warns_where_it_is_used_and_still_works(monkeypatch):
    monkeypatch.setitem(compatibility.MOVED, "get_plugin", Moved("get", since="0.2", until="0.3"))
    said = r"^localplug\.get_plugin is deprecated since localplug 0\.2 and will be gone in 0\.3: use localplug\.get$"
    with pytest.warns(LocalPlugDeprecationWarning, match=said) as caught:
        assert localplug.get_plugin is localplug.get
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(LocalPlugDeprecationWarning, match=said):
        from localplug import get_plugin
    assert get_plugin is localplug.get
    assert "get_plugin" not in dir(localplug) and "get_plugin" not in localplug.__all__


def overdue(release, warnings_, moved):
    """What should be gone in a release."""
    until = {str(w): w.until for w in warnings_} | {name: place.until for name, place in moved.items()}
    numbers = tuple(map(int, release.split(".")[:2]))
    return sorted(what for what, gone in until.items() if tuple(map(int, gone.split("."))) <= numbers)


def test_nothing_deprecated_outlives_the_release_that_it_names():
    hooks = [vars(hookspecs)[f"localplug_{kind}"].localplug_spec for kind in plugins.KINDS]
    given = [w for hook in hooks for w in (hook["warn_on_impl"], *(hook["warn_on_impl_args"] or {}).values()) if w]
    assert not overdue(localplug.__version__, given, compatibility.MOVED)
    assert not set(compatibility.MOVED) & set(localplug.__all__)
    assert {place.to for place in compatibility.MOVED.values()} <= set(localplug.__all__)


def test_what_outlives_its_release_is_found():
    old = deprecated("a", since="0.2", until="0.3", instead="use b")
    place = {"c": Moved("d", "0.9", "0.10")}
    assert overdue("0.2.7", [old], place) == []
    assert overdue("0.3.0", [old], place) == [str(old)]
    assert overdue("0.10.0", [old], place) == sorted([str(old), "c"])


# ---- plugins of earlier releases ---------------------------------------------------------------------------------------------


def load(path):
    """The module of a plugin of an earlier release; in sys.modules, so that what it defines can be pickled."""
    name = f"released_{path.parent.name.replace('.', '_')}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def given(module):
    """(kind, name, factory) of everything that a module gives."""
    for kind in plugins.KINDS:
        for name, factory in getattr(module, f"localplug_{kind}", dict)().items():
            yield kind, name, factory


FILES = sorted(RELEASED.glob("*/*.py"))
for _path in FILES:  # the conformance kit, for each of them
    for _kind, _name, _factory in given(load(_path)):
        if _kind in kinds.CLASSES:
            _tests = kinds.tests_of(_kind, _name, _factory, {})
            globals()[f"Test_{_path.parent.name}_{_path.stem}"] = _tests


def test_every_hook_of_the_release_has_a_plugin():
    for folder in RELEASED.iterdir():
        recorded = folder / "surface.txt"
        text = recorded.read_text() if recorded.exists() else NOW  # not released yet
        hooks = {line.removeprefix("hook ").split("(")[0] for line in text.splitlines() if line.startswith("hook ")}
        assert {f"localplug_{kind}" for path in folder.glob("*.py") for kind, _, _ in given(load(path))} == hooks


def problem(seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 8, generator=draw)
    y = 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    return net, x, y


def losses(method, lr=0.05, steps=60, optimizer=torch.optim.SGD, net=None, **options):
    """The loss before and after a training in a plain loop."""
    made, x, y = problem()
    net = net or made
    stepping = optimizer(net.parameters(), lr=lr)
    before = float(F.cross_entropy(net(x), y).detach())
    with localplug.attach(net, method, stepping, targets=lambda args, kwargs: y, **options):
        for _ in range(steps):
            F.cross_entropy(net(x), y).backward()
            stepping.step()
            stepping.zero_grad()
    with torch.no_grad():
        return before, float(F.cross_entropy(net(x), y))


def trains_by_objective(name, score):
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = problem()[0]

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    whole, (_, x, y) = Whole(), problem()

    @torch.no_grad()
    def found():
        return score(whole(x, y), {"labels": y})

    before, optimizer = found(), torch.optim.SGD(whole.parameters(), lr=0.3)
    with localplug.attach(whole, "mezo", optimizer, eps=0.1, num_directions=8, objective=name):
        for _ in range(20):
            whole(x=x, labels=y)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    return found() > before + 0.05


def trains_ternary(name):
    from localplug_ternary import TernaryConfig, ternarize_

    net, _, _ = problem()
    ternarize_(net, TernaryConfig(name, group_size=None))
    before, after = losses("mezo", net=net, num_directions=4, lr=0.02, eps=1e-2)
    return after < before


def solves(name):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(1)
    return float((localplug.solver(name)(x, x.abs())(x) - x.abs()).abs().max().detach()) < 0.1


def trains_on(name):
    task = localplug.task(name)
    net, parts = task.fresh_model(0), task.parts(0)
    batch = parts.train.batch(torch.arange(len(parts.train)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = float(task.loss(net, batch).detach())
    with localplug.attach(net, "mezo", optimizer, num_directions=4):
        for _ in range(40):
            task.loss(net, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return float(task.loss(net, batch).detach()) < before


def falls(before_and_after):
    before, after = before_and_after
    return after < 0.95 * before


TRAINS = {
    "methods": lambda name, factory: falls(losses(name)),
    "estimators": lambda name, factory: falls(losses("zo", estimator=name)),
    "perturbations": lambda name, factory: falls(losses("zo", directions=name)),
    "update_rules": lambda name, factory: falls(
        losses("zo", update=name)
        if issubclass(factory, localplug.Update)
        else losses("mezo", optimizer=localplug.update_rule(name), update="trainer", num_directions=4)
    ),
    "selectors": lambda name, factory: falls(losses("mezo", parameters=localplug.selector(name), num_directions=4)),
    "target_generators": lambda name, factory: falls(losses("tpsgd", target=name)),
    "local_losses": lambda name, factory: falls(losses("tpsgd", loss=name)),
    "objectives": trains_by_objective,
    "quantizers": lambda name, factory: trains_ternary(name),
    "solvers": lambda name, factory: solves(name),
    "tasks": lambda name, factory: trains_on(name),
    "commands": lambda name, factory: cli.main([name, "two", "words"]) == 0,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_plugin_of_an_earlier_release_loads_and_trains_by_its_name(path, fresh_plugins):
    module = load(path)
    localplug.register(module, "an-earlier-release")
    assert localplug.installed()[-1].gives
    for kind, name, factory in given(module):
        assert TRAINS[kind](name, factory), f"{kind} {name}"
