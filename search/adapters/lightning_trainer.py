"""Lightning's `Trainer` as a workload's own training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from search.errors import EnvironmentProblem, OwnCodeProblem
from search.workloads.base import Train
from search.workloads.run import Run

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "limit_val_batches": 0,
}  # fmt: skip


def from_lightning(
    module: Callable[[nn.Module, Run], Any], data: Callable[[Run], Any] | None = None, **options: Any
) -> Train:
    """A `train=` that fits a `LightningModule`.

    Its length, device and precision are the run's; the loss of each step is reported. Nothing is validated, logged or
    saved unless `options` say so.

    Args:
        module: (network, run) -> the `LightningModule` that holds the network, which is the workload's own one, or is
            the network itself; the rate that its optimizer takes is `run.learning_rate`.
        data: (run) -> a `LightningDataModule` or loaders; left out, batches of the workload's fit split.
        options: of `lightning.Trainer`, instead of the run's.
    """
    return partial(_train, module=module, data=data, options=options)


def _train(
    network: nn.Module,
    run: Run,
    *,
    module: Callable[[nn.Module, Run], Any],
    data: Callable[[Run], Any] | None,
    options: dict[str, Any],
) -> None:
    try:
        import lightning
    except ImportError as error:
        raise EnvironmentProblem(
            f"from_lightning() needs Lightning ({error}): pip install 'prunefront[lightning]'"
        ) from None

    class Follower(lightning.Callback):  # type: ignore[misc, unused-ignore]
        """Tells the run how long the training is, and its losses."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if math.isfinite(steps := trainer.estimated_stepping_batches):  # batches are read ahead, so steps count
                run.begin(int(steps))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            if outputs is not None:
                run.report(outputs["loss"] if isinstance(outputs, dict) else outputs)

    on_cpu, length = run.device.type == "cpu", _length(run, options)
    place = {"accelerator": {"cuda": "gpu"}.get(run.device.type, run.device.type)}
    devices = {"devices": 1 if on_cpu or run.device.index is None else [run.device.index]}
    own = {**QUIET, **length, **place, **devices, "precision": PRECISIONS[run.precision], **options}
    own["callbacks"] = [Follower(), *own.get("callbacks", ())]
    task = module(network, run)
    held = {id(parameter) for parameter in task.parameters()}
    if not all(id(parameter) in held for parameter in network.parameters()):
        raise OwnCodeProblem(
            f"from_lightning(): the {type(task).__name__} that module() returned does not hold the given network: "
            "return that network itself where it is a LightningModule, or one made around it"
        )
    with _without_remarks():
        lightning.Trainer(**own).fit(task, run.loader("fit") if data is None else data(run))
    task.trainer = None  # which a copy of the network would take along


def _length(run: Run, options: dict[str, Any]) -> dict[str, int]:
    """How long the trainer trains, as far as its options do not say; the run is asked for nothing that they replace."""
    if "max_steps" in options:
        return {"max_epochs": -1}
    if (steps := run.steps) is not None:
        return {"max_steps": steps, "max_epochs": -1}
    return {} if "max_epochs" in options else {"max_epochs": max(1, round(run.epochs))}


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Lightning tells the hardware and its advice at every training, of which a study has many."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)
