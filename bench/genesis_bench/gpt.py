"""A small GPT in plain torch, sized by the bytes of its checkpoint, and its training step.

It exists to make states and to keep the processor busy; it does not learn anything useful.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = 8
VOCABULARY = 8192
CONTEXT = 128
# Few, so that a step of a 1 GB state takes well under a second and a save spans several.
BATCH = 16
# Weight, first moment, second moment, in float32; AdamW's step counters are negligible.
BYTES_PER_PARAMETER = 12


class Block(nn.Module):
    """One transformer block: 12 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (
            part.view(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, 2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """8 blocks, two embeddings and a last norm: 100 parameters, 400 tensors with AdamW."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        # The head is the embedding itself and not a second name for it: safetensors refuses those.
        return functional.linear(self.norm(x), self.tokens.weight)


class Trainer:
    """A module with AdamW; after the first step its state dict is complete."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # The default goes through memory a dozen times a step, and a step would take seconds.
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
        self.steps = 0

    def prime(self) -> None:
        """Give AdamW its moments without a forward pass, and values that differ everywhere."""
        for parameter in self.module.parameters():
            parameter.grad = _noise(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """The dict that a training loop saves: new dicts, the live tensors."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.steps,
        }

    def step(self, guard: AbstractContextManager[Any] | None = None) -> None:
        """Forward, backward, and the update in place, which runs inside `guard`."""
        tokens = torch.randint(VOCABULARY, (1, BATCH))
        logits = self.module(tokens)
        functional.cross_entropy(logits.view(-1, VOCABULARY), tokens.view(-1)).backward()
        with guard or nullcontext():
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1


def gpt_of(nbytes: int) -> GPT:
    """A GPT whose checkpoint with AdamW has about `nbytes` bytes."""
    parameters = nbytes / BYTES_PER_PARAMETER
    # parameters = 12 * LAYERS * width^2 + (VOCABULARY + CONTEXT) * width, less the small ones
    square, linear = 12 * LAYERS, VOCABULARY + CONTEXT
    width = (math.sqrt(linear**2 + 4 * square * parameters) - linear) / (2 * square)
    heads = max(1, round(width / 64))
    with torch.device("meta"):
        module = GPT(max(heads, round(width / heads) * heads))
    return _materialise(module)


def _materialise(module: GPT) -> GPT:
    module.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.copy_(_noise(parameter) * 0.02)
    return module


def _noise(like: Tensor) -> Tensor:
    # One random block, repeated: drawing 8 GB of numbers would take longer than writing them.
    block = torch.randn(min(like.numel(), 1 << 20))
    repeats = -(-like.numel() // block.numel())
    return block.repeat(repeats)[: like.numel()].view(like.shape)
