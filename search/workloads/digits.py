"""`digits`: scikit-learn's 1,797 real 8 x 8 images of handwritten digits; nothing to download."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from search.workloads.base import Workload
from search.workloads.recipe import Recipe
from search.workloads.splits import Split
from search.workloads.vgg import VGG9

SPLIT_SEED = 0
RECIPE = Recipe(batch=50, dense_epochs=20, dense_learning_rate=0.2, trial_epochs=3, final_epochs=5, learning_rate=0.2)
"""Found with the uniform policy at encoded sizes of 25, 10 and 5 % (fine-grained) and 25 and 10 % (channel), 2 seeds
each, by the sum of validation losses. Tried for a fine-tune were peak learning rates of 0.05, 0.1 and 0.2, for 4 and
for 8 epochs (0.2 was best at both); for the dense training 0.1 and 0.2, batches of 50 and 100, and 20 and 40 epochs
(means of 3 seeds all between 98.2 and 98.7 %). The epochs are what a study of 24 trials can spend in a minute and a
half.
"""


def digits(width: float = 1 / 8) -> Workload:
    """1,000 fit, 137 calibration, 300 validation and 360 test images, stratified, always the same.

    Args:
        width: width factor of the VGG9 (its last pooling is dropped, since 8 x 8 can be halved only three times).
    """
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    images = (images - 0.3053) / 0.3761  # mean and deviation of all pixels
    labels = torch.tensor(targets)
    rest = list(range(len(labels)))
    splits: dict[str, Split] = {}
    for name, size in (("test", 360), ("validation", 300), ("calibration", 137)):
        rest, taken = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=SPLIT_SEED)
        splits[name] = (images[taken], labels[taken])
    return Workload(
        name="digits",
        build_model=functools.partial(VGG9, width=width, inputs=1, pools=3),
        fit=(images[rest], labels[rest]),
        calibration=splits["calibration"],
        validation=splits["validation"],
        test=splits["test"],
        recipe=RECIPE,
    )
