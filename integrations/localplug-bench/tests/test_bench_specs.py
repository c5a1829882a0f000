"""What a user types for a way of training."""

import pytest

from localplug_bench.specs import Choice, Range, parsed


def test_options_are_read_as_python_reads_them_and_the_bench_takes_its_own():
    spec = parsed("mezo:lr=1e-3,eps=0.01,parameters=*.q_proj.*,num_directions=2,shape=(1,2),strict=None,x=true")
    assert spec.own == {"lr": 1e-3, "weight_decay": 0.0, "optimizer": None, "schedule": "linear"}
    assert spec.of_the_method == {
        "eps": 0.01, "parameters": "*.q_proj.*", "num_directions": 2, "shape": (1, 2), "strict": None, "x": True,
    }  # fmt: skip


def test_the_order_of_options_is_no_part_of_a_spec():
    assert str(parsed("mezo:lr=0.1,eps=1e-3")) == str(parsed("mezo:eps=0.001,lr=1e-1")) == "mezo:eps=0.001,lr=0.1"


def test_ranges_and_choices_are_left_to_a_search():
    spec = parsed("mezo:lr=1e-4..1e-1,num_directions=1..4,backend=scratch|copy,eps=1e-3")
    assert spec.ranges == {
        "lr": Range(1e-4, 1e-1), "num_directions": Range(1, 4), "backend": Choice(("scratch", "copy")),
    }  # fmt: skip
    assert spec.ranges["num_directions"].is_whole and not spec.ranges["lr"].is_whole
    assert str(spec.chosen({"lr": 0.1, "num_directions": 2, "backend": "copy"})) == (
        "mezo:backend=copy,eps=0.001,lr=0.1,num_directions=2"
    )


def test_a_task_of_a_file_keeps_its_colon():
    spec = parsed("some/ring.py:Ring:width=3")
    assert (spec.name, spec.options) == ("some/ring.py:Ring", {"width": 3})


@pytest.mark.parametrize(
    "text", ["", ":lr=1", "mezo:", "mezo:lr", "mezo:lr=1,lr=2", "mezo:1x=2", "mezo:lr=2..1", "mezo:lr=a..b"]
)
def test_what_is_no_spec_is_refused_with_what_was_typed(text):
    with pytest.raises(ValueError, match="expected|range"):
        parsed(text)
