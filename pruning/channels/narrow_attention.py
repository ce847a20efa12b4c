"""Attention of PyTorch's that takes or gives fewer channels than its heads have together."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """Attention whose heads are as they were, between fewer channels.

    `nn.MultiheadAttention` takes the number of channels of its input for that of its heads together, and cannot do
    this. Arguments, masks and results are the same.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        q, k, v = self._heads(query, key, value, batched)
        mask = _joint_mask(attn_mask, key_padding_mask, q, k)
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * sqrt(1 / self.head_dim) @ k.transpose(-1, -2)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropped) if dropped else weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropped)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor, batched: bool) -> list[Tensor]:
        """What the heads compare and mix, each (examples, heads, positions, channels of a head)."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if key is query and value is query:
            parts = F.linear(query, weight, bias).chunk(3, -1)
        else:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            parts = tuple(map(F.linear, (query, key, value), weight.chunk(3), biases))
        if not batched:
            parts = tuple(part.unsqueeze(0) for part in parts)
        elif not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        return [part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts]


def _joint_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores (examples, heads, queries, keys); None if nothing is."""
    mask = None
    if attn_mask is not None:
        mask = _added(attn_mask, q)
        if mask.dim() == 3:
            mask = mask.view(q.shape[0], -1, *mask.shape[1:])
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q).view(q.shape[0], 1, 1, k.shape[2])
        mask = padding if mask is None else mask + padding
    return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


def can_narrow(module: nn.MultiheadAttention) -> bool:
    """Whether the channels that it takes can go while its heads stay as they are."""
    if isinstance(module, NarrowMultiheadAttention):
        return True
    plain = type(module).forward is nn.MultiheadAttention.forward and module._qkv_same_embed_dim
    return plain and module.bias_k is None and not module.add_zero_attn


def narrow_(module: nn.MultiheadAttention) -> None:
    """Let it run on fewer channels than its heads have."""
    module.__class__ = NarrowMultiheadAttention
    module._qkv_same_embed_dim = False  # else the encoder layer around it computes attention itself
