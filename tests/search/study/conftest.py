"""Studies of the tiny workload under one root, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick_studies import QUICK

from search.config import make_config
from search.progress import ProgressReporter
from search.study.result import SearchResult
from search.study.start import run_search


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """One root for the studies of these tests, so that their dense model is trained once."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def begin(root, place):
    """Run a study of the tiny workload under the shared root."""

    def go(study: str, watcher: ProgressReporter | None = None, factory: str = "tiny", **options):
        options = QUICK | options
        return run_search(
            make_config(workload=f"{place / 'tiny.py'}:{factory}", study=study, root=str(root), **options), watcher
        )

    return go


@pytest.fixture
def whole(begin, studies):
    """A finished study of seven trials, which no test may change."""
    if "whole" not in studies:
        studies["whole"] = begin("whole", trials=7)
    return studies["whole"]


@pytest.fixture(scope="session")
def studies() -> dict[str, SearchResult]:
    """Studies that several tests look at, by name."""
    return {}
