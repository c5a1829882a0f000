"""What mkdocs asks while it builds the site: the pages and the navigation come from docs/generate."""

from typing import Any

from mkdocs.structure.files import File, Files

from generate import pages as site

_made: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Make every page, and give the navigation."""
    _made.clear()
    _made.update(site.pages())
    config.nav = site.nav()
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """The pages that were made take the place of those in docs/; what is no page, such as a style sheet, stays."""
    for file in list(files.documentation_pages()):
        files.remove(file)
    for page, text in _made.items():
        files.append(File.generated(config, page, content=text))
    return files
