"""Every task of the bench against the conformance kit, as `localplug check localplug-bench` does, with the data here."""

import pathlib

import pytest

import localplug
from localplug_bench import conformance

DATA = pathlib.Path(__file__).parents[4] / "shared/data"
STORIES = DATA / "models/stories260K/hf"
WORDS = ("the", "and", "was", "it", "he", "to")  # each one token to that model, which knows no Yes and No


class Asked:
    """A question to a small language model."""

    @pytest.fixture
    def make(self):
        if not STORIES.is_dir():
            pytest.skip("needs ../shared/data, which is not here")

        def made():
            task = localplug.task(
                self.names[0], data=DATA, model=str(STORIES), num_train=100, num_validation=50, num_test=100
            )
            task.words = WORDS[: len(task.words)]
            return task

        return made


for name, tests in vars(conformance).items():
    if name.startswith("Test"):
        bases = (Asked, tests) if issubclass(tests, conformance.QuestionTests) else (tests,)
        globals()[name] = type(name, bases, {"data": DATA, "__module__": __name__})
