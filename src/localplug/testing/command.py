"""Checks that every subcommand of `localplug` must pass: the hook `localplug_commands`."""

from collections.abc import Callable, Sequence

import pytest

from localplug.testing.conformance import Conformance

Make = Callable[[], Callable[[Sequence[str]], int]]


class CommandTests(Conformance):
    """Subclass it, and give the fixture `make`: a function that gives your command, a callable(arguments) -> exit status."""

    def test_help_says_how_it_is_used(self, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
        assert _status(make(), ["--help"]) == 0
        said = capsys.readouterr().out
        assert "usage" in said.lower(), f"--help prints {said!r}"

    def test_a_wrong_option_is_refused_without_a_traceback(
        self, make: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit status 2, and a word on standard error."""
        assert _status(make(), ["--no-such-option-of-this-command"]) == 2
        said = capsys.readouterr()
        assert said.err.strip() and "Traceback" not in said.err


def _status(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return int(command(list(arguments)))
    except SystemExit as ended:  # argparse's way
        return int(ended.code or 0)
    except Exception as error:
        pytest.fail(f"{' '.join(arguments)}: {type(error).__name__}: {error}")
