"""The guided sampler passes Optuna's own suites, and proposes points of its space."""

from __future__ import annotations

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from pruning.evidence import unit_evidence
from search.guide import Guide
from search.sampler import GuidedSampler, make_sampler
from spaces import Space
from spaces.allocation import Evidence

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def guided(vgg, vgg_graph):
    space = Space(vgg_graph.network, 0.25)
    evidence = {g: Evidence(unit_evidence(vgg, vgg_graph, g)) for g in space.usable}
    return lambda: GuidedSampler(Guide(space, evidence, dense_error=0.08, seed=3), space.axes, seed=3)


class TestOptunasSuitesWithoutSpace(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GuidedSampler(seed=0)


class TestOptunasSuitesWithSpace(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Parameters that are none of the guide's space are still sampled within their ranges."""

    @pytest.fixture
    def sampler(self, guided):
        return guided
