"""Give every distribution of the repository one version: `python .ci/set_version.py 0.2.0`, or `make version VERSION=0.2.0`.

Writes the version of each pyproject.toml and of `localplug.__version__`, and the ranges in which the distributions and the
example plugin need one another: `>=0.2,<0.3` before 1.0, `>=1.2,<2` from then on. Begins a section of the changelog for it.
"""

import pathlib
import re
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def bounds(version: str) -> str:
    """The range of versions that keep what this one promises.

    Example:
        >>> bounds("0.2.1"), bounds("1.4.0")
        ('>=0.2,<0.3', '>=1.4,<2')
    """
    major, minor, _ = map(int, version.split("."))
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def set_version(version: str, repository: pathlib.Path = REPOSITORY) -> list[pathlib.Path]:
    """Write it into every file that holds it.

    Returns: the files that changed.

    Raises:
        ValueError: it is not three numbers, or not later than the present one; nothing was changed then.
    """
    host = repository / "src" / "localplug" / "__init__.py"
    (present,) = re.findall(r'^__version__ = "(.+)"$', host.read_text(), re.M)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or _numbers(version) <= _numbers(present):
        raise ValueError(f"the version must be three numbers and later than {present}, got {version!r}")
    members = sorted([*repository.glob("plugins/*/pyproject.toml"), *repository.glob("integrations/*/pyproject.toml")])
    changed = []
    for path in [repository / "pyproject.toml", *members]:
        text = re.sub(r'^version = ".+"$', f'version = "{version}"', path.read_text(), count=1, flags=re.M)
        changed += _written(path, _ranged(text, version))
    for path in sorted(repository.glob("examples/*/pyproject.toml")):  # of a stranger, with a version of its own
        changed += _written(path, _ranged(path.read_text(), version))
    changed += _written(host, host.read_text().replace(f'__version__ = "{present}"', f'__version__ = "{version}"'))
    log = repository / "CHANGELOG.md"
    changed += _written(log, re.sub(r"^## ", f"## {version} (unreleased)\n\n## ", log.read_text(), count=1, flags=re.M))
    return changed


def _ranged(text: str, version: str) -> str:
    return re.sub(r'"(localplug(?:-[a-z]+)?)>=[\d.]+,<[\d.]+"', rf'"\1{bounds(version)}"', text)


def _written(path: pathlib.Path, text: str) -> list[pathlib.Path]:
    if text == path.read_text():
        return []
    path.write_text(text)
    return [path]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    try:
        for changed in set_version(*sys.argv[1:2] or [""]):
            print(changed.relative_to(REPOSITORY))
    except ValueError as error:
        sys.exit(str(error))
