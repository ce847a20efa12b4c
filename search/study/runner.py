"""One running study: asks for trials, evaluates them, tells and records what came out, up to tested finalists."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pruning.importance.scores import unit_importance
from pruning.latency import describe_device
from search.config import GUIDED, SearchConfig
from search.errors import EnvironmentProblem, GoalMissed, UsageError
from search.progress import ProgressReporter, duration
from search.proposals.guide import GuidedProposer
from search.proposals.optuna_study import Objectives, OptunaStudy
from search.records import COMPLETE, ERROR, FINISHED_STATES, OUT_OF_MEMORY, SAMPLED, PendingTrial, TrialRecord
from search.results.comparison import Comparison, known_comparison
from search.results.figures import front_png, profile_png
from search.results.front import Front
from search.results.selection import best_trial, finalists_of, front_of
from search.results.tables import FinalScore, score_finals, trial_table
from search.results.time_left import Pace, final_runs_left, seconds_left
from search.store.folder import StudyFolder
from search.store.mlflow_tracker import Tracker
from search.store.optuna_file import Translation, projection_in_file
from search.study.clock import StudyClock
from search.study.finals import compare_finals
from search.training.attempts import Attempt, give_up_on
from search.training.chance import chance_accuracy
from search.training.checkpoints import save_model
from search.training.dense_model import DenseModel
from search.training.evaluate import Evaluation, PreparedModel, evaluate_policy, failed
from search.training.profile_cache import cached_profile, recalibration_note
from search.workloads import Workload
from spaces.allocation.budget import Unreachable
from spaces.allocation.importance import AllocationInputs
from spaces.cost.effect import NAMED
from spaces.granularity import parts_in
from spaces.search_space.initial import InitialPoint, initial_points
from spaces.search_space.projection import Projected, Projector
from spaces.search_space.space import Space
from spaces.sensitivity import Profile

HOPELESS = 3
"""Trials of a process, with none complete in the study, that end it if all fail alike for no fault of a policy's."""


@dataclass(frozen=True)
class SearchResult:
    """A study as it stands when `run_search` returns.

    Attributes:
        front: the non-dominated trials within the limit; columns as `prunefront front --format json`.
        trials: all trials, with `state` and `reason`.
        counts: trials by state.
        best: the trial `export --trial best` ships, see `search.results.selection.best_trial`; None without a feasible
            trial.
        least_accuracy: the validation accuracy asked for, if one was.
        comparison: dense model, int8 and static baselines; None when finals were left out.
        seconds: phase -> seconds.
        dense_accuracy: of the dense model on validation data.
        chance: accuracy up to which networks are dead, and on no front, see `search.training.chance`; None if unknown.
    """

    study: str
    folder: Path
    front: pd.DataFrame
    trials: pd.DataFrame
    counts: Mapping[str, int]
    best: int | None
    least_accuracy: float | None
    comparison: Comparison | None
    finals: Mapping[str, FinalScore]
    seconds: Mapping[str, float]
    dense_accuracy: float
    chance: float | None


class StudyRunner:
    """Owns ask and tell, the journal and MLflow of one running study."""

    def __init__(
        self,
        config: SearchConfig,
        folder: StudyFolder,
        space: Space,
        workload: Workload,
        dense: DenseModel,
        watcher: ProgressReporter,
    ) -> None:
        self.config, self.folder, self.space, self.watcher = config, folder, space, watcher
        self.dense, self.journal = dense, folder.journal
        self.subject = PreparedModel.of(workload, dense.model, config.round_to).scored_by(config.criterion)
        self._leave_unseen_whole()
        self.trials = {trial.number: trial for trial in self.journal.trials()}
        self.pace = Pace(self.trials.values())
        self.run_here: list[TrialRecord] = []
        self.seconds = {"dense": dense.trained_seconds}
        self.finals, self.compared = self.journal.finals(), known_comparison(folder)
        self.least_accuracy = None
        known: dict[str, Any] = {"dense_accuracy": dense.accuracy}
        if config.min_accuracy is not None:
            known["least_accuracy"] = self.least_accuracy = config.least_accuracy(dense.accuracy)
        self.chance = self._chance(chance_accuracy(workload))
        if self.chance is not None:
            known["chance"] = self.chance
        record = folder.read_record()
        if any(record.get(key) != value for key, value in known.items()):
            folder.write_record({**record, **known})
        self.front = Front(config.max_size, config.size_metric, config.cost, self.chance)
        self._drop_weights(self.front.extend(list(self.trials.values())))

    def _chance(self, chance: float | None) -> float | None:
        """Where the dense model itself is near chance, that is told, and no network is called dead."""
        if chance is not None and self.dense.accuracy <= chance:
            self.watcher.note(
                f"the dense model's accuracy of {self.dense.accuracy:.2%} on validation data is near chance "
                f"(up to {chance:.2%}): train it first, or check that weights, labels and data belong together"
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
        began = time.perf_counter()
        guided = self.config.sampler == GUIDED
        profile = self._profile() if self.config.warm_start or guided else None
        begun = max([profile.seconds if profile else 0.0, *self._finished_times()])
        self.clock = StudyClock(begun)
        self.seconds["scan"] = time.perf_counter() - began
        self.projector = Projector(self.space, self._allocation_inputs(profile))
        self.seeds = self._first_seeds() if self.config.warm_start else []
        guide = self._guide() if guided else None
        record = self.folder.read_record()
        began = time.perf_counter()
        objectives = Objectives(self.config.size_metric, self.config.cost)
        self.study = OptunaStudy(self.config.sampler, self.config.seed, self.space.axes, guide, objectives)
        for trial in self.trials.values():
            self.study.add(trial)
        translation = Translation(self.space.axes, objectives, lambda t: self.clock.to_time(t))
        self.optuna_file = projection_in_file(self.folder.database, self.folder.name, translation, self.trials)
        self.pending = self._pending()
        self.tracker = Tracker(
            self.folder.root, self.folder.name, record["study_id"], lambda t: self.clock.to_time(t), self.watcher
        )
        self.tracker.start(self._settings(), self.trials)
        try:
            self.seconds["storage"] = time.perf_counter() - began
            self.clock = StudyClock(begun)  # stores being made, or written anew, take nothing from the time limit
            self._run_trials()
            comparison = self._finals() if self.config.finalists else None
            result = self._result(comparison)
            self._publish(result, profile)
        except BaseException as error:
            self.tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        self.tracker.finish("FINISHED")
        return result

    def _finished_times(self) -> list[float]:
        return [trial.finished for trial in self.trials.values()] + [f.finished for f in self.finals]

    @property
    def _parts(self) -> tuple[str, ...]:
        """The granularities that are scanned, of two-stage ones both parts; allocators have inputs by each of them."""
        return parts_in(self.space.usable)

    def _profile(self) -> Profile:
        with self.watcher.stage("sensitivity scan") as progress:
            profile = cached_profile(
                self.subject, self.dense, self.config.criterion, self._parts, self.folder.root / "cache", progress
            )
        if note := recalibration_note(profile):
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
        settings = self.config.stored() | environment()
        return {key: value for key, value in settings.items() if value is not None}

    def _pending(self) -> dict[int, PendingTrial]:
        """Trials that were cut off, by number; those that only Optuna's file of an earlier version knows among them.

        What such a version had not said the origin of yet, the guide proposes again.
        """
        self.journal.forget_pending(self.trials)
        unsaid = self.config.sampler == GUIDED
        earlier = [t for t in self.optuna_file.pending if not (unsaid and t.origin == SAMPLED)]
        found = {trial.number: trial for trial in [*earlier, *self.journal.pending()]}
        return {n: t for n, t in found.items() if n not in self.trials and self.study.can_ask(t.params)}

    def _run_trials(self) -> None:
        while len(self.trials) < self.config.trials:
            if self.config.timeout is not None and self.clock.seconds >= self.config.timeout:
                self.watcher.note(f"time limit of {duration(self.config.timeout)} reached: no further trial starts")
                return
            self._run_trial(self.study.next_number)
            self._stop_if_hopeless()

    def _first_seeds(self) -> list[InitialPoint]:
        """Seeds of the first half of the trials, as many as there were to be when the study began."""
        count = self.folder.read_record().get("seeds", self.config.trials // 2)
        return list(islice(initial_points(self.projector), count))

    def _guide(self) -> GuidedProposer:
        largest_error = None if self.least_accuracy is None else 1 - self.least_accuracy
        chance = self.chance if self.config.min_size is None else None  # a size that was asked for holds
        policies = {number: trial.policy for number, trial in self.trials.items()}
        return GuidedProposer(
            self.projector, 1 - self.dense.accuracy, self.config.seed, largest_error, chance, policies
        )

    def _propose(self, number: int) -> PendingTrial:
        """Trial `number`: what it was before it was cut off, a seed if it has one, else what the sampler proposes."""
        if pending := self.pending.get(number):
            self.space.sample(self.study.ask(pending.params, pending.origin))
            return pending
        if number < len(self.seeds):
            seed = self.seeds[number]
            return PendingTrial(number, seed.allocator, self.space.sample(self.study.ask(seed.params, seed.allocator)))
        trial = self.study.ask()
        params = self.space.sample(trial)
        origin, scores = self.study.reason(trial)
        return PendingTrial(number, origin, params, scores)

    def _run_trial(self, number: int) -> None:
        started, began = self.clock.seconds, time.perf_counter()
        trial = self._propose(number)
        proposal = self.projector.project(trial.params)
        proposing = time.perf_counter() - began
        self.journal.write_pending(trial)
        attempt = Attempt(self.journal.folder, f"trial-{number:05d}")
        evaluation = self._evaluate(number, proposal, attempt)
        if evaluation.model is not None:
            save_model(evaluation.model, evaluation.structure, self.folder.trial_weights(number))
        record = TrialRecord(
            number=number,
            origin=trial.origin,
            params=trial.params,
            policy=proposal.policy,
            sampled=proposal.sampled,
            target=proposal.target,
            result=evaluation.result,
            started=started,
            finished=self.clock.seconds,
            proposing=proposing,
            latency=proposal.latency,
            scores=trial.scores,
        )
        self.journal.write_trial(record)
        attempt.finish()
        self.trials[record.number] = record
        self.pace.add(record)
        self.run_here.append(record)
        self.study.tell(record)
        self.optuna_file.add(record)
        self.tracker.log_trial(record)
        self._drop_weights(self.front.add(record))
        self._show(record)

    def _stop_if_hopeless(self) -> None:
        """End a study none of whose trials has come to anything for one reason that no policy can mend."""
        if len(self.run_here) < HOPELESS or any(t.result.state == COMPLETE for t in self.trials.values()):
            return
        reasons = {record.result.reason for record in self.run_here[-HOPELESS:]}
        cause = self.run_here[-1].result.cause
        if len(reasons) > 1 or cause not in (ERROR, OUT_OF_MEMORY):
            return
        told = f"{HOPELESS} trials in a row and none before them: failed with {reasons.pop()!r}"
        if cause == OUT_OF_MEMORY:
            raise EnvironmentProblem(f"{told}: free memory, or give the workload a recipe with a smaller batch")
        raise GoalMissed(f"{told}: repair what raised it and run the same command, or name a new --study")

    def _evaluate(self, number: int, proposal: Projected, attempt: Attempt) -> Evaluation:
        """Evaluate a trial, unless evaluating it has ended this process too often."""
        name = f"trial {number}"
        if reason := attempt.failure:
            journaled = self.journal.folder / f"trial-{number:05d}.json"
            self.watcher.note(
                f"{name} is left out ({reason}): to try it again, delete {journaled} and {self.folder.database} and "
                "run the same command"
            )
            return failed(reason)
        if attempt.deaths:
            self.watcher.note(f"{name} begins again, as it was cut off {attempt.deaths[-1]}")
        label = f"{name} ({proposal.policy.granularity_label} at {proposal.target:.1%})"
        epochs, limit = self.subject.workload.recipe.trial_epochs, self.config.trial_timeout
        with self.watcher.stage(label) as progress, attempt.running(progress) as step:
            return evaluate_policy(
                self.subject, proposal.policy, epochs, self.config.seed, step,
                seconds=limit, give_up=give_up_on(attempt, name, limit),
            )  # fmt: skip

    def _table(self, finals: Mapping[str, FinalScore] | None = None) -> pd.DataFrame:
        return trial_table(sorted(self.trials.values(), key=lambda t: t.number), finals or {}, self.config.size_metric)

    def _drop_weights(self, numbers: Sequence[int]) -> None:
        """Delete the weights of trials that are not on the front, but for finalists'."""
        finals = {final.digest for final in self.finals}
        for number in numbers:
            if self.trials[number].policy.digest not in finals:
                self.folder.trial_weights(number).unlink(missing_ok=True)

    def _front_table(self) -> pd.DataFrame:
        members = [self.trials[number] for number in sorted(self.front.numbers)]
        table = trial_table(members, {}, self.config.size_metric)
        return front_of(table, self.config.max_size, self.config.cost, self.chance)

    def _show(self, record: TrialRecord) -> None:
        result, done, asked = record.result, len(self.trials), self.config.trials
        if result.state == COMPLETE:
            what = f"{result.accuracy:.2%} at {result.shares.of(self.config.size_metric):.1%}"
        else:
            what = f"{result.state}: {result.reason}"
        left = self._seconds_left()
        self.watcher.headline(
            f"trial {record.number}: {what} | {done}/{asked}, best so far {self._best_so_far()}, "
            f"front {len(self.front.numbers)}" + (f", about {duration(left)} left" if left else "")
        )

    def _best_so_far(self) -> str:
        for best in self.front.finalists(1, self.least_accuracy):
            result = self.trials[best].result
            return f"{result.accuracy:.2%} at {result.shares.of(self.config.size_metric):.1%}"
        return "none yet"

    def _seconds_left(self) -> float | None:
        """With as many finalists as the front has now."""
        chosen = self.front.finalists(self.config.finalists, self.least_accuracy)
        digests, finals = [self.trials[number].policy.digest for number in chosen], self.finals
        runs = final_runs_left(self.config, digests, finals, self.compared)
        recipe = self.subject.workload.recipe.to_dict()
        return seconds_left(self.config, recipe, self.pace, finals, runs)

    def _finals(self) -> Comparison | None:
        """None if there is no finalist to compare with anything."""
        front = self._front_table()
        if front.empty:
            return None
        chosen = finalists_of(front, self.config.finalists, self.least_accuracy)
        finalists = [self.trials[number].policy for number in chosen]
        try:
            return compare_finals(
                self.config, self.folder, self.subject, self.projector, finalists, self.clock, self.watcher
            )
        finally:
            self.finals = self.journal.finals()

    def _result(self, comparison: Comparison | None) -> SearchResult:
        finals = score_finals(self.finals, self.config.final_repeats)
        table = self._table(finals)
        front = front_of(table, self.config.max_size, self.config.cost, self.chance)
        counts = {state: int((table["state"] == state).sum()) for state in FINISHED_STATES}
        return SearchResult(
            study=self.folder.name,
            folder=self.folder.path,
            front=front,
            trials=table,
            counts={**counts, "running": 0, "waiting": 0},
            best=best_trial(front, table, self.config.max_size, self.least_accuracy, self.chance),
            least_accuracy=self.least_accuracy,
            comparison=comparison,
            finals=finals,
            seconds=self._seconds(),
            dense_accuracy=self.dense.accuracy,
            chance=self.chance,
        )

    def _seconds(self) -> dict[str, float]:
        """Phase -> seconds over the whole study, dense training and scan as far as this process ran them."""
        total = dict(self.seconds)
        for trial in self.trials.values():
            for phase, seconds in {"proposing": trial.proposing, **trial.result.seconds}.items():
                total[f"trials {phase}"] = total.get(f"trials {phase}", 0.0) + seconds
        total["finals"] = sum(sum(final.result.seconds.values()) for final in self.finals)
        total["study"] = self.clock.seconds
        return total

    def _publish(self, result: SearchResult, profile: Profile | None) -> None:
        """Front table and pictures on MLflow's parent run."""
        files = {
            "front.csv": result.front.to_csv(index=False).encode(),
            "front.png": front_png(result.trials, result.front, self.config.max_size, result.comparison),
        }
        if profile is not None:
            files |= {"profile.json": profile.to_json().encode(), "profile.png": profile_png(profile)}
        metrics = {"front_size": len(result.front), **{f"trials_{k}": n for k, n in result.counts.items()}}
        if result.best is not None:
            best = result.trials.set_index("trial").loc[result.best]
            measured = {
                f"best_{key}": best[key] for key in ("accuracy", "final_accuracy", "test_accuracy", "size", "macs")
            }
            metrics |= {key: value for key, value in measured.items() if value is not None}
        self.tracker.log_summary(metrics, files)


def environment() -> dict[str, Any]:
    """What a study was last run in; no part of its identity, but results may differ between environments.

    `threads` is PyTorch's number of threads, which changes sums in their last digits.
    """
    return {
        "prunefront": version("prunefront"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": describe_device(torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }


def _named(names: Mapping[str, str]) -> str:
    """The first few of them."""
    return ", ".join(list(names)[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
