"""Streams and batches of several parts: what is trained on and scored equals the same examples in tensors."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from pruning.outputs import tensors_in
from pruning.trees import ModelInputs, Tree, contents, run
from search import Recipe, Workload
from search.config import SearchConfig
from search.errors import UsageError
from search.progress import ProgressReporter
from search.study.finals import compare_finals
from search.study.start import run_search
from search.training.dense_model import build_model, dense_model
from search.training.examples import batches
from search.training.fingerprint import split_fingerprint
from search.training.refresh import fit_batches
from search.training.scoring import score
from search.workloads.steadiness import unsteady

N = 50
GENERATOR = torch.Generator().manual_seed(2)
X, Z = torch.randn(N, 3, generator=GENERATOR), torch.randn(N, 2, generator=GENERATOR)
Y = (X.sum(1) > 0).long() + (Z[:, 0] > 0).long()
RECIPE = Recipe(batch=8, dense_epochs=2)


class Two(nn.Module):
    """Of x and z."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(8, 3)

    def forward(self, x, z):
        return {"out": self.second(torch.cat([self.first(x).relu(), z], 1)), "norm": x.norm()}


class Packed(Two):
    def forward(self, packed):
        return super().forward(packed[:, :3], packed[:, 3:])["out"]


class Items(Dataset):
    def __init__(self, of, n=N):
        self.of, self.n = of, n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        return self.of(place)


def loss(outputs, targets):
    return F.cross_entropy(outputs["out"], targets)


def share(outputs, targets):
    return float((outputs["out"].argmax(1) == targets).float().mean())


def task(split, net=Two, **changes):
    parts = {"recipe": RECIPE, "loss": loss, "metric": share} | changes
    return Workload("task", net, *[split] * 4, **parts)


def plain():
    return task((torch.cat([X, Z], 1), Y), Packed, loss=F.cross_entropy, metric=lambda o, t: share({"out": o}, t))


def called(model, batch):
    return model(x=batch["x"], z=batch["more"]["z"])


FORMS = {
    "a tuple": task((X, Z, Y)),
    "a pair": task(((X, Z), Y)),
    "a mapping": task({"x": X, "z": Z, "labels": Y}),
    "a mapping with names": task({"x": X, "z": Z, "kind": Y}, targets="kind"),
    "items of three": task(Items(lambda i: (X[i], Z[i], int(Y[i])))),
    "items with a pair": task(Items(lambda i: ((X[i], Z[i]), int(Y[i])))),
    "mappings": task(Items(lambda i: {"x": X[i], "z": Z[i], "label": int(Y[i]), "file": f"{i}.png"})),
    "several targets": task(
        Items(lambda i: {"x": X[i], "z": Z[i], "even": i % 2, "kind": int(Y[i])}),
        targets=["kind", "even"],
        loss=lambda o, t: loss(o, t["kind"]),
        metric=lambda o, t: share(o, t["kind"]),
    ),
    "by forward": task(Items(lambda i: {"x": X[i], "more": {"z": Z[i]}, "y": int(Y[i])}), forward=called),
    "whole batches": task(
        Items(lambda i: {"x": X[i], "more": {"z": Z[i]}, "kind": int(Y[i])}),
        forward=called,
        loss=lambda o, t: loss(o, t["kind"]),
        metric=lambda o, t: share(o, t["kind"]),
    ),
    "a loader of mappings": task(DataLoader(Items(lambda i: {"x": X[i], "z": Z[i], "y": int(Y[i])}), batch_size=7)),
}


def networks():
    torch.manual_seed(4)
    two, packed = Two(), Packed()
    packed.load_state_dict(two.state_dict())
    return two, packed


def together(inputs):
    """x and z of inputs of any form, beside each other."""
    found = {part.shape[1]: part for part in tensors_in(contents(inputs)) if part.ndim == 2}
    return torch.cat([found[3], found[2]], 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "read"])
def test_batches_of_every_form_are_those_of_one_tensor(form, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr("search.workloads.datasets.MOST_BYTES", 0)
    workload, two, packed = replace(FORMS[form]), *networks()
    for split in ("fit", "validation"):  # as if nothing had been read yet
        vars(getattr(workload, split)).pop("_kept", None)
    pairs = zip(batches(workload, 14, 3), batches(plain(), 14, 3), strict=True)
    for (inputs, targets), (one, labels) in pairs:
        assert torch.equal(together(inputs), one) and any(torch.equal(t, labels) for t in tensors_in(contents(targets)))
        torch.testing.assert_close(run(two, inputs)["out"], packed(one))
    found, wanted = score(two, workload.validation, workload), score(packed, plain().validation, plain())
    assert found.accuracy == pytest.approx(wanted.accuracy) and found.loss == pytest.approx(wanted.loss, rel=1e-6)
    refreshed = zip(fit_batches(workload), fit_batches(plain()), strict=True)
    assert all(torch.equal(together(inputs), one) for inputs, one in refreshed)
    build_model(workload, 0)
    assert torch.equal(together(workload.example_input), plain().example_input)


def test_augmentation_of_several_inputs_gets_what_they_are():
    workload = task({"x": X, "z": Z, "y": Y}, augment=lambda inputs, _: {**inputs, "x": inputs["x"] * 0})
    (inputs, _), *_ = batches(workload, 1, 0)
    assert not inputs.tree["x"].any() and inputs.tree["z"].any() and isinstance(inputs, ModelInputs)


class Stream(IterableDataset):
    """Single examples, in order."""

    def __iter__(self):
        return iter([(X[i], int(Y[i])) for i in range(N)])


class Counted(Stream):
    def __len__(self):
        return N


def in_batches(size=8, of=X):
    def stream():
        yield from zip(of.split(size), Y.split(size), strict=True)

    return stream


def single(split, **changes):
    """A task of x alone."""
    parts = dict.fromkeys(("fit", "calibration", "validation", "test"), split) | {"recipe": RECIPE} | changes
    return Workload("task", lambda: nn.Linear(3, 3), **parts)


STREAMS = {
    "a function": (in_batches(), {"steps_per_epoch": 7}),
    "a loader": (DataLoader(Stream(), batch_size=8), {"steps_per_epoch": 7}),
    "examples of a known length": (Counted(), {}),
    "examples": (Stream(), {"steps_per_epoch": 6}),
    "a list": (lambda: [*in_batches()()], {"steps_per_epoch": 7}),
    "arrays": (lambda: ((x.numpy(), y.numpy()) for x, y in in_batches()()), {"steps_per_epoch": 7}),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_is_trained_on_and_scored_as_it_comes(case):
    split, changes = STREAMS[case]
    workload, model = single(split, **changes), nn.Linear(3, 3)
    steps = changes.get("steps_per_epoch", 6)
    found = [inputs for inputs, _ in batches(workload, steps + 2, 5)]
    wanted = [*X.split(8)[:steps], X[:8], X[8:16]]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    wanted = score(model, (X, Y), single((X, Y)))
    found = score(model, workload.validation, workload)
    assert found.accuracy == pytest.approx(wanted.accuracy) and found.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert workload.examples("validation").count == N
    assert torch.equal(workload.examples("calibration").held(20)[0], X[:20])
    assert torch.equal(workload.example_input, X[:2]) and torch.equal(torch.cat([*fit_batches(workload)]), X)
    build_model(workload, 0)
    assert unsteady(workload) is None and workload.examples("test").count is None


def test_the_last_batch_of_a_stream_counts_by_its_examples():
    """Two of the fifty are in it."""
    model, stream = nn.Linear(3, 3), single(in_batches(48), steps_per_epoch=2)
    assert score(model, stream.validation, stream).loss == pytest.approx(
        float(F.cross_entropy(model(X), Y).detach()), rel=1e-6
    )


def test_a_stream_that_draws_draws_anew_each_epoch_and_apart_from_dropout():
    def stream():
        for x, y in in_batches()():
            yield x + torch.rand(1) + random.random(), y

    def taken(seed):
        return torch.cat([inputs for inputs, _ in batches(single(stream, steps_per_epoch=7), 14, seed)])

    torch.manual_seed(1)
    before = torch.rand(2)
    torch.manual_seed(1)
    one, again, other = taken(3), taken(3), taken(4)
    assert torch.equal(torch.rand(2), before) and torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one[:50], one[50:])
    scored = single(stream, steps_per_epoch=7)
    assert score(nn.Linear(3, 3), scored.validation, scored) != score(nn.Linear(3, 3), scored.validation, scored)
    model = nn.Linear(3, 3)
    assert score(model, scored.validation, scored) == score(model, scored.validation, scored)
    assert split_fingerprint(scored, "fit") == split_fingerprint(single(stream, steps_per_epoch=7), "fit")


def test_a_loader_with_an_order_of_its_own_keeps_it():
    weights = torch.arange(N) >= 40
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, sampler=WeightedRandomSampler(weights.double(), 30))
    workload = single((X, Y), fit=loader)
    rows = {tuple(row) for inputs, _ in batches(workload, 6, 0) for row in inputs.tolist()}
    assert rows <= {tuple(row) for row in X[40:].tolist()} and len(rows) > 5


def test_other_batches_of_the_same_stream_are_other_data():
    def loader(size, drawn=30):
        sampler = WeightedRandomSampler(torch.ones(N), drawn)
        return DataLoader(TensorDataset(X, Y), batch_size=size, sampler=sampler)

    class Said(Stream):
        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

    splits = [loader(5), loader(5, 40), loader(15), Said(40), Said(50)]
    found = [split_fingerprint(single((X, Y), fit=split), "fit") for split in splits]
    found += [split_fingerprint(single((X, Y), fit=in_batches(n), steps_per_epoch=2), "fit") for n in (10, 25)]
    assert len({*found}) == len(found)
    assert split_fingerprint(single((X, Y), fit=loader(5)), "fit") == found[0]


def test_one_iterator_for_all_passes_is_refused_before_any_training():
    for split in ("fit", "validation"):
        once = iter([(X[:10], Y[:10])] * 5)
        steps = {"steps_per_epoch": 5} if split == "fit" else {}
        with pytest.raises(UsageError, match=f"split '{split}' is the same list_iterator in every pass, which can be"):
            build_model(single((X, Y), **{split: lambda once=once: once}, **steps), 0)


EARLY = {
    "a function": (in_batches(25), 5, "ended early: after 2 of the 5 batches of an epoch; give it steps_per_epoch=2"),
    "nothing": (list, 5, "is empty"),
    "no iterable": (lambda: 3, 5, "its function must return batches, such as a list or a generator"),
}


@pytest.mark.parametrize("case", EARLY)
def test_a_stream_that_is_short_or_empty_is_told(case):
    split, steps, said = EARLY[case]
    with pytest.raises(ValueError, match=r"^split 'fit'") as raised:
        for _ in batches(single((X, Y), fit=split, steps_per_epoch=steps), 5, 0):
            pass
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_scored_stream_that_ends_early_is_told():
    class Lying(Stream):
        def __len__(self):
            return 60

    model, workload = nn.Linear(3, 3), single((X, Y), validation=Lying(), test=DataLoader(Lying(), batch_size=10))
    with pytest.raises(ValueError, match="'validation' ended early: after 50 of the 60 examples"):
        score(model, workload.validation, workload)
    with pytest.raises(ValueError, match="'test' ended early: after 5 of the 6 batches"):
        score(model, workload.test, workload)
    rows = [50, 30]
    shrinking = single((X, Y), validation=lambda: [(X[:n], Y[:n]) for n in [rows.pop(0)]])
    stream = shrinking.examples("validation")
    assert stream.counted() == 50
    with pytest.raises(ValueError, match="'validation' gave 50 examples before and 30 now"):
        list(stream.in_order(8))


def forever(size=8):
    while True:
        yield from in_batches(size)()


class Endless(Stream):
    """Of a length that is not true, unless that is None."""

    def __init__(self, length=None):
        self.length = length

    def __iter__(self):
        return (example for _ in iter(int, 1) for example in super(Endless, self).__iter__())

    def __len__(self):
        if self.length is None:
            raise TypeError
        return self.length


NO_END = {
    "a function": (forever, "says no length, so it may have no end: let it end, such as by itertools.islice"),
    "examples": (Endless(), "says no length"),
    "examples of a length": (Endless(60), "its len says 60 examples"),
    "a loader of a length": (DataLoader(Endless(60), batch_size=8), "its len says 8 batches"),
}


@pytest.mark.parametrize("case", NO_END)
def test_a_scored_stream_without_an_end_is_told(case, monkeypatch):
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", 150)
    split, said = NO_END[case]
    workload = single((X, Y), validation=split)
    with pytest.raises(ValueError, match=f"^split 'validation' gave more than 150 examples and {said}") as raised:
        score(nn.Linear(3, 3), workload.validation, workload)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_stream_without_an_end_is_found_before_training(split, tmp_path, monkeypatch):
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", 150)
    monkeypatch.setattr("search.training.dense_model.train_dense", lambda *_: pytest.fail("trained"))
    with pytest.raises(UsageError, match=f"^workload 'task': split '{split}' gave more than 150 examples and says no"):
        dense_model(single((X, Y), **{split: forever}), 0, tmp_path)


@pytest.mark.parametrize("finalists", [0, 1])
def test_test_data_without_an_end_are_found_before_trials_of_a_trained_network(finalists, tmp_path, monkeypatch):
    """Unless nothing is tested, and then nothing is read of them."""
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", 150)
    began = []
    monkeypatch.setattr("search.study.start.StudyRunner", lambda *_: SimpleNamespace(run=lambda: began.append(True)))
    given = single((X, Y), test=forever, weights="as built")
    config = SearchConfig(workload=given, finalists=finalists, max_size=0.5, cost="macs", root=str(tmp_path))
    if finalists:
        with pytest.raises(UsageError, match=r"^workload 'task': split 'test' gave more than 150 examples and says no"):
            run_search(config, ProgressReporter())
    else:
        run_search(config, ProgressReporter())
    assert began == [True] * (not finalists)


@pytest.mark.parametrize("split", [forever, Endless(60)], ids=["no length", "a length that is not true"])
def test_test_data_without_an_end_are_found_before_a_final_is_spent(split, monkeypatch):
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", 150)
    study = SimpleNamespace(subject=SimpleNamespace(workload=single((X, Y), test=split)))
    with pytest.raises(UsageError, match=r"^workload 'task': split 'test' gave more than 150 examples and "):
        compare_finals(study, None)


def test_a_stream_of_true_length_may_be_long_and_one_that_ends_needs_none(tmp_path, monkeypatch):
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", N)
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", N - 1)
    assert single(Counted()).examples("test").counted() == N
    monkeypatch.setattr("search.workloads.streams.MOST_UNTOLD", N)
    found = dense_model(single((X, Y), validation=in_batches(), test=in_batches()), 0, tmp_path).workload
    assert [found.examples(split).count for split in ("validation", "test")] == [N, N]


def test_an_empty_stream_in_any_split_is_found_before_training():
    with pytest.raises(UsageError, match=r"^workload 'task': split 'test' is empty") as raised:
        build_model(single((X, Y), test=list), 0)
    assert "\n" not in str(raised.value)


WRONG = {
    "steps of tensors": ({"steps_per_epoch": 3}, "is for a stream, and split 'fit' has a length: leave it out"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number >= 1, got 0"),
    "no function": ({"forward": 3}, "forward must be a function"),
    "no names": ({"targets": 3}, "targets must name entries"),
    "no word": ({"data_version": 3}, "data_version must be a word"),
    "names, but pairs": ({"targets": "y"}, "targets='y' needs mappings"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_told(case):
    changes, said = WRONG[case]
    with pytest.raises(ValueError) as raised:
        single((X, Y), **changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_data_version_counts_and_trees_are_told_apart():
    first = split_fingerprint(single((X, Y)), "fit")
    assert split_fingerprint(single((X, Y), data_version="a"), "fit") != first
    streams = in_batches(), in_batches(of=X + 1)
    assert len({split_fingerprint(single(stream, steps_per_epoch=7), "fit") for stream in streams}) == 2
    swapped = [{"x": X, "z": Z, "y": Y}, {"z": X, "x": Z, "y": Y}]
    assert len({split_fingerprint(task(split), "fit") for split in swapped}) == 2


def test_targets_of_several_parts_are_a_mapping():
    _, targets = FORMS["several targets"].examples("fit").some(4)
    assert isinstance(targets, Tree) and set(targets.tree) == {"kind", "even"} and len(targets) == 4


def test_the_only_input_of_a_mapping_needs_no_name_that_the_network_knows():
    """A Sequential names it `input`."""
    workload = Workload(
        "task", lambda: nn.Sequential(nn.Linear(3, 3)), *[Items(lambda i: {"pixels": X[i], "y": int(Y[i])})] * 4
    )
    model = build_model(workload, 0)
    assert torch.equal(run(model, workload.example_input), model(X[:2]))
