"""Find, load, block, name and report plugins: the only file that touches pluggy's manager, entry points and LOCALPLUG_*.

Environment: LOCALPLUG_PLUGINS=a,b loads only these entry points, named by themselves or by their distributions;
LOCALPLUG_BLOCK=a,b leaves these out; LOCALPLUG_STRICT=1 raises at the first broken plugin instead of going on without it.
Nothing here imports torch. `found` imports no plugin; whatever else is asked for loads all that are not blocked.

Names, versions and errors of plugins are other people's text: it is made printable here, once, for every message and log.
"""

import dataclasses
import difflib
import importlib
import logging
import os
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions, entry_points
from types import ModuleType
from typing import Any

import pluggy

from localplug import compatibility, hookspecs, index
from localplug.errors import DuplicateName, LocalPlugError, PluginFailed, UnknownName
from localplug.printable import printable

GROUP = "localplug"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KINDS = (
    "methods",
    "estimators",
    "perturbations",
    "selectors",
    "update_rules",
    "objectives",
    "target_generators",
    "local_losses",
    "solvers",
    "quantizers",
    "tasks",
    "commands",
)
logger = logging.getLogger("localplug")


@dataclasses.dataclass
class Plugin:
    """One entry point of the group `localplug`, and what became of it."""

    name: str
    distribution: str
    version: str
    status: str = "ok"  # "ok", "blocked", "failed"; "not loaded" if nobody has asked it
    reason: str = ""
    summary: str = ""
    module: str = ""
    error: BaseException | None = None
    gives: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name!r} ({' '.join(word for word in (self.distribution, self.version) if word)})"


class _Host:
    """The loaded plugins of this process."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        for entry, plugin in _discovered():
            self.plugins.append(plugin)
            if plugin.status == "not loaded":
                self._load(entry, plugin)
            elif plugin.error is not None:
                self._fail(plugin, plugin.error)

    def _load(self, entry: EntryPoint, plugin: Plugin) -> None:
        try:
            self.add(entry.load(), plugin)
            plugin.status = "ok"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a plugin raises must not take the host down
            self._fail(plugin, error)

    def add(self, module: ModuleType | object, plugin: Plugin) -> None:
        """Register one plugin object and ask it every question; raises what is wrong with it, and then leaves no trace."""
        if self.manager.has_plugin(plugin.name) or self.manager.is_registered(module):
            raise DuplicateName(f"{plugin.name!r} is already registered; `localplug plugins` lists what is")
        compatibility.check(getattr(module, "localplug_contract", None))
        self.manager.register(module, name=plugin.name)
        try:
            self.manager.check_pending()  # a misspelt hook would otherwise be accepted in silence
            gives: dict[str, dict[str, Any]] = {}
            for kind in KINDS:
                for implementation in getattr(self.manager.hook, f"localplug_{kind}").get_hookimpls():
                    if implementation.plugin is module:
                        gives[kind] = _validated(implementation.function(), kind)
            if not gives:
                raise PluginFailed(
                    "it answers none of localplug's hooks; mark a function such as localplug_methods with "
                    "@localplug.hookimpl (`localplug hooks` prints them all)"
                )
        except BaseException:
            self.manager.unregister(name=plugin.name)
            raise
        plugin.gives = gives

    def _fail(self, plugin: Plugin, error: BaseException) -> None:
        plugin.status, plugin.error, plugin.reason = "failed", error, _told(error)
        if os.environ.get("LOCALPLUG_STRICT", "") not in ("", "0"):
            raise PluginFailed(f"plugin {plugin.label} failed: {plugin.reason}") from error
        logger.warning("plugin %s failed and is left out: %s", plugin.label, plugin.reason)


def _discovered() -> Iterator[tuple[EntryPoint, Plugin]]:
    """Every entry point of the group and what its metadata says; none is imported."""
    only, blocked = _listed("LOCALPLUG_PLUGINS"), _listed("LOCALPLUG_BLOCK") or set()
    taken: dict[str, Plugin] = {}
    both = [(entry, _described(entry)) for entry in _entries()]
    # An entry point is named after its distribution: nobody else can take the name of one that is installed.
    for entry, plugin in sorted(both, key=lambda b: (b[1].name, not _is_owner(b[1]), b[1].distribution)):
        called = {index.normalized(plugin.name), index.normalized(plugin.distribution)}
        twin = taken.get(plugin.name)
        if called & blocked or (only is not None and not called & only):
            plugin.status = "blocked"
            plugin.reason = "by LOCALPLUG_BLOCK" if called & blocked else "not in LOCALPLUG_PLUGINS"
        elif not _NAME.fullmatch(plugin.name):
            plugin.error = PluginFailed("an entry point's name must be letters, digits, dots, dashes and underscores")
        elif twin is not None:
            plugin.error = DuplicateName(
                f"the entry-point name {plugin.name!r} is already taken by {twin.distribution} {twin.version}; "
                "uninstall one of the two distributions"
            )
        else:
            taken[plugin.name] = plugin
        if plugin.error is not None:
            plugin.status, plugin.reason = "failed", _told(plugin.error)
        yield entry, plugin


def _entries() -> list[EntryPoint]:
    try:
        return list(entry_points(group=GROUP))
    except Exception:  # somebody's metadata cannot be read, which must not hide everybody else's
        found: dict[tuple[str, str], EntryPoint] = {}
        for distribution in distributions():
            try:
                for entry in distribution.entry_points.select(group=GROUP):
                    found.setdefault((entry.name, entry.value), entry)
            except Exception:
                logger.warning("a distribution has metadata that cannot be read, and is left out")
        return list(found.values())


def _described(entry: EntryPoint) -> Plugin:
    said = {"Name": "no distribution", "Version": "", "Summary": ""}
    try:
        if entry.dist is not None:
            metadata = entry.dist.metadata
            said.update({field: metadata[field] for field in said if field in metadata})
    except Exception:
        logger.debug("the metadata of %s cannot be read", printable(entry.name), exc_info=True)
    name, (distribution, version, summary) = printable(entry.name), map(printable, said.values())
    module = printable(entry.value.partition(":")[0])
    return Plugin(name, distribution, version, "not loaded", summary=summary, module=module)


def _is_owner(plugin: Plugin) -> bool:
    return index.normalized(plugin.distribution) == f"localplug-{index.normalized(plugin.name)}"


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # of a class that a plugin defines
        text = "(its message cannot be read)"
    return printable(f"{type(error).__name__}: {text}")


def _listed(variable: str) -> set[str] | None:
    text = os.environ.get(variable)
    return None if text is None else {index.normalized(name.strip()) for name in text.split(",") if name.strip()}


def _validated(answer: Any, kind: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise PluginFailed(f"localplug_{kind} must return a dictionary {{name: class}}, it returned {answer!r}")
    for name, value in answer.items():
        if not isinstance(name, str) or not name or not name.isprintable():
            raise PluginFailed(
                f"localplug_{kind}: a name must be a non-empty string of printable characters, got {name!r}"
            )
        if not (callable(value) or (isinstance(value, str) and value.count(":") == 1)):
            raise PluginFailed(
                f'localplug_{kind}: {name!r} must be a class, a callable or "module:attribute", got {value!r}'
            )
    return dict(answer)  # names are resolved in place, and the plugin's own dictionary is not ours


_host: _Host | None = None


def _loaded() -> _Host:
    global _host
    if _host is None:
        _host = _Host()
    return _host


def reload() -> None:
    """Forget every plugin; the next question loads them anew (after an installation, or a changed environment)."""
    global _host
    _host = None


def found() -> list[Plugin]:
    """Every entry point of the group `localplug`, by its metadata alone: blocked, failed (its name is taken) or not loaded.

    No plugin is imported, so that none can break, delay or fool this list.
    """
    return [plugin for _, plugin in _discovered()]


def installed() -> list[Plugin]:
    """Every entry point of the group `localplug`, loaded, blocked or failed."""
    return list(_loaded().plugins)


def register(module: ModuleType | object, name: str | None = None) -> None:
    """Add a plugin that is not installed, such as a module of your own script.

    Raises:
        PluginFailed: it answers no hook, or answers one wrongly; the cause is chained.
        DuplicateName: the name, or the object, is registered already.
    """
    plugin = Plugin(name or str(getattr(module, "__name__", type(module).__name__)), "registered by hand", "")
    try:
        _loaded().add(module, plugin)
    except LocalPlugError:
        raise
    except Exception as error:
        raise PluginFailed(f"plugin {plugin.label} cannot be registered: {type(error).__name__}: {error}") from error
    _loaded().plugins.append(plugin)


def names(kind: str) -> dict[str, list[Plugin]]:
    """{name: the plugins that give it} for one of KINDS."""
    found: dict[str, list[Plugin]] = {}
    for plugin in _loaded().plugins:
        for name in plugin.gives.get(kind, {}):
            found.setdefault(name, []).append(plugin)
    return found


def get(name: str, kind: str = "methods") -> Any:
    """The class or factory that an installed plugin gives under `name`.

    Raises:
        UnknownName: nobody gives it; the message has near matches and everything that is installed.
        DuplicateName: two plugins give it; the message names both distributions.
        PluginFailed: its plugin is installed but broken; the cause is chained.
    """
    what = kind.removesuffix("s").replace("_", " ").replace("losse", "loss")
    given = names(kind)
    givers = given.get(name, [])
    if len(givers) > 1:
        raise DuplicateName(
            f"{what} {name!r} is given by {' and by '.join(p.label for p in givers)}; "
            f"block one with LOCALPLUG_BLOCK=<{' or '.join(p.name for p in givers)}>"
        )
    if givers:
        return _resolve(givers[0], kind, name)
    known = index.distributions().get(name)
    broken = [p for p in _loaded().plugins if p.status == "failed"]
    for plugin in broken:
        if plugin.name == name or plugin.distribution == known:
            raise PluginFailed(f"plugin {plugin.label} is installed but failed: {plugin.reason}") from plugin.error
    likeness = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in given}
    near = difflib.get_close_matches(name, given, n=3, cutoff=0.5)
    near = [other for other in near if likeness[other] > likeness[near[0]] - 0.15]
    parts = [f"no {what} named {name!r}"]
    if near:
        parts.append(f"did you mean {' or '.join(map(repr, near))}?")
    if known and not any(p.distribution == known for p in _loaded().plugins):
        parts.append(f"it comes with {known} (pip install {known})")  # out of our index, never of what was typed
    parts.append(f"installed: {', '.join(sorted(given)) or 'none'}")
    if broken:
        parts.append(f"failed plugins: {', '.join(p.label for p in broken)}")
    blocked = [p for p in _loaded().plugins if p.status == "blocked"]
    if blocked:
        parts.append(f"blocked plugins: {', '.join(f'{p.label} {p.reason}' for p in blocked)}")
    parts.append("`localplug plugins --load` lists everything")
    raise UnknownName("; ".join(parts))


def _resolve(plugin: Plugin, kind: str, name: str) -> Any:
    value = plugin.gives[kind][name]
    if isinstance(value, str):
        module, _, attribute = value.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginFailed(
                f"plugin {plugin.label} gives {name!r} as {plugin.gives[kind][name]!r}, which cannot be imported: "
                f"{_told(error)}"
            ) from error
        if not callable(value):
            raise PluginFailed(
                f"plugin {plugin.label} gives {name!r} as {plugin.gives[kind][name]!r}, which is {value!r}: "
                "neither a class nor a callable"
            )
        plugin.gives[kind][name] = value
    return value
