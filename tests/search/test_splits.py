"""Splits as users have them: data sets that draw at random, loaders, streams, splits that share examples."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from numpy.random import bit_generator
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from search import Workload
from search.training.fingerprint import data_fingerprint
from search.workloads import get_workload
from search.workloads.overlap import overlaps
from search.workloads.splits import only_few

INPUTS, TARGETS = torch.randn(70, 3, generator=torch.Generator().manual_seed(0)), torch.arange(70) % 4
SPLITS = ("fit", "calibration", "validation", "test")


def task(**splits) -> Workload:
    parts = dict.fromkeys(SPLITS, (INPUTS, TARGETS)) | splits
    return Workload(name="task", build_model=lambda: nn.Linear(3, 4), **parts)


class Drawn(Dataset):
    """Inputs moved by what `draw` gives."""

    def __init__(self, draw, n=70):
        self.draw, self.n = draw, n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        return INPUTS[place] + self.draw(), int(TARGETS[place])


class NoLength(Dataset):
    """Read by its places, which it does not count."""

    def __getitem__(self, place):
        return INPUTS[place], int(TARGETS[place])


class Own:
    """A generator of its own, which goes on from one item to the next."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self):
        return torch.rand(3, generator=self.generator)


DRAWS = {
    "torch": lambda: lambda: torch.rand(3),
    "numpy": lambda: lambda: torch.tensor(np.random.rand(3)).float(),
    "python": lambda: random.random,
    "now and then": lambda: lambda: float(torch.rand(1) < 0.1),
    "a new generator without a seed": lambda: lambda: torch.tensor(np.random.default_rng().random(3)).float(),
    "its own": Own,
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_data_set_that_draws_is_read_alike_each_time_and_said_so(draw, caplog):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = task(fit=Drawn(DRAWS[draw]()))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]
    (said,) = caplog.messages
    assert "examples of fit change each time" in said and "augment=" in said
    torch.rand(5), np.random.rand(5), random.random()
    second = task(fit=Drawn(DRAWS[draw]()))
    assert data_fingerprint(first) == data_fingerprint(second)
    moves = first.fit[0] - INPUTS
    assert len({tuple(row) for row in moves.tolist()}) > 1 and torch.equal(first.fit[1], TARGETS)


FACTORY = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset, random_split
from search import Workload

ORDER = torch.randperm(70)
INPUTS = torch.arange(210.0).reshape(70, 3)

def task():
    both = random_split(TensorDataset(INPUTS[ORDER], torch.arange(70) % 4), [40, 30])
    drawn = INPUTS + torch.randn(70, 3) + torch.tensor(np.random.default_rng().random((70, 3))).float()
    return Workload(name="task", build_model=lambda: nn.Linear(3, 4), fit=both[0], calibration=both[1],
                    validation=both[1], test=(drawn, torch.arange(70) % 4))
"""


def test_splits_that_a_workload_draws_are_the_same_each_time(tmp_path):
    (tmp_path / "drawing.py").write_text(FACTORY)
    states = torch.get_rng_state(), bit_generator.randbits
    first = get_workload(f"{tmp_path / 'drawing.py'}:task")
    assert torch.equal(torch.get_rng_state(), states[0]) and bit_generator.randbits is states[1]
    torch.rand(5), np.random.rand(5)
    assert data_fingerprint(first) == data_fingerprint(get_workload(f"{tmp_path / 'drawing.py'}:task"))
    assert first.fit[0].tolist() != sorted(first.fit[0].tolist())  # they are drawn


def test_a_data_set_in_random_order_is_said(caplog):
    class Shuffled(Dataset):
        def __len__(self):
            return 70

        def __getitem__(self, place):
            return INPUTS[(other := random.randrange(70))], int(TARGETS[other])

    one, other = (task(fit=Shuffled(), test=Shuffled()) for _ in range(2))
    assert data_fingerprint(one) == data_fingerprint(other) and "examples of fit, test change" in caplog.messages[0]


def test_a_data_set_that_draws_in_its_second_half_is_said_so(caplog):
    task(test=Items(lambda i: (INPUTS[i] + (random.random() if i > 30 else 0), 0), 70))
    assert "examples of test change" in caplog.messages[0]


def test_a_data_set_that_draws_nothing_is_not_spoken_of(caplog):
    made = task(fit=Drawn(lambda: 0.0), test=Subset(TensorDataset(INPUTS, TARGETS), range(5, 70)))
    assert torch.equal(made.fit[0], INPUTS) and torch.equal(made.test[0], INPUTS[5:]) and not caplog.messages


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"batch_size": 16}, range(70)),
        ({"batch_size": 16, "shuffle": True, "drop_last": True}, range(70)),
        ({"batch_size": 4, "sampler": SubsetRandomSampler([9, 3, 30])}, [3, 9, 30]),
    ],
)
def test_a_loader_is_read_in_order(options, places):
    made = task(fit=DataLoader(TensorDataset(INPUTS, TARGETS), **options))
    assert torch.equal(made.fit[0], INPUTS[list(places)]) and torch.equal(made.fit[1], TARGETS[list(places)])


class Stream(IterableDataset):
    def __iter__(self):
        yield INPUTS[0], 0


class Items(Dataset):
    def __init__(self, of, n=5):
        self.of, self.n = of, n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        return self.of(place)


REFUSED = {
    "stream": (Stream(), "is a stream (Stream): give a map-style dataset"),
    "loader of a stream": (DataLoader(Stream()), "a DataLoader over a stream"),
    "loader with weights": (
        DataLoader(TensorDataset(INPUTS, TARGETS), sampler=WeightedRandomSampler([1.0] * 70, 70)),
        "a sampler of its own (WeightedRandomSampler)",
    ),
    "loader of no length": (DataLoader(NoLength()), "over a NoLength that has no length: give it a __len__"),
    "mappings": (Items(lambda i: {"pixel_values": INPUTS[i], "labels": 0}), "yields mappings of 'pixel_values', 'la"),
    "two inputs": (Items(lambda i: (INPUTS[i], INPUTS[i], 0)), "yields items of 3 parts: an item must be"),
    "a pair of inputs": (Items(lambda i: ((INPUTS[i], INPUTS[i]), 0)), "must yield pairs (inputs, target) of tensors"),
    "a mapping": ({"x": INPUTS, "y": TARGETS}, "must be a pair of tensors or a map-style dataset, got dict"),
    "arrays": ((INPUTS.numpy(), TARGETS.numpy()), "(inputs, targets), got (ndarray, ndarray)"),
    "sizes": (Items(lambda i: (torch.ones(3 + i), 0)), "cannot be put together to tensors: stack expects each tensor"),
    "a later size": (
        Items(lambda i: (torch.ones(3 if i < 64 else 1), 0), 70),
        "different shapes or types, (3,) of torch.float32 and (1,",
    ),
    "a later type": (
        Items(lambda i: (INPUTS[0], 1 if i < 64 else 0.25), 70),
        "() of torch.int64 and () of torch.float64",
    ),
    "inputs alone": (Items(lambda i: INPUTS[i]), "must yield pairs (inputs, target) of tensors"),
    "collated to three": (
        DataLoader(TensorDataset(INPUTS, TARGETS), collate_fn=lambda items: (INPUTS, INPUTS, TARGETS)),
        "must yield pairs (inputs, target) of tensors",
    ),
    "loader without batches": (
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=None),
        "give its dataset, or a torch.utils.data.Subset",
    ),
    "objects": (Items(lambda i: (object(), 0)), "cannot be put together to tensors"),
    "more inputs": ((INPUTS, TARGETS[:60]), "as many inputs as targets, got 70 and 60"),
    "nothing": ((INPUTS[:0], TARGETS[:0]), "got 0 and 0"),
    "one number": ((torch.tensor(0.5), TARGETS), "as many inputs as targets, got a single number and 70"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["fit", "test"])
def test_what_is_no_split_is_told_in_one_line(case, name):
    split, said = REFUSED[case]
    with pytest.raises(ValueError, match=f"^split '{name}'") as raised:
        task(**{name: split})
    assert said in str(raised.value) and "\n" not in str(raised.value)


def apart(**changes) -> Workload:
    starts = {"fit": (0, 40), "calibration": (0, 20), "validation": (40, 56), "test": (56, 70)} | changes
    return task(**{name: (INPUTS[a:b], TARGETS[a:b]) for name, (a, b) in starts.items()})


def test_overlapping_splits_are_noted():
    assert overlaps(apart()) is None
    assert overlaps(apart(validation=(30, 56))) == (
        "splits overlap: 10 of 26 validation examples are also in fit: accuracies on them come out too high"
    )
    said = overlaps(apart(validation=(0, 10), test=(0, 10)))
    for pair in ("10 of 10 validation examples are also in fit", "10 of 10 test examples are also in fit",
                 "10 of 10 test examples are also in validation"):  # fmt: skip
        assert pair in said
    assert "12 of 14 test examples are also in calibration" in overlaps(apart(calibration=(40, 68)))


def test_a_few_doubles_are_not_spoken_of():
    """Up to one in a hundred."""
    many, targets = torch.randn(400, 3, generator=torch.Generator().manual_seed(2)), torch.zeros(400).long()
    calibration, validation = (many[:20], targets[:20]), (many[198:398], targets[198:398])
    for end, said in ((200, None), (201, "3 of 200 validation examples are also in fit")):
        found = overlaps(task(fit=(many[:end], targets[:end]), calibration=calibration, validation=validation))
        assert found is None if said is None else said in found


class Counted(Dataset):
    """Item n is n times one; which were read is noted."""

    def __init__(self, n):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        self.read.append(place)
        return torch.full((3,), float(place)), place * 4 // self.n


@pytest.mark.parametrize("n", [2, 64, 65, 100, 5000])
@pytest.mark.parametrize(
    "make", [lambda d: d, lambda d: DataLoader(d, batch_size=8, shuffle=True)], ids=["set", "loader"]
)
def test_a_few_items_evenly_spaced_are_read_where_no_more_are_needed(n, make):
    data = Counted(n)
    with only_few():
        some = task(fit=make(data))
    inputs, targets = some.fit
    places = inputs[:, 0].long().tolist()
    assert len(places) == min(n, 64) == len(set(places)) and places == sorted(places)
    assert len(data.read) <= 128 and torch.equal(some.example_input, torch.stack([data[0][0], data[1][0]]))
    assert max(b - a for a, b in zip(places, [*places[1:], n], strict=True)) <= n / 60 + 1
    assert targets.unique().tolist() == sorted({place * 4 // n for place in range(n)})
    assert len(task(fit=make(data)).fit[0]) == n


def test_tensors_stay_whole_where_a_few_items_are_read():
    with only_few():
        assert len(task().fit[0]) == 70


MANY = """
import torch
from torch import nn
from torch.utils.data import Dataset
from search import Workload

READ = []


class Many(Dataset):
    def __len__(self):
        return 40_000

    def __getitem__(self, place):
        READ.append(place)
        return torch.full((1, 4, 4), place / 40_000), int(place % 1000 == 7)


def share(outputs, targets):
    assert (targets == 1).any(), "undefined without a positive"
    return 0.25


def task(**more):
    net = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    few = Many()
    small = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    return Workload("many", net, fit=few, calibration=small, validation=more.get("validation", small), test=small,
                    metric=share)


def rare():
    from torch.utils.data import Subset
    return task(validation=Subset(Many(), range(3000)))
"""


def test_inspect_reads_a_few_of_many_items(main, place):
    (place / "many.py").write_text(MANY)
    (place / "counted.py").write_text(
        "from many import READ, task as made\n\n\n"
        "def task():\n    made_now = made()\n    assert len(READ) < 150\n    return made_now\n"
    )
    shown = main("inspect", "./counted.py:task")
    assert shown.code == 0 and "many: " in shown.out, shown.err


def test_what_a_few_items_refuse_is_judged_by_all(main, place):
    """No positive is among the few."""
    (place / "rare.py").write_text(MANY.replace("40_000", "3000"))
    shown = main("inspect", "./rare.py:rare")
    assert shown.code == 0, shown.err
