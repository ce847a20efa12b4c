"""Jobs and their executors, without a network: what runs, what begins again, what is given up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from search.executors.dispatch import dispatch
from search.executors.jobs import Done, Job, Lost
from search.records import COMPLETE, CurvePoint, TrialResult, WrittenFile
from search.training.attempts import Attempt
from search.training.evaluate import failed
from search.training.own_scores import Metrics
from spaces.cost.footprint import RelativeCost
from spaces.policy import PruningPolicy


def job(key: str, **options) -> Job:
    return Job(key, f"the job {key}", key, PruningPolicy({"conv.weight": 0.25}), 2, 7, **options)


class Slots:
    """An executor of so many slots that ends the jobs it was given last first; those named are lost so often.

    A `large` job lacks memory beside others, and one that is `too_large` always.
    """

    def __init__(self, slots: int, folder: Path, lost: dict[str, int] | None = None, large="", too_large="") -> None:
        self.slots, self.folder, self.lost = slots, folder, dict(lost or {})
        self.shares_memory, self.large, self.too_large = True, large, too_large
        self.running: list[Job] = []
        self.begun: list[str] = []
        self.most = 0

    def submit(self, job: Job) -> None:
        self.running.append(job)
        self.begun.append(job.key)
        self.most = max(self.most, len(self.running))

    def wait(self) -> list[Done | Lost]:
        job = self.running.pop()
        if self.lost.get(job.key, 0):
            self.lost[job.key] -= 1
            return [Lost(job, (3, 20))]
        if job.key in self.too_large or (job.key in self.large and self.running):
            return [Done(job, failed("out-of-memory").result)]
        return [Done(job, TrialResult(COMPLETE, accuracy=0.25))]

    def close(self) -> None: ...


def ended(executor: Slots, jobs, attempts: int = 3) -> tuple[list[Done], list[str]]:
    notes: list[str] = []
    return list(dispatch(executor, iter(jobs), executor.folder, attempts, notes.append)), notes


def test_every_job_ends_once_and_all_slots_are_used(tmp_path):
    executor = Slots(3, tmp_path)
    done, notes = ended(executor, [job(key) for key in "abcdefg"])
    assert sorted(one.job.key for one in done) == list("abcdefg") and executor.begun == list("abcdefg")
    assert executor.most == 3 and not notes


@pytest.mark.parametrize("slots", [1, 3])
def test_the_next_job_is_made_when_all_results_before_it_were_taken(tmp_path, slots):
    executor, taken, known = Slots(slots, tmp_path), [], []

    def jobs():
        for key in "abcdefg":
            known.append(len(taken))
            yield job(key)

    for done in dispatch(executor, jobs(), tmp_path, 3, print):
        taken.append(done)
    assert known == [max(number - slots + 1, 0) for number in range(7)]


def test_a_lost_job_begins_again_before_any_other(tmp_path):
    executor = Slots(1, tmp_path, {"a": 2})
    done, notes = ended(executor, [job("a"), job("b")])
    assert executor.begun == ["a", "a", "a", "b"] and [one.result.state for one in done] == [COMPLETE, COMPLETE]
    told = "the job a begins again, as it was cut off after step 3 of 20: killed from outside, or for lack of memory"
    assert notes == [told, told]


def test_a_job_that_is_lost_too_often_fails_alone_and_without_another_begin(tmp_path):
    executor = Slots(2, tmp_path, {"a": 9})
    done, _ = ended(executor, [job("a"), job("b"), job("c")], attempts=2)
    (failure,) = [one for one in done if one.result.state != COMPLETE]
    assert executor.begun.count("a") == 2 and not failure.begun
    assert failure.result.reason.startswith("crashed: its worker was lost, try 2 of 2, after step 3 of 20")
    assert failure.result.cause == "crashed" and sorted(one.job.key for one in done) == ["a", "b", "c"]


def test_a_job_that_lacks_memory_beside_others_is_tried_once_more_alone(tmp_path):
    executor = Slots(3, tmp_path, large="b", too_large="c")
    done, notes = ended(executor, [job(key) for key in "abcdef"])
    assert executor.begun == list("abc" + "cb" + "def") and [one.job.key for one in done if one.result.cause] == ["c"]
    assert sorted(one.job.key for one in done) == list("abcdef") and not [*tmp_path.iterdir()]
    assert notes == [f"the job {key} is tried once more alone, as it lacked memory beside others" for key in "cb"]


@pytest.mark.parametrize("slots", [1, 2])
def test_memory_that_no_other_job_takes_from_is_no_reason_to_try_again(tmp_path, slots):
    executor = Slots(slots, tmp_path, too_large="ab")
    executor.shares_memory = slots == 1
    done, notes = ended(executor, [job(key) for key in "abc"])
    assert (
        executor.begun == list("abc") and not notes and [one.result.cause for one in done].count("out-of-memory") == 2
    )


def test_what_workers_lost_counts_again_in_another_process(tmp_path):
    Attempt(tmp_path, "a").lose(3, 20, "stalled: no step for 600 s")
    Attempt(tmp_path, "a").lose(5, 20)
    assert Attempt(tmp_path, "a", 3).failure is None and Attempt(tmp_path, "a").failure is None
    assert Attempt(tmp_path, "a", 2).failure.startswith("crashed: its worker was lost, try 2 of 2, after step 5 of 20")
    assert [death.how for death in Attempt(tmp_path, "a").deaths] == ["stalled: no step for 600 s", ""]
    Attempt(tmp_path, "a").finish()
    assert not [*tmp_path.iterdir()]


def test_the_last_words_of_a_worker_are_kept(tmp_path):
    words = "Fatal Python error: Segmentation fault\n"
    (tmp_path / "begun-a.now").write_text("7 20".ljust(31) + "\n" + words)
    Attempt(tmp_path, "a").lose(6, 20, "by signal 11 (SIGSEGV)")
    (death,) = Attempt(tmp_path, "a").deaths
    assert (death.step, death.how, death.lost) == (7, "Segmentation fault", True)


def test_jobs_and_results_survive_json():
    whole = job("a", stage="final", limit=2.5, is_tested=True, weights=Path("/somewhere/a.safetensors"))
    assert Job.from_plain(json.loads(json.dumps(whole.to_plain()))) == whole
    assert Job.from_plain(json.loads(json.dumps(job("b").to_plain()))) == job("b")
    result = TrialResult(
        COMPLETE, accuracy=0.1 + 0.2, loss=1 / 3, shares=RelativeCost(0.25, 0.2, 1.0, 0.3), achieved={"a.weight": 0.2},
        curve=(CurvePoint(0.5, 1e-17, 2.0, 0.75),), seconds={"training": 0.1}, statistics="refreshed", measuring=2,
        file=WrittenFile(10, 11, 12, 1), rate=1e-3, device="a card", precision="bf16", restored=3, ended_at=0.5,
    )  # fmt: skip
    done = Done(whole, result, Metrics(0.7, 0.1 + 0.7))
    assert Done.from_plain(whole, json.loads(json.dumps(done.to_plain()))) == done
    diverging = Done(whole, TrialResult("failed", "diverged: nan", curve=(CurvePoint(1.0, math.nan, 2.0, 0.75),)))
    back = Done.from_plain(whole, json.loads(json.dumps(diverging.to_plain())))
    assert back.tested is None and back.result.cause == "diverged" and math.isnan(back.result.curve[0].train_loss)
