"""Problems of others, from the files of OptiBench, OptMATH and NL4OPT: a question in words and what is right about it.

The files are JSON lists or a JSON object a line, with `question` and `results` (OptiBench, arXiv:2407.09887), or with
`en_question` and `en_answer` (OptMATH, arXiv:2502.11102, and its copy of NL4OPT). They have no program that could be
shown as an answer.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, final

from localplug.strict_json import parse

MOST_BYTES = 100_000_000


@final
@dataclasses.dataclass(frozen=True)
class Question:
    """A problem in words.

    Args:
        text: the words.
        wanted: the optimum, or {name: number} of all that is asked for.
        kind: such as "linear-table", where the file says one; programs of localplug_rewards.reading are linear.
    """

    text: str
    wanted: float | Mapping[str, float]
    kind: str = ""


def read(path: str | pathlib.Path) -> tuple[list[Question], int]:
    """All questions of a file, and how many were left out since no finite number answers them ("No Best Solution").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; says where.
    """
    file = pathlib.Path(path)
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, at most {MOST_BYTES} are read")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8: {error}") from error
    if text.lstrip().startswith("["):
        rows = parse(text, str(file))
    else:
        rows = [parse(line, f"{file}, line {i}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    found = [_question(row, f"{file}, question {i}") for i, row in enumerate(rows, 1)]
    kept = [question for question in found if question is not None]
    return kept, len(found) - len(kept)


def _question(row: Any, where: str) -> Question | None:
    text = row.get("question", row.get("en_question")) if isinstance(row, dict) else None
    results = row.get("results", row.get("en_answer")) if isinstance(row, dict) else None
    if not isinstance(text, str) or results is None:
        raise ValueError(f"{where}: `question` and `results` are wanted, or `en_question` and `en_answer`")
    wanted: Any = {str(k): _number(v) for k, v in results.items()} if isinstance(results, dict) else _number(results)
    numbers = wanted.values() if isinstance(wanted, dict) else [wanted]
    return None if None in numbers else Question(text, wanted, str(row.get("type", "")))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
