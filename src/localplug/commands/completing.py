"""`localplug completion`: a script by which a shell completes commands, options and files."""

import argparse
import re

from localplug import plugins
from localplug.commands import FILES, parsers, terminal

HELP = "a script by which your shell completes localplug's commands and options"
EXAMPLES = """\
localplug completion bash > ~/.local/share/bash-completion/completions/localplug
localplug completion zsh > ~/.zfunc/_localplug     # a folder of your $fpath
localplug completion fish > ~/.config/fish/completions/localplug.fish
"""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # nothing that a shell would expand may get into its script


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the script. It knows the commands of the plugins that are installed now, which are loaded for it: "
        "make it again when you have installed another that brings a command."
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell that reads the script")


def run(options: argparse.Namespace) -> int:
    import shtab

    with terminal.their_output_aside():
        brought = [name for name in sorted(plugins.names("commands")) if _WORD.fullmatch(name) and name not in FILES]
    parser = parsers.parser_of(FILES, dict.fromkeys(brought, "a command of a plugin"), version="")
    terminal.say(shtab.complete(parser, options.shell))
    return 0
