"""The executor that a study's options ask for."""

from __future__ import annotations

import os

import joblib
import torch

from search.config import SearchConfig
from search.executors.blueprint import blueprint, require_found, require_known
from search.executors.jobs import Executor
from search.executors.later import LaterExecutor
from search.executors.local import LocalExecutor
from search.executors.process import ProcessExecutor
from search.executors.ray_cluster import RayExecutor, require_cluster
from search.placement import cards
from search.progress import ProgressReporter
from search.store.folder import StudyFolder
from search.training.dense_model import DenseModel
from search.training.evaluate import PreparedModel
from spaces.wording import counted

LOCAL = "local"


def require_workers(config: SearchConfig) -> None:
    """Refuse, before anything is trained, what workers cannot begin with.

    Raises:
        UsageError: they cannot know the workload or the criterion, or there is no address of a cluster.
        EnvironmentProblem: Ray is not installed, or nobody listens at the address.
    """
    if config.has_workers:
        require_found(config.workload)
        require_known(config.criterion)
    if config.executor != LOCAL:
        require_cluster(config.ray_address)


def make_executor(
    config: SearchConfig,
    folder: StudyFolder,
    prepared: PreparedModel,
    dense: DenseModel,
    watcher: ProgressReporter,
) -> Executor:
    """This process, or as many workers as the config asks for, which begin with the first job.

    That raises `EnvironmentProblem` where the cluster cannot be reached, and `UsageError` where workers cannot know the
    criterion.
    """
    if not config.has_workers:
        return LocalExecutor(prepared, folder.journal.folder, watcher)
    return LaterExecutor(lambda: _workers(config, folder, prepared, dense, watcher))


def _workers(
    config: SearchConfig,
    folder: StudyFolder,
    prepared: PreparedModel,
    dense: DenseModel,
    watcher: ProgressReporter,
) -> Executor:
    require_found(config.workload)
    require_known(config.criterion)
    plan = blueprint(config, prepared, dense, folder.dense_weights).to_plain()
    if config.executor != LOCAL:
        return RayExecutor(
            plan, folder.dense_weights.read_bytes(), config.workers, torch.get_num_threads(),
            config.device in ("auto", "cuda"), config.stall, config.ray_address, watcher,
        )  # fmt: skip
    begin = {"blueprint": plan, "folder": str(folder.journal.folder.absolute())}
    devices = cards(config.device, prepared.workload.placement)
    if devices and config.workers > len(devices):
        watcher.note(
            f"{config.workers} workers share {counted(len(devices), 'card')}: fewer --workers leave each its own"
        )
    return ProcessExecutor(begin, config.workers, torch.get_num_threads(), devices, config.stall, watcher)


def threads_of(config: SearchConfig) -> int | None:
    """PyTorch's threads where the options do not say: several workers on this machine share out the cores that this
    process may use, and each has at most `OMP_NUM_THREADS`; those of a cluster have one each.
    """
    if config.threads is not None or not config.has_workers:
        return config.threads
    if config.executor != LOCAL:
        return 1
    most, *_ = os.environ.get("OMP_NUM_THREADS", "").split(",")  # of a list, the first is that of the outer loop
    share = max(joblib.cpu_count() // config.workers, 1)  # of the cores that affinity and cgroup leave
    return min(share, max(int(most), 1)) if most.strip().isdecimal() else share
