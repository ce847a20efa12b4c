"""The recipe of a study: the workload's, or what options say in its place; of old studies the recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from search.config import SearchConfig
from search.workloads import is_built_in
from search.workloads.base import Workload
from search.workloads.recipe import FIXED, Recipe


def with_study_recipe(workload: Workload, config: SearchConfig, identity: Mapping[str, Any] | None = None) -> Workload:
    """The workload as a study of this config trains it.

    Args:
        identity: of the study's record, if there is one.
    """
    if identity is not None:
        workload = with_recorded_recipe(workload, identity, is_built_in(config.workload))
    recipe = workload.recipe.of_study(config.epochs, config.learning_rate, config.batch)
    return workload if recipe == workload.recipe else replace(workload, recipe=recipe)


def with_recorded_recipe(workload: Workload, identity: Mapping[str, Any], built_in: bool) -> Workload:
    """The workload as the study trains it: one whose record names no rate goes on with a fixed one.

    Its recipe is then the one that the same arguments made before, or, of a built-in workload, the recorded one. A
    recipe that is neither is left to be refused, with its differences.

    Args:
        identity: of the study's record.
        built_in: whether the workload comes with prunefront, so that only prunefront changes its recipe.
    """
    recorded = identity.get("recipe")
    if not isinstance(recorded, Mapping) or "rate" in recorded or workload.recipe.rate == FIXED:
        return workload
    for recipe in (_of_record(recorded) if built_in else []) + workload.recipe.former():
        if recipe.to_dict() == recorded:
            return replace(workload, recipe=recipe)
    return replace(workload, recipe=replace(workload.recipe, rate=FIXED))


def _of_record(recorded: Mapping[str, Any]) -> list[Recipe]:
    try:
        return [Recipe(**{**recorded, "rate": FIXED})]
    except (TypeError, ValueError):  # of a damaged record, or a later version
        return []
