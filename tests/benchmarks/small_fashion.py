"""Fashion-MNIST cut down for benchmarks of the search: 10,000 fit images, trials of two epochs."""

from __future__ import annotations

from dataclasses import replace

import torch

from search.workloads import Workload, get_workload

FIT, VALIDATION, DENSE_EPOCHS, TRIAL_EPOCHS, FINAL_EPOCHS = 10_000, 5_000, 12, 2, 6


def small_fashion(seed: int = 0) -> Workload:
    """Fit 10,000, calibration 2,000, validation 5,000 and test 10,000 images; `seed` draws the first three.

    The recipe is that of `fashion-mnist` but for its epochs.
    """
    whole = get_workload("fashion-mnist")
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([whole.fit[0], whole.calibration[0], whole.validation[0]])
    labels = torch.cat([whole.fit[1], whole.calibration[1], whole.validation[1]])
    order = torch.randperm(len(images), generator=generator)[: FIT + VALIDATION + 2_000]
    fit, validation, calibration = ((images[i], labels[i]) for i in order.split([FIT, VALIDATION, 2_000]))
    recipe = replace(whole.recipe, dense_epochs=DENSE_EPOCHS, trial_epochs=TRIAL_EPOCHS, final_epochs=FINAL_EPOCHS)
    return replace(
        whole,
        name=f"small-fashion-{seed}",
        fit=fit,
        calibration=calibration,
        validation=validation,
        recipe=recipe,
    )
