"""From a project to its files: rendered in memory, written beside their place, and moved there in one step."""

import importlib.resources
import pathlib
import string
import tempfile

from localplug.scaffold.project import Project

_PATHS = {
    "pyproject.toml": "common/pyproject.toml.template",
    "README.md": "common/README.md.template",
    ".github/workflows/test.yml": "common/workflow.yml.template",
    "$module.py": "$kind/module.py.template",
    "tests/test_$function.py": "$kind/test.py.template",
}


def rendered(project: Project) -> dict[str, str]:
    """{path inside the folder: text}.

    Example:
        >>> from localplug.scaffold.project import Project
        >>> sorted(rendered(Project("my-rule", "update-rule")))[1:]
        ['README.md', 'localplug_my_rule.py', 'pyproject.toml', 'tests/test_my_rule.py']
    """
    values = {**project.values, "kind": project.kind}
    values["use"] = _filled("$kind/use.md.template", values).rstrip()
    return {string.Template(path).substitute(values): _filled(place, values) for path, place in _PATHS.items()}


def write(project: Project) -> pathlib.Path:
    """Write a project's folder: all of it or nothing.

    Returns: the folder.

    Raises:
        OSError: it cannot be written, or somebody else has put something there in the meantime.
    """
    folder = project.folder.absolute()
    with tempfile.TemporaryDirectory(prefix=".localplug-new-", dir=folder.parent) as beside:
        made = pathlib.Path(beside, folder.name)
        for path, text in rendered(project).items():
            file = made / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        if folder.is_dir():
            folder.rmdir()  # an empty one: else it raises, and what is there stays
        made.rename(folder)
    return project.folder


def _filled(place: str, values: dict[str, str]) -> str:
    templates = importlib.resources.files("localplug.scaffold").joinpath("templates")
    text = templates.joinpath(string.Template(place).substitute(values)).read_text(encoding="utf-8")
    return string.Template(text).substitute(values)
