"""The executor that a study's options ask for."""

from __future__ import annotations

import os

import torch

from search.config import SearchConfig
from search.executors.blueprint import blueprint
from search.executors.jobs import Executor
from search.executors.local import LocalExecutor
from search.executors.process import ProcessExecutor
from search.placement import cards
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.training.dense_model import DenseModel
from search.training.evaluate import PreparedModel


def make_executor(
    config: SearchConfig,
    folder: StudyFolder,
    prepared: PreparedModel,
    dense: DenseModel,
    watcher: ProgressReporter,
) -> Executor:
    """This process, or as many workers as the config asks for.

    Raises:
        UsageError: workers cannot know the criterion.
        PrunefrontError: a worker cannot begin.
    """
    journal = folder.journal.folder
    if config.workers == 1:
        return LocalExecutor(prepared, journal, watcher)
    plan = blueprint(config, prepared, dense, folder.dense_weights)
    begin = {"blueprint": plan.to_plain(), "folder": str(journal.absolute())}
    devices = cards(config.device, prepared.workload.placement)
    if devices and config.workers > len(devices):
        watcher.note(f"{config.workers} workers share {len(devices)} cards: fewer --workers leave each its own")
    return ProcessExecutor(begin, config.workers, torch.get_num_threads(), devices, config.stall, watcher)


def threads_of(config: SearchConfig) -> int | None:
    """PyTorch's threads where the options do not say: with several workers, the machine's cores are shared out."""
    if config.threads is not None or config.workers == 1:
        return config.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // config.workers, 1)
