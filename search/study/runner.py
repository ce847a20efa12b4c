"""One running study: asks for trials, evaluates them, tells and records what came out, up to tested finalists."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Any, NamedTuple

import torch

from pruning.importance.scores import unit_importance
from search.config import GUIDED, SearchConfig
from search.errors import EnvironmentProblem, GoalMissed, UsageError
from search.executors.choose import make_executor
from search.executors.dispatch import evaluations
from search.executors.jobs import Done, Job
from search.goal import told_goal
from search.metric import SHARE, Metric, metric_to_plain, told_share
from search.placement import Placement
from search.progress import ProgressReporter, Standing, duration
from search.proposals.guide import GuidedProposer
from search.proposals.optuna_study import Objectives, OptunaStudy
from search.records import COMPLETE, CRASHED, ERROR, OUT_OF_MEMORY, SAMPLED, PendingTrial, TrialRecord
from search.results.comparison import known_comparison
from search.results.figures import front_png, profile_png
from search.results.note import study_note
from search.results.state import StudyState
from search.results.tables import FRONT_COLUMNS, csv_text
from search.store.folder import StudyFolder
from search.store.mlflow_place import mlflow_place
from search.store.mlflow_record import LoggedStudy, MlflowRecord, logged_values, milliseconds
from search.store.optuna_file import Translation, projection_in_file
from search.store.optuna_server import OptunaServer
from search.store.outline import NetworkOutline, write_outline, write_profile
from search.store.projection import Projection, Summary
from search.store.study_record import DENSE, of_split
from search.store.system_metrics import Sample, sampled_machine
from search.store.tracker import Tracker
from search.study.clock import StudyClock
from search.study.finals import compare_finals
from search.study.loop_remarks import LoopRemarks
from search.study.result import SearchResult
from search.study.running import RunningStudy
from search.study.shared_scan import shared_scan
from search.training.attempts import Attempt
from search.training.chance import chance_accuracy
from search.training.dense_model import DenseModel
from search.training.evaluate import PreparedModel
from search.training.profile_cache import brief_note, cached_profile, recalibration_note
from search.training.scan_notes import undefined_note
from search.workloads.base import SPLITS
from search.workloads.tally import named
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import NAMED
from spaces.granularity import parts_in
from spaces.search_space.initial import InitialPoint, initial_points
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import Space
from spaces.sensitivity import Profile
from spaces.wording import percent

HOPELESS = 3
"""Trials of a process, with none complete in the study, that end it if all fail alike for no fault of a policy's."""


class BegunTrial(NamedTuple):
    """A trial that is being evaluated: what it is, when it began, and the seconds its proposal took."""

    trial: PendingTrial
    proposal: Projected
    started: float
    proposing: float


class StudyRunner:
    """Owns ask and tell, the journal and what follows from it, of one running study."""

    def __init__(
        self,
        config: SearchConfig,
        folder: StudyFolder,
        space: Space,
        prepared: PreparedModel,
        dense: DenseModel,
        watcher: ProgressReporter,
        named_trials: Sequence[int] = (),
    ) -> None:
        self.named_trials = named_trials
        self.config, self.folder, self.space, self.watcher = config, folder, space, watcher
        self.dense, self.journal = dense, folder.journal
        self.subject, workload = prepared.scored_by(config.criterion), prepared.workload
        self._leave_unseen_whole()
        self.run_here: list[TrialRecord] = []
        self.begun: dict[str, BegunTrial] = {}
        self.remarks = LoopRemarks(watcher)
        self.seconds = {"dense": dense.trained_seconds}
        known: dict[str, Any] = {"dense_accuracy": dense.accuracy}
        unit = named(workload.metric)
        if (least := config.least_accuracy(dense.accuracy, unit)) is not None:
            known["least_accuracy"] = least
            if not unit.is_share:
                watcher.note(told_goal(least, dense.accuracy, unit, config.min_accuracy))
        if (chance := self._chance(chance_accuracy(workload))) is not None:
            known["chance"] = chance
        record = folder.read_record()
        own = {"metric": metric_to_plain(workload.metric)} if isinstance(workload.metric, Metric) else {}
        if any(record.get(key) != value for key, value in (known | own).items()):
            folder.write_record({**record, **known, **own})
        recipe, compared = workload.recipe.to_dict(), known_comparison(folder)
        self.state = StudyState(config, recipe, comparison=compared, unit=unit, **known)
        journaled = self.journal.trials(), self.journal.finals(), self.journal.count_short_runs()
        self._drop_weights(self.state.add_all(*journaled))

    def _chance(self, chance: float | None) -> float | None:
        """Where the dense model itself is near chance, that is told, and no network is called dead."""
        if chance is not None and self.dense.accuracy <= chance:
            self.watcher.note(
                f"the dense model's accuracy of {percent(self.dense.accuracy, 2)} on validation data is near chance "
                f"(up to {percent(chance, 2)}): train it first, or check that weights, labels and data belong together"
            )
            return None
        return chance

    def _leave_unseen_whole(self) -> None:
        """Take out of the space what only the trained network tells to stay whole, such as layers a criterion sees no
        data of."""
        could, layers = set(self.space.network.removable), self.subject.network.prunable
        whole = {layer.name: layer.whole for layer in layers if layer.whole}
        channels = {x.name: x.obstacle for x in layers if x.obstacle and x.name in could and not x.whole}
        found = [("left whole", whole), ("left with all channels", channels)]
        notes = [f"{what}: {_named(names)} ({next(iter(names.values()))})" for what, names in found if names]
        if not notes:
            return
        for note in notes:
            self.watcher.note(note)
        try:
            self.space = replace(self.space, network=self.subject.network)
        except Unreachable as error:
            raise UsageError("; ".join([str(error), *notes])) from None

    def run(self) -> SearchResult:
        with closing(make_executor(self.config, self.folder, self.subject, self.dense, self.watcher)) as self.executor:
            return self._run()

    def _run(self) -> SearchResult:
        began = time.perf_counter()
        guided = self.config.sampler == GUIDED
        write_outline(self.folder, NetworkOutline.of(self.subject.network))
        profile = self._profile() if self.config.warm_start or guided else None
        if profile is not None:
            write_profile(self.folder, profile)
        begun = max(profile.seconds if profile else 0.0, self.state.last_second)
        self.clock = StudyClock(begun)
        self.seconds["scan"] = time.perf_counter() - began
        self.projector = Projector(self.space, self._allocation_inputs(profile))
        self.seeds = self._first_seeds() if self.config.warm_start else []
        guide = self._guide() if guided else None
        record = self.folder.read_record()
        began = time.perf_counter()
        objectives = Objectives(self.config.size_metric, self.config.cost, self.state.unit.name)
        self.study = OptunaStudy(self.config.sampler, self.config.seed, self.space.axes, guide, objectives)
        for trial in self.state.records.values():
            self.study.add(trial)
        translation = Translation(self.space.axes, objectives, lambda t: self.clock.to_time(t))
        self.optuna_file = projection_in_file(self.folder.database, self.folder.name, translation, self.state.records)
        self.pending = self._pending()
        self.trackers = [Tracker(one, self.watcher) for one in self._projections(record["study_id"], translation)]
        for tracker in self.trackers:
            tracker.start(self._settings(), self.state.records)
        try:
            self.seconds["storage"] = time.perf_counter() - began
            self.clock = StudyClock(begun)  # stores being made, or written anew, take nothing from the time limit
            with self._sampled_machine():
                self._run_trials()
                if self.config.finalists or self.named_trials:
                    self._finals()
            result = SearchResult(self.folder.name, self.folder.path, self.state, self._seconds())
            self._publish(result, profile)
        except BaseException as error:
            self._finish_trackers("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        self._finish_trackers("FINISHED")
        return result

    def _projections(self, study_id: str, translation: Translation) -> Iterator[Projection]:
        """What the study is written to besides its folder."""
        root, name = self.folder.root, self.folder.name
        identity = self.folder.read_record()["identity"]
        begun_with = {part: identity[part] for part in (*map(of_split, SPLITS), DENSE) if part in identity}
        study = LoggedStudy(
            root, name, study_id, translation.to_time, self.state.unit, self.config.size_metric, begun_with,
            self._dense_milliseconds,
        )  # fmt: skip
        self.mlflow = MlflowRecord(study, mlflow_place(root))
        yield self.mlflow
        if self.config.optuna_storage:
            yield OptunaServer(self.config.optuna_storage, name, study_id, translation)

    def _sampled_machine(self) -> AbstractContextManager[None]:
        """What the machine does in the meantime is written to MLflow, if that was asked for."""
        return sampled_machine(self._log_sample) if self.config.system_metrics else nullcontext()

    def _log_sample(self, sample: Sample) -> None:
        self.mlflow.samples.append(sample)
        self.trackers[0].nudge()

    @property
    def _dense_milliseconds(self) -> float | None:
        """Of the dense network in the table that latencies are predicted by; None where none are."""
        table = self.folder.read_latency_table()
        return None if table is None else 1000 * table.dense_seconds

    def _finish_trackers(self, status: str) -> None:
        for tracker in self.trackers:
            tracker.finish(status)

    @property
    def _parts(self) -> tuple[str, ...]:
        """The granularities that are scanned, of two-stage ones both parts; allocators have inputs by each of them."""
        return parts_in(self.space.usable)

    def _profile(self) -> Profile:
        where = self.subject, self.dense, self.config.criterion, self._parts, self.folder.root / "cache"
        if elsewhere := shared_scan(self.config, self.folder, self.executor, self.watcher):
            profile = cached_profile(*where, bits=self.space.bits, elsewhere=elsewhere)
        else:
            with self.watcher.stage("sensitivity scan") as progress:
                profile = cached_profile(*where, progress, self.space.bits)
        unit = self.state.unit
        for note in (recalibration_note(profile, unit), brief_note(profile), undefined_note(profile, unit)):
            if note:
                self.watcher.note(note)
        return profile

    def _allocation_inputs(self, profile: Profile | None) -> dict[str, AllocationInputs]:
        return {
            granularity: AllocationInputs.of(
                self.subject.network,
                granularity,
                unit_importance(self.subject.dense, self.subject.graph, granularity),
                profile,
                self.space.metric,
            )
            for granularity in self._parts
        }

    def _settings(self) -> dict[str, Any]:
        settings = self.folder.read_record()["config"] | environment(self.subject.workload.placement)
        settings |= {} if self.state.unit == SHARE else {"metric": self.state.unit.name}
        return {key: value for key, value in settings.items() if value is not None}

    def _pending(self) -> dict[int, PendingTrial]:
        """Trials that were cut off, by number; those that only Optuna's file of an earlier version knows among them.

        What such a version had not said the origin of yet, the guide proposes again.
        """
        self.journal.forget_pending(self.state.records)
        unsaid = self.config.sampler == GUIDED
        earlier = [t for t in self.optuna_file.pending if not (unsaid and t.origin == SAMPLED)]
        found = {trial.number: trial for trial in [*earlier, *self.journal.pending()]}
        return {n: t for n, t in found.items() if n not in self.state.records and self.study.can_ask(t.params)}

    def _run_trials(self) -> None:
        folder, attempts = self.journal.folder, self.config.attempts
        for done in evaluations(self.executor, self._jobs(), folder, attempts, self.watcher.note):
            self._take(done)
            self._stop_if_hopeless()
        self.optuna_file.close()

    def _jobs(self) -> Iterator[Job]:
        """Trials as jobs, each proposed when it can begin."""
        while len(self.state.records) + len(self.begun) < self.config.trials:
            if self.config.timeout is not None and self.clock.seconds >= self.config.timeout:
                self.watcher.note(f"time limit of {duration(self.config.timeout)} reached: no further trial starts")
                return
            yield self._begin(self.study.next_number)

    def _first_seeds(self) -> list[InitialPoint]:
        """Seeds of the first half of the trials, as many as there were to be when the study began."""
        count = self.folder.read_record().get("seeds", self.config.trials // 2)
        return list(islice(initial_points(self.projector), count))

    def _guide(self) -> GuidedProposer:
        least_accuracy, chance = self.state.least_accuracy, self.state.chance
        largest_error = None if least_accuracy is None else 1 - least_accuracy
        chance = chance if self.config.min_size is None else None  # a size that was asked for holds
        policies = {number: trial.policy for number, trial in self.state.records.items()}
        return GuidedProposer(
            self.projector, 1 - self.dense.accuracy, self.config.seed, largest_error, chance, policies
        )

    def _propose(self, number: int) -> PendingTrial:
        """Trial `number`: what it was before it was cut off, a seed if it has one, else what the sampler proposes."""
        if pending := self.pending.get(number):
            self.space.sample(self.study.ask(pending.params, pending.origin, pending.knew))
            return pending
        if number < len(self.seeds):
            seed = self.seeds[number]
            return PendingTrial(number, seed.allocator, self.space.sample(self.study.ask(seed.params, seed.allocator)))
        trial = self.study.ask()
        params = self.space.sample(trial)
        origin, scores = self.study.reason(trial)
        return PendingTrial(number, origin, params, scores, self.study.knew(number))

    def _begin(self, number: int) -> Job:
        started, began = self.clock.seconds, time.perf_counter()
        trial = self._propose(number)
        proposal = self.projector.project(trial.params)
        proposing = time.perf_counter() - began
        self.journal.write_pending(trial)
        name, policy = f"trial {number}", proposal.policy
        what = [f"{policy.granularity_label} at {percent(proposal.target)}", policy.bits_label]
        job = Job(
            key=f"trial-{number:05d}",
            name=name,
            label=f"{name} ({', '.join(filter(None, what))})",
            policy=policy,
            epochs=self.subject.workload.recipe.trial_epochs,
            seed=self.config.seed,
            limit=self.config.trial_timeout,
            weights=self.folder.trial_weights(number),
        )
        self.begun[job.key] = BegunTrial(trial, proposal, started, proposing)
        return job

    def _take(self, done: Done) -> None:
        """Take in what came of a trial."""
        trial, proposal, started, proposing = self.begun.pop(done.job.key)
        if not done.begun:
            self._tell_left_out(done)
        self.remarks.tell(done.job.name, done.result)
        record = TrialRecord(
            number=trial.number,
            origin=trial.origin,
            params=trial.params,
            policy=proposal.policy,
            sampled=proposal.sampled,
            target=proposal.target,
            result=done.result,
            started=started,
            finished=self.clock.seconds,
            proposing=proposing,
            latency=proposal.latency,
            scores=trial.scores,
            knew=trial.knew,
            worker=done.worker,
        )
        self.journal.write_trial(record)
        Attempt(self.journal.folder, done.job.key).finish()
        off_front = self.state.add(record)
        self.run_here.append(record)
        self.study.tell(record)
        self.optuna_file.add(record)
        for tracker in self.trackers:
            tracker.log_trial(record)
        if trial.number not in off_front and not done.keep_weights():
            self.watcher.note(f"the weights of {done.job.name} are gone with their node: export repeats its fine-tune")
        self._drop_weights(off_front)
        self._show(record)

    def _tell_left_out(self, done: Done) -> None:
        """Of a trial that ended too many processes."""
        journaled = self.journal.folder / f"{done.job.key}.json"
        self.watcher.note(
            f"{done.job.name} is left out ({done.result.reason}): to try it again, delete {journaled} and "
            f"{self.folder.database} and run the same command"
        )

    def _stop_if_hopeless(self) -> None:
        """End a study none of whose trials has come to anything for one reason that no policy can mend."""
        if len(self.run_here) < HOPELESS or not self.state.is_fruitless:
            return
        last = [record.result for record in self.run_here[-HOPELESS:]]
        told = f"{HOPELESS} trials in a row and none before them: failed with {last[-1].reason!r}"
        if all(result.cause == CRASHED for result in last):
            raise EnvironmentProblem(
                f"{told}: repair that, or, where workers end for lack of memory, take fewer --workers; a new --study "
                "tries these trials again"
            )
        cause = last[-1].cause
        if len({result.reason for result in last}) > 1 or cause not in (ERROR, OUT_OF_MEMORY):
            return
        if cause == OUT_OF_MEMORY:
            raise EnvironmentProblem(f"{told}: free memory, or give a new --study a smaller --batch")
        raise GoalMissed(
            f"{told}: repair what raised it and run the same command, with a new --study if that changed the code of "
            "train, evaluate, loss, metric or augment"
        )

    def _drop_weights(self, numbers: Sequence[int]) -> None:
        """Delete the weights of trials that are not on the front, but for finalists'."""
        for number in numbers:
            if not self.state.has_finals(number):
                self.folder.trial_weights(number).unlink(missing_ok=True)

    def _show(self, record: TrialRecord) -> None:
        result, state = record.result, self.state
        what = self._point(record) if result.state == COMPLETE else f"{result.state}: {result.reason}"
        standing = Standing(
            last=f"trial {record.number}: {what}",
            best=self._best_so_far(),
            limit=state.max_size,
            front=state.front_length,
            done=len(state.records),
            asked=self.config.trials,
            workers=self.config.workers,
            seconds_left=state.seconds_left,
            failures=state.failures,
        )
        self.watcher.standing(standing)

    def _best_so_far(self) -> str:
        for best in self.state.finalists(1):
            return self._point(self.state.records[best])
        return "none yet"

    def _point(self, record: TrialRecord) -> str:
        accuracy, _, shares = record.result.measured
        return f"{told_share(self.state.unit, accuracy)} at {percent(shares.of(self.config.size_metric))}"

    def _finals(self) -> None:
        """Where there is a finalist, compare it with what it has to be better than."""
        if self.state.front_length or self.named_trials:
            study = RunningStudy(
                self.config, self.folder, self.subject, self.state, self.clock, self.watcher, self.executor
            )
            compare_finals(study, self.projector, self.named_trials)

    def _seconds(self) -> dict[str, float]:
        """Phase -> seconds over the whole study, dense training and scan as far as this process ran them."""
        total = dict(self.seconds)
        for trial in self.state.records.values():
            for phase, seconds in {"proposing": trial.proposing, **trial.result.seconds}.items():
                total[f"trials {phase}"] = total.get(f"trials {phase}", 0.0) + seconds
        total["finals"] = sum(sum(final.result.seconds.values()) for final in self.state.finals)
        total["study"] = self.clock.seconds
        return total

    def _publish(self, result: SearchResult, profile: Profile | None) -> None:
        """Front table and pictures on MLflow's parent run."""
        state, front = self.state, self.state.front
        files = {
            "front.csv": csv_text(front, FRONT_COLUMNS, str, self.state.unit).encode(),
            "front.png": front_png(
                state.rows,
                front,
                self.config.max_size,
                state.comparison,
                state.scores,
                self.config.size_metric,
                state.unit,
            ),
        }
        if profile is not None:
            files |= {"profile.json": profile.to_json().encode(), "profile.png": profile_png(profile, state.unit)}
        metrics: dict[str, float] = {"front_size": len(front), **{f"trials_{k}": n for k, n in result.counts.items()}}
        if result.best is not None:
            best = state.row(result.best)
            names = ("accuracy", "final_accuracy", "test_accuracy", "size", "macs", "latency")
            measured = {f"best_{name}": getattr(best, name) for name in names}
            metrics |= {name: value for name, value in measured.items() if value is not None}
            own = {"best_": best.accuracy, "best_final_": best.final_accuracy, "best_test_": best.test_accuracy}
            metrics |= logged_values(state.unit, {**own, "dense_": state.dense_accuracy})
            metrics |= milliseconds(best.latency, self._dense_milliseconds, "best_")
        metrics |= milliseconds(1.0, self._dense_milliseconds, "dense_")
        note = study_note(self.folder.name, state, str(self.folder.root.resolve()), self._dense_milliseconds)
        for tracker in self.trackers:
            tracker.log_summary(Summary(metrics, files, note))


def environment(placement: Placement) -> dict[str, Any]:
    """What a study was last run in; no part of its identity, but results may differ between environments.

    `threads` is PyTorch's number of threads, which changes sums in their last digits.
    """
    return {
        "prunefront": version("prunefront"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": placement.name,
        "threads": torch.get_num_threads(),
    }


def _named(names: Mapping[str, str]) -> str:
    """The first few of them."""
    return ", ".join(list(names)[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
