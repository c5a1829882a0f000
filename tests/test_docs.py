"""The site's pages say what the code says: hooks, names, options, commands, with their arguments; and links lead somewhere.

The pages are made by docs/generate; what is looked at here is the Markdown that mkdocs is handed.
"""

import ast
import doctest
import inspect
import os
import pathlib
import posixpath
import re
import subprocess
import sys

import markdown
import pytest

import localplug
from localplug import plugins
from localplug.commands import FILES, parsers

REPOSITORY = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "docs"))
from generate import algorithms, commands, costs, hooks, kit, names, repository, results, versions  # noqa: E402
from generate import pages as site_pages  # noqa: E402

PLACES = [(package, name) for package in names.PACKAGES for home in names.homes(package).values() for name in home]
ALGORITHMS = [(kind, name) for kind in algorithms.KINDS for name in algorithms.algorithms(kind)]
PARTS = [
    (kind, name)
    for kind in ("estimators", "perturbations", "update_rules", "target_generators", "tasks")
    for name, givers in plugins.names(kind).items()
    if givers[0].distribution in repository.members()
]


@pytest.fixture(scope="module")
def site():
    """{page: Markdown}, as the build makes it."""
    plugins.reload()
    return site_pages.pages()


def section(page, anchor):
    """What a page says below the heading with this anchor, down to the next heading."""
    found = re.search(rf"^#+ [^\n]*\{{#{re.escape(anchor)}\}}\n(.*?)(?=^#+ |\Z)", page, re.M | re.S)
    assert found, f"no heading has the anchor {anchor}"
    return found[1]


def code(text):
    """The first block of Python."""
    found = re.search(r"```python\n(.*?)\n```", text, re.S)
    assert found, "there is no block of Python"
    return found[1]


def told(source):
    """(arguments before a star, arguments after it, {argument: its default}) of a signature as a page has it."""
    a = ast.parse(re.sub(r"^class (\w+\()", r"def \1", source)).body[0].args
    positional, keyword = [x.arg for x in a.posonlyargs + a.args if x.arg != "self"], [x.arg for x in a.kwonlyargs]
    given = dict(zip(reversed(positional), reversed(a.defaults), strict=False))
    given |= {name: value for name, value in zip(keyword, a.kw_defaults, strict=True) if value is not None}
    return positional, keyword, {name: ast.unparse(value) for name, value in given.items()}


def differences(source, value):
    """How a signature on a page differs from that of the code; empty for not at all."""
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    says_positional, says_keyword, says = told(source)
    wrong = [] if (says_positional, says_keyword) == (positional, keyword) else [f"arguments {positional}, {keyword}"]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if set(says) != set(defaults):
        wrong.append(f"defaults of {sorted(defaults)}")
    return wrong + [f"{n}={defaults[n]!r}" for n in says if n in defaults and not same(says[n], defaults[n])]


def same(text, value):
    if text == "...":  # no source can be written for it
        with pytest.raises(SyntaxError):
            ast.parse(repr(value), mode="eval")
        return True
    try:
        return ast.literal_eval(text) == value
    except ValueError:
        return text in (repr(value), str(value), getattr(value, "__name__", ""))


def unexplained(page, options):
    """Options that the page has no definition of, or an empty one."""
    return [
        name
        for name in options
        if not re.search(rf"^`{re.escape(name)}`[^\n]*\n:   (?!see above\s*$|\u2013)\S", page, re.M)
    ]


def options_of(value):
    return [
        p.name for p in inspect.signature(value).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


# ---- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_hook_has_a_page_with_its_arguments_when_it_is_asked_an_example_and_who_answers(site, kind):
    page = site[hooks.page_name(kind)]
    hook = getattr(localplug.hookspecs, f"localplug_{kind}")
    assert not differences(code(page), hook)
    assert "\nAsked " in page and "Returns " in page and f"def localplug_{kind}():\n    return" in page
    for name, distribution in ((n, by[0].distribution) for n, by in plugins.names(kind).items()):
        if distribution in repository.members():
            assert re.search(rf"^\| `{distribution}` \|.*`{re.escape(name)}`", page, re.M), name


@pytest.mark.parametrize("kind, name", PARTS)
def test_every_part_is_called_on_its_hooks_page_with_its_options_explained(site, kind, name):
    value, part = localplug.get(name, kind), section(site[hooks.page_name(kind)], hooks.anchor(name))
    given = ast.parse(code(part)).body[0].value
    expected = [o for o in options_of(value) if not (o == "params" and kind == "update_rules")]
    assert [k.arg for k in given.keywords] == expected
    assert not unexplained(part, options_of(value))


# ---- algorithms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, name", ALGORITHMS)
def test_every_algorithm_is_called_with_every_option_at_its_default_and_explains_them(site, kind, name):
    value, page = localplug.get(name, kind), site[algorithms.page_name(name)]
    given = ast.parse(code(page)).body[0].value
    parameters = inspect.signature(value).parameters.values()
    assert ast.literal_eval(given.args[0]) == name
    assert [k.arg for k in given.keywords] == [p.name for p in parameters]
    for p, k in zip(parameters, given.keywords, strict=True):
        assert p.default is p.empty or same(ast.unparse(k.value), p.default), p.name
    assert not unexplained(page, options_of(value))


@pytest.mark.parametrize("name", [name for kind, name in ALGORITHMS if kind == "methods"])
def test_the_call_on_a_methods_page_makes_it_and_the_passes_are_its_own(site, name):
    page = site[algorithms.page_name(name)]
    made = eval(code(page), {"localplug": localplug})
    assert isinstance(made, localplug.Method)
    assert f"| {made.cost}, at the default options |" in page
    assert (made.backpropagates or "none through the model") in page


def test_every_row_of_results_is_about_an_algorithm_and_stands_on_its_page(site):
    assert len(results.rows()) > 50
    for row in results.rows():
        task = f"[{row.task}](../source/tests/benchmarks/results/{row.file}.json.md)"
        assert f"| {task} | **{row.result}** |" in site[algorithms.page_name(row.method)], row


def test_every_file_of_results_is_listed_with_its_command(site):
    for name in results.names():
        assert f"[{name}](source/tests/benchmarks/results/{name}.json.md)" in site["benchmarks.md"]
        assert results.load(name)["command"] in site["benchmarks.md"]


def test_the_numbers_of_the_decision_table_are_those_of_the_files(monkeypatch):
    genuine = results.result("mezo_memory")
    assert f"{genuine['mezo_vs_inference']:.2f} of inference's" in costs.decisions()
    changed = {**genuine, "mezo_vs_inference": 7.654}
    monkeypatch.setattr(costs, "result", lambda name: changed if name == "mezo_memory" else results.result(name))
    assert "7.65 of inference's" in costs.decisions()


# ---- public names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package, name", PLACES)
def test_every_public_name_has_its_place_with_its_signature(site, package, name):
    value, home = getattr(sys.modules[package], name), names._home(package, name)
    page = site[names.page_name(package, home)]
    assert f"[`{name}`]({package}/{home}.md" in site["api/index.md"]
    if inspect.ismodule(value):
        functions = [n for n, v in vars(value).items() if inspect.isfunction(v) and v.__module__ == value.__name__]
        for function in (n for n in functions if not n.startswith("_")):
            assert not differences(code(section(page, f"{package}.{name}.{function}")), getattr(value, function))
        return
    own = section(page, f"{package}.{name}")
    if inspect.isclass(value) and issubclass(value, Exception):
        assert code(own) == f"class {name}({value.__base__.__name__}): ..."
    elif inspect.isclass(value) or inspect.isfunction(value):
        assert not differences(code(own), value)
    assert len(re.sub(r"```.*?```", "", own, flags=re.S).split()) >= 4, "there is hardly a word about it"
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(getattr(value, method)):
                assert not differences(code(section(page, f"{package}.{name}.{method}")), function), method


def test_a_planted_difference_of_a_signature_is_found():
    def called(a, b=2, *, c="x", d=None):
        """."""

    good = 'def called(a: int, b: int = 2, *, c: str = "x", d=None) -> None: ...'
    assert not differences(good, called)
    for bad in (
        good.replace("= 2", "= 3"), good.replace(" = 2", ""), good.replace("*, ", ""), good.replace("b: int = 2, ", ""),
        good.replace('"x"', '"y"'), good.replace("a: int, ", "a, e, "),
    ):  # fmt: skip
        assert differences(bad, called), bad
    page = "`a` : `int`\n:   what it is\n\n`b`\n:   see above\n"
    assert unexplained(page, ["a", "b", "c"]) == ["b", "c"]


def examples():
    """(name, object) of everything on the generated pages that has an example in its docstring."""
    found = {f"{package}.{name}": getattr(sys.modules[package], name) for package, name in PLACES}
    found |= {f"{kind} {name}": localplug.get(name, kind) for kind, name in [*ALGORITHMS, *PARTS]}
    return [
        pytest.param(v, id=k)
        for k, v in found.items()
        if ">>>" in (inspect.getdoc(v) or "") and hasattr(v, "__module__")
    ]


@pytest.mark.parametrize("value", examples())
def test_the_example_of_a_docstring_runs(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = dict(vars(sys.modules[value.__module__]))
    parsed = doctest.DocTestParser().get_doctest(inspect.getdoc(value), place, value.__name__, None, 0)
    heard = []
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(parsed, out=heard.append)
    assert outcome.attempted and not outcome.failed, "".join(heard)


def test_every_block_of_python_on_every_page_is_python(site):
    """Those of the pages by hand also run (tests/test_readme.py), and examples of docstrings do above."""
    sources = [
        b for p, t in site.items() if not p.startswith("source/") for b in re.findall(r"```python\n(.*?)\n```", t, re.S)
    ]
    assert len(sources) > 200
    for source in sources:
        ast.parse(re.sub(r"^class (\w+\((?:.|\n)*\): \.\.\.)$", r"def \1", source))


# ---- commands, kit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", commands.every())
def test_every_command_and_every_option_of_it_is_explained(site, command):
    text = section(site["command-line.md"], commands.anchor(command))
    usage, _, body = text.split(f"usage: localplug {command}", 1)[1].partition("\n\n")
    for option in set(re.findall(r"--[a-z][\w-]*", usage)):
        assert re.search(rf"^  (-\w, |-\w \w+, )?{option}\b[^\n]*?(  +|\n {{10,}})\S", body, re.M), (
            f"{option} is not explained"
        )
    if command in FILES:
        (subparsers,) = (a for a in parsers.parser_of([command], {}, version="0")._actions if a.dest == "command")
        for action in subparsers.choices[command]._actions:
            assert action.help and all(option in text for option in action.option_strings), action


def test_every_class_and_every_check_of_the_kit_is_on_its_page(site):
    for value in kit.classes():
        assert f"{{#localplug.testing.{value.__name__}}}" in site["kit.md"]
        for check in (n for n in dir(value) if n.startswith("test_")):
            assert f"- **{check.removeprefix('test_').replace('_', ' ')}**" in site["kit.md"], check


# ---- links, navigation, messages -------------------------------------------------------------------------------------------


def links(text):
    """Links outside of code, to pages of the site."""
    bare = re.sub(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", "", text, flags=re.M | re.S)
    bare = re.sub(r"`[^`\n]+`(?!\])", "", bare)
    return re.findall(r"\]\((?![a-z]+:)([^()\s]+)\)", bare)


def anchors(text):
    made = markdown.Markdown(extensions=["attr_list", "def_list", "md_in_html", "tables", "toc", "fenced_code"])
    return set(re.findall(r'\bid="([^"]+)"', made.convert(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S))))


def dead(pages):
    """[(page, link)] that lead nowhere."""
    there, found = {}, []
    for page, text in pages.items():
        for link in links(text) if not page.startswith("source/") else ():
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            if target not in pages:
                found.append((page, link))
            elif anchor:
                there.setdefault(target, anchors(pages[target]))
                if anchor not in there[target]:
                    found.append((page, link))
    return found


def test_every_link_of_every_page_leads_somewhere(site):
    assert sum(len(links(text)) for text in site.values()) > 500
    assert not dead(site)


def test_a_planted_dead_link_is_found():
    pages = {"a.md": "# A\n\n[b](b.md), [c](b.md#head-two), [own](#a)\n", "b.md": "# Head\n\n## Head *two*\n"}
    assert not dead(pages)
    for link in ("c.md", "b.md#head-three", "#b"):
        assert dead({**pages, "d.md": f"# D\n\n[x]({link})\n"}) == [("d.md", link)]
    with pytest.raises(FileNotFoundError, match=r"README.md links to nothing.py"):
        repository.moved("[x](nothing.py)", "README.md", "readme.md", set())


def listed(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(value) if isinstance(value, list) else [value]


def test_the_navigation_has_every_page_but_the_sources(site):
    assert sorted(listed(site_pages.nav())) == sorted(page for page in site if not page.startswith("source/"))


def test_every_distribution_is_listed_with_the_ranges_that_it_declares(site):
    page = site["compatibility.md"]
    for name, project in versions.projects().items():
        (row,) = re.findall(rf"^\| `{name}` \| {re.escape(project['version'])} \|.*$", page, re.M)
        for needed in project.get("dependencies", []):
            package, ranges = re.match(r"([\w.-]+)(.*)", needed).groups()
            assert package.startswith("localplug") or f"{package} `{ranges}`" in row


def test_nothing_is_left_to_insert_and_a_page_that_asks_for_nothing_known_is_refused(site):
    assert not [page for page, text in site.items() if re.search(r"^<!-- insert:", text, re.M)]
    with pytest.raises(KeyError):
        site_pages._INSERT.sub(lambda match: site_pages.INSERTS[match[1]](), "<!-- insert: unheard-of -->")


def messages():
    """What the code says: its strings, with a NUL for each value that is filled in."""
    found = []
    for folder in ("src", "plugins", "integrations"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code():
    quoted = re.findall(r"```text\n(.*?)\n```", (REPOSITORY / "docs/troubleshooting.md").read_text(), re.S)
    said = messages()
    assert len(quoted) >= 25
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")), re.S)
        assert any(pattern.search(text) for text in said), f"nothing says: {message}"


# ---- the build --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path):
    """--strict makes warnings errors: links, anchors, pages outside of the navigation."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for path in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:[^\s\">]+)", path.read_text())
        fetched += re.findall(
            r"<link\b(?=[^>]*rel=\"?(?:stylesheet|preconnect|icon))[^>]*href=\"?(https?:[^\s\">]+)", path.read_text()
        )
        assert not fetched, path
    assert (tmp_path / "site" / "algorithms" / "mezo.html").is_file()
