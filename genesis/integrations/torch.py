"""A plain PyTorch loop: an optimizer that waits for a deferred capture, and states under the names
of the bare model.

    attach(optimizer, model)
    ...
    genesis.save(state, "run.pth", background=True, capture="deferred")

Nothing here saves or loads.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch

from .._engine.scheduler import scheduler
from .._public import publish
from ._hosts import require

__all__ = ["Attached", "Portable", "attach", "portable"]

require(("torch",), (2, 4), "torch")


def attach(optimizer: torch.optim.Optimizer, *models: torch.nn.Module) -> Attached:
    """Make ``capture="deferred"`` safe by itself.

    Each step of the optimizer first waits until every state that was submitted in this process may
    be changed. The buffers of the models, which change in the forward pass, are copied before
    `genesis.save` returns.

    The optimizer may be of any kind: fused, foreach, one that a GradScaler steps, or one whose
    step is compiled. What else changes a state in place (``load_state_dict``, averaged weights)
    still has to call `SaveFuture.wait_captured` first.

    Args:
        optimizer: whose parameters and state are saved.
        models: whose buffers are. No model needs to be named that has none.

    Returns:
        What `detach`es them again. It need not be kept.

    Raises:
        TypeError: one of them is no optimizer or no module.

    Thread-safe. A step raises RuntimeError where it would wait for ever: in a signal handler that
    interrupted the save.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"attach takes an optimizer first, not a {type(optimizer).__name__}")
    for model in models:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"attach takes modules of torch, not a {type(model).__name__}")
    return Attached(optimizer, models)


_Models = tuple[torch.nn.Module, ...]


class Attached:
    """An optimizer and models that `attach` has prepared."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, models: tuple[torch.nn.Module, ...]
    ) -> None:
        self._hook = optimizer.register_step_pre_hook(_wait_captured)
        # The models are held by nobody here: one that is gone has no buffers to change.
        self._models = [weakref.ref(model) for model in models]
        if self._models:
            scheduler.changing[self] = self._buffers
            for model in models:
                weakref.finalize(model, self._forget)

    def _forget(self) -> None:
        if all(ref() is None for ref in self._models):
            scheduler.changing.pop(self, None)

    def _buffers(self) -> _Spans:
        """Where the buffers are now."""
        models = [model for ref in self._models if (model := ref()) is not None]
        return _Spans(buffer for model in models for buffer in model.buffers())

    def detach(self) -> None:
        """Undo it; harmless when repeated."""
        self._hook.remove()
        scheduler.changing.pop(self, None)


def _wait_captured(*_: object) -> None:
    scheduler.wait_captured()


# A compiled step would else be traced into the scheduler.
_wait_captured = getattr(torch, "_disable_dynamo", lambda call: call)(_wait_captured)


class _Spans:
    """Memory of tensors, to be asked whether other memory overlaps it."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = (each.untyped_storage() for each in tensors if _has_memory(each))
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self._lows = sorted(sizes)
        self._highs = [low + sizes[low] for low in self._lows]

    def __call__(self, address: int, size: int) -> bool:
        number = bisect_right(self._lows, address + size - 1) - 1
        return number >= 0 and self._highs[number] > address


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0


def portable(model: torch.nn.Module) -> Portable:
    """A model whose state has the names of the bare model, whatever wraps it or its parts: DDP,
    ``torch.compile``, FSDP of one rank, activation checkpointing. So a state that was saved from a
    wrapped model loads into a bare one, and the other way round::

        state = genesis.TrainState(model=portable(model), optimizer=optimizer)

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"portable takes a module of torch, not a {type(model).__name__}")
    return Portable(model)


class Portable:
    """What `portable` returns: it has ``state_dict`` and ``load_state_dict``, and nothing else."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The tensors of the model itself, not copies, by their bare names."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return dict(get_model_state_dict(_without_data_parallel(self._model)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a state into the model's tensors.

        Raises:
            RuntimeError: names or shapes differ, as `torch.nn.Module.load_state_dict`.
        """
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(_without_data_parallel(self._model), state_dict)


def _without_data_parallel(model: torch.nn.Module) -> torch.nn.Module:
    """The only wrapper that torch's functions leave in the names."""
    return model.module if isinstance(model, torch.nn.DataParallel) else model


publish(globals())
