"""Outputs of several tensors: batches joined to what one batch of all examples would have given."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, fields
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from pruning import trace_channels
from pruning.analysis.sensitivity_scan import scan_sensitivity
from pruning.outputs import describe, join_batches, map_tensors, output_names, tensors_in

Pair = namedtuple("Pair", "first second")
EXAMPLES = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
TABLE = torch.arange(12.0).reshape(4, 3)


@dataclass(frozen=True)
class Boxes:
    scores: torch.Tensor
    count: int = 5


class ModelOutput(OrderedDict):
    """As Hugging Face has it: a mapping that is a dataclass too, whose keys are attributes."""

    logits: torch.Tensor
    hidden: tuple | None

    def __init__(self, logits, hidden=None):
        super().__init__(logits=logits, hidden=hidden)
        self.logits, self.hidden = logits, hidden

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


FORMS = {
    "tensor": lambda x: x * 2,
    "two rows an example": lambda x: x.repeat_interleave(2, dim=0),
    "dict": lambda x: {"out": x * 2, "aux": x.sum(1)},
    "tuple": lambda x: (x, x + 1),
    "named tuple": lambda x: Pair(x, x.argmax(1)),
    "nested": lambda x: [{"a": (x, [x * 3])}],
    "dataclass": lambda x: Boxes(x),
    "namespace": lambda x: SimpleNamespace(scores=x),
    "model output": lambda x: ModelOutput(x, (x, x[:, :1])),
    "user dict": lambda x: UserDict(out=x),
    "read-only": lambda x: MappingProxyType({"out": x}),
    "rows of rows": lambda x: (x.repeat_interleave(2, dim=0), x),
    "batch second": lambda x: (x, torch.stack([x, x + 1])),
    "shared table": lambda x: {"out": x, "table": TABLE},
    "copied table": lambda x: {"out": x, "table": TABLE.clone()},
    "mean loss": lambda x: (x, x.mean()),
    "mean number": lambda x: (x, float(x.mean())),
    "constants": lambda x: {"out": x, "name": "net", "none": None, "count": torch.tensor(5), "layers": 3},
    "a dict an example": lambda x: [{"box": row[None].repeat(i % 3, 1)} for i, row in enumerate(x)],
}


def equal(one, other) -> bool:
    mine, others = list(tensors_in(one)), list(tensors_in(other))
    return type(one) is type(other) and len(mine) == len(others) > 0 and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b) for a, b in zip(mine, others, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(3, 3, 1), (7,), (5, 2)])
def test_joined_batches_are_the_output_of_all_examples(form, sizes):
    if form == "a dict an example":
        whole = [{"box": row[None].repeat(i % 3, 1)} for size in sizes
                 for i, row in enumerate(EXAMPLES[:size])]  # fmt: skip
        batches = [FORMS[form](EXAMPLES[:size]) for size in sizes]
    else:
        whole, batches = FORMS[form](EXAMPLES), [FORMS[form](part) for part in EXAMPLES.split(sizes)]
    joined = join_batches(batches, sizes)
    assert equal(joined, whole), (joined, whole)
    if form == "model output":
        assert joined.logits is joined["logits"] and len(joined.hidden[1]) == 7
    if form == "dataclass":
        assert [getattr(joined, field.name) for field in fields(joined)][1] == 5
    if form == "mean number":
        assert joined[1] == pytest.approx(float(EXAMPLES.mean()))
    if form == "constants":
        assert [joined[key] for key in ("name", "none", "layers")] == ["net", None, 3]


def test_what_cannot_be_joined_is_told():
    with pytest.raises(ValueError, match="returns a Normal, which cannot be taken apart"):
        join_batches([torch.distributions.Normal(EXAMPLES, 1)] * 2, [7, 7])
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) of 2 examples and \(5, 4\)"):
        join_batches([(torch.ones(3, 4),), (torch.ones(5, 4),)], [2, 2])
    with pytest.raises(ValueError, match="something else for another"):
        join_batches([{"a": EXAMPLES}, {"b": EXAMPLES}], [7, 7])


def test_an_output_is_described_and_its_tensors_named():
    output = {"out": EXAMPLES, "more": (TABLE, [TABLE])}
    assert describe(output) == "a dict of out (7, 3), more tuple" and describe(EXAMPLES) == "a tensor of shape (7, 3)"
    assert describe((EXAMPLES, None)) == "a tuple of (7, 3), NoneType" and describe(5) == "a int"
    assert output_names(output) == ["out", "more_0", "more_1_0"]
    assert output_names((EXAMPLES, TABLE)) == ["output_0", "output_1"]
    doubled = map_tensors(output, lambda tensor: tensor * 2)
    assert torch.equal(doubled["more"][1][0], 2 * TABLE) and torch.equal(output["out"], EXAMPLES)


class Wrapped(torch.nn.Module):
    """A network that returns its one tensor in a container, beside a table."""

    def __init__(self, inner, form):
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, x):
        return self.form(self.inner(x))


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        (lambda y: {"aux": torch.ones(5), "out": y}, lambda o: o["out"]),
        (lambda y: ModelOutput(y), lambda o: o.logits),
        (lambda y: SimpleNamespace(out=y), lambda o: o.out),
    ],
    ids=["dict", "model output", "namespace"],
)
def test_a_scan_of_a_network_that_wraps_its_tensor_is_the_plain_ones(residual, monkeypatch, form, taken):
    monkeypatch.setattr("pruning.analysis.sensitivity_scan.SCAN_BATCH", 5)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(12, 1, 8, 8, generator=generator), torch.randint(0, 10, (12,), generator=generator)
    cross_entropy = torch.nn.functional.cross_entropy

    def scanned(model, of):
        return scan_sensitivity(
            model, trace_channels(model, data[0][:2]), data, lambda o, t: cross_entropy(of(o), t),
            lambda o, t: float((of(o).argmax(1) == t).float().mean()), levels=(0.3, 0.7),
        )  # fmt: skip

    plain, wrapped = scanned(residual, lambda o: o), scanned(Wrapped(residual, form), taken)
    assert wrapped.dense_loss == plain.dense_loss
    for granularity, rows in plain.points.items():
        assert {f"inner.{name}": points for name, points in rows.items()} == wrapped.points[granularity]
