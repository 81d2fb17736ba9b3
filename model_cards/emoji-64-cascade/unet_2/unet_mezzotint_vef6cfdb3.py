# Joined from unet_mezzotint.py, blocks_mezzotint.py, encoder_mezzotint.py
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The network: a U-Net that reads a noisy sample, its timestep and a text, and predicts what the scheduler's
`prediction_type` asks for.

Only the network lives here; noise levels, losses and guidance do not.

Shapes: B batch, C channels, *S the spatial axes ((W), (H, W) or (D, H, W) by `spatial_dims`) of the feature map,
N = prod(S) positions, L text tokens, D text channels, E time-embedding channels.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks import PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook

# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The parts that the networks are made of: patches, attention, the residual block, the linear skip, the unit of the U.

A shared file: where a network is saved, its file carries the text of this one in place of the import. It imports torch
and diffusers only, and nothing of ours.

Shapes: B batch, C channels, *S the spatial axes ((W), (H, W) or (D, H, W) by `spatial_dims`), N = prod(S) positions,
L text tokens, D text channels, E time-embedding channels, h heads, d channels of a head.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def space_to_depth(sample: torch.Tensor, patch_size: int | Sequence[int]) -> torch.Tensor:
    """Make one position of every patch of `patch_size` positions along each spatial axis, with a channel for each
    number in it: `torch.nn.functional.pixel_unshuffle` for any number of axes. The numbers stay as they are, so that
    white noise stays white, of the same variance: a patched network keeps the schedule and the targets of an unpatched
    one (simple diffusion, <https://huggingface.co/papers/2301.11093>, section 2.2).

    Args:
        sample (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): every spatial size a multiple of
            `patch_size`.
        patch_size (`int` or `(int, ...)`): positions of a patch along each axis, one number for all or one for each.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels * patch_size**axes, *spatial / patch_size)`.
    """
    axes = sample.ndim - 2
    sides = [patch_size] * axes if isinstance(patch_size, int) else list(patch_size)
    if set(sides) == {1}:
        return sample
    for axis in reversed(range(axes)):
        sample = sample.unflatten(2 + axis, (-1, sides[axis]))  # (B, C, H / p, p, W / p, p)
    positions, within = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return sample.permute(0, 1, *within, *positions).flatten(1, 1 + axes)  # (B, C p^axes, H / p, W / p)


def depth_to_space(sample: torch.Tensor, patch_size: int | Sequence[int]) -> torch.Tensor:
    """The inverse of `space_to_depth`, as `torch.nn.functional.pixel_shuffle` for any number of axes.

    Args:
        sample (`torch.Tensor` of shape `(batch_size, channels * patch_size**axes, *spatial)`): positions that hold a
            patch each.
        patch_size (`int` or `(int, ...)`): positions of a patch along each axis, one number for all or one for each.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, *spatial * patch_size)`.
    """
    axes = sample.ndim - 2
    sides = [patch_size] * axes if isinstance(patch_size, int) else list(patch_size)
    if set(sides) == {1}:
        return sample
    sample = sample.unflatten(1, (-1, *sides))  # (B, C, p, p, H / p, W / p)
    pairs = [axis for k in range(axes) for axis in (2 + axes + k, 2 + k)]
    sample = sample.permute(0, 1, *pairs)  # (B, C, H / p, p, W / p, p)
    for axis in range(2, 2 + axes):
        sample = sample.flatten(axis, axis + 1)
    return sample  # (B, C, H, W)


def cosine_basis(size: int) -> torch.Tensor:
    """The orthonormal cosine transform of `size` numbers (DCT-II), of shape (size, size): the lowest frequency is the
    first row."""
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    basis = torch.cos(math.pi / size * rows * (columns + 0.5)) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


def rotary_embedding(
    spatial: Sequence[int], head_dim: int, theta: float, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The angles by which self-attention turns the queries and keys of each position, so that what two positions are to
    each other depends on how far apart they are (RoFormer, <https://huggingface.co/papers/2104.09864>, eq. 15). The
    pairs of channels of a head are shared out among the axes, as evenly as can be.

    Args:
        spatial (`(int, ...)`): positions along each axis.
        head_dim (`int`): channels of a head, an even number.
        theta (`float`): what the slowest pair of an axis turns by is about `1 / theta` a position.
        device (`torch.device`, *optional*): where the result lies.

    Returns:
        cosines and sines, each `torch.Tensor` of shape `(prod(spatial), head_dim)` in float32.
    """
    axes, pairs, found = len(spatial), head_dim // 2, []
    for axis, size in enumerate(spatial):
        share = pairs * (axis + 1) // axes - pairs * axis // axes
        angles = get_1d_rotary_pos_embed(2 * share, torch.arange(size, device=device), theta, use_real=True)
        shape = [1] * axis + [size] + [1] * (axes - axis - 1) + [2 * share]
        found.append([x.reshape(shape).expand(*spatial, -1) for x in angles])
    cosines, sines = (torch.cat(parts, -1).flatten(0, axes - 1) for parts in zip(*found, strict=True))
    return cosines, sines


def zero_init(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero: a residual branch that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _linear(weight: torch.Tensor, trained: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=trained)
    return layer


class MezzotintDropout(nn.Dropout):
    """Dropout as torch's, with masks that a CPU draws four to a random number: torch draws them one by one, which took
    an eighth of a step. The probability is rounded to a multiple of 2^-16 there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fast = x.device.type == "cpu" and not torch.compiler.is_compiling() and 0 < self.p < 1
        if not self.training or not fast or not x.is_floating_point() or not _is_dense(x):
            return super().forward(x)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        dropped = round(self.p * 2**16)  # of so many values
        keep = numbers.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride()) >= dropped - 2**15
        return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


def _is_dense(x: torch.Tensor) -> bool:
    """Whether the numbers of `x` lie one after the other in its memory, in whatever order."""
    return x.is_contiguous() or (x.ndim > 2 and x.movedim(1, -1).is_contiguous())


class MezzotintAttnProcessor:
    """Scaled dot-product attention through diffusers' backend switch (native SDPA, flash, sage, flex, ...); with a
    mask, which most of them refuse, always by the native one."""

    _attention_backend = None
    _parallel_config = None
    takes_keys_values = True  # a processor without it is handed the text, to project itself

    def __call__(
        self,
        attn: "MezzotintAttention",
        hidden_states: torch.Tensor,  # (B, N, C)
        # (B, L, D), or its keys and values, (B, L, h, d) each; None is self-attention
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,  # (B, L) bool, True is attended to
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # (N, d) each, of self-attention
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.fused_projections and not attn.is_cross_attention:
            query, key, value = attn.to_qkv(hidden_states).unflatten(-1, (3, attn.heads, -1)).unbind(-3)
            query, key = attn.norm_q(query), attn.norm_k(key)  # (B, N, h, d)
        else:
            query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))  # (B, N, h, d)
            key, value = attn.keys_values(context) if isinstance(context, torch.Tensor) else context
        if rotary_emb is not None:
            query, key = (apply_rotary_emb(x, rotary_emb, sequence_dim=1) for x in (query, key))
        backend = self._attention_backend
        if attention_mask is not None:
            attention_mask, backend = attention_mask[:, None, None, :], AttentionBackendName.NATIVE  # (B, 1, 1, L)
        dtype, precision = query.dtype, nullcontext()
        if query.device.type == "cpu" and dtype == torch.bfloat16 and query.requires_grad:
            # A CPU is two to eight times as fast at torch's attention, with its backward pass, in float32
            query, key, value = query.float(), key.float(), value.float()
            precision = torch.autocast("cpu", enabled=False)
        with precision:
            hidden_states = dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=attention_mask,
                backend=backend,
                parallel_config=self._parallel_config,
            )  # (B, N, h, d)
        hidden_states = attn.to_out[0](hidden_states.flatten(2, 3).to(dtype))
        return attn.to_out[1](hidden_states)  # (B, N, C)


class MezzotintRMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` in the precision of its weight, with its output in that of its input. Under autocast the two
    differ, which torch's own warns of on a CPU; rounding the weight instead would lose small updates of values near 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class MezzotintAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with normalised queries and keys (<https://huggingface.co/papers/2302.05442>, section 2),
    which keeps the logits in range in half precision. Self-attention, or cross-attention if `context_dim` is given."""

    _default_processor_cls = MezzotintAttnProcessor
    _available_processors = [MezzotintAttnProcessor]

    def __init__(self, dim: int, head_dim: int, context_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.heads = dim // head_dim
        self.is_cross_attention = context_dim is not None
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.norm_q = MezzotintRMSNorm(head_dim, eps=1e-6)
        self.norm_k = MezzotintRMSNorm(head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([zero_init(nn.Linear(dim, dim)), MezzotintDropout(dropout)])
        self.set_processor(MezzotintAttnProcessor())

    def keys_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of `context` (B, L, D), each (B, L, h, d)."""
        if self.fused_projections:
            key, value = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        else:
            key, value = (layer(context).unflatten(-1, (self.heads, -1)) for layer in (self.to_k, self.to_v))
        return self.norm_k(key), value

    def fuse_projections(self) -> None:
        """Make one layer, `to_qkv`, of the projections in self-attention, and one, `to_kv`, of those of the text in
        cross-attention: fewer and larger multiplications. The layers that it is made of are gone until
        `unfuse_projections`.

        Raises:
            ValueError: for layers that cannot be joined: those with adapters, quantized ones.
        """
        if self.fused_projections:
            return
        letters = "kv" if self.is_cross_attention else "qkv"
        layers = [getattr(self, f"to_{x}") for x in letters]
        if odd := [type(x).__name__ for x in layers if type(x) is not nn.Linear]:
            raise ValueError(f"projections can be fused where they are plain linear layers: got {odd[0]}")
        trained = any(x.weight.requires_grad for x in layers)
        setattr(self, f"to_{letters}", _linear(torch.cat([x.weight.detach() for x in layers]), trained))
        for x in letters:
            setattr(self, f"to_{x}", None)
        self.fused_projections = True

    def unfuse_projections(self) -> None:
        """The inverse of `fuse_projections`, bit for bit."""
        if not self.fused_projections:
            return
        letters = "kv" if self.is_cross_attention else "qkv"
        fused = getattr(self, f"to_{letters}")
        if type(fused) is not nn.Linear:
            raise ValueError(f"projections can be told apart in a plain linear layer: got {type(fused).__name__}")
        for x, weight in zip(letters, fused.weight.detach().chunk(len(letters)), strict=True):
            setattr(self, f"to_{x}", _linear(weight.clone(), fused.weight.requires_grad))
        delattr(self, f"to_{letters}")
        self.fused_projections = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        rotary = () if rotary_emb is None else (rotary_emb,)  # a processor of the user's need not know of it
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, *rotary)


class MezzotintTransformerLayer(nn.Module):
    """Self-attention over positions, cross-attention to the text, a feed-forward: each a pre-normed residual."""

    def __init__(self, dim: int, head_dim: int, cross_attention_dim: int | None, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = MezzotintAttention(dim, head_dim, dropout=dropout)
        if cross_attention_dim is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.attn2 = MezzotintAttention(dim, head_dim, cross_attention_dim, dropout=dropout)
        else:
            self.attn2 = None
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, mult=2, dropout=dropout, activation_fn="gelu-approximate")
        self.ff.net[1] = MezzotintDropout(dropout)
        zero_init(self.ff.net[-1])

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, N, C)
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
        encoder_attention_mask: torch.Tensor | None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        rotary = {} if rotary_emb is None else {"rotary_emb": rotary_emb}  # what stands in for it need not know of it
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states), **rotary)
        if self.attn2 is not None:
            hidden_states = hidden_states + self.attn2(
                self.norm2(hidden_states), encoder_hidden_states, encoder_attention_mask
            )
        return hidden_states + self.ff(self.norm3(hidden_states))


# So that diffusers' guiders can skip these layers or perturb their attention. The registries are not public: where they
# are gone such a guider says that it does not know the classes
with suppress(ImportError):
    from diffusers.hooks import _helpers

    _helpers.TransformerBlockRegistry.register(
        MezzotintTransformerLayer, _helpers.TransformerBlockMetadata(return_hidden_states_index=0)
    )
    _helpers.AttentionProcessorRegistry.register(
        MezzotintAttnProcessor,
        _helpers.AttentionProcessorMetadata(skip_processor_output_fn=lambda attn, hidden_states, *rest: hidden_states),
    )


class MezzotintResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the embedding scales and shifts between them (ADM,
    <https://huggingface.co/papers/2105.05233>, section 3, "adaptive group normalization")."""

    def __init__(
        self, conv: type[nn.Module], in_dim: int, out_dim: int, embed_dim: int, groups: int, eps: float, dropout: float
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_dim, eps=eps)
        self.conv1 = conv(in_dim, out_dim, 3, padding=1)
        self.embedding_proj = nn.Linear(embed_dim, 2 * out_dim)
        self.norm2 = nn.GroupNorm(groups, out_dim, eps=eps)
        self.dropout = MezzotintDropout(dropout)
        self.conv2 = zero_init(conv(out_dim, out_dim, 3, padding=1))
        self.shortcut = conv(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_states)))  # (B, C, *S)
        scale, shift = self.embedding_proj(F.silu(embedding)).chunk(2, dim=1)  # (B, C) each
        scale, shift = (x.reshape(*x.shape, *[1] * (residual.ndim - 2)) for x in (scale, shift))  # (B, C, 1, ...)
        residual = F.silu(self.norm2(residual) * (1 + scale) + shift)
        return self.shortcut(hidden_states) + self.conv2(self.dropout(residual))


class MezzotintLinearSkip(nn.Module):
    """The part of a prediction that goes from the noisy sample past all other layers: blocks of `block_size` positions
    along each axis in a cosine basis, each coefficient times a gain, and back. The gain is a number for the noise level
    and one that the network's last features add to it at each block.

    Of Gaussian data whose coefficients are independent this can be the whole prediction, a Wiener filter: for
    velocities the gain of a coefficient with variance l is `alpha sigma (1 - l) / (alpha^2 l + sigma^2)`. Pictures are
    not Gaussian, but at most noise levels much of what a denoiser does is this
    (<https://huggingface.co/papers/2311.10892>), and where a picture is flat its l is another than where it is not. One
    gain for all would be EDM's c_skip (<https://huggingface.co/papers/2206.00364>, eq. 7). Gains start at zero; all is
    trained.

    Args:
        conv: the kind of convolution, which says how many spatial axes there are.
        in_channels, out_channels: of the sample, with what is given beside it, and of the prediction.
        block_size: positions of a block along each axis.
        embed_dim: channels of the embedding.
        hidden_dim: channels of the last features.
        hidden_size: positions of the sample, along each axis, that one of their positions stands for; divisors of
            `block_size`.
    """

    def __init__(
        self,
        conv: type[nn.Module],
        in_channels: int,
        out_channels: int,
        block_size: tuple[int, ...],
        embed_dim: int,
        hidden_dim: int,
        hidden_size: tuple[int, ...],
    ):
        super().__init__()
        self.block_size = block_size
        cosines = torch.ones(1, 1)
        for side in block_size:
            cosines = torch.kron(cosines, cosine_basis(side))  # (p^axes, p^axes)
        # Of RGB: about the luma, and two of chroma; of a picture beside the sample likewise, on the same channels
        sizes = [min(out_channels, in_channels - first) for first in range(0, in_channels, out_channels)]
        colours = torch.block_diag(*map(cosine_basis, sizes))
        channels = torch.cat([torch.eye(out_channels, size) for size in sizes], dim=1)
        analysis = torch.kron(colours, cosines)
        synthesis = torch.kron(channels @ colours.T, cosines.T.contiguous())
        dim, stride = len(analysis), tuple(x // y for x, y in zip(block_size, hidden_size, strict=True))
        self.analysis = conv(dim, dim, 1, bias=False)
        self.gain = zero_init(nn.Linear(embed_dim, dim))
        self.local_gain = zero_init(conv(hidden_dim, dim, stride, stride=stride))
        self.synthesis = conv(dim, len(synthesis), 1, bias=False)
        with torch.no_grad():
            self.analysis.weight.copy_(analysis.view(self.analysis.weight.shape))
            self.synthesis.weight.copy_(synthesis.view(self.synthesis.weight.shape))

    def forward(self, sample: torch.Tensor, embedding: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        gain = self.gain(F.silu(embedding))  # (B, C p^axes)
        gain = gain.reshape(*gain.shape, *[1] * (sample.ndim - 2)) + self.local_gain(hidden_states)
        coefficients = self.analysis(space_to_depth(sample, self.block_size))  # (B, C p^axes, *S / p)
        return depth_to_space(self.synthesis(coefficients * gain), self.block_size)  # (B, C, *S)


class MezzotintBlock(nn.Module):
    """One unit of the U: a residual block and transformer layers at `dim` channels. `downsample_from` channels come in
    at `stride` times the resolution, `upsample_to` channels leave at that, where given."""

    def __init__(
        self,
        conv: type[nn.Module],
        in_dim: int,
        dim: int,
        embed_dim: int,
        transformer_layers: int,
        head_dim: int,
        cross_attention_dim: int | None,
        groups: int,
        eps: float,
        dropout: float,
        stride: tuple[int, ...],
        downsample_from: int | None = None,
        upsample_to: int | None = None,
        rope_theta: float | None = None,
    ):
        super().__init__()
        self.head_dim, self.rope_theta = head_dim, rope_theta
        self.scale_factor = [float(x) for x in stride]
        self.downsample = conv(downsample_from, in_dim, 3, stride=stride, padding=1) if downsample_from else None
        self.residual = MezzotintResidualBlock(conv, in_dim, dim, embed_dim, groups, eps, dropout)
        self.transformer_layers = nn.ModuleList(
            MezzotintTransformerLayer(dim, head_dim, cross_attention_dim, dropout) for _ in range(transformer_layers)
        )
        self.upsample = conv(dim, upsample_to, 3, padding=1) if upsample_to else None

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, C, *S)
        embedding: torch.Tensor,  # (B, E)
        contexts: tuple[Any, ...] | None = None,  # for each layer: (B, L, D), or keys and values
        encoder_attention_mask: torch.Tensor | None = None,  # (B, L)
    ) -> torch.Tensor:
        if self.downsample is not None:
            hidden_states = self.downsample(hidden_states)
        hidden_states = self.residual(hidden_states, embedding)
        if len(self.transformer_layers) > 0:
            spatial = hidden_states.shape[2:]
            rotary_emb = None
            if self.rope_theta is not None:
                rotary_emb = rotary_embedding(spatial, self.head_dim, self.rope_theta, hidden_states.device)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, N, C)
            for i, layer in enumerate(self.transformer_layers):
                hidden_states = layer(hidden_states, contexts and contexts[i], encoder_attention_mask, rotary_emb)
            hidden_states = hidden_states.transpose(1, 2).unflatten(2, spatial)  # (B, C, *S)
        if self.upsample is not None:
            hidden_states = self.upsample(F.interpolate(hidden_states, scale_factor=self.scale_factor, mode="nearest"))
        return hidden_states
# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Parts that all networks share as models: a config that is checked, the encoder that is made from it, and weights
that are written and read strictly.

A shared file: where a network is saved, its file carries the text of this one in place of the import.
"""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME
from diffusers.utils.hub_utils import _add_variant


# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# The whole numbers in a config: what stands there (one, a list of them, nothing), the least and the most that each may
# be. What is beyond is a slip that would fill any memory
WHOLE_NUMBERS = {
    "spatial_dims": ("one", 1, 3),
    "sample_size": ("one, list or none", 1, 2**16),
    "in_channels": ("one", 1, 2**16),
    "out_channels": ("one", 1, 2**16),
    "block_out_channels": ("list", 1, 2**16),
    "layers_per_block": ("one", 1, 2**10),
    "transformer_layers_per_block": ("list", 0, 2**10),
    "attention_head_dim": ("one", 1, 2**16),
    "cross_attention_dim": ("one or none", 1, 2**16),
    "time_embed_dim": ("one or none", 1, 2**18),
    "norm_num_groups": ("one", 1, 2**16),
    "augment_dim": ("one or none", 1, 2**16),
    "num_classes": ("one", 2, 2**20),
    "patch_size": ("one", 1, 2**10),
    "linear_skip_size": ("one or none", 1, 2**10),
}


def downsample_factor(block_out_channels: Sequence[int], patch_size: int = 1) -> int:
    """The number of which every spatial size of a sample must be a multiple: a patch becomes one position, and each
    level after the first halves the number of positions along every axis."""
    return patch_size * 2 ** (len(block_out_channels) - 1)


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    )  # what tensors take; no NaN


class MezzotintEncoderMixin(ModelMixin, ConfigMixin):
    """The part that the U-Net and the classifier share: the layers down to the middle of the U, made from the config,
    and weights that are written and read strictly."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MezzotintBlock"]
    _repeated_blocks = ["MezzotintTransformerLayer"]  # of which the shapes alone differ: one graph each
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "conv_in", "conv_out", "linear_skip"]

    def _add_encoder(self) -> tuple[list[tuple[int, int, int | None]], dict[str, Any]]:
        """Add the conditioning, the encoder and the middle, as `self.config` says.

        Returns:
            the encoder's units as (channels, transformer layers, the level above's channels where it changes the
            resolution), and the arguments that all units have in common.

        Raises:
            ValueError: for settings that do not fit together; the message names the rule.
        """
        config = self.config
        sample_size, spatial_dims, norm_num_groups = config.sample_size, config.spatial_dims, config.norm_num_groups
        widths, depths = config.block_out_channels, config.transformer_layers_per_block
        for name, (kinds, least, most) in WHOLE_NUMBERS.items():
            if name not in config:
                continue
            value = config[name]
            kind = "none" if value is None else "list" if isinstance(value, (list, tuple)) and value else "one"
            numbers = {"none": (), "list": value, "one": (value,)}[kind]
            if kind not in kinds or any(type(x) is not int or not least <= x <= most for x in numbers):
                what = "a list of whole numbers" if kinds == "list" else "a whole number"
                raise ValueError(f"{name} must be {what} from {least} to {most}: got {reprlib.repr(value)}")
        if isinstance(sample_size, (list, tuple)) and len(sample_size) != spatial_dims:
            raise ValueError(f"sample_size needs one entry, or one for each of {spatial_dims} axes: got {sample_size}")
        if len(depths) != len(widths):
            raise ValueError(
                "transformer_layers_per_block needs one entry for each of block_out_channels: got "
                f"{len(depths)} for {len(widths)}"
            )
        axes = config.get("downsample_axes")
        if axes is not None and not (
            isinstance(axes, (list, tuple))
            and all(type(x) is int and 0 <= x < spatial_dims for x in axes)
            and 0 < len(axes) == len(set(axes))
        ):
            raise ValueError(
                f"downsample_axes must be different numbers from 0 to {spatial_dims - 1}, one or more: got "
                f"{reprlib.repr(axes)}"
            )
        for channels, layers in zip(widths, depths, strict=True):
            if channels % norm_num_groups or (layers and channels % config.attention_head_dim):
                raise ValueError(
                    f"block_out_channels must be multiples of norm_num_groups ({norm_num_groups}) and, where there is "
                    f"attention, of attention_head_dim ({config.attention_head_dim}): got {channels}"
                )
        for name in ("sample_mean", "sample_std"):
            values = config[name]
            if not isinstance(values, (list, tuple)) or not all(map(_is_finite, values)):
                raise ValueError(f"{name} must be a list of finite numbers: got {reprlib.repr(values)}")
            channels = "out_channels" if "out_channels" in config else "in_channels"  # of which the data have as many
            if len(values) not in (1, config[channels]):
                raise ValueError(f"{name} needs 1 or {channels} ({config[channels]}) values: got {len(values)}")
        std = torch.tensor(config.sample_std, device="cpu")  # as it will be read, in float32
        if std.min() <= 0 or std.max() > 1e6:
            raise ValueError(f"sample_std must be positive and at most 1e6: got {tuple(config.sample_std)}")
        if not _is_finite(config.norm_eps) or config.norm_eps <= 0:
            raise ValueError(f"norm_eps must be a positive number: got {config.norm_eps!r}")
        if not _is_finite(config.dropout) or not 0 <= config.dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1]: got {config.dropout!r}")
        theta = config.get("rope_theta")
        if theta is not None and not (_is_finite(theta) and theta > 0):
            raise ValueError(f"rope_theta must be a positive number, or none: got {theta!r}")
        head_dim = config.attention_head_dim
        if theta is not None and any(depths) and (head_dim % 2 or head_dim < 2 * spatial_dims):
            raise ValueError(
                f"with rope_theta, attention_head_dim must be even and {2 * spatial_dims} or more, a pair of channels "
                f"for each axis: got {head_dim}"
            )

        skip, factor = config.get("linear_skip_size"), self.downsample_factor
        if skip is not None and (factor % skip or skip % config.patch_size):
            raise ValueError(
                f"linear_skip_size must be a multiple of patch_size ({config.patch_size}) and divide {factor}, which "
                f"sizes are multiples of: got {skip}"
            )

        conv, first = CONV[spatial_dims], widths[0]
        embed_dim = config.time_embed_dim or 4 * first
        cross_attention_dim = config.get("cross_attention_dim")

        # Conditioning: the timestep, with what was done to the picture, and the mean of the text's hidden states
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, embed_dim, cond_proj_dim=config.get("augment_dim"))
        if cross_attention_dim is not None:
            self.encoder_norm = nn.LayerNorm(cross_attention_dim)
            self.encoder_embedding = nn.Linear(cross_attention_dim, embed_dim)

        # Encoder: `layers_per_block` units a level, the first of each lower level halves the resolution
        common = {
            "embed_dim": embed_dim,
            "head_dim": config.attention_head_dim,
            "cross_attention_dim": cross_attention_dim,
            "groups": norm_num_groups,
            "eps": config.norm_eps,
            "dropout": config.dropout,
            "stride": self._along_axes(2),
            "rope_theta": config.get("rope_theta"),
        }
        units = []
        for level, (dim, layers) in enumerate(zip(widths, depths, strict=True)):
            for index in range(config.layers_per_block):
                units.append((dim, layers, widths[level - 1] if level > 0 and index == 0 else None))
        self.conv_in = conv(config.in_channels * math.prod(self.patch_sizes), first, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            MezzotintBlock(conv, dim, dim, transformer_layers=layers, downsample_from=above, **common)
            for dim, layers, above in units
        )
        self.mid_block = MezzotintBlock(conv, widths[-1], widths[-1], transformer_layers=depths[-1], **common)
        self.gradient_checkpointing = False
        return units, common

    def _along_axes(self, size: int) -> tuple[int, ...]:
        """`size` for each spatial axis of `downsample_axes`, and 1 for the others."""
        axes = self.config.get("downsample_axes")
        return tuple(size if axes is None or axis in axes else 1 for axis in range(self.config.spatial_dims))

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """Positions of a patch along each spatial axis."""
        return self._along_axes(self.config.patch_size)

    @property
    def downsample_factor(self) -> int:
        """The number of which the spatial sizes of a sample must be multiples, along the axes that are halved."""
        return downsample_factor(self.config.block_out_channels, self.config.patch_size)

    @property
    def downsample_factors(self) -> tuple[int, ...]:
        """The number of which the size of a sample must be a multiple, for each spatial axis."""
        return self._along_axes(self.downsample_factor)

    def _check_sample(self, sample: torch.Tensor) -> None:
        config, factors = self.config, self.downsample_factors
        if sample.ndim != config.spatial_dims + 2 or sample.shape[1] != config.in_channels:
            raise ValueError(
                f"sample must have {config.spatial_dims + 2} axes and {config.in_channels} channels: "
                f"got shape {tuple(sample.shape)}"
            )
        if any(size % factor for size, factor in zip(sample.shape[2:], factors, strict=True)):
            said = factors[0] if len(set(factors)) == 1 else factors
            raise ValueError(f"spatial sizes must be multiples of {said}: got {tuple(sample.shape[2:])}")

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        *args,
        **kwargs,
    ) -> None:
        """Cast as diffusers does, and keep the weights that are too delicate for `storage_dtype` in `compute_dtype`, by
        default the model's own."""
        compute_dtype = compute_dtype or self.dtype
        super().enable_layerwise_casting(storage_dtype, compute_dtype, *args, **kwargs)
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor.dtype != storage_dtype and tensor.is_floating_point():
                tensor.data = tensor.data.to(compute_dtype)

    def _run(self, block: nn.Module, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load as diffusers does, but from safetensors only, and every weight must be there and have its place.

        Raises:
            ValueError: in one line, for a checkpoint that is damaged, or has missing or surplus weights.
            OSError: in one line, for files that are not there.
            ImportError: in one line, for a package that a quantized checkpoint needs.
        """
        with_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the libraries make of a damaged file, or lack for a quantized one
            kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
            line = " ".join(str(error).split())
            raise kind(f"{pretrained_model_name_or_path} cannot be loaded: {line}") from error
        model, info = loaded
        for kind in ("missing", "unexpected"):
            if keys := sorted(info[f"{kind}_keys"]):
                raise ValueError(
                    f"the weights in {pretrained_model_name_or_path} must be those of its config: {len(keys)} {kind} "
                    f"({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
                )
        return (model, info) if with_info else model

    # The signature is diffusers': a pipeline reads from it what may be passed
    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        save_function=None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs,
    ) -> None:
        """Save as diffusers does, but as safetensors whatever `safe_serialization` says: nothing is pickled.

        Raises:
            ValueError: with fused projections, which would be other weights than those of the config.
        """
        if any(getattr(module, "fused_projections", False) for module in self.modules()):
            raise ValueError("projections must be saved one by one: call unfuse_qkv_projections() before")
        super().save_pretrained(
            save_directory, is_main_process, save_function, True, variant, max_shard_size, push_to_hub, use_flashpack,
            **kwargs,
        )  # fmt: skip
        index = Path(save_directory, _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant))
        if is_main_process and index.is_file():  # diffusers leaves one of files that it has removed
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if not all((index.parent / name).is_file() for name in names):
                index.unlink()
        if (config := Path(save_directory) / self.config_name).is_file():
            for path in config.parent.glob("*.safetensors"):  # which are written for their owner's eyes only
                path.chmod(config.stat().st_mode)

    @classmethod
    def _dict_from_json_file(cls, json_file):
        try:
            config = super()._dict_from_json_file(json_file)
        except RecursionError:
            raise ValueError(f"{json_file} must hold a JSON object: got one that is nested too deeply") from None
        if not isinstance(config, dict):  # diffusers would fetch the repository of which a text is the name
            raise ValueError(f"{json_file} must hold a JSON object: got {reprlib.repr(config)}")
        return config

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # A checkpoint's config names its source file for diffusers' AutoModel; that is no argument of the model
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


@dataclass
class MezzotintUNetOutput(BaseOutput):
    """
    Args:
        sample (`torch.Tensor` of shape `(batch_size, out_channels, *spatial)`): the prediction.
    """

    sample: torch.Tensor


class MezzotintText(NamedTuple):
    """A text as the network reads it, made by `MezzotintUNetModel.project_text`: all that depends on neither the sample
    nor the timestep, and need not be computed again at every step of a call.

    Args:
        embedding (`torch.Tensor` of shape `(batch_size, time_embed_dim)`): of its mean, for the residual blocks.
        contexts: for each block in the order of `forward`, for each of its transformer layers, the keys and values of
            its cross-attention, both of shape `(batch_size, tokens, heads, head_dim)`; or the normed text itself, of
            shape `(batch_size, tokens, cross_attention_dim)`, where they are still to be projected.
        mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): bool, true where there is text.
    """

    embedding: torch.Tensor
    contexts: tuple[tuple[Any, ...], ...]
    mask: torch.Tensor | None


class MezzotintUNetModel(MezzotintEncoderMixin, ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """
    A U-Net (<https://huggingface.co/papers/1505.04597>, after <https://huggingface.co/papers/2006.11239>) whose decoder
    mirrors its encoder unit for unit, conditioned on the timestep and on text.

    Args:
        sample_size (`int` or `(int, ...)`, *optional*): the size trained at, the pipeline's default: one number, or one
            for each spatial axis.
        in_channels (`int`): channels of the input: the noisy sample's, and those of what is known beside it.
        out_channels (`int`): channels of the noisy sample and of the prediction.
        spatial_dims (`1`, `2` or `3`): how many spatial axes a sample has.
        block_out_channels (tuple of `int`): channels at each level, full resolution first; each level halves it.
        layers_per_block (`int`): units at each level, down and up alike.
        transformer_layers_per_block (tuple of `int`): transformer layers in each unit of each level; 0 is none there.
        attention_head_dim (`int`): channels of one attention head.
        cross_attention_dim (`int`, *optional*): channels of the text's hidden states; `None` is no text.
        time_embed_dim (`int`, *optional*): channels of the time embedding; by default four times the first level's.
        norm_num_groups (`int`): groups of each group norm.
        norm_eps (`float`): its epsilon.
        dropout (`float`): probability, in residual blocks and transformer layers.
        sample_mean (tuple of `float`): mean of the training data, for each channel or one for all, in the units of the
            pipeline's images ([-1, 1]). The network sees `(data - sample_mean) / sample_std`, of unit variance.
        sample_std (tuple of `float`): standard deviation, likewise.
        augment_dim (`int`, *optional*): numbers that say how a picture was changed (EDM,
            <https://huggingface.co/papers/2206.00364>, appendix F.2); `None` is no such input.
        patch_size (`int`): positions of the sample, along each axis, that the first level holds as channels of one
            position (`space_to_depth`, before the first convolution; `depth_to_space` after the last): much cheaper at
            high resolution, where neighbours say nearly the same. In- and outputs keep their shapes.
        linear_skip_size (`int`, *optional*): positions, along each axis, of the blocks in which the sample goes past
            the network, coefficient by coefficient (`MezzotintLinearSkip`); a multiple of `patch_size` and a divisor of
            `downsample_factor`. The other layers are left with what a filter cannot do, which makes them learn much
            sooner. `None` is no such path.
        condition (`dict`, *optional*): what the channels beyond `out_channels` hold, for the pipelines: `task`, the one
            that the network is trained for (`"inpaint"`, `"upscale"` with its `scale`, `"segment"` and `"layout"` with
            their `num_classes`). They are a picture or a map of classes, and last a channel that says how little is
            known of it, from 0 to 1. `"unclip"` has no such channels: its text is a picture's embedding, of which
            `embeds_mean` and `embeds_std` are the scale, made of pixels of the scale `image_mean`, `image_std`.
        attributes (`dict`, *optional*): what is said of a picture beside its text, by name: a list of classes, or mean
            and standard deviation of a number.
        modality (`dict`, *optional*): what a sample is, for the pipelines, where it is no picture: its `name`
            (`"audio"`, ...), and what is to be known of all samples, such as their `sampling_rate`.
        downsample_axes (tuple of `int`, *optional*): the spatial axes, counted from 0, along which levels halve the
            resolution and patches and blocks have more than one position: `(1, 2)` leaves the first, the time of a
            video, as it is. `None` is all.
        rope_theta (`float`, *optional*): base of the rotary positional embeddings of self-attention
            (`rotary_embedding`), 10,000 in most networks. `None` is none: then attention knows of positions what the
            convolutions tell it, which is enough for pictures and little for the symbols of a sequence.

    Raises:
        ValueError: for settings that do not fit together; the message names the rule.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, ...] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        spatial_dims: int = 2,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        transformer_layers_per_block: tuple[int, ...] = (0, 1, 1),
        attention_head_dim: int = 32,
        cross_attention_dim: int | None = None,
        time_embed_dim: int | None = None,
        norm_num_groups: int = 16,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        sample_mean: tuple[float, ...] = (0.0,),
        sample_std: tuple[float, ...] = (1.0,),
        augment_dim: int | None = None,
        patch_size: int = 1,
        linear_skip_size: int | None = None,
        condition: dict[str, Any] | None = None,
        attributes: dict[str, list[Any]] | None = None,
        modality: dict[str, Any] | None = None,
        downsample_axes: tuple[int, ...] | None = None,
        rope_theta: float | None = None,
    ):
        super().__init__()
        if modality is not None and not (isinstance(modality, dict) and isinstance(modality.get("name"), str)):
            raise ValueError(f"modality must say what a sample is, {{'name': name}}: got {modality!r}")
        for name, about in (attributes or {}).items():
            classes = isinstance(about, (list, tuple)) and len(set(about)) == len(about) > 1
            if not (classes and all(isinstance(x, str) for x in about)) and not (
                isinstance(about, (list, tuple)) and len(about) == 2 and all(map(_is_finite, about)) and about[1] > 0
            ):
                raise ValueError(
                    f"attributes must be lists of classes, or mean and standard deviation: got {about!r} for {name!r}"
                )
        if condition is not None and not (isinstance(condition, dict) and isinstance(condition.get("task"), str)):
            raise ValueError(f"condition must name the task, {{'task': name}}: got {condition!r}")
        beside = condition is not None and condition["task"] != "unclip"  # which reads an embedding in place of a text
        if beside and in_channels < out_channels + 2:
            raise ValueError(
                "with a condition, in_channels must be out_channels, those of a picture, and one more: got "
                f"{in_channels} and out_channels {out_channels}"
            )
        units, common = self._add_encoder()

        # Decoder: the encoder's units in reverse, each reading its twin's output too
        conv, first = CONV[spatial_dims], block_out_channels[0]
        self.up_blocks = nn.ModuleList(
            MezzotintBlock(conv, 2 * dim, dim, transformer_layers=layers, upsample_to=above, **common)
            for dim, layers, above in reversed(units)
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
        self.conv_out = zero_init(conv(first, out_channels * math.prod(self.patch_sizes), 3, padding=1))
        self.attribute_embedding = None
        if attributes:
            width, embed_dim = sum(map(len, attributes.values())), self.time_embedding.linear_2.out_features
            self.attribute_embedding = nn.Sequential(
                nn.Linear(width, embed_dim), nn.SiLU(), zero_init(nn.Linear(embed_dim, embed_dim))
            )
        self.linear_skip = None
        if linear_skip_size is not None:
            embed_dim = self.time_embedding.linear_2.out_features
            self.linear_skip = MezzotintLinearSkip(
                conv, in_channels, out_channels, self._along_axes(linear_skip_size), embed_dim, first, self.patch_sizes
            )

    @apply_forward_hook  # of diffusers' offloading by models
    @apply_lora_scale("cross_attention_kwargs")
    def project_text(
        self,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> MezzotintText | None:
        """Project a text once for many calls of `forward`, which takes the result in place of the text and gives the
        same bits: the text's embedding, and the keys and values of every cross-attention as the weights and adapters
        are now.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, cross_attention_dim)`): the text.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): as of `forward`.
            cross_attention_kwargs (`dict`, *optional*): as of `forward`, which is to be given the same.

        Returns:
            `None` where the weights can be had in `forward` alone: sharded, or offloaded layer by layer.

        Raises:
            ValueError: for a shape that the network cannot take, or where it has no text.
        """
        self._check_text(encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs)
        layers = [block.transformer_layers for block in self._blocks()]
        attentions = [layer.attn2 for row in layers for layer in row]
        readers = [self.encoder_norm, self.encoder_embedding, *attentions]
        weights = [weight for reader in readers for weight in reader.parameters()]
        elsewhere = any(type(x) is not nn.Parameter or x.device != encoder_hidden_states.device for x in weights)
        if elsewhere or self._hooks() > 0:
            return None
        text = self._read_text(encoder_hidden_states, encoder_attention_mask)
        chosen = any(getattr(x.processor, "_attention_backend", None) for x in attentions)
        if chosen and text.mask is not None and text.mask.all():  # few of the backends to choose from take a mask
            text = text._replace(mask=None)
        contexts = []
        for row, normed in zip(layers, text.contexts, strict=True):
            pairs = [(layer.attn2, context) for layer, context in zip(row, normed, strict=True)]
            contexts.append(
                tuple(x.keys_values(y) if getattr(x.processor, "takes_keys_values", False) else y for x, y in pairs)
            )
        return text._replace(contexts=tuple(contexts))

    def _read_text(self, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None) -> MezzotintText:
        encoder_hidden_states = self.encoder_norm(encoder_hidden_states)  # (B, L, D)
        if mask is None:
            pooled = encoder_hidden_states.mean(dim=1)  # (B, D)
        else:
            mask = mask.bool()
            weight = mask.to(encoder_hidden_states.dtype)[..., None]  # (B, L, 1)
            pooled = (encoder_hidden_states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # (B, D)
        contexts = tuple((encoder_hidden_states,) * len(block.transformer_layers) for block in self._blocks())
        return MezzotintText(self.encoder_embedding(pooled), contexts, mask)

    def _check_text(
        self,
        text: torch.Tensor | MezzotintText | None,
        mask: torch.Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        batch_size: int | None = None,
    ) -> None:
        channels = self.config.cross_attention_dim
        if (text is None) != (channels is None):
            raise ValueError(
                f"encoder_hidden_states must be given exactly when the model has a cross_attention_dim: got "
                f"{'none' if text is None else 'some'}, cross_attention_dim is {channels}"
            )
        if isinstance(text, torch.Tensor):
            if text.ndim != 3 or text.shape[2] != channels or batch_size not in (None, text.shape[0]):
                raise ValueError(
                    f"encoder_hidden_states must have shape ({batch_size or 'batch_size'}, tokens, {channels}): got "
                    f"{tuple(text.shape)}"
                )
            if mask is not None and mask.shape != text.shape[:2]:
                raise ValueError(
                    f"encoder_attention_mask must have shape {tuple(text.shape[:2])}, one entry for each token: got "
                    f"{tuple(mask.shape)}"
                )
        elif text is not None and batch_size not in (None, len(text.embedding)):
            raise ValueError(
                f"the text must have one entry for each of {batch_size} samples: got {len(text.embedding)}"
            )
        if cross_attention_kwargs:  # of which the scale has been taken
            raise ValueError(f"cross_attention_kwargs may hold 'scale' alone: got {sorted(cross_attention_kwargs)}")

    def _hooks(self) -> int:
        """The number of hooks of diffusers (offloading, casting, caches) on the layers."""
        return sum(len(x._diffusers_hook.hooks) for x in self.modules() if hasattr(x, "_diffusers_hook"))

    def enable_cache(self, config: PyramidAttentionBroadcastConfig | TaylorSeerCacheConfig) -> None:
        """Keep what layers give from step to step, as diffusers' method of that name. Two ways suit a U-Net: pyramid
        attention broadcast (<https://huggingface.co/papers/2408.12588>) and TaylorSeer
        (<https://huggingface.co/papers/2503.06923>), which is of the attention unless its settings name other layers.

        Raises:
            ValueError: for settings that name no layer, and for diffusers' other caches: they skip all but the first of
                a row of equal blocks, which a U-Net is not, or belong to one network.
        """
        if not isinstance(config, (PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig)):
            raise ValueError(
                "a U-Net can keep features by PyramidAttentionBroadcastConfig or TaylorSeerCacheConfig: got "
                f"{type(config).__name__}"
            )
        if isinstance(config, TaylorSeerCacheConfig):
            if config.use_lite_mode:  # of the whole network what its last layer gives
                names = {"skip_predict_identifiers": [r"(down|up)_blocks\.\d+", "mid_block"]}
                config = replace(config, use_lite_mode=False, cache_identifiers=["conv_out"], **names)
            elif not (config.cache_identifiers or config.skip_predict_identifiers):
                config = replace(config, cache_identifiers=[r".*\.attn[12]"])
        before = self._hooks()
        super().enable_cache(config)
        if self._hooks() == before:
            self.disable_cache()
            raise ValueError("the settings of a cache must name layers of the network: got none that is there")

    def _blocks(self) -> list[Any]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | MezzotintText | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        attributes: torch.Tensor | None = None,
    ) -> MezzotintUNetOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): the noisy sample, normalised, and
                after its channels those of the condition, where the network reads one. Every spatial size
                a multiple of `downsample_factor`, which is `patch_size * 2 ** (levels - 1)`.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, cross_attention_dim)`): the text, or
                what `project_text` made of it and of its mask.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): bool or 0/1, 1 where
                there is text and 0 where there is padding.
            augment_labels (`torch.Tensor` of shape `(batch_size, augment_dim)`, *optional*): how each picture was
                changed; zeros, or none at all, are an unchanged one.
            cross_attention_kwargs (`dict`, *optional*): `{"scale": number}` weighs the adapters in this call.
            return_dict (`bool`): whether a `MezzotintUNetOutput` or a tuple comes back.
            attributes (`torch.Tensor` of shape `(batch_size, features)`, *optional*): as `attribute_vector` makes them
                of the config's `attributes`; zeros, or none at all, are those of which nothing is known.

        Raises:
            ValueError: for a shape that the network cannot take, or text where it has none or lacks it.
        """
        config = self.config
        self._check_sample(sample)
        self._check_text(encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs, len(sample))
        if augment_labels is not None and augment_labels.shape != (sample.shape[0], config.augment_dim):
            raise ValueError(
                f"augment_labels must have shape ({sample.shape[0]}, augment_dim), which is {config.augment_dim}: "
                f"got {tuple(augment_labels.shape)}"
            )

        width = None if self.attribute_embedding is None else self.attribute_embedding[0].in_features
        if attributes is not None and attributes.shape != (sample.shape[0], width):
            got = tuple(attributes.shape)
            raise ValueError(f"attributes must have shape ({sample.shape[0]}, {width}), by the config's: got {got}")

        # 1. Conditioning
        timestep = torch.as_tensor(timestep, device=sample.device)
        embedding = self.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype)
        if augment_labels is not None:
            augment_labels = augment_labels.to(sample.dtype)
        embedding = self.time_embedding(embedding, augment_labels)  # (B, E)
        if self.attribute_embedding is not None:
            if attributes is None:
                attributes = embedding.new_zeros(sample.shape[0], width)
            embedding = embedding + self.attribute_embedding(attributes.to(sample.dtype))
        text = encoder_hidden_states
        if isinstance(text, torch.Tensor):
            text = self._read_text(text, encoder_attention_mask)
        contexts, mask = itertools.repeat(None), None
        if text is not None:
            embedding, contexts, mask = embedding + text.embedding, iter(text.contexts), text.mask

        # 2. Encoder
        hidden_states = self.conv_in(space_to_depth(sample, self.patch_sizes))  # (B, C, *S)
        skips = []
        for block in self.down_blocks:
            hidden_states = self._run(block, hidden_states, embedding, next(contexts), mask)
            skips.append(hidden_states)

        # 3. Middle
        hidden_states = self._run(self.mid_block, hidden_states, embedding, next(contexts), mask)

        # 4. Decoder
        for block in self.up_blocks:
            hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)  # (B, 2C, *S)
            hidden_states = self._run(block, hidden_states, embedding, next(contexts), mask)

        # 5. Output
        hidden_states = F.silu(self.norm_out(hidden_states))
        output = self.conv_out(hidden_states)  # (B, out_channels * patch_size**axes, *S)
        output = depth_to_space(output, self.patch_sizes)  # (B, out_channels, *spatial)
        if self.linear_skip is not None:
            output = output + self.linear_skip(sample, embedding, hidden_states)
        if not return_dict:
            return (output,)
        return MezzotintUNetOutput(sample=output)
