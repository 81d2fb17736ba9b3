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
