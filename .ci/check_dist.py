"""Look into the built distributions: `python .ci/check_dist.py dist`. Prints every fault, and exits with 1 if there is one.

Each distribution of the repository has one source archive and one wheel, of the same version. Both carry the licence and the
README; the wheel carries the modules, py.typed and, where a compiler made one, the kernel, and no test; the source archive
carries what the kernel is compiled from, and nothing compiled. Neither knows the machine on which it was built.
"""

import pathlib
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from email.parser import BytesParser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
METADATA = (
    "Summary",
    "License-Expression",
    "License-File",
    "Requires-Python",
    "Classifier",
    "Description-Content-Type",
)


def faults(dist: pathlib.Path, repository: pathlib.Path = REPOSITORY) -> list[str]:
    """Everything that is wrong with the files in a folder, each in a line."""
    found, known = [], set()
    for path in [
        repository / "pyproject.toml",
        *repository.glob("plugins/*/pyproject.toml"),
        *repository.glob("integrations/*/pyproject.toml"),
    ]:
        project = tomllib.loads(path.read_text())["project"]
        stem, version = project["name"].replace("-", "_"), project["version"]
        is_compiled = (path.parent / "csrc").is_dir()
        for kind, pattern in (("source archive", f"{stem}-{version}.tar.gz"), ("wheel", f"{stem}-{version}-*.whl")):
            files = list(dist.glob(pattern))
            known.update(files)
            if len(files) != 1:
                found.append(f"{project['name']} {version}: there should be one {kind}, and there are {len(files)}")
                continue
            content = in_wheel(files[0]) if kind == "wheel" else in_archive(files[0])
            wrong = of_wheel(content, stem, version) if kind == "wheel" else of_archive(content, stem, is_compiled)
            found += [f"{files[0].name}: {line}" for line in [*wrong, *traces(content, repository)]]
    found += [f"{file.name}: of no distribution of this version" for file in sorted(set(dist.iterdir()) - known)]
    return found


def in_wheel(path: pathlib.Path) -> dict[str, bytes]:
    """{name: content}"""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def in_archive(path: pathlib.Path) -> dict[str, bytes]:
    """{name without the folder that is round everything: content}; a link has none."""
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: (file.read() if (file := archive.extractfile(member)) else b"")
            for member in archive
            if not member.isdir()
        }


def of_wheel(content: Mapping[str, bytes], stem: str, version: str) -> list[str]:
    """What a wheel lacks, or has and should not have."""
    info = f"{stem}-{version}.dist-info"
    needed = (f"{stem}/__init__.py", f"{stem}/py.typed", f"{info}/licenses/LICENSE", f"{info}/METADATA")
    found = [f"{name} is missing" for name in needed if name not in content]
    found += [f"{name} does not belong there" for name in content if name.split("/")[0] not in (stem, info)]
    found += [f"{name} is a test" for name in content if "tests" in name.split("/") or "/test_" in name]
    metadata = BytesParser().parsebytes(content.get(f"{info}/METADATA", b""))
    found += [f"its metadata have no {field}" for field in METADATA if not metadata.get_all(field)]
    if not str(metadata.get_payload()).strip():
        found.append("its metadata have no description")
    return found


def of_archive(content: Mapping[str, bytes], stem: str, is_compiled: bool) -> list[str]:
    """What a source archive lacks, or has and should not have."""
    needed = ["pyproject.toml", "README.md", "LICENSE", f"src/{stem}/__init__.py", f"src/{stem}/py.typed"]
    found = [
        f"{name} is missing, or a link" for name in needed if not content.get(name) and not name.endswith("py.typed")
    ]
    found += [f"{name} is missing" for name in needed if name not in content]
    if is_compiled and not {"csrc/hatch_build.py"} < {n for n in content if n.startswith("csrc/") and content[n]}:
        found.append("what the kernel is compiled from is missing")
    found += [f"{name} is compiled" for name in content if name.endswith((".so", ".pyc", ".pyd", ".dylib"))]
    return list(dict.fromkeys(found))


def traces(content: Mapping[str, bytes], repository: pathlib.Path) -> list[str]:
    """The files that hold a path of the machine on which they were made."""
    paths = {str(repository), str(pathlib.Path.home()), sys.prefix}
    return [
        f"{name} has the path {path}"
        for name, data in content.items()
        for path in sorted(paths)
        if len(path) > 1 and path.encode() + b"/" in data
    ]


if __name__ == "__main__":
    wrong = faults(pathlib.Path(sys.argv[1]))
    print("\n".join(wrong) or "every distribution has what it should have")
    sys.exit(1 if wrong else 0)
