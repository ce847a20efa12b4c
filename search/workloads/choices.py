"""Another network in a workload's place, and weights that its training begins with."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from search.errors import EnvironmentProblem, UsageError
from search.networks.names import build_network, find_network
from search.user_code.loading import call_user
from search.weights.hub import HUB, hub_weights
from search.weights.loading import begin_with_
from search.workloads.base import Workload

CACHE = "cache"
"""Given in place of a weights file: the published weights, where downloads of them are kept."""
PUBLISHED = {"cifar10": "vgg.cifar.pretrained.pth"}
"""Built-in workload -> the file of its own network's published weights in the folder of PyTorch's hub."""
AS_BUILT = "as built"
"""Given in place of a weights file: the network that `build_model` returns is already trained."""
ALONE = 4
"""How many images stand for the data of a network without a task."""
log = logging.getLogger(__name__)


def with_network(workload: Workload, spec: str) -> Workload:
    """The workload with a library's network, for as many classes as its own network has and for its images.

    Raises:
        UsageError: its own network or its inputs are not those of a classifier of images.
    """
    example, name = workload.example_input, workload.name
    if not isinstance(example, Tensor) or example.ndim != 4:
        raise UsageError(
            f"workload {name!r}: --network takes images (n, channels, rows, columns), got {_kind(example)}"
        )
    model = call_user(f"workload {name!r}: build_model", workload.build_model).eval()
    with torch.no_grad():
        outputs = call_user(f"workload {name!r}: its own network", model, example)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        got = _kind(outputs)
        raise UsageError(f"workload {name!r}: --network takes the place of a classifier (n, classes), got {got}")
    shape = (example.shape[1], example.shape[2], example.shape[3])
    return replace(
        workload,
        name=f"{name}-{spec.partition(':')[2]}",
        build_model=functools.partial(build_network, spec, outputs.shape[1], shape),
        weights=None,
    )


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def network_alone(spec: str, pretrained: str | None, cache: Path, trusted: bool) -> Workload:
    """A library's network as it was published, with noise in place of data: to be looked at, never trained.

    Args:
        pretrained, cache, trusted: the weights that it has, if any, as `pretrained_file` takes them.

    Raises:
        UsageError, EnvironmentProblem: from `find_network`, or from finding weights.
    """
    library, name = find_network(spec)
    classes, shape = library.own_task(name)
    split = (torch.randn(ALONE, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(ALONE) % classes)
    build = functools.partial(build_network, spec, classes, shape)
    if pretrained is not None:
        build = functools.partial(_begun, build, pretrained_file(pretrained, spec, spec, cache, trusted))
    return Workload(
        name=name,
        build_model=build,
        fit=split,
        calibration=split,
        validation=split,
        test=split,
        weights=AS_BUILT,
    )


def pretrained_file(source: str, workload: str, network: str | None, cache: Path, trusted: bool) -> Path:
    """The file of weights that training begins with.

    Args:
        source: a file, `cache`, or what `hub_weights` takes.
        workload: the name it was asked for by.
        cache: where weights from a hub stay.
        trusted: whether a hub's code may run.

    Raises:
        UsageError: `cache` of a network that nobody publishes weights of.
        EnvironmentProblem: they are not there.
        Refused: a hub's code would have to run.
    """
    if source.startswith(HUB):
        return hub_weights(source, cache, trusted)
    if source != CACHE:
        return Path(source)
    if network is not None:
        library, name = find_network(network)
        return library.kept_weights(name)
    if workload not in PUBLISHED:
        raise UsageError(
            f"--pretrained {CACHE} needs weights that are published: give a --network, or workload "
            f"{' or '.join(PUBLISHED)}, or name a file of weights of {workload!r}"
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[workload]
    if not path.is_file():
        raise EnvironmentProblem(f"no weights {str(path)!r}: put them there, or name their file with --pretrained")
    return path


def with_pretrained(workload: Workload, path: Path) -> Workload:
    """The workload with weights of a file in its network, as far as they fit.

    Raises:
        UsageError: it has weights of its own, or hardly any of the file's fit.
        EnvironmentProblem, Refused: from reading the file.
    """
    if workload.weights is not None:
        raise UsageError(
            f"workload {workload.name!r}: it names weights of its own, {str(workload.weights)!r}, beside which "
            "--pretrained has no effect: leave it out"
        )
    model = call_user(f"workload {workload.name!r}: build_model", workload.build_model)
    if fresh := begin_with_(model, path):
        log.warning(
            "workload %r: weights %s have nothing for %s: the dense model is trained from them, with that drawn anew",
            workload.name, path.name, ", ".join(fresh[:4]) + (", ..." if len(fresh) > 4 else ""),
        )  # fmt: skip
    return replace(workload, build_model=functools.partial(_begun, workload.build_model, path))


def _begun(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    model = build()
    begin_with_(model, path)
    return model
