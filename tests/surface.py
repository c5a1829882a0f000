"""The contract as text: every hook, public name, argument, field, method and check, one a line, read from the code.

`python tests/surface.py` writes it to tests/surface.txt, for review. It is read and not imported, so that it is the same text
under every version of Python and torch.
"""

import ast
import functools
import pathlib

HOST = pathlib.Path(__file__).parent.parent / "src" / "localplug"
RECORDED = pathlib.Path(__file__).parent / "surface.txt"
HIDDEN = ("__init__", "__call__", "__len__")  # of the names that begin with _, those that people call


def surface():
    """The version of the contract in the first line, and below it the contract, sorted."""
    return "\n".join([f"contract {constant('compatibility', 'CONTRACT_VERSION')}", *sorted(lines())]) + "\n"


def lines():
    for node in tree("hookspecs").body:
        if isinstance(node, ast.FunctionDef):
            yield f"hook {signature(node)}"
    for name, home in constant("__init__", "_HOME").items():
        yield from described(name, home)
    for name in constant("testing/__init__", "__all__"):
        yield from checks(name)


@functools.cache
def tree(home):
    return ast.parse((HOST / f"{home}.py").read_text())


def constant(home, name):
    (value,) = (
        node.value
        for node in tree(home).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(assigned(node)) == name
    )
    return ast.literal_eval(value)


def assigned(node):
    return node.targets[0] if isinstance(node, ast.Assign) else node.target


def found(name, home):
    """The definition of a name in a file of the host; None for a module."""
    for node in tree(home).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(assigned(node)) == name:
            return node
    return None


def described(name, home):
    node = found(name, home)
    if isinstance(node, ast.FunctionDef):
        yield f"function {signature(node)}"
    elif isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base) for base in node.bases if not ast.unparse(base).startswith("_")]
        kind = "final class" if "final" in decorators(node) else "class"
        yield f"{kind} {name}({', '.join(bases)})"
        for member in sorted(set(members(node, home))):
            yield f"{name}: {member}"
    elif node is not None:
        yield f"alias {name} = {ast.unparse(node.value)}" if name != "CONTRACT_VERSION" else "constant CONTRACT_VERSION"
    else:
        yield f"module {name}"
        for inner in tree(home).body:
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                yield f"{name}: {signature(inner)}"


def members(node, home):
    """A class's public fields and methods, with those of its private bases."""
    for base in node.bases:
        if ast.unparse(base).startswith("_"):
            yield from members(found(ast.unparse(base), home), home)
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and not assigned(inner).id.startswith("_"):
            default = f" = {ast.unparse(inner.value)}" if inner.value else ""
            yield f"{inner.target.id}: {ast.unparse(inner.annotation)}{default}"
        if isinstance(inner, ast.FunctionDef) and (not inner.name.startswith("_") or inner.name in HIDDEN):
            kinds = [word for word in ("abstractmethod", "property", "final") if word in decorators(inner)]
            yield " ".join([*kinds, signature(inner)])


def decorators(node):
    return {ast.unparse(d).split(".")[-1].split("(")[0] for d in node.decorator_list}


def signature(node):
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def checks(name):
    """The names of a class's checks: whoever expects one to fail names it."""
    for path in sorted((HOST / "testing").glob("*.py")):
        node = found(name, f"testing/{path.stem}")
        if isinstance(node, ast.ClassDef):
            yield f"kit {name}({', '.join(ast.unparse(base) for base in node.bases)})"
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (
                    inner.name.startswith("test_") or "fixture" in decorators(inner)
                ):
                    yield f"kit {name}: {inner.name}"


def needed(before, after):
    """What has to grow from one surface to the next: "major", "minor" or None, and the lines that are the reason.

    A line that is gone, also one that was changed, is a major change; a new line is a minor one. But a new abstract method is a
    major change, because every plugin lacks it.
    """
    old, new = set(before.splitlines()[1:]), set(after.splitlines()[1:])
    gone, come = sorted(old - new), sorted(new - old)
    old_classes = {line.split(": ", 1)[0] for line in old if ": " in line}
    demands = [line for line in come if ": abstractmethod" in line and line.split(": ", 1)[0] in old_classes]
    if gone or demands:
        return "major", [*(f"- {line}" for line in gone), *(f"+ {line}" for line in demands)]
    return ("minor", [f"+ {line}" for line in come]) if come else (None, [])


def version(text):
    return tuple(map(int, text.splitlines()[0].removeprefix("contract ").split(".")))


def is_kept(before, after):
    """Whether the version of the contract has grown as it has to."""
    (major, minor), (new_major, new_minor) = version(before), version(after)
    what, _ = needed(before, after)
    if what == "major":
        return new_major == major + 1 and new_minor == 0
    if what == "minor":
        return (new_major, new_minor) == (major, minor + 1)
    return (new_major, new_minor) == (major, minor)


if __name__ == "__main__":
    RECORDED.write_text(surface())
