"""The recipe of a study that was begun before the rates of fine-tunes followed damage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from search.workloads.base import Workload
from search.workloads.recipe import FIXED, Recipe


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
