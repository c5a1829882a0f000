"""The classes of the conformance kit for the tasks of the bench; those whose files are not in the folder `data` are skipped."""

import pytest
import torch
from torch.nn import functional as F

import localplug
from localplug.testing import TaskTests


class BenchTests(TaskTests):
    data = None
    options = {}  # noqa: RUF012 (a subclass gives its own)

    @pytest.fixture
    def make(self):
        return lambda: localplug.task(self.names[0], data=self.data, **self.options)


class TestPermutation(BenchTests):
    names = ("permutation",)

    def right_answers(self, task, batch):
        return batch[1]


class TestDigits(BenchTests):
    names = ("digits",)


class TestVowels(BenchTests):
    names = ("vowels",)


class ImageTests(BenchTests):
    options = {"num_train": 500, "num_validation": 200, "num_test": 200}  # noqa: RUF012


class TestMNIST(ImageTests):
    names = ("mnist",)


class TestFashionMNIST(ImageTests):
    names = ("fashion-mnist",)


class TestCIFAR10(ImageTests):
    names = ("cifar10",)


class TestCora(BenchTests):
    names = ("cora",)
    options = {"width": 16}  # noqa: RUF012

    def right_answers(self, task, batch):
        return F.one_hot(batch.labels.clamp(min=0)).float()  # -100: of another part


class TestCharacters(BenchTests):
    names = ("char-lm",)
    options = {"depth": 1, "width": 32, "context": 32, "num_evaluated": 32}  # noqa: RUF012

    def right_answers(self, task, batch):
        next_BT = batch[0][:, 1:]
        return 50 * F.one_hot(next_BT, int(torch.max(next_BT)) + 1).float()


class QuestionTests(BenchTests):
    is_pretrained = True

    def right_answers(self, task, batch):
        return F.one_hot(batch.labels).float()


class TestSST2(QuestionTests):
    names = ("sst2",)


class TestRTE(QuestionTests):
    names = ("rte",)


class TestTREC(QuestionTests):
    names = ("trec",)


class TestBoolQ(QuestionTests):
    names = ("boolq",)
