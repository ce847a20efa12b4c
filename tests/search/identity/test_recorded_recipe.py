"""Studies from before rates followed damage go on with a fixed rate and the recipe they recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.identity.recorded_recipe import with_recorded_recipe
from search.workloads import get_workload
from search.workloads.recipe import Recipe

OLD = {
    "batch": 50, "dense_epochs": 20, "trial_epochs": 3, "final_epochs": 2, "dense_learning_rate": 0.2,
    "learning_rate": 0.05, "warmup": 0.2, "momentum": 0.9, "weight_decay": 5e-4,
}  # fmt: skip
"""As a study wrote it down of `Recipe(batch=50, dense_epochs=20, trial_epochs=3, dense_learning_rate=0.2)`."""


@pytest.fixture(scope="module")
def digits():
    return get_workload("digits")


def test_the_users_own_recipe_means_what_it_meant(digits):
    mine = replace(digits, recipe=Recipe(batch=50, dense_epochs=20, trial_epochs=3, dense_learning_rate=0.2))
    assert mine.recipe.final_epochs == 9
    assert with_recorded_recipe(mine, {"recipe": OLD}, False).recipe.to_dict() == OLD


def test_a_change_of_the_users_own_is_left_to_be_refused(digits):
    mine = replace(digits, recipe=Recipe(batch=40, dense_epochs=20, trial_epochs=3, dense_learning_rate=0.2))
    found = with_recorded_recipe(mine, {"recipe": OLD}, False).recipe
    assert found.rate == "fixed" and found.to_dict() != OLD and found.batch == 40


def test_a_built_in_workload_has_the_recorded_recipe(digits):
    recorded = {**OLD, "final_epochs": 4.5, "learning_rate": 0.125}
    assert with_recorded_recipe(digits, {"recipe": recorded}, True).recipe.to_dict() == recorded
    assert with_recorded_recipe(digits, {"recipe": {**recorded, "batch": "many"}}, True).recipe.rate == "fixed"


def test_a_study_of_today_is_compared_as_it_is(digits):
    recorded = {**digits.recipe.to_dict(), "batch": 7}
    assert with_recorded_recipe(digits, {"recipe": recorded}, True) is digits
    assert with_recorded_recipe(digits, {}, True) is digits
