"""Running statistics averaged anew before every score that counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pruning.batchnorm import learning_norms, refresh_
from pruning.devices import forked_rng
from pruning.own_norms import left_as_trained
from pruning.trees import NetworkInputs
from search.training.examples import calibration_of, kept
from search.workloads.base import Workload
from search.workloads.examples import Indexed
from spaces.cost.effect import NAMED

REFRESH_EXAMPLES = 1024
"""The most fit examples that are averaged over. For VGG9 on digits and Fashion-MNIST, fine-tuned with a momentum of
0.01, validation loss changed by at most 0.01 from 256 examples on, in either direction; 1,024 took 1 to 8 % of a
trial's time.
"""
REFRESHED, AS_TRAINED = "refreshed", "as trained"


def refresh_statistics_(model: nn.Module, workload: Workload) -> str | None:
    """Average BatchNorm's running statistics over fit data, in place, and keep them if calibration loss does not get
    worse.

    Fit data is used without augmentation, in batches of the recipe's size, because training normalised by such batches.
    The same examples are used every time, and no random state changes.

    Returns:
        Which statistics the model has now, `refreshed` or `as trained`; None if it has none that training moves. They
        are as trained where the workload leaves fit or calibration data to the user's own code.
    """
    calibration = calibration_of(workload)
    if calibration is None or not workload.has("fit"):
        return AS_TRAINED if learning_norms(model) else None
    with forked_rng(workload.placement.device):
        refreshed = refresh_(model, fit_batches(workload), lambda: calibration.mean_loss(model))
    return {True: REFRESHED, False: AS_TRAINED, None: None}[refreshed]


def statistics_note(model: nn.Module, example_input: NetworkInputs) -> str | None:
    """What the user should know about statistics that are never averaged anew; None if there are none."""
    names = left_as_trained(model, example_input)
    if not names:
        return None
    some = ", ".join(f"{name or 'the network'} ({type(model.get_submodule(name)).__name__})" for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"running statistics of {some}{more} are taken as training leaves them: buffers running_mean and running_var "
        "that a number momentum moves as BatchNorm's does would be averaged anew before every score"
    )


def unread_note(workload: Workload, model: nn.Module) -> str | None:
    """What the user should know about statistics that cannot be averaged anew for lack of data; None if nothing."""
    missing = [f"{split}=" for split in ("fit", "calibration") if not workload.has(split)]
    if not missing or not learning_norms(model):
        return None
    return (
        f"BatchNorm's statistics stay as train leaves them: they would be averaged anew before every score, and the "
        f"scan would do so too, if the workload had {' and '.join(missing)} as well"
    )


def fit_batches(workload: Workload) -> Iterator[NetworkInputs]:
    """Fit inputs of at most `REFRESH_EXAMPLES` examples: one drawn from each of that many equal stretches, then
    shuffled.

    Every class is therefore included whether examples are sorted by class or alternate, and no batch holds one class
    only. A batch has at least two examples if there are that many, since BatchNorm may have no variance of a single
    one. Of a stream they are the first ones, and its own order is kept.
    """
    fit = kept(workload, workload.examples("fit"))
    if not isinstance(fit, Indexed):
        parts = max(1, REFRESH_EXAMPLES // max(2, workload.recipe.batch))
        for part in fit.some(REFRESH_EXAMPLES)[0].tensor_split(parts):
            yield workload.placement.put(part)
        return
    generator = torch.Generator().manual_seed(0)
    count = min(fit.count, REFRESH_EXAMPLES)
    within = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = ((torch.arange(count) + within) * fit.count / count).long().clamp_max(fit.count - 1)
    order = drawn[torch.randperm(count, generator=generator)]
    for batch in fit.read_all(list(order.tensor_split(max(1, count // max(2, workload.recipe.batch))))):
        yield workload.placement.put(batch[0])
