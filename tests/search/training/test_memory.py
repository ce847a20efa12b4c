"""What does not fit into memory is told with what would change that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE

from search.errors import EnvironmentProblem
from search.placement import CPU, Placement
from search.training import profile_cache
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel
from search.training.profile_cache import cached_profile
from search.workloads import get_workload
from search.workloads.base import placed

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (CPU, "the memory of this machine: give its recipe a batch smaller than 20, or free memory"),
        (
            Placement(DEVICE),
            "the memory of fake:0 (fake): give its recipe a batch smaller than 20, or --precision bf16, or another "
            "--device, such as cpu",
        ),
        (
            Placement(DEVICE, "bf16"),
            "the memory of fake:0 (fake): give its recipe a batch smaller than 20, or another --device, such as cpu",
        ),
    ],
)
def test_a_dense_model_that_does_not_fit_says_what_to_change(workload, placement, said, tmp_path):
    def full(inputs, generator):
        raise FULL

    with pytest.raises(EnvironmentProblem) as refused:
        dense_model(placed(replace(workload, augment=full), placement), 0, tmp_path)
    assert str(refused.value) == f"workload 'tiny': the dense model does not fit into {said}"


def test_a_scan_that_does_not_fit_says_what_to_change(workload, tmp_path, monkeypatch):
    there = placed(replace(workload, weights="as built"), Placement(DEVICE))
    dense = dense_model(there, 0, tmp_path)

    def full(*arguments, **options):
        raise FULL

    monkeypatch.setattr(profile_cache, "scan_sensitivity", full)
    with pytest.raises(EnvironmentProblem, match="the sensitivity scan does not fit into the memory of fake:0"):
        cached_profile(PreparedModel.of(there, dense.model), dense, "magnitude-l2", ("fine-grained",), tmp_path)


def test_other_errors_stay_what_they_are(workload, monkeypatch):
    def broken(*arguments):
        raise KeyError("no such class")

    monkeypatch.setattr("search.training.evaluate.trace_channels", broken)
    with pytest.raises(KeyError):
        PreparedModel.of(workload, build_model(workload, 0))
