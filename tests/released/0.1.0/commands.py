"""released-command: a subcommand that counts its words."""

import argparse
from collections.abc import Sequence
from typing import Any

import localplug

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_commands() -> dict[str, Any]:
    return {"released-command": main}


def main(argv: Sequence[str]) -> int:
    """Print how many words there are."""
    parser = argparse.ArgumentParser(prog="localplug released-command")
    parser.add_argument("words", nargs="*")
    print(len(parser.parse_args(list(argv)).words))
    return 0
