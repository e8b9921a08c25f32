"""The position of a run in its data: a loader that goes on where it was.

It iterates over loaders of others, and loads no data itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from . import _random


class ResumableLoader:
    """A torch DataLoader, or any other iterable of batches, that can go on in the middle of a pass.

        loader = genesis.ResumableLoader(DataLoader(dataset, shuffle=True, num_workers=2))
        for batch in loader: ...

    `state_dict` says how many batches of the pass were handed out, whatever the worker processes
    have prefetched beyond that, and where the random generators stood when it began. After
    `load_state_dict` the next pass is begun with those generators, and the batches that were handed
    out are drawn again and dropped: the rest comes in the same order, and with the same random
    numbers in the worker processes. That takes the time of loading them; what is drawn for it
    changes no random state of the program.

    A pass that is left early counts as begun, not as finished: what is saved then goes on in it.

    Bounds: workers that are kept from pass to pass (``persistent_workers``) begin with the pass
    that is resumed, so random numbers that they draw differ; order does not. A sampler that draws
    from the program's global generators in the middle of a pass is not replayed. Not thread-safe;
    one pass at a time.

    Args:
        loader: iterated anew for each pass. A sampler of it with ``set_epoch``, as
            DistributedSampler has, is set to its epoch again.

    Attributes:
        loader: the same.
        batches: handed out in this pass.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batches = 0
        self._begin: dict[str, Any] | None = None
        """Where the generators stood when the pass began; ``None`` between passes."""
        self._resumes = False
        self._now: Any = None
        """Where the loader's own generator is to stand when the pass goes on."""

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
            batches = iter(self.loader)
        for batch in batches:
            self.batches += 1
            yield batch
        self.batches, self._begin = 0, None

    def _replayed(self) -> Iterator[Any]:
        """The pass that was begun elsewhere, past the batches that were handed out."""
        assert self._begin is not None
        if self.batches == self._shape()["length"]:
            return iter(())
        before = _random.capture()
        try:
            self._set_generators(self._begin)
            batches: Iterator[Any] = iter(self.loader)
            for number in range(self.batches):
                if next(batches, self) is self:
                    raise ValueError(
                        f"{self.batches} batches of this pass were handed out and the loader has "
                        f"{number}: it is not the one that the state is of"
                    )
        finally:
            _random.restore(before)
            if (own := self._own()) is not None and self._now is not None:
                _random.set_state(own, self._now)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out, and the generators with which the pass began."""
        return {
            "batches": self.batches,
            "begin": self._begin,
            "generator": None if (own := self._own()) is None else _random.state_of(own),
            "shape": self._shape(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass be the rest of the one that the state is of.

        Raises:
            ValueError: this loader has another length, batch size or number of workers, so that it
                could not go on in the same way; nothing was changed.
        """
        here = self._shape()
        differ = [
            f"{name} was {there}, is {here.get(name)}"
            for name, there in state_dict["shape"].items()
            if there != here.get(name)
        ]
        if differ:
            raise ValueError(f"this is another loader than that of the state: {'; '.join(differ)}")
        self.batches = state_dict["batches"]
        self._begin = state_dict["begin"]
        self._resumes = self._begin is not None
        self._now = state_dict["generator"]
        if (own := self._own()) is not None and self._now is not None:
            _random.set_state(own, self._now)

    def _shape(self) -> dict[str, int | None]:
        """What must be the same for a pass to be replayed."""
        try:
            length: int | None = len(self.loader)
        except TypeError:
            length = None
        names = ("batch_size", "num_workers")
        return {"length": length} | {name: getattr(self.loader, name, None) for name in names}

    def _own(self) -> Any:
        """The generator that the loader was given, if any."""
        own = getattr(self.loader, "generator", None)
        return own if _random.is_generator(own) else None

    def _generators(self) -> dict[str, Any]:
        own, sampler = self._own(), getattr(self.loader, "sampler", None)
        return {
            "random": _random.capture(),
            "generator": None if own is None else _random.state_of(own),
            "epoch": getattr(sampler, "epoch", None) if hasattr(sampler, "set_epoch") else None,
        }

    def _set_generators(self, found: dict[str, Any]) -> None:
        _random.restore(found["random"])
        if (own := self._own()) is not None and found["generator"] is not None:
            _random.set_state(own, found["generator"])
        if found["epoch"] is not None:
            self.loader.sampler.set_epoch(found["epoch"])


def refuse_plain_loader(name: str, part: Any) -> None:
    """Refuse a DataLoader of torch, which tells nobody how far it is.

    Raises:
        TypeError: it is one.
    """
    loaders = sys.modules.get("torch.utils.data")
    if loaders and isinstance(part, loaders.DataLoader) and not hasattr(part, "state_dict"):
        raise TypeError(
            f"{name} is a DataLoader, which cannot say how far it is: give "
            "genesis.ResumableLoader(loader), and iterate over that"
        )
