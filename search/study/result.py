"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.metric import Metric
from search.notebook import usual_reporter
from search.progress import ProgressReporter
from search.results.closing import closing_frame
from search.results.comparison import Comparison
from search.results.glance import glance_html, glance_text, picture_of
from search.results.remarks import closing_of, verdict_of
from search.results.state import StudyState
from search.results.tables import FRONT_COLUMNS, TRIAL_COLUMNS, FinalScore, data_frame
from search.results.view import open_study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class SearchResult:
    """A study as it stands when `run_search` returns. Its numbers and tables are those of its `state`.

    Printed, it is a short table of the front; as the last line of a notebook's cell it is that table and the picture.

    Attributes:
        study: its name.
        folder: where it is kept.
        state: its results.
        seconds: phase -> seconds.
    """

    study: str
    folder: Path
    state: StudyState
    seconds: Mapping[str, float]

    @cached_property
    def front(self) -> pd.DataFrame:
        """The non-dominated trials within the limit, the most accurate first; columns in `docs/python.md`."""
        return data_frame(self.state.front, FRONT_COLUMNS, self.state.unit)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """All trials by number, with `state` and `reason`; further columns as of `front`."""
        return data_frame(self.state.rows, TRIAL_COLUMNS, self.state.unit)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return self.state.counts()

    @property
    def best(self) -> int | None:
        """The trial `export --trial best` ships; None without a feasible one."""
        return self.state.best

    @property
    def finals(self) -> Mapping[str, FinalScore]:
        """Scores of full-length fine-tunes by policy digest."""
        return self.state.scores

    @property
    def comparison(self) -> Comparison | None:
        """Dense model, also rounded, and static baselines; None when finals were left out."""
        return self.state.comparison

    @property
    def closing(self) -> pd.DataFrame:
        """The closing table: the dense model, also rounded, finalists and static baselines, a row each.

        Columns are those of `ClosingRow`, with the share of the dense latency in place of `latency`. Without rows
        when finals were left out.
        """
        return closing_frame(closing_of(self.state), self.state.unit)

    @property
    def verdict(self) -> str | None:
        """What the finals come to on test data, in words; None when they were left out."""
        return verdict_of(self.state)

    @property
    def least_accuracy(self) -> float | None:
        """The validation accuracy asked for, if one was."""
        return self.state.least_accuracy

    @property
    def dense_accuracy(self) -> float:
        """Of the dense model on validation data."""
        assert self.state.dense_accuracy is not None, "a study that ran knows its dense model"
        return self.state.dense_accuracy

    @property
    def metric(self) -> Metric:
        """What accuracies, which are shares, are shown in: `.metric.value(share)` is the value in its unit."""
        return self.state.unit

    @property
    def dense_value(self) -> float:
        """Of the dense model on validation data, in the metric's unit."""
        return self.metric.value(self.dense_accuracy)

    @property
    def chance(self) -> float | None:
        """Accuracy up to which networks are dead, and on no front; None if unknown."""
        return self.state.chance

    def plot(self) -> Figure:
        """The picture of the front: accuracy against stored size of every complete trial, dense model and baselines.

        Returns:
            A figure of matplotlib's that pyplot does not know: a notebook shows it, and `.savefig("front.png")` writes
            it.
        """
        return picture_of(self.state)

    def export(
        self,
        trial: str | int,
        out: str | Path,
        *,
        onnx: bool = False,
        torch_prune: bool = False,
        onnx_int8: bool = False,
        watcher: ProgressReporter | None = None,
    ) -> Mapping[str, Any]:
        """Write a trial's sparsity dict, sparse file and runnable model, as `prunefront export` does.

        Args:
            trial: `best`, `knee`, `smallest`, a trial's number, or a static baseline of the closing table:
                `baseline:lamp@14` or its own words, `lamp for trial 14`.
            out: the folder that is written, new or of an export.
            onnx: also a checked `model.onnx`; needs the extra `onnx`.
            torch_prune: also the masks as `torch.nn.utils.prune` has them.
            onnx_int8: also `model.int8.onnx`, weights and activations of 8 bits; needs the extra `onnx`.
            watcher: shows the fine-tune that is repeated where a trial kept no weights; as of `run_search`.

        Returns:
            The export's manifest, shown in a few lines.

        Raises:
            UsageError: no such trial, or a folder that cannot be used; before anything is computed.
            GoalMissed: nothing to export, or an export that stands but for an ONNX file.
            EnvironmentProblem, Refused: as of the command.
        """
        from search.export.of_study import export_study  # PyTorch takes seconds, and tables do without
        from search.export.summary import ShownManifest, summary

        seen = replace(open_study(self.folder.parent, self.study), config=self.state.config)
        watcher = watcher or usual_reporter()
        done = export_study(
            seen, str(trial), Path(out), watcher, onnx=onnx, torch_prune=torch_prune, onnx_int8=onnx_int8
        )
        manifest = done.written.manifest
        return ShownManifest(manifest, summary(Path(out), manifest, done.made, done.chosen.name, done.chosen.runs))

    def __repr__(self) -> str:
        return glance_text(self.study, self.state)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return glance_html(self.study, self.state)
