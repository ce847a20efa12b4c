"""What is said of two studies that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from search.config import make_config
from search.metric import SHARE, Metric
from search.results.state import StudyState
from search.results.unlike import Unlike, unlike
from search.results.view import StudyView
from search.store.study_record import ARCHITECTURE, DATA, DENSE, LATENCY_DEVICE, of_split

VALIDATION = of_split("validation")
DEVICES = {"cost": "latency"}, {"cost": "latency"}


@dataclass(frozen=True)
class Folder:
    """A study's folder, of which only what the record says of model and data is looked at."""

    identity: Mapping[str, str]

    def read_record(self) -> dict[str, object]:
        return {"identity": self.identity}


def compared(options=({}, {}), identities=({}, {}), max_size=None, units=(SHARE, SHARE), dense=(0.95, 0.95)) -> Unlike:
    """Two studies of these options; `max_size` is asked about both."""
    views = []
    for own, identity, unit, accuracy in zip(options, identities, units, dense, strict=True):
        config = make_config(**{"workload": "digits", "max_size": 0.25, "cost": "macs", **own})
        state = StudyState(config, {}, max_size=max_size, dense_accuracy=accuracy, unit=unit)
        views.append(StudyView(Folder(identity), config, state, (), False))
    return unlike(*views)


@pytest.mark.parametrize(
    ("options", "differences"),
    [
        (({}, {}), ()),
        (({"cost": "latency"}, {}), ("third objective (predicted latency, MACs)",)),
        (({}, {"size_metric": "nonzero", "bits": (32,)}), ("size metric (encoded, nonzero)",)),
        (({"max_size": 0.125}, {}), ("size limit (12.5 %, 25 %)",)),
        (({"max_size": 0.0625}, {"max_size": 0.0624}), ("size limit (6.25 %, 6.24 %)",)),
        (({"max_macs": 0.75}, {"max_macs": 0.5}), ("MACs limit (75 %, 50 %)",)),
        (({}, {"max_macs": 0.5}), ("MACs limit (100 %, 50 %)",)),
        (({"max_latency": 0.75}, {"max_latency": 0.5}), ("latency limit (75 %, 50 %)",)),
    ],
)
def test_each_difference_of_options_is_told_with_both_values(options, differences):
    assert compared(options).differences == differences


def test_a_limit_that_is_asked_about_is_that_of_both():
    found = compared(({"max_size": 0.125}, {}), max_size=0.2)
    assert found.differences == () and found.line("one", "two") == ""


@pytest.mark.parametrize(
    ("metrics", "difference"),
    [
        ((Metric("mAP", low=0, high=100, dense=31.0), Metric("mAP", low=0, high=100, dense=42.0)), None),
        (
            (Metric("mAP", low=0, high=100), Metric("mAP", low=0, high=0.5)),
            "metric (mAP best max low 0 high 100, mAP best max low 0 high 0.5)",
        ),
        ((Metric("R2", high=1), Metric("R2", best="min", high=1)), "metric (R2 best max high 1, R2 best min high 1)"),
        (
            (Metric("F1", low=0, high=1), Metric("AP", low=0, high=1)),
            "metric (F1 best max low 0 high 1, AP best max low 0 high 1)",
        ),
    ],
    ids=["the same", "range", "direction", "name"],
)
def test_accuracies_of_another_metric_are_not_compared(metrics, difference):
    found = compared(units=metrics)
    same = difference is None
    assert (found.differences, found.metric, found.accuracy) == (() if same else (difference,), same, same)


@pytest.mark.parametrize(
    ("identities", "differences", "accuracy"),
    [
        (({VALIDATION: "1a"}, {VALIDATION: "1a"}), (), True),
        (({VALIDATION: "1a"}, {VALIDATION: "2b"}), ("validation data",), False),
        (({VALIDATION: "1a", DATA: "3c"}, {VALIDATION: "1a", DATA: "4d"}), (), True),
        (({DATA: "3c"}, {DATA: "4d"}), ("validation data",), False),
        (({ARCHITECTURE: "a net"}, {ARCHITECTURE: "a mlp"}), ("architecture",), True),
        (({DENSE: "5e"}, {DENSE: "6f"}), ("dense model (95.00 %, unknown)",), True),
    ],
)
def test_of_model_and_data_it_is_told_what_differs(identities, differences, accuracy):
    found = compared(identities=identities, dense=(0.95, None))
    assert (found.differences, found.accuracy, found.metric) == (differences, accuracy, True)


@pytest.mark.parametrize(
    ("options", "devices", "differences", "latency"),
    [
        (DEVICES, ({LATENCY_DEVICE: "a CPU"}, {LATENCY_DEVICE: "a CPU"}), (), True),
        (
            DEVICES,
            ({LATENCY_DEVICE: "a CPU"}, {LATENCY_DEVICE: "a card"}),
            ("device of the latency (a CPU, a card)",),
            False,
        ),
        (DEVICES, ({}, {LATENCY_DEVICE: "a card"}), ("device of the latency (unknown, a card)",), False),
        (
            ({"cost": "latency"}, {}),
            ({LATENCY_DEVICE: "a CPU"}, {}),
            ("third objective (predicted latency, MACs)",),
            False,
        ),
        (({}, {}), ({}, {}), (), False),
    ],
)
def test_latencies_are_compared_where_both_are_of_one_device(options, devices, differences, latency):
    found = compared(options, devices)
    assert (found.differences, found.latency) == (differences, latency)


NONZERO = {"size_metric": "nonzero", "bits": (32,)}


@pytest.mark.parametrize(
    ("options", "size"), [((NONZERO, NONZERO), "nonzero"), ((NONZERO, {}), "encoded"), (({}, NONZERO), "encoded")]
)
def test_sizes_are_those_of_the_limits_where_both_have_one_measure(options, size):
    assert compared(options).size == size


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (Unlike((), True, True, True, "encoded"), ""),
        (
            Unlike(("validation data",), True, False, True, "nonzero"),
            "one and two differ in validation data. Their nonzero sizes, MACs and latencies can be compared.",
        ),
        (
            Unlike(("size limit (12.5 %, 25 %)", "architecture"), True, True, False, "encoded"),
            "one and two differ in size limit (12.5 %, 25 %) and architecture. Their accuracies, encoded sizes and "
            "MACs can be compared, as shares of two different dense models.",
        ),
    ],
)  # fmt: skip
def test_a_line_says_what_can_be_compared(found, line):
    assert found.line("one", "two") == line
