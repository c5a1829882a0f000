"""Signatures as they are written in the source, laid out to be read on a page."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch

WIDTH = 88


def annotations(value: Any) -> dict[str, str]:
    """{argument: annotation as the source has it, or "return": that of the result}; {} where there is no source."""
    function = _function(value)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        return {}
    a = tree.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    found = {x.arg: _unparsed(x.annotation) for x in every if x.annotation}
    if tree.returns is not None and not inspect.isclass(value):
        found["return"] = _unparsed(tree.returns)
    return found


def _unparsed(annotation: ast.expr) -> str:
    return ast.unparse(annotation).strip("'").replace("'", '"')


def _function(value: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    return function


def parameters(value: Any) -> list[inspect.Parameter]:
    """What it is called with, without `self`."""
    try:
        found = list(inspect.signature(value).parameters.values())
    except (ValueError, TypeError):
        return []
    return [p for p in found if p.name != "self"]


def default(value: Any) -> str:
    """A default value as source."""
    if isinstance(value, torch.dtype):
        return str(value)
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__name__
    text = f'"{value}"' if isinstance(value, str) and '"' not in value else repr(value)
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return "..."
    return text


def written(name: str, value: Any, *, method: bool = False) -> str:
    """`def name(...) -> X: ...` of a function, `class name(...): ...` of a class: valid Python for the former.

    Args:
        method: whether it is a method, which gets its `self` back.
    """
    said = annotations(value)
    parts = ["self"] if method else []
    star = False
    for p in parameters(value):
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        note = said.get(p.name) or (_evaluated(p.annotation) if p.annotation is not p.empty else "")
        text = f"{prefix}{p.name}" + (f": {note}" if note else "")
        if p.default is not p.empty:
            text += f" = {default(p.default)}" if note else f"={default(p.default)}"
        parts.append(text)
    if inspect.isclass(value) and issubclass(value, BaseException):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)}): ..."
    keyword = "class" if inspect.isclass(value) else "def"
    result = f" -> {said['return']}" if said.get("return") else ""
    return laid_out(f"{keyword} {name}(", parts, f"){result}: ...")


def call(start: str, value: Any, first: str) -> str:
    """A call with every option at its default: `localplug.method("mezo", eps=0.001, ...)`."""
    parts = [first] + [
        f"{p.name}={'...' if p.default is p.empty else default(p.default)}"
        for p in parameters(value)
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return laid_out(f"{start}(", parts, ")")


def laid_out(start: str, parts: list[str], end: str) -> str:
    """In one line if it fits, else one part a line."""
    line = f"{start}{', '.join(parts)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([start, *(f"    {part}," for part in parts), end])


def _evaluated(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for long, short in (
        ("torch.nn.modules.module.Module", "nn.Module"),
        ("torch.nn.parameter.Parameter", "nn.Parameter"),
        ("torch.optim.optimizer.Optimizer", "torch.optim.Optimizer"),
        ("torch.Tensor", "Tensor"),
        ("collections.abc.", ""),
        ("typing.", ""),
        ("NoneType", "None"),
    ):
        text = text.replace(long, short)
    words = text.split("localplug.")
    return words[0] + "".join(word.split(".", 1)[-1] for word in words[1:])
