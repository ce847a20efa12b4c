"""Static baselines choose their bits on validation data."""

from __future__ import annotations

import pytest

import search.executors.evaluation
import search.study.runner
from search.results.closing import closing_rows
from search.store.journal import Journal

pytestmark = pytest.mark.usefixtures("without_mlflow")


@pytest.mark.slow
def test_static_baselines_choose_their_bits_on_validation_data_once(begin, root, monkeypatch):
    """Each short fine-tune is on disk before the next; what was done before an interruption is not repeated."""
    asked, evaluate = [], search.executors.evaluation.evaluate_job

    def counted(subject, job, *rest):
        if job.key.startswith("static-"):
            asked.append((job.policy.digest, job.epochs, job.seed))
            if len(asked) == 3:
                raise KeyboardInterrupt
        return evaluate(subject, job, *rest)

    monkeypatch.setattr(search.executors.evaluation, "evaluate_job", counted)
    options = {
        "trials": 2,
        "bits": (8, 4),
        "max_size": 0.2,
        "finalists": 1,
        "final_repeats": 1,
        "seed": 5,
        "comparison": "full",
    }
    options |= {"granularity": "fine-grained", "sampler": "random", "warm_start": False}
    with pytest.raises(KeyboardInterrupt):
        begin("chosen-bits", **options)
    journal = Journal(root / "chosen-bits" / "journal")
    assert len(journal.short_runs()) == 2 and len(journal.finals()) == 1  # the finalist's
    result = begin("chosen-bits", **options)
    runs = {run.digest: run for run in journal.short_runs()}
    assert len(asked) == len(runs) + 1 and {asked[2]} == {one for one in asked if asked.count(one) == 2}
    assert {one[1:] for one in asked} == {(1, 5)}
    comparison, best = result.comparison, {}
    for run in runs.values():
        assert run.test_accuracy is None and run.result.shares.encoded <= 0.2
    best |= {digest: runs[digest].result.accuracy for digest in {one.digest for one in comparison.static} & {*runs}}
    for name, digest in comparison.baselines.items():
        assert comparison.bits[name] in (8, 4) and result.finals[digest].bits == comparison.bits[name]
        best[name] = runs[digest].result.accuracy if digest in runs else None
    assert max(run.result.accuracy for run in runs.values()) in best.values()
    begin("chosen-bits", **options)
    assert len(asked) == len(runs) + 1, "nothing is left to choose"
    rows = {row.name: row.bits for row in closing_rows(comparison, result.finals, {})}
    assert {name: rows[name] for name in ("dense", "dense at 8 bits", "dense at 4 bits")} == {
        "dense": 32, "dense at 8 bits": 8, "dense at 4 bits": 4,
    }  # fmt: skip
