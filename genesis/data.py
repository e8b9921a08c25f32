"""The position of a run in its data: a loader that goes on where it was.

It iterates over loaders of others, and loads no data itself.
"""

from __future__ import annotations

import copy
import hashlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from . import _random

_END = object()


class ResumableLoader:
    """A torch DataLoader, or any other iterable of batches, that can go on in the middle of a pass.

        loader = genesis.ResumableLoader(DataLoader(dataset, shuffle=True, num_workers=2))
        for batch in loader: ...

    `state_dict` says how many batches of the pass were handed out, whatever the worker processes
    have prefetched beyond that, and where the random generators stood when it began. After
    `load_state_dict` the next pass is the rest of that one: the same batches in the same order,
    with the same random numbers in them. Nothing that is done for it changes a random state of the
    program.

    The sampler of a DataLoader is run again, and no batch that was handed out is loaded again. For
    that, worker processes get a new seed with each batch (of Python's, NumPy's and torch's global
    generators), made from the random state at the beginning of the pass, so that a batch depends on
    no batch before it, nor on the number of workers. An iterable without a sampler, an
    IterableDataset say, loads the batches that were handed out again and drops them.

    A batch counts once it is taken from the iterator, so save when the training step with it is
    done, and let nothing take batches ahead of the training. A pass that is left early counts as
    begun, not as finished: what is saved then goes on in it. Not thread-safe; one pass at a time.

    Bounds: a sampler that draws from the program's global generators in the middle of a pass, which
    none of torch's does, is not replayed. Neither is a dataset that changes as it is read, or has a
    generator of its own in each worker, unless `reload` is set.

    Args:
        loader: iterated anew for each pass. Generators that it or its samplers hold are saved too;
            a sampler with ``set_epoch``, as DistributedSampler has, is set to its epoch again.
        reload: load what was handed out again and drop it, and leave the seeds of the workers as
            they are, also where there is a sampler. Workers that are kept from pass to pass
            (``persistent_workers``) then begin with the pass that is resumed.

    Attributes:
        loader: the same.
        batches: handed out in this pass.

    Raises:
        TypeError: `loader` is an iterator, which has one pass only, or has a ``state_dict`` of its
            own (StatefulDataLoader): give that to a `TrainState` as it is.
    """

    def __init__(self, loader: Any, *, reload: bool = False) -> None:
        _refuse_loader(loader)
        self.loader = loader
        self.batches = 0
        self._skipping = _Skipping(loader) if _has_sampler(loader) and not reload else None
        self._begin: dict[str, Any] | None = None
        """Where the generators stood when the pass began; ``None`` between passes."""
        self._resumes = False
        self._now: dict[str, Any] = {}
        """Where the loader's own generators are to stand when the pass goes on."""

    def __len__(self) -> int:
        """Batches in a whole pass, also where one is resumed."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self._resumes:
            self._resumes = False
            batches = self._replayed()
        else:
            self.batches = 0
            self._begin = self._generators()
            batches = self._pass(0)
        for batch in batches:
            self.batches += 1
            yield batch
        self.batches, self._begin = 0, None

    def _pass(self, start: int) -> Iterator[Any]:
        """A pass from the batch of this number on, begun with the generators as they are."""
        if self._skipping:
            return self._skipping.begin(start)
        batches: Iterator[Any] = iter(self.loader)
        _drop(batches, start)
        return batches

    def _replayed(self) -> Iterator[Any]:
        """The rest of the pass that was begun elsewhere."""
        assert self._begin is not None
        if self.batches == self._shape()["length"]:
            return iter(())
        before = _random.capture()
        try:
            self._set_generators(self._begin)
            return self._pass(self.batches)
        finally:
            _random.restore(before)
            set_own_generators(self.loader, self._now)

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out, and the generators with which the pass began."""
        return {
            "batches": self.batches,
            "begin": self._begin,
            "generators": own_generators(self.loader),
            "shape": self._shape(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass be the rest of the one that the state is of.

        Raises:
            ValueError: this is another loader (in length, batch size, number of items, sampler, or
                in whether worker processes load), so that it could not go on in the same way;
                nothing was changed.
        """
        here, there = self._shape(), state_dict["shape"]
        differ = [
            f"{name} was {there.get(name)}, is {here.get(name)}"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if differ:
            raise ValueError(f"this is another loader than that of the state: {'; '.join(differ)}")
        self.batches = state_dict["batches"]
        self._begin = state_dict["begin"]
        self._resumes = self._begin is not None
        self._now = state_dict["generators"]
        set_own_generators(self.loader, self._now)

    def _shape(self) -> dict[str, Any]:
        """What must be the same for a pass to be replayed."""
        workers = getattr(self.loader, "num_workers", 0)
        return {
            "length": _length(self.loader),
            "batch_size": getattr(self.loader, "batch_size", None),
            "items": _length(getattr(self.loader, "dataset", None)),
            "sampler": type(getattr(self.loader, "sampler", None)).__name__,
            # One batch for each seed: how many workers there are makes no difference.
            "workers": workers > 0 if self._skipping else workers,
        }

    def _generators(self) -> dict[str, Any]:
        return {
            "random": _random.capture(),
            "generators": own_generators(self.loader),
            "epochs": {
                name: sampler.epoch
                for name, sampler in _holders(self.loader).items()
                if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch")
            },
        }

    def _set_generators(self, found: dict[str, Any]) -> None:
        _random.restore(found["random"])
        set_own_generators(self.loader, found["generators"])
        samplers = _holders(self.loader)
        for name, epoch in found["epochs"].items():
            samplers[name].set_epoch(epoch)


class _Skipping:
    """Passes over a DataLoader that begin in the middle: the sampler is run from its beginning, and
    only what comes after the skipped batches is handed to the dataset.

    Args:
        loader: not changed. Its copy has the same dataset and workers of its own.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = copy.copy(loader)
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._indexes = _Indexes(getattr(loader, name), sent=loader.num_workers > 0)
        # Past the loader's own __setattr__, which lets nobody change its sampler.
        vars(self._loader).update({name: self._indexes, "_iterator": None})

    def begin(self, start: int) -> Iterator[Any]:
        """A pass from the batch of this number on."""
        self._indexes.start = start
        self._indexes.seed = _drawn_aside(self._loader.generator)
        batches: Iterator[Any] = iter(self._loader)
        # Now, with the generators that the pass began with: without workers, nothing was asked of
        # the sampler yet.
        self._indexes.skip()
        return batches


class _Indexes:
    """What a sampler gives, from a certain batch on.

    Args:
        sampler: of batches or, where the loader makes none, of items.
        sent: whether they are sent to worker processes.

    Attributes:
        start: how many batches to leave out of the next pass.
        seed: of the next pass.
    """

    start = 0
    seed = 0

    def __init__(self, sampler: Any, *, sent: bool) -> None:
        self._sampler = sampler
        self._sent = sent
        self._source: Iterator[Any] = iter(())
        self._left = 0

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        # Not skipped here: the loader draws the seed of its workers after this call, and only then
        # asks the sampler for the first batch, which draws too.
        self._source, self._left = iter(self._sampler), self.start
        return self._rest(self.start, self.seed)

    def _rest(self, start: int, seed: int) -> Iterator[Any]:
        self.skip()
        for number, batch in enumerate(self._source, start):
            yield _Seeded(batch, seed, number) if self._sent else batch

    def skip(self) -> None:
        """Ask the sampler for what is to be left out, if that was not done yet."""
        left, self._left = self._left, 0
        _drop(self._source, left)


class _Seeded:
    """What is sent to a worker process for one batch: it arrives as the plain batch, with the
    worker's generators seeded. A worker takes one of them only when it is about to load it."""

    def __init__(self, batch: Any, seed: int, number: int) -> None:
        self._batch = batch
        self._seed = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=16).digest()

    def __reduce__(self) -> Any:
        return _arrive, (self._batch, self._seed)


def _arrive(batch: Any, seed: bytes) -> Any:
    # Python takes a hash of it: from one number, Python and NumPy would make the same sequence.
    random.seed(seed)
    # Not torch.manual_seed, which would look at every device each time.
    sys.modules["torch"].default_generator.manual_seed(int.from_bytes(seed[:8]) >> 1)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(numpy.frombuffer(seed, numpy.uint32))
    return batch


def _drawn_aside(generator: Any) -> int:
    """A seed from a copy of a generator of torch, or of its global one, which stays as it is."""
    torch = sys.modules["torch"]
    aside = torch.Generator()
    aside.set_state((torch.default_generator if generator is None else generator).get_state())
    return int(torch.empty((), dtype=torch.int64).random_(generator=aside))


def _drop(source: Iterator[Any], count: int) -> None:
    for number in range(count):
        if next(source, _END) is _END:
            raise ValueError(
                f"{count} batches of this pass were handed out and the loader has {number}: "
                "it is not the one that the state is of"
            )


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return None


# --- What loaders hold ----------------------------------------------------------------------------


def own_generators(loader: Any) -> dict[str, Any]:
    """Where the generators that a loader and its samplers hold stand, by the names of both."""
    return {name: _random.state_of(own) for name, own in _generators_of(loader).items()}


def set_own_generators(loader: Any, states: Mapping[str, Any]) -> None:
    """Put the generators of a loader back to where `own_generators` found them."""
    for name, own in _generators_of(loader).items():
        if name in states:
            _random.set_state(own, states[name])


def _generators_of(loader: Any) -> dict[str, Any]:
    found: dict[int, tuple[str, Any]] = {}
    for name, holder in _holders(loader).items():
        for attribute, value in getattr(holder, "__dict__", {}).items():
            if _random.is_generator(value):
                found.setdefault(id(value), (f"{name}.{attribute}", value))
    return dict(found.values())


def _holders(loader: Any) -> dict[str, Any]:
    """A loader, its samplers, and the samplers of those, by name."""
    found = {"loader": loader}
    new = ["loader"]
    while new:
        name = new.pop()
        for attribute in ("batch_sampler", "sampler"):
            inner = getattr(found[name], "__dict__", {}).get(attribute)
            if inner is not None and not any(inner is known for known in found.values()):
                found[f"{name}.{attribute}"] = inner
                new.append(f"{name}.{attribute}")
    return found


def is_torch_loader(thing: object) -> bool:
    """Whether a thing is a DataLoader of torch, or of a class made from it."""
    loaders = sys.modules.get("torch.utils.data")
    return loaders is not None and isinstance(thing, loaders.DataLoader)


def _has_sampler(loader: Any) -> bool:
    loaders = sys.modules.get("torch.utils.data")
    return (
        loaders is not None
        and is_torch_loader(loader)
        and not isinstance(loader.dataset, loaders.IterableDataset)
    )


def _refuse_loader(loader: Any) -> None:
    if hasattr(loader, "__next__"):
        raise TypeError(
            f"{type(loader).__name__} is an iterator, which has one pass only: "
            "give the loader that it comes from"
        )
    if hasattr(loader, "state_dict"):
        raise TypeError(
            f"{type(loader).__name__} can say how far it is by its own state_dict(): give it to "
            "the TrainState as it is"
        )


def refuse_plain_loader(name: str, part: Any) -> None:
    """Refuse a DataLoader of torch, which tells nobody how far it is.

    Raises:
        TypeError: it is one.
    """
    if is_torch_loader(part) and not hasattr(part, "state_dict"):
        raise TypeError(
            f"{name} is a DataLoader, which cannot say how far it is: give "
            "genesis.ResumableLoader(loader), and iterate over that"
        )
