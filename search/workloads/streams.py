"""Examples that come as a stream of batches: from a function of the user's, or a loader with an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, default_convert

from pruning.trees import NetworkInputs, joined
from search.user_code.randomness import OwnDraws, seeded
from search.workloads.batch_form import Batch, BatchForm, equal
from search.workloads.examples import SEED, Examples
from spaces.wording import counted

Opened = Callable[[int, int], Iterable[Any]]
"""(size, seed) -> the batches of a pass: of at most that size, if the stream does not decide that by itself, and in the
order that belongs to the seed, if it has an order that can be set.
"""

MOST_UNTOLD = 100_000
"""Examples after which a stream that is scored counts as endless, unless its length says that there are more."""
COUNTED_AT_ONCE = 64


class Stream(Examples):
    """Batches of an iterable that is begun anew for every pass.

    Args:
        opened: begins a pass.
        promised: how many batches a pass has, where the stream says so; or how many examples, with `by_examples`.
        steps: batches that make an epoch of training, as the user says.
    """

    def __init__(
        self,
        name: str,
        opened: Opened,
        form: BatchForm,
        promised: int | None = None,
        by_examples: bool = False,
        steps: int | None = None,
    ) -> None:
        super().__init__(name)
        self._opened, self._form, self._steps = opened, form, steps
        self._promised, self._by_examples = promised, by_examples
        self._count: int | None = None
        self._begun: list[Batch] = []
        self._asked = 0

    @property
    def count(self) -> int | None:
        return self._count

    @property
    def has_own_batches(self) -> bool:
        return not self._by_examples

    def some(self, most: int) -> Batch:
        self._begin(most)
        parts = self._begun
        inputs, targets = joined([part[0] for part in parts]), joined([part[1] for part in parts])
        return inputs[:most], targets[:most]

    def example(self) -> NetworkInputs:
        self._begin(2)
        return self._begun[0][0][:2]

    @property
    def batching(self) -> str:
        """How many examples or batches it says it has, and the size of its first batch, which make other trainings."""
        batch = "" if self._by_examples or not self._begun else f" in batches of {len(self._begun[0][0])}"
        return f"{self._promised} {'examples' if self._by_examples else 'batches'}{batch}"

    def require_new_passes(self) -> None:
        """Raise `ValueError` if every pass is the same iterator, which ends for good. Nothing is read."""
        with seeded(SEED):
            one, other = (self._opened(1, SEED) for _ in range(2))
        self._require(
            one is not other or not isinstance(one, Iterator),
            f"is the same {type(one).__name__} in every pass, which can be gone through only once: let its function "
            "make a new one",
        )

    @property
    def repeats_itself(self) -> bool:
        """Whether its beginning is the same in every pass under the same seed."""
        one, other = (next(self._pass(len(self._begun[0][0]) if self._begun else 1, SEED), None) for _ in range(2))
        return one is not None and other is not None and equal(one, other)

    def in_order(self, size: int) -> Iterator[Batch]:
        found = batches = 0
        for batch in self._pass(size, SEED):
            found, batches = found + len(batch[0]), batches + 1
            self._refuse_endless(found, found if self._by_examples else batches)
            yield batch
        self._require(found > 0, "is empty: it needs at least one example")
        if self._promised is not None:
            got, what = (found, "examples") if self._by_examples else (batches, "batches")
            self._require(
                got >= self._promised, f"ended early: after {got} of the {self._promised} {what} that it has by its len"
            )
        if self._count is not None:
            self._require(
                found == self._count,
                f"gave {self._count} examples before and {found} now: it must give the same ones in every pass",
            )
        self._count = found

    def require_end(self, progress: Callable[[int, int], None]) -> None:
        """Read a stream that does not say how many examples it has to its end, and raise `ValueError` if that is not
        near.

        Args:
            progress: called with (examples read, `MOST_UNTOLD`).
        """
        found = 0
        for inputs, _ in self.in_order(COUNTED_AT_ONCE):
            found += len(inputs)
            progress(found, MOST_UNTOLD)

    def _refuse_endless(self, found: int, got: int) -> None:
        """Raise `ValueError` after too many examples; `got` are those, or batches, as its length counts."""
        if found > MOST_UNTOLD and (self._promised is None or got > self._promised):
            what = "examples" if self._by_examples else "batches"
            said = f"its len says {self._promised} {what}" if self._promised is not None else "says no length"
            raise ValueError(
                f"split {self.name!r} gave more than {MOST_UNTOLD:,} examples and {said}, so it may have no end: let "
                "it end, such as by itertools.islice, or give it as an IterableDataset with a __len__ that is true"
            )

    def epoch_steps(self, size: int) -> int:
        if self._steps is not None:
            return self._steps
        assert self._promised is not None  # refused at the beginning
        return max(1, self._promised // size if self._by_examples else self._promised)

    def epoch(self, size: int, generator: torch.Generator, seed: int) -> Iterator[Batch]:
        steps, done = self.epoch_steps(size), 0
        for batch in islice(self._pass(size, seed), steps):
            done += 1
            yield batch
        self._check_epoch(done, steps)

    def given(self, size: int, generator: torch.Generator | None = None, seed: int = SEED) -> Iterator[Any]:
        steps = self.epoch_steps(size) if generator is not None and self.has_length else None
        done = 0
        for batch in islice(self._given(size, seed), steps):
            done += 1
            yield batch
        if generator is not None:
            return self._check_epoch(done, steps or done)
        self._require(done > 0, "is empty: it needs at least one batch")
        promised = done if self._promised is None or self._by_examples else self._promised
        batches = counted(promised, "batch", "batches")
        self._require(
            done >= promised, f"ended early: after {done} of the {batches} of a pass; give it a len that is true"
        )

    def some_given(self, most: int) -> Any:
        found = next(self._given(most, SEED), self)
        self._require(found is not self, "is empty: it needs at least one example")
        return found

    def _check_epoch(self, done: int, steps: int) -> None:
        said = f"steps_per_epoch={done}" if self._steps is not None else "a len that is true"
        self._require(done > 0, "is empty: it needs at least one batch in every epoch")
        batches = counted(steps, "batch", "batches")
        self._require(done == steps, f"ended early: after {done} of the {batches} of an epoch; give it {said}")

    @property
    def has_length(self) -> bool:
        """Whether anybody says how many batches an epoch of training takes."""
        return self._steps is not None or self._promised is not None

    def require_length(self) -> None:
        """Raise `ValueError` if nobody does."""
        self._require(
            self.has_length,
            "has no length: give the workload steps_per_epoch=, the number of batches that count as one epoch",
        )

    def _require(self, true: bool, otherwise: str) -> None:
        if not true:
            raise ValueError(f"split {self.name!r} {otherwise}")

    def _begin(self, most: int) -> None:
        """Read its first batches, until there are that many examples."""
        if most > self._asked:
            self._begun, self._asked, found = [], most, 0
            for batch in self._pass(most, SEED):
                self._begun.append(batch)
                found += len(batch[0])
                if found >= most:
                    break
            self._require(bool(self._begun), "is empty: it needs at least one example")

    def _pass(self, size: int, seed: int) -> Iterator[Batch]:
        for batch in self._given(size, seed):
            yield self._form.parts(batch, self.name)

    def _given(self, size: int, seed: int) -> Iterator[Any]:
        draws = OwnDraws(seed)
        with draws.drawn_from():
            stream = self._iterator(size, seed)
        while True:
            with draws.drawn_from():
                batch = next(stream, self)
            if batch is self:
                return
            yield default_convert(batch)

    def _iterator(self, size: int, seed: int) -> Iterator[Any]:
        stream = self._opened(size, seed)
        try:
            return iter(stream)
        except TypeError:
            raise ValueError(
                f"split {self.name!r}: its function must return batches, such as a list or a generator of pairs "
                f"(inputs, targets), got {type(stream).__name__}"
            ) from None


def of_iterable(name: str, dataset: IterableDataset[Any], form: BatchForm, steps: int | None) -> Stream:
    """A data set that can only be gone through: its examples are put together to batches."""

    def opened(size: int, seed: int) -> Iterator[Any]:
        examples = iter(dataset)
        while items := list(islice(examples, size)):
            yield default_collate(items)

    return Stream(name, opened, form, _length(dataset), True, steps)


def of_loader(name: str, loader: DataLoader[Any], form: BatchForm, steps: int | None) -> Stream:
    """A loader whose batches are taken as they come."""

    def opened(size: int, seed: int) -> Iterable[Any]:
        for part in (loader.sampler, loader.batch_sampler, loader.dataset):
            set_epoch: Callable[[int], None] | None = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(seed % 2**31)
        return loader

    return Stream(name, opened, form, _length(loader), False, steps)


def _length(of: Any) -> int | None:
    try:
        return len(of) if isinstance(of, Sized) else None
    except TypeError:  # a loader of a stream without length
        return None
