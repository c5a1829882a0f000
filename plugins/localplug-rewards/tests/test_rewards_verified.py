"""Programs as text: what is read, what a solver says of it, what is right; and that nothing hostile runs, hangs or passes."""

import json
import math
import pathlib
import random
import re
import time

import pytest
import torch
from torch import nn

import localplug
from localplug_rewards import problems, questions, reading, writing
from localplug_rewards.program import Limits, ProgramError
from localplug_rewards.solved import SolverReward
from localplug_rewards.solving import solve
from localplug_rewards.verifying import OPTIBENCH, OPTMATH, Tolerance, Verifier

DATA = pathlib.Path(__file__).parents[4] / "shared/data/optimodel"


# ---- reading ----------------------------------------------------------------------------------------------------------------


def test_a_text_is_read_as_it_is_meant():
    found = reading.program(
        """
        MAX 3 x + 2*y - z + 5   # a remark
        x + y - 4 <= 2 z - x; .5x >= 1e1
        z == 3
        int x, y
        free z
        answer Number of trips = x + 2 y - 1
        """
    )
    assert found.is_max and found.objective.terms == {"x": 3, "y": 2, "z": -1} and found.objective.constant == 5
    assert [(dict(c.terms), c.comparison, c.bound) for c in found.constraints] == [
        ({"x": 2, "y": 1, "z": -2}, "<=", 4),
        ({"x": 0.5}, ">=", 10),
        ({"z": 1}, "=", 3),
    ]
    assert found.whole == {"x", "y"} and found.free == {"z"} and found.variables == ["x", "y", "z"]
    assert found.answers["Number of trips"].value({"x": 3, "y": 4}) == 10


def test_json_says_the_same():
    lines = "min 3 x - y; x + y >= 2; x <= 5; y = 1; int x; free y; answer both = x + y"
    same = {
        "min": {"x": 3, "y": -1},
        "constraints": [
            {"terms": {"x": 1, "y": 1}, ">=": 2},
            {"terms": {"x": 1}, "<=": 5},
            {"terms": {"y": 1, "constant": 2}, "=": 3},
        ],
        "int": ["x"],
        "free": ["y"],
        "answers": {"both": {"x": 1, "y": 1}},
    }
    assert reading.program(json.dumps(same)) == reading.program(lines)


HOSTILE = {
    "nothing": ("", "no objective"),
    "code": ("__import__('os').system('true')", "line 1: a constraint compares once"),
    "a call": ("max x(1)\nx <= 2", "line 1: a term"),
    "two objectives": ("max x\nmin x", "line 2: a second objective"),
    "two comparisons": ("max x\n1 <= x <= 2", "line 2: a constraint compares once"),
    "no variable": ("max 3\n3 <= 4", "no variable"),
    "a product": ("max x y\nx <= 2", "line 1: a term"),
    "a star alone": ("max 3 *\nx <= 1", "line 1: a term"),
    "a huge exponent": ("max x\nx <= 1e999", "numbers are 0, or from"),
    "a huger one": ("max x\nx <= 1e999999999", "a term"),
    "a tiny number": ("max 1e-30 x\nx <= 1", "numbers are 0, or from"),
    "digits": ("max x\nx <= " + "9" * 5000, "a term"),
    "a long name": ("max " + "x" * 5000, "a term"),
    "NaN": ("max x\nx <= nan", "unbounded|numbers"),  # a name like any other
    "a long text": ("max x\n" + "#" * 30_000, "30006 characters, at most 20000"),
    "many constraints": ("max x\n" + "x<=1\n" * 500, "at most 400 constraints"),
    "many variables": ("max " + "+".join(f"x{i}" for i in range(300)), "300 variables, at most 200"),
    "a bad name": ("max x\nint 3x", "line 2: '3x' is no name"),
    "an answer twice": ("max x\nx<=1\nanswer a = x\nanswer a = x", "given twice"),
    "a NUL": ("max x\0\nx <= 1", "line 1: a term"),
    "JSON nested": ('{"max":' * 2500 + "1", "not valid JSON"),
    "JSON lists nested": ('{"max": ' + "[" * 9000 + "]" * 9000 + "}", "not valid JSON|must be an object"),
    "JSON NaN": ('{"max": {"x": NaN}}', "a finite number"),
    "JSON infinity": ('{"max": {"x": 1}, "constraints": [{"terms": {"x": 1}, "<=": Infinity}]}', "a finite number"),
    "JSON exponent": ('{"max": {"x": 1e400}}', "a finite number"),
    "JSON digits": ('{"max": {"x": ' + "9" * 2000 + "}}", "an integer of"),
    "JSON more digits": ('{"max": {"x": ' + "9" * 9000 + "}}", "not valid JSON"),
    "JSON truth": ('{"max": {"x": true}}', "a number is wanted"),
    "JSON text": ('{"max": {"x": "1"}}', "a number is wanted"),
    "JSON key twice": ('{"max": {"x": 1, "x": 2}}', "key 'x' twice"),
    "JSON unknown": ('{"max": {"x": 1}, "eval": "1"}', "'eval', which is none of"),
    "JSON name": ('{"max": {"x y": 1}}', "'x y' is no name"),
    "JSON constraint": ('{"max": {"x": 1}, "constraints": [{"terms": {"x": 1}, "<=": 1, ">=": 0}]}', "constraint 1:"),
    "JSON names": ('{"max": {"x": 1}, "int": [1]}', "int must be a list of names"),
    "JSON no list": ('{"max": {"x": 1}, "constraints": {}}', "constraints must be a list"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_have_no_reward_and_a_reason(name):
    text, reason = HOSTILE[name]
    verdict = Verifier(credit=(0.1, 0.2))(text, 1.0)
    assert verdict.reward <= 0.1 and not verdict.is_right and re.search(reason, verdict.reason), verdict
    if name != "NaN":
        assert verdict.reward == 0 and len(verdict.reason) < 300
        with pytest.raises(ProgramError):
            reading.program(text)


def test_random_texts_never_raise_and_never_pass():
    draw = random.Random(0)
    words = [
        "max",
        "min",
        "int",
        "free",
        "answer",
        "x",
        "y",
        "3",
        "1e5",
        "<=",
        ">=",
        "=",
        "+",
        "-",
        "*",
        ";",
        "\n",
        "{",
        "}",
        '"',
        ":",
        "[",
        "é",
        "\0",
    ]
    verify = Verifier(limits=Limits(seconds=1.0, nodes=100))
    for _ in range(400):
        text = " ".join(draw.choices(words, k=draw.randint(1, 30)))
        verdict = verify(text, math.pi)
        assert verdict.reward == 0 and verdict.reason


def test_reading_takes_time_in_proportion_to_the_text():
    """Each part of a text is looked at once: a repeated character does not make a parser go back."""
    limits = Limits(characters=10**6)
    for part in (" ", "+", "1", "x", "1e", "*", "{", "[", "x <= ", ";", "#", "1+", "\t* "):
        began = time.process_time()
        with pytest.raises(ProgramError):
            reading.program("max " + part * (200_000 // len(part)) + "!", limits)
        assert time.process_time() - began < 20  # by going back, some of these would take hours


# ---- solving ----------------------------------------------------------------------------------------------------------------


def test_optima_are_those_of_an_enumeration():
    draw = random.Random(1)
    for _ in range(30):
        c, a, b = ([draw.randint(-9, 9) for _ in range(3)] for _ in range(3))
        room, least = draw.randint(5, 30), draw.randint(-10, 3)
        text = (
            f"max {c[0]} x + {c[1]} y + {c[2]} z; {a[0]} x + {a[1]} y + {a[2]} z <= {room};"
            f" {b[0]} x + {b[1]} y + {b[2]} z >= {least};"
            " x <= 4; y <= 4; z <= 4; int x y z"
        ).replace("+ -", "- ")
        best = max(
            (
                sum(k * v for k, v in zip(c, p, strict=True))
                for p in ((x, y, z) for x in range(5) for y in range(5) for z in range(5))
                if sum(k * v for k, v in zip(a, p, strict=True)) <= room
                and sum(k * v for k, v in zip(b, p, strict=True)) >= least
            ),
            default=None,
        )
        found = solve(reading.program(text))
        assert found.value == (None if best is None else pytest.approx(best)), text


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("max x; x <= -1", "infeasible"),
        ("max x; x >= 1", "unbounded"),
        ("min x; x <= 1; free x", "unbounded"),
        ("max x + y; x - y = 0.5; int x y; x <= 9", "infeasible"),
        ("max x + y; x - y = 0.5; int x y", "infeasible"),
        ("max x + y; x - y = 0; int x y", "unbounded"),
    ],
)
def test_programs_without_an_optimum_say_so(text, status):
    assert solve(reading.program(text)).status == status
    verdict = Verifier()(text, 0.0)
    assert verdict.reward == 0 and verdict.reason == f"it has no optimum: {status}" and verdict.value is None


def test_a_program_that_takes_too_long_ends_at_its_limit():
    """Cornuejols and Dawande's market split: no such numbers are known to be found quickly."""
    draw = random.Random(0)
    names = [f"x{i}" for i in range(40)]
    rows = [[draw.randint(1, 99) for _ in names] for _ in range(5)]
    lines = [" + ".join(f"{n} {x}" for n, x in zip(row, names, strict=True)) + f" = {sum(row) // 2}" for row in rows]
    text = "\n".join(["min x0", *lines, *(f"{x} <= 1" for x in names), "int " + " ".join(names)])
    for limits in (Limits(nodes=20, seconds=100.0), Limits(nodes=10**9, seconds=0.3)):
        verdict = Verifier(limits=limits)(text, 0.0)
        assert verdict.reward == 0 and verdict.reason == "it has no optimum: limit"


# ---- verifying --------------------------------------------------------------------------------------------------------------


def test_both_papers_tolerances_and_the_difference_between_them():
    text = "max x; x <= 103; answer Trips = x"
    assert Verifier(OPTMATH)(text, 100.0).is_right and not Verifier(OPTMATH)(text, 97.0).is_right
    strict = Verifier(OPTIBENCH)
    assert strict(text, {"trips ": 103.00005}).is_right
    assert strict(text, {"Trips": 103.001}).reason == "Trips is 103 instead of 103.001"
    assert strict(text, {"Trips": 103.0, "Cost": 1.0}).reason == "it gives no answer 'Cost'"
    assert not Tolerance(relative=0.05).holds(0.01, 0.0) and Tolerance(absolute=0.01).holds(-0.01, 0.0)


def test_credit_for_what_is_at_least_a_program():
    verify = Verifier(credit=(0.1, 0.3))
    rewards = [verify(text, 2.0).reward for text in ("max", "max x", "max x; x <= 3", "max x; x <= 2")]
    assert rewards == [0.0, 0.1, 0.3, 1.0]
    for wrong in ((0.3, 0.1), (-0.1, 0.3), (0.5, 1.0)):
        with pytest.raises(ValueError, match="credit must be two numbers"):
            Verifier(credit=wrong)


def test_whole_numbers_may_be_forgotten_where_that_is_allowed():
    text = "max x; 2 x <= 3"
    assert not Verifier()(text, 1.0).is_right and Verifier(conversions=True)(text, 1.0).is_right
    assert Verifier(conversions=True)(text + "; int x", 1.5).is_right
    assert not Verifier(conversions=True)(text, 7.0).is_right


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_references_are_right_and_a_wrong_number_is_found_if_it_changes_the_optimum(family):
    """And where it does not, the verdict is right: the optimum is all that is compared."""
    verify, draw, found = Verifier(Tolerance(absolute=1e-4)), random.Random(0), 0
    for seed in range(8):
        one = problems.problem(family, seed)
        assert one == problems.problem(family, seed) != problems.problem(family, seed + 100)
        assert verify(one.reference, one.wanted).is_right
        numbers = list(re.finditer(r"(?<![\w.])\d+", one.reference))
        chosen = draw.choice(numbers)
        wrong = one.reference[: chosen.start()] + str(int(chosen[0]) + 3) + one.reference[chosen.end() :]
        verdict = verify(wrong, one.wanted)
        is_same = verdict.value is not None and abs(verdict.value - one.wanted) <= 1e-4
        assert verdict.is_right == is_same
        found += not is_same
        flipped = verify(one.reference.replace("max", "MIN").replace("min", "max").replace("MIN", "min"), one.wanted)
        assert not flipped.is_right
    assert found >= 2
    assert all(re.search(rf"\b{n}\b", one.question) for n in re.findall(r"(?<![\w.])\d+", one.reference) if n != "1")


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family must be one of mix, diet, knapsack, transport, got 'tsp'"):
        problems.problem("tsp", 0)


# ---- as an objective, and as a task -----------------------------------------------------------------------------------------


def test_a_batch_is_rewarded_by_its_mean_and_each_text_is_solved_once():
    asked = []

    verifier = Verifier()

    def counting(text, wanted):
        asked.append(text)
        return verifier(text, wanted)

    texts = [("max x; x <= 2", 2.0), ("max x; x <= 2", 3.0), ("max x; x <= 2", 2.0), ("?", {"Trips": 1.0})]
    reward = SolverReward(lambda model, batch: texts, counting)
    assert reward(nn.Identity(), {}) == reward(nn.Identity(), {}) == 0.5
    assert len(asked) == 3


class WithLoss(nn.Module):
    """The task's model as a trainer has it: a dictionary with its loss, which the objective replaces."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, labels):
        logits = self.model(ids)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_the_reward_of_written_programs_is_what_training_sees():
    task = localplug.task("linear-models", num_train=8, num_held=4, width=8)
    ids, labels, optima = task.parts(0).train.columns

    def write(model, batch):
        with torch.no_grad():
            written = writing.texts(model(batch["ids"], batch["labels"])["logits"].argmax(-1))
        return list(zip(written, optima.tolist(), strict=True))

    model = WithLoss(task.fresh_model(0))
    with localplug.attach(model, "mezo", torch.optim.SGD(model.parameters(), lr=1e-3), objective=SolverReward(write)):
        loss = model(ids, labels=labels)["loss"]
        loss.backward()
    assert float(loss.detach()) == 0.0, "an untrained network writes no program"
    right = SolverReward(lambda model, batch: list(zip(writing.texts(labels), optima.tolist(), strict=True)))
    assert right(model, {}) == 1.0


def test_a_task_of_programs_is_learned_and_no_problem_is_in_two_parts():
    task = localplug.task("linear-models", num_train=60, num_held=20, width=16)
    parts = task.parts(0)
    assert len({tuple(row) for part in (parts.train, parts.validation) for row in part.columns[0].tolist()}) == 80
    for text, optimum in zip(writing.texts(parts.train.columns[1]), parts.train.columns[2].tolist(), strict=True):
        assert solve(reading.program(text)).value == pytest.approx(optimum)
    model = task.fresh_model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = task.loss(model, parts.train.columns)
    for _ in range(20):
        loss = task.loss(model, parts.train.columns)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5 * first.item()
    assert task.quality(model, parts.validation) < 1


# ---- questions of others ----------------------------------------------------------------------------------------------------


def test_files_of_questions_are_read_in_both_forms(tmp_path):
    listed, lines = tmp_path / "a.json", tmp_path / "b.json"
    listed.write_text(json.dumps([{"question": "Q", "results": {"A": "2.0", "B": 3}, "type": "linear-table"}]))
    rows = [{"en_question": "Q1", "en_answer": 7}, {"en_question": "Q2", "en_answer": "No Best Solution"}]
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert questions.read(listed) == ([questions.Question("Q", {"A": 2.0, "B": 3.0}, "linear-table")], 0)
    assert questions.read(lines) == ([questions.Question("Q1", 7.0)], 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", "question 1: `question` and `results` are wanted"),
        (b'[{"question": 1, "results": 2}]', "are wanted"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"question": "Q"', "line 1 is not valid JSON"),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_files_that_are_none_are_refused(content, said, tmp_path):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        questions.read(tmp_path / "f.json")


@pytest.mark.skipif(not DATA.is_dir(), reason="the files of OptiBench and OptMATH are not here")
def test_the_published_files_are_read():
    counts = {}
    for name in ("OptiBench", "OptMATH_Bench", "NL4OPT"):
        kept, left_out = questions.read(DATA / f"{name}.json")
        counts[name] = len(kept), left_out
    assert counts["OptiBench"] == (605, 0) and counts["OptMATH_Bench"] == (166, 0)
    assert sum(counts["NL4OPT"]) == 245 and counts["NL4OPT"][1] > 0
