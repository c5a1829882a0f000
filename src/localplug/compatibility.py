"""What a plugin may rely on: the version of the contract, and how a part of it goes away. Imports the standard library alone.

The contract is the hooks, the public names of `localplug` and what they take, and the checks of `localplug.testing`. Its
version is MAJOR.MINOR: MINOR grows when something is added, MAJOR when something is removed or changes its meaning. What is to
be removed works for one minor release of localplug more, and warns:

    a hook                  @hookspec(warn_on_impl=deprecated("localplug_x", since="0.2", until="0.3", instead="..."))
    an argument of a hook   @hookspec(warn_on_impl_args={"x": deprecated("the argument x of localplug_y", ...)})
    a public name           a row of MOVED
"""

import re
from typing import Any, NamedTuple

from localplug.errors import PluginFailed

CONTRACT_VERSION = "1.0"
"""MAJOR.MINOR of the contract that this localplug keeps; a plugin may say which it was made for, as `localplug_contract`."""


class LocalPlugDeprecationWarning(DeprecationWarning):
    """What a plugin or a script uses still works, and will not in the release that the message names.

    pytest shows it to the plugin's author; Python hides it from the plugin's users, who can do nothing about it.
    """

    until: str = ""
    """The release that is without it, as MAJOR.MINOR."""


class Moved(NamedTuple):
    """Where a public name has gone, as `localplug.to`; the releases that began to warn and that will be without the old one."""

    to: str
    since: str
    until: str


MOVED: dict[str, Moved] = {}
"""{the old public name: where it has gone}."""


def deprecated(what: str, *, since: str, until: str, instead: str) -> LocalPlugDeprecationWarning:
    """The warning for something that will be removed, to be handed to `warnings.warn` or to pluggy.

    Args:
        what: the hook, argument or name.
        since, until: the releases of localplug, as MAJOR.MINOR, that begin to warn and that are without it.
        instead: what to write in its place, as a command.

    Example:
        >>> str(deprecated("localplug_x", since="0.2", until="0.3", instead="answer localplug_y"))
        'localplug_x is deprecated since localplug 0.2 and will be gone in 0.3: answer localplug_y'
    """
    warning = LocalPlugDeprecationWarning(
        f"{what} is deprecated since localplug {since} and will be gone in {until}: {instead}"
    )
    warning.until = until
    return warning


def moved(name: str) -> LocalPlugDeprecationWarning:
    """The warning for a name of MOVED."""
    to, since, until = MOVED[name]
    return deprecated(f"localplug.{name}", since=since, until=until, instead=f"use localplug.{to}")


def check(made_for: Any) -> None:
    """Refuse a plugin that was made for another contract than this one.

    Args:
        made_for: what the plugin's module says as `localplug_contract`: "MAJOR.MINOR", or None if it does not say.

    Raises:
        PluginFailed: another major version, a later minor one, or no version at all.
    """
    if made_for is None:
        return
    if not (isinstance(made_for, str) and re.fullmatch(r"\d{1,9}\.\d{1,9}", made_for, re.ASCII)):
        raise PluginFailed(f'localplug_contract must be "MAJOR.MINOR", such as "{CONTRACT_VERSION}", got {made_for!r}')
    (theirs, their_minor), (ours, our_minor) = (map(int, v.split(".")) for v in (made_for, CONTRACT_VERSION))
    if (theirs, their_minor) > (ours, our_minor):
        raise PluginFailed(
            f"it was made for version {made_for} of localplug's contract, and this localplug keeps {CONTRACT_VERSION}; "
            "pip install --upgrade localplug"
        )
    if theirs < ours:
        raise PluginFailed(
            f"it was made for version {made_for} of localplug's contract, and this localplug keeps {CONTRACT_VERSION}, which "
            "has removed some of that; install a later release of the plugin, or an earlier one of localplug"
        )
