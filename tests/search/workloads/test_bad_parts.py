"""Workloads that cannot be: their names, their parts, and by what they are asked for."""

from __future__ import annotations

import math

import pytest
from refusals import MISSPELT, refuse, table
from small_net import IMAGES, TARGETS, made

from search import Recipe, get_workload
from search.errors import UsageError
from spaces.allocation.budget import Unreachable

NAN, INF = math.nan, math.inf
BAD_CHOICES = {
    "workload name": (lambda: made(name="a b"), "may hold letters, digits, '.', '_' and '-', got 'a b'"),
    "workload empty": (lambda: made(fit=(IMAGES[:0], TARGETS[:0])), "as many inputs as targets, got 0 and 0"),
    "workload unequal": (
        lambda: made(test=(IMAGES, TARGETS[:2])),
        "'test' needs as many inputs as targets, got 4 and 2",
    ),
    "workload of none": (lambda: made(fit=7), "must be a pair of tensors, a map-style dataset, "),
    "recipe": (lambda: Recipe(learning_rate=10**400), "learning_rate must be a number > 0"),
}


@table(BAD_CHOICES)
def test_a_bad_choice_is_refused_in_one_line(case):
    refuse(case[0], case[1], (ValueError, Unreachable))


BAD_PARTS = {
    "build_model": (None, "build_model must be a function, got None"),
    "loss": ("mse", "loss must be a function, got 'mse'"),
    "metric": (None, "metric must be a function, got None"),
    "augment": (5, "augment must be a function, got 5"),
    "recipe": ({"batch": 5}, "recipe must be a search.Recipe, got dict"),
    "example_input": (IMAGES * NAN, "the example input holds NaN or infinite values"),
    "weights": (5, "weights must name a file, got int"),
}


@pytest.mark.parametrize("part", BAD_PARTS)
def test_a_bad_part_of_a_workload_is_refused_before_it_is_used(part, monkeypatch):
    value, said = BAD_PARTS[part]
    monkeypatch.setattr("search.workloads._factory", lambda spec: lambda: made(**{part: value}))
    refuse(lambda: get_workload("./mine.py:make"), f"workload './mine.py:make': {said}", UsageError)


def test_a_bad_name_of_a_workload_is_refused():
    refuse(
        lambda: get_workload(None),
        "a workload must be named by a string such as 'digits' or './file.py:factory', got None",
        UsageError,
    )
    refuse(lambda: get_workload("digit"), f"'digit': {MISSPELT} 'digits'", UsageError)
