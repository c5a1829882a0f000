"""The contract is documented: every hook, every public name, and the tables that repeat them agree."""

import ast
import inspect
import itertools
import pathlib
import re
import textwrap

import pytest

import localplug
from localplug import compatibility, contract, hookspecs, index, plugins, signals

HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("localplug_")}


@pytest.fixture(autouse=True)
def _fresh_plugins():
    plugins.reload()


def alias_docstrings():
    """{name: the string after it} of the assignments in these files; a type alias has no __doc__ of its own."""
    body = [node for module in (compatibility, contract, signals) for node in ast.parse(inspect.getsource(module)).body]
    return {
        before.targets[0].id: after.value.value
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


def test_the_kinds_are_the_hooks():
    assert {f"localplug_{kind}" for kind in plugins.KINDS} == set(HOOKS)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_hook_says_what_it_returns_when_it_is_asked_and_who_uses_it(kind):
    doc = inspect.getdoc(HOOKS[f"localplug_{kind}"])
    assert re.search(r"^Returns \{name: ", doc, re.M) and "Asked " in doc and "\nExample:\n" in doc
    users = re.findall(r"(localplug-[a-z]+) \(([^)]+)\)", re.sub(r"\s+", " ", doc.split("Used by", 1)[1]))
    given = {p.distribution: set(p.gives.get(kind, {})) for p in localplug.installed()}
    assert users
    for distribution, names in users:
        assert set(names.split(", ")) == given[distribution]
    assert {d for d, names in given.items() if names} == {d for d, _ in users}, "somebody uses it and is not named"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_example_of_every_hook_runs_and_is_what_its_plugin_answers(kind):
    doc = inspect.getdoc(HOOKS[f"localplug_{kind}"])
    place = {"localplug": localplug}
    exec(textwrap.dedent(doc.split("Example:\n", 1)[1]), place)
    for name, value in place[f"localplug_{kind}"]().items():
        module, attribute = value.split(":")
        assert getattr(localplug.get(name, kind), "__name__", None) == attribute
        assert localplug.get(name, kind).__module__ == module


def test_the_names_that_hints_are_made_for_are_given_by_these_distributions():
    given = {n: p.distribution for p in localplug.installed() for names in p.gives.values() for n in names}
    assert given == index.distributions()


@pytest.mark.parametrize("name", localplug.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(localplug, name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value) and value.__doc__
    elif name != "hookimpl":  # an object of pluggy, with a docstring there
        assert alias_docstrings()[name].strip()


def test_every_public_method_of_a_public_class_is_documented():
    bare = []
    for name in localplug.__all__:
        value = getattr(localplug, name)
        if inspect.isclass(value) and value.__module__.startswith("localplug"):
            members = [(n, m) for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")]
            bare += [f"{name}.{n}" for n, m in members if not inspect.getdoc(getattr(value, n))]
    assert not bare


def test_the_type_checker_is_told_the_same_names():
    """Lazy names hide from a type checker: the block for it must import each from where the table says."""
    tree = ast.parse(pathlib.Path(localplug.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    told = {}
    for node in block.body:
        for alias in node.names:
            told[alias.name] = node.module.removeprefix("localplug").lstrip(".") or alias.name
    assert told == localplug._HOME
    assert sorted(localplug.__all__) == sorted({"hookimpl", *told})


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        localplug.Nothing  # noqa: B018
