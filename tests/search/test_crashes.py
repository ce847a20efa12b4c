"""A trial that kills the process every time must not stop its study for ever."""

from __future__ import annotations

import pytest

import search.coordinator
import search.finals
from search import SearchConfig, run_search
from search.console import Watcher
from search.evaluate import MAX_STARTS
from search.journal import Journal


class Death(BaseException):
    """Ends a run as abruptly as a test can: nothing of the project handles it."""


def config(place, trials: int) -> SearchConfig:
    options = {"trials": trials, "finalists": 0, "seeds": False, "max_size": 0.5}
    return SearchConfig(workload=f"{place / 'tiny.py'}:tiny", study="deadly", root=str(place / "deadly"), **options)


def ends_by(error: type[BaseException]):
    def evaluate(*_arguments):
        raise error

    return evaluate


def test_a_trial_that_always_kills_the_process_is_failed_in_the_end(place, monkeypatch):
    run_search(config(place, 1))
    with monkeypatch.context() as deadly:
        deadly.setattr(search.coordinator, "evaluate_policy", ends_by(Death))
        for _ in range(MAX_STARTS):
            with pytest.raises(Death):
                run_search(config(place, 2))
    result = run_search(config(place, 3))
    assert list(result.trials["state"]) == ["complete", "failed", "complete"]
    assert result.trials["reason"][1].startswith("crashed: ")


def test_interrupting_a_trial_in_good_order_never_fails_it(place, monkeypatch):
    before = config(place, 4)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(search.coordinator, "evaluate_policy", ends_by(KeyboardInterrupt))
        for _ in range(MAX_STARTS + 1):
            with pytest.raises(KeyboardInterrupt):
                run_search(before)
    assert run_search(before).trials["state"][3] == "complete"


def test_a_final_run_that_always_kills_the_process_is_failed_in_the_end(place, monkeypatch):
    finals = config(place, 3).model_copy(update={"study": "deadly-finals", "finalists": 1, "final_seeds": 1})
    with monkeypatch.context() as deadly:
        deadly.setattr(search.finals, "evaluate_policy", ends_by(Death))
        for _ in range(MAX_STARTS):
            with pytest.raises(Death):
                run_search(finals)
    notes: list[str] = []
    watcher = Watcher()
    watcher.note = notes.append
    result = run_search(finals, watcher)
    assert len(result.finals) == 3 and result.comparison is not None  # four of one seed: finalist and baselines
    told = next(note for note in notes if "crashed: " in note)
    assert told.endswith("and run the same command")
    begun = [path for path in (result.folder / "journal").iterdir() if path.name.startswith("begun")]
    assert not begun


def test_interrupting_a_final_run_in_good_order_never_fails_it(place, monkeypatch):
    finals = config(place, 2).model_copy(update={"study": "calm-finals", "finalists": 1, "final_seeds": 1})
    with monkeypatch.context() as interrupted:
        interrupted.setattr(search.finals, "evaluate_policy", ends_by(KeyboardInterrupt))
        for _ in range(MAX_STARTS + 1):
            with pytest.raises(KeyboardInterrupt):
                run_search(finals)
    journal = Journal(run_search(finals).folder / "journal")
    assert {final.result.state for final in journal.finals()} == {"complete"}
