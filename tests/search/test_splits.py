"""Splits as users have them: data sets that draw at random, loaders, streams, splits that share examples."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import bit_generator
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from search import Recipe, Workload
from search.training.examples import batches
from search.training.fingerprint import data_fingerprint, split_fingerprint
from search.workloads import get_workload
from search.workloads.overlap import overlaps
from search.workloads.steadiness import unsteady

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


def is_even(split, name="fit"):
    """Whether examples change is found without a trace in the global generators."""
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = task(**{name: split}).examples(name)
    changes = found.changes
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]
    return not changes


def epochs(split, seed, steps=14):
    """Inputs of the batches of two epochs and a half."""
    workload = task(fit=split)
    return [inputs for inputs, _ in batches(replace(workload, recipe=Recipe(batch=10)), steps, seed)]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_data_set_that_draws_gives_new_draws_every_epoch_and_the_same_again_under_the_same_seed(draw):
    """One with a generator of its own goes on from wherever that is; all others draw from generators with a seed."""
    assert not is_even(Drawn(DRAWS[draw]()))
    torch.manual_seed(9)
    before = torch.rand(3)
    torch.manual_seed(9)
    first, again, other = (epochs(Drawn(DRAWS[draw]()), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), before)  # dropout's draws are apart from the data's
    order = torch.Generator().manual_seed(5)
    orders = [torch.randperm(70, generator=order) for _ in range(2)]
    moves = [
        torch.cat([x - INPUTS[o] for x, o in zip(first[7 * n : 7 * n + 7], orders[n].split(10), strict=True)])
        for n in range(2)
    ]
    for n in range(2):  # by place
        moves[n] = moves[n][orders[n].argsort()]
    assert not torch.allclose(moves[0], moves[1]) and len(first) == 14
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_data_set_that_draws_is_the_same_data_in_every_command(draw, caplog):
    first, second = (task(fit=Drawn(DRAWS[draw]()), test=Drawn(DRAWS[draw]())) for _ in range(2))
    torch.rand(5), np.random.rand(5), random.random()
    assert split_fingerprint(first, "fit") == split_fingerprint(second, "fit")
    one, other = (first.examples("test") for _ in range(2))
    if draw != "its own":
        batches = [[x for x, _ in of.in_order(16)] for of in (one, other)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True)) and len(batches[0]) == 5
        moved = task(fit=Drawn(lambda: DRAWS[draw]()() + 1))
        assert split_fingerprint(moved, "fit") != split_fingerprint(first, "fit")
    said = unsteady(first)
    assert ("examples of test change each time" in said) == (draw != "its own")
    assert ("fit, test draw from generators of their own" in said) == (draw == "its own")


FACTORY = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset, random_split
from search import Recipe, Workload

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
    inputs = first.examples("fit").whole[0]
    assert inputs.tolist() != sorted(inputs.tolist())  # they are drawn


def test_a_data_set_that_draws_in_its_second_half_or_its_order_is_found_to():
    assert not is_even(Items(lambda i: (INPUTS[i] + (random.random() if i > 30 else 0), 0), 70), "test")
    assert not is_even(Items(lambda i: (INPUTS[random.randrange(70)], 0), 70))


def test_a_data_set_that_draws_nothing_is_read_once():
    data = Counted(70)
    made = task(fit=data, test=Subset(TensorDataset(INPUTS, TARGETS), range(5, 70)))
    assert data.read == [0, 1] and unsteady(made) is None  # for the example input
    whole = made.examples("fit").whole
    assert torch.equal(whole[0][:, 0], torch.arange(70.0)) and torch.equal(made.examples("test").whole[0], INPUTS[5:])
    count = len(data.read)
    for _ in batches(replace(made, recipe=Recipe(batch=10)), 20, 0):
        pass
    assert [*made.examples("fit").in_order(9)] and split_fingerprint(made, "fit") and len(data.read) == count < 70 * 3


def test_a_large_data_set_is_read_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("search.workloads.datasets.MOST_BYTES", 70 * 3 * 4)  # of the inputs alone
    data = Counted(70)
    made = replace(task(fit=data, test=Counted(70)), recipe=Recipe(batch=16))
    wanted = replace(task(fit=made.examples("fit").some(70)), recipe=Recipe(batch=16))
    pairs = zip(batches(made, 9, 3), batches(wanted, 9, 3), strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    data.read.clear()
    inputs, targets = made.examples("fit").some(7)
    assert data.read == inputs[:, 0].tolist() == list(range(0, 70, 10)) and len(targets) == 7
    assert [len(x) for x, _ in made.examples("test").in_order(32)] == [32, 32, 6]
    assert split_fingerprint(made, "fit") != split_fingerprint(wanted, "fit")  # of 64 of 70
    assert split_fingerprint(made, "fit") == split_fingerprint(made, "test")
    assert split_fingerprint(made, "fit") != split_fingerprint(replace(made, data_version="2"), "fit")


@pytest.mark.slow
def test_workers_of_a_loader_read_the_same_batches():
    data = Drawn(DRAWS["numpy"]())
    alone = epochs(DataLoader(data, batch_size=3), 4)
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(alone, epochs(DataLoader(data, num_workers=2), 4), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"batch_size": 16}, range(70)),
        ({"batch_size": 16, "shuffle": True, "drop_last": True}, range(70)),
        ({"batch_size": 4, "sampler": SubsetRandomSampler([9, 3, 30])}, [3, 9, 30]),
    ],
)
def test_a_loader_is_read_in_order(options, places):
    inputs, targets = task(fit=DataLoader(TensorDataset(INPUTS, TARGETS), **options)).examples("fit").whole
    assert torch.equal(inputs, INPUTS[list(places)]) and torch.equal(targets, TARGETS[list(places)])


class Last(RandomSampler):
    """One of the user's own: the last ten examples."""

    def __iter__(self):
        return iter(range(60, 70))

    def __len__(self):
        return 10


class Scaled(DataLoader):
    """Changes what it hands on."""

    def __iter__(self):
        return ((2 * inputs, targets) for inputs, targets in super().__iter__())


PAIRS = TensorDataset(INPUTS, TARGETS)
TAKEN = {
    "a sampler derived from PyTorch's": (lambda: DataLoader(PAIRS, 5, sampler=Last(PAIRS)), range(60, 70), 1),
    "a sampler of fewer": (lambda: DataLoader(PAIRS, 5, sampler=SequentialSampler(range(10))), range(10), 1),
    "a loader derived from PyTorch's": (lambda: Scaled(PAIRS, 5), range(70), 2),
}


@pytest.mark.parametrize("case", TAKEN)
def test_batches_of_an_unusual_loader_are_taken_as_they_come(case):
    make, places, factor = TAKEN[case]
    inputs, targets = (torch.cat(part) for part in zip(*task(fit=make()).examples("fit").in_order(16), strict=True))
    assert torch.equal(inputs, factor * INPUTS[list(places)]) and torch.equal(targets, TARGETS[list(places)])


def test_a_loader_that_draws_fewer_or_again_decides_its_epochs():
    for options, steps in (({"num_samples": 20}, 4), ({"replacement": True}, 14)):
        loader = DataLoader(PAIRS, 5, sampler=RandomSampler(PAIRS, **options))
        assert task(fit=loader).examples("fit").epoch_steps(16) == steps


def test_a_loader_may_collate_to_arrays():
    def collate(items):
        return torch.stack([inputs for inputs, _ in items]).numpy(), np.array([int(target) for _, target in items])

    inputs, targets = task(fit=DataLoader(PAIRS, 5, collate_fn=collate)).examples("fit").whole
    assert torch.equal(inputs, INPUTS) and torch.equal(targets, TARGETS)


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
    "a stream of unknown length": (Stream(), "has no length: give the workload steps_per_epoch="),
    "a loader of one": (DataLoader(Stream()), "has no length: give the workload steps_per_epoch="),
    "a function": (lambda: [(INPUTS, TARGETS)], "has no length: give the workload steps_per_epoch="),
    "an iterator": (iter([(INPUTS, TARGETS)]), "is a list_iterator, which can be gone through only once"),
    "loader of no length": (DataLoader(NoLength()), "over a NoLength that has no length: give it a __len__"),
    "mappings": (
        Items(lambda i: {"pixels": INPUTS[i], "kind": 0}),
        "yields mappings of 'pixels', 'kind', with no targets among them: name the targets, such as targets='kind'",
    ),
    "mappings with names": (
        Items(lambda i: {"weight": 0.5, "digit": 3, "box": torch.tensor([1, 2]), "pixels": INPUTS[i], "file": "a.png"}),
        "no targets among them: name the targets, such as targets='digit', in the workload",
    ),
    "labels in words": (
        Items(lambda i: {"weight": 0.5, "pixels": INPUTS[i], "digit": 3, "label": "three"}),
        "hold no tensor of examples: a dict of weight (2,), pixels (2, 3), digit (2,), label list; name one that does, "
        "'digit' or 'weight', by targets= in the workload",
    ),
    "inputs and names": (
        Items(lambda i: {"pixels": INPUTS[i], "file": "a.png"}),
        "yields mappings of 'pixels', 'file', with no targets among them: add 'labels'",
    ),
    "an empty mapping": ({}, "yields mappings of nothing, with no targets among them"),
    "arrays": ((INPUTS.numpy(), TARGETS.numpy()), "got (ndarray, ndarray): make tensors by torch.as_tensor"),
    "numbers in a list": ((INPUTS, TARGETS.tolist()), "got (Tensor, list): make tensors by torch.as_tensor"),
    "tensors of one number": ((INPUTS, [*TARGETS]), "list: make one tensor of these single numbers, by torch.stack"),
    "a mapping with a list": ({"x": INPUTS, "y": TARGETS.tolist()}, "y list: make a tensor of it, by torch.as_tensor"),
    "words of several": (
        Items(lambda i: (INPUTS[i], ["cat", "dog"])),
        "yields targets that hold no tensor of examples: a list of (2, 3), list: number these words, and make a tensor",
    ),
    "a list of boxes": (
        DataLoader(
            Items(lambda i: (INPUTS[i], torch.ones(1 + i % 3, 4))),
            collate_fn=lambda items: (torch.stack([x for x, _ in items]), [boxes for _, boxes in items]),
        ),
        "first dimension; of targets in a list, one for each example, make one tensor (padded where they differ in "
        "size), or leave the split to train= and evaluate= of your own",
    ),
    "sizes": (
        Items(lambda i: (torch.ones(3 + i), 0)),
        "give a DataLoader with a collate_fn that can: stack expects each tensor",
    ),
    "inputs alone": (Items(lambda i: INPUTS[i]), "must yield pairs (inputs, targets) of tensors"),
    "words": (Items(lambda i: ("a", "b")), "yields inputs that hold no tensor of examples"),
    "examples, not batches": (
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=None),
        "yields targets that hold no tensor of examples",
    ),
    "objects": (Items(lambda i: (object(), 0)), "cannot be put together to tensors"),
    "more inputs": ((INPUTS, TARGETS[:60]), "as many inputs as targets, got 70 and 60"),
    "more of one input": (
        (INPUTS, INPUTS[:60], TARGETS),
        "yields tensors of 70 and of 60 examples in one batch: all of them need an entry for each example in their "
        "first dimension",
    ),
    "nothing": ((INPUTS[:0], TARGETS[:0]), "got 0 and 0"),
    "no examples": ((INPUTS[:0], INPUTS[:0], TARGETS[:0]), "is empty"),
    "one number": ((torch.tensor(0.5), TARGETS), "as many inputs as targets, got a single number and 70"),
    "a number": (5, "must be a pair of tensors, a map-style dataset, a DataLoader, or a function"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_split_is_told_in_one_line(case):
    split, said = REFUSED[case]
    with pytest.raises(ValueError, match=r"^split 'fit'") as raised:
        task(fit=split)
    assert said in str(raised.value) and "\n" not in str(raised.value)


LATER = {
    "a later size": (
        Items(lambda i: (torch.ones(3 if i < 64 else 1), 0), 70),
        "give a DataLoader with a collate_fn that can: stack expects each tensor to be equal size, but got [3] at",
    ),
    "a later type": (
        Items(lambda i: (INPUTS[0], 1 if i < 64 else 0.25), 70),
        "() of torch.int64 and (3,) of torch.float32 and () of torch.float64",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_items_that_do_not_go_together_are_told_when_they_are_read(case):
    split, said = LATER[case]
    with pytest.raises(ValueError, match=r"^split 'test'") as raised:
        task(test=split).examples("test").held(70)
    assert said in str(raised.value)


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


MANY = """
import torch
from torch import nn
from torch.utils.data import Dataset
from search import Recipe, Workload

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

"""


def test_inspect_reads_one_batch(main, place):
    (place / "many.py").write_text(MANY)
    shown = main("inspect", "./many.py:task")
    assert shown.code == 0 and "many: " in shown.out, shown.err
    assert sys.modules["prunefront_workload_many"].READ == [0, 1]
