"""torch.optim, under the name that a program written for genesis imports."""

from typing import TYPE_CHECKING

from . import _torch_module

if TYPE_CHECKING:
    from torch.optim import *  # noqa: F403

__getattr__, __dir__ = _torch_module.alias("optim")
