"""Find, load, block, name and report plugins: the only file that touches pluggy's manager, entry points and LOCALPLUG_*.

Environment: LOCALPLUG_PLUGINS=a,b loads only these entry points; LOCALPLUG_BLOCK=a,b leaves these out;
LOCALPLUG_STRICT=1 raises at the first broken plugin instead of going on without it. Nothing here imports torch.
"""

import dataclasses
import difflib
import importlib
import logging
import os
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from localplug import hookspecs
from localplug.errors import DuplicateName, LocalPlugError, PluginFailed, UnknownName

GROUP = "localplug"
KINDS = (
    "methods",
    "estimators",
    "perturbations",
    "update_rules",
    "objectives",
    "target_generators",
    "local_losses",
    "solvers",
    "commands",
)
# Names of ours that live in a distribution which may not be installed; the hint is ours, never built from what was typed.
_DISTRIBUTIONS = {
    "localplug-zo": """
        mezo zo zo-sgd zo-sgd-momentum zo-sgd-sign zo-sgd-conservative zo-adam zo-scalar-adam forward-grad hizoo
        lozo subzero tezo sparse-mezo random-sparse-zo lezo block-zo addax elastic-zo fzoo svrg es 1.5-spsa residual-zo cge
        two-sided one-sided residual population curvature forward-gradient gaussian rademacher sphere rank-1
        layers accuracy f1 sgd momentum adam scalar sign trainer trainer-streamed
    """,
    "localplug-tpsgd": """
        tpsgd drtp dfa fa projection l1 l2
    """,
    "localplug-forward": """
        ff mono-forward cafo pepita softhebb phyll
    """,
    "localplug-noprop": """
        noprop-dt noprop-ct noprop-fm
    """,
    "localplug-greedy": """
        predsim dgl infopro
    """,
    "localplug-graph": """
        graph-ff-la graph-ff-vn graph-sf graph-top2input graph-top2loss
    """,
    "localplug-convex": """
        relu-admm relu-scp
    """,
    "localplug-ternary": """
        export ternarize
    """,
    "localplug-transformers": """
        demo
    """,
}
IN_TREE = {name: distribution for distribution, names in _DISTRIBUTIONS.items() for name in names.split()}

logger = logging.getLogger("localplug")


@dataclasses.dataclass
class Plugin:
    """One entry point of the group `localplug`, and what became of it."""

    name: str
    distribution: str
    version: str
    status: str = "ok"  # "ok", "blocked" or "failed"
    reason: str = ""
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
        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.dist.name if e.dist else "")):
            self._load(entry)

    def _load(self, entry: EntryPoint) -> None:
        distribution = str(entry.dist.name) if entry.dist else "no distribution"
        version = str(entry.dist.version) if entry.dist else ""
        plugin = Plugin(entry.name, distribution, version)
        twin = next((p for p in self.plugins if p.name == entry.name and p.status != "blocked"), None)
        self.plugins.append(plugin)
        only, blocked = _listed("LOCALPLUG_PLUGINS"), _listed("LOCALPLUG_BLOCK") or set()
        if entry.name in blocked or (only is not None and entry.name not in only):
            plugin.status = "blocked"
            plugin.reason = "by LOCALPLUG_BLOCK" if entry.name in blocked else "not in LOCALPLUG_PLUGINS"
            return
        try:
            if twin is not None:
                raise DuplicateName(
                    f"the entry-point name {entry.name!r} is already taken by {twin.distribution} {twin.version}; "
                    "uninstall one of the two distributions"
                )
            self.add(entry.load(), plugin)
        except (Exception, SystemExit) as error:  # whatever a plugin raises must not take the host down
            self._fail(plugin, error)

    def add(self, module: ModuleType | object, plugin: Plugin) -> None:
        """Register one plugin object and ask it every question; raises what is wrong with it, and then leaves no trace."""
        if self.manager.has_plugin(plugin.name) or self.manager.is_registered(module):
            raise DuplicateName(f"{plugin.name!r} is already registered; `localplug plugins` lists what is")
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
        plugin.status, plugin.error = "failed", error
        plugin.reason = f"{type(error).__name__}: {error}"
        if os.environ.get("LOCALPLUG_STRICT", "") not in ("", "0"):
            raise PluginFailed(f"plugin {plugin.label} failed: {plugin.reason}") from error
        logger.warning("plugin %s failed and is left out: %s", plugin.label, plugin.reason)


def _listed(variable: str) -> set[str] | None:
    text = os.environ.get(variable)
    return None if text is None else {name.strip() for name in text.split(",") if name.strip()}


def _validated(answer: Any, kind: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise PluginFailed(f"localplug_{kind} must return a dictionary {{name: class}}, it returned {answer!r}")
    for name, value in answer.items():
        if not isinstance(name, str) or not name:
            raise PluginFailed(f"localplug_{kind}: a name must be a non-empty string, got {name!r}")
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
    found = names(kind)
    givers = found.get(name, [])
    if len(givers) > 1:
        raise DuplicateName(
            f"{what} {name!r} is given by {' and by '.join(p.label for p in givers)}; "
            f"block one with LOCALPLUG_BLOCK=<{' or '.join(p.name for p in givers)}>"
        )
    if givers:
        return _resolve(givers[0], kind, name)
    broken = [p for p in _loaded().plugins if p.status == "failed"]
    for plugin in broken:
        if plugin.name == name or plugin.distribution == IN_TREE.get(name):
            raise PluginFailed(f"plugin {plugin.label} is installed but failed: {plugin.reason}") from plugin.error
    likeness = {other: difflib.SequenceMatcher(None, other, name).ratio() for other in found}
    near = difflib.get_close_matches(name, found, n=3, cutoff=0.5)
    near = [other for other in near if likeness[other] > likeness[near[0]] - 0.15]
    parts = [f"no {what} named {name!r}"]
    if near:
        parts.append(f"did you mean {' or '.join(map(repr, near))}?")
    if name in IN_TREE and not any(p.distribution == IN_TREE[name] for p in _loaded().plugins):
        parts.append(f"it comes with {IN_TREE[name]} (pip install {IN_TREE[name]})")
    parts.append(f"installed: {', '.join(sorted(found)) or 'none'}")
    if broken:
        parts.append(f"failed plugins: {', '.join(p.label for p in broken)}")
    blocked = [p for p in _loaded().plugins if p.status == "blocked"]
    if blocked:
        parts.append(f"blocked plugins: {', '.join(f'{p.label} {p.reason}' for p in blocked)}")
    parts.append("`localplug plugins` lists everything")
    raise UnknownName("; ".join(parts))


def _resolve(plugin: Plugin, kind: str, name: str) -> Any:
    value = plugin.gives[kind][name]
    if isinstance(value, str):
        module, _, attribute = value.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginFailed(
                f"plugin {plugin.label} gives {name!r} as {plugin.gives[kind][name]!r}, which cannot be imported: {error}"
            ) from error
        if not callable(value):
            raise PluginFailed(
                f"plugin {plugin.label} gives {name!r} as {plugin.gives[kind][name]!r}, which is {value!r}: "
                "neither a class nor a callable"
            )
        plugin.gives[kind][name] = value
    return value
