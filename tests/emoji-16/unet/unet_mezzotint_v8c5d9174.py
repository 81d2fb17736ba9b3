# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The network: a U-Net that reads a noisy sample, its timestep and a text, and predicts what the scheduler's
`prediction_type` asks for.

Only the network lives here; noise levels, losses and guidance do not. The file stands alone (it travels inside
checkpoints): it imports torch and diffusers only.

Shapes: B batch, C channels, *S the spatial axes ((W), (H, W) or (D, H, W) by `spatial_dims`), N = prod(S) positions,
L text tokens, D text channels, E time-embedding channels, h heads, d channels of a head.
"""

import itertools
import operator
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass
class MezzotintUNetOutput(BaseOutput):
    """
    Args:
        sample (`torch.Tensor` of shape `(batch_size, out_channels, *spatial)`): the prediction.
    """

    sample: torch.Tensor


class MezzotintText(NamedTuple):
    """A text as the network reads it, of `MezzotintUNetModel.project_text`: all that depends on neither the sample nor
    the timestep, and need not be worked out again at every step of a call.

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


def zero_init(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero: a residual branch that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class MezzotintAttnProcessor:
    """Scaled dot-product attention through diffusers' backend switch (native SDPA, flash, sage, flex, ...)."""

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
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))  # (B, N, h, d)
        key, value = attn.keys_values(context) if isinstance(context, torch.Tensor) else context
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :]  # (B, 1, 1, L)
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # (B, N, h, d)
        hidden_states = attn.to_out[0](hidden_states.flatten(2, 3).to(query.dtype))
        return attn.to_out[1](hidden_states)  # (B, N, C)


class MezzotintAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with normalised queries and keys (<https://huggingface.co/papers/2302.05442>, section 2),
    which keeps the logits in range in half precision. Self-attention, or cross-attention if `context_dim` is given."""

    _default_processor_cls = MezzotintAttnProcessor
    _available_processors = [MezzotintAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, head_dim: int, context_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.heads = dim // head_dim
        self.is_cross_attention = context_dim is not None
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([zero_init(nn.Linear(dim, dim)), nn.Dropout(dropout)])
        self.set_processor(MezzotintAttnProcessor())

    def keys_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `context`, (B, L, D), offers to queries: keys and values, (B, L, h, d) each."""
        key = self.norm_k(self.to_k(context).unflatten(-1, (self.heads, -1)))
        return key, self.to_v(context).unflatten(-1, (self.heads, -1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)


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
        zero_init(self.ff.net[-1])

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, N, C)
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
        encoder_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
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
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(out_dim, out_dim, 3, padding=1))
        self.shortcut = conv(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_states)))  # (B, C, *S)
        scale, shift = self.embedding_proj(F.silu(embedding)).chunk(2, dim=1)  # (B, C) each
        scale, shift = (x.reshape(*x.shape, *[1] * (residual.ndim - 2)) for x in (scale, shift))  # (B, C, 1, ...)
        residual = F.silu(self.norm2(residual) * (1 + scale) + shift)
        return self.shortcut(hidden_states) + self.conv2(self.dropout(residual))


class MezzotintBlock(nn.Module):
    """One unit of the U: a residual block and transformer layers at `dim` channels. `downsample_from` channels come in
    at twice the resolution, `upsample_to` channels leave at twice the resolution, where given."""

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
        downsample_from: int | None = None,
        upsample_to: int | None = None,
    ):
        super().__init__()
        self.downsample = conv(downsample_from, in_dim, 3, stride=2, padding=1) if downsample_from else None
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
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, N, C)
            for i, layer in enumerate(self.transformer_layers):
                hidden_states = layer(hidden_states, contexts and contexts[i], encoder_attention_mask)
            hidden_states = hidden_states.transpose(1, 2).unflatten(2, spatial)  # (B, C, *S)
        if self.upsample is not None:
            hidden_states = self.upsample(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
        return hidden_states


class MezzotintEncoderMixin(ModelMixin, ConfigMixin):
    """What the U-Net and the classifier share: the layers down to the middle of the U, made from the config, and
    weights that are written and read strictly."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MezzotintBlock"]
    _repeated_blocks = ["MezzotintBlock"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "conv_in", "conv_out"]

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
        if spatial_dims not in CONV:
            raise ValueError(f"spatial_dims must be 1, 2 or 3: got {spatial_dims!r}")
        if isinstance(sample_size, (list, tuple)) and len(sample_size) != spatial_dims:
            raise ValueError(f"sample_size needs one entry, or one for each of {spatial_dims} axes: got {sample_size}")
        if config.layers_per_block < 1:
            raise ValueError(f"layers_per_block must be at least 1: got {config.layers_per_block}")
        if len(depths) != len(widths):
            raise ValueError(
                "transformer_layers_per_block needs one entry for each of block_out_channels: got "
                f"{len(depths)} for {len(widths)}"
            )
        for channels, layers in zip(widths, depths, strict=True):
            if channels % norm_num_groups or (layers and channels % config.attention_head_dim):
                raise ValueError(
                    f"block_out_channels must be multiples of norm_num_groups ({norm_num_groups}) and, where there is "
                    f"attention, of attention_head_dim ({config.attention_head_dim}): got {channels}"
                )
        for name in ("sample_mean", "sample_std"):
            if len(config[name]) not in (1, config.in_channels):
                raise ValueError(
                    f"{name} needs 1 or in_channels ({config.in_channels}) values: got {len(config[name])}"
                )
        if min(config.sample_std) <= 0:
            raise ValueError(f"sample_std must be positive: got {tuple(config.sample_std)}")

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
        }
        units = []
        for level, (dim, layers) in enumerate(zip(widths, depths, strict=True)):
            for index in range(config.layers_per_block):
                units.append((dim, layers, widths[level - 1] if level > 0 and index == 0 else None))
        self.conv_in = conv(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            MezzotintBlock(conv, dim, dim, transformer_layers=layers, downsample_from=above, **common)
            for dim, layers, above in units
        )
        self.mid_block = MezzotintBlock(conv, widths[-1], widths[-1], transformer_layers=depths[-1], **common)
        self.gradient_checkpointing = False
        return units, common

    def _check_sample(self, sample: torch.Tensor) -> None:
        config = self.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        if sample.ndim != config.spatial_dims + 2 or sample.shape[1] != config.in_channels:
            raise ValueError(
                f"sample must have {config.spatial_dims + 2} axes and {config.in_channels} channels: "
                f"got shape {tuple(sample.shape)}"
            )
        if any(size % factor for size in sample.shape[2:]):
            raise ValueError(f"spatial sizes must be multiples of {factor}: got {tuple(sample.shape[2:])}")

    def _run(self, block: nn.Module, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As diffusers', but from safetensors only, and every weight must be there and have its place.

        Raises:
            ValueError: for a checkpoint with missing or surplus weights.
        """
        with_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
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
        """As diffusers', but as safetensors whatever `safe_serialization` says: nothing is pickled."""
        super().save_pretrained(
            save_directory, is_main_process, save_function, True, variant, max_shard_size, push_to_hub, use_flashpack,
            **kwargs,
        )  # fmt: skip

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # A checkpoint's config names its source file for diffusers' AutoModel; that is no argument of the model
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)


class MezzotintUNetModel(MezzotintEncoderMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """
    A U-Net (<https://huggingface.co/papers/1505.04597>, after <https://huggingface.co/papers/2006.11239>) whose decoder
    mirrors its encoder unit for unit, conditioned on the timestep and on text.

    Args:
        sample_size (`int` or `(int, ...)`, *optional*): the size trained at, the pipeline's default: one number, or one
            for each spatial axis.
        in_channels (`int`): channels of the noisy sample.
        out_channels (`int`): channels of the prediction.
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
    ):
        super().__init__()
        units, common = self._add_encoder()

        # Decoder: the encoder's units in reverse, each reading its twin's output too
        conv, first = CONV[spatial_dims], block_out_channels[0]
        self.up_blocks = nn.ModuleList(
            MezzotintBlock(conv, 2 * dim, dim, transformer_layers=layers, upsample_to=above, **common)
            for dim, layers, above in reversed(units)
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
        self.conv_out = zero_init(conv(first, out_channels, 3, padding=1))

    @apply_forward_hook  # of diffusers' offloading by models
    def project_text(
        self, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor | None = None
    ) -> MezzotintText | None:
        """What `forward` takes in place of the text, bit for bit the same, when the text stays and the sample changes:
        its embedding and the keys and values of every cross-attention, as the weights and adapters are now.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, cross_attention_dim)`): the text.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): as of `forward`.

        Returns:
            `None` where the weights can be had in `forward` alone: sharded, or offloaded layer by layer.
        """
        layers = [block.transformer_layers for block in self._blocks()]
        weights = [self.encoder_norm.weight, *(layer.attn2.to_k.weight for row in layers for layer in row)]
        if any(type(x) is not nn.Parameter or x.device != encoder_hidden_states.device for x in weights):
            return None
        text = self._read_text(encoder_hidden_states, encoder_attention_mask)
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

    def _blocks(self) -> list[Any]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | MezzotintText | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> MezzotintUNetOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): the noisy sample, normalised. Every
                spatial size a multiple of `2 ** (levels - 1)`.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, cross_attention_dim)`): the text, or
                what `project_text` made of it and of its mask.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): bool or 0/1, 1 where
                there is text and 0 where there is padding.
            augment_labels (`torch.Tensor` of shape `(batch_size, augment_dim)`, *optional*): how each picture was
                changed; zeros, or none at all, are an unchanged one.
            return_dict (`bool`): whether a `MezzotintUNetOutput` or a tuple comes back.

        Raises:
            ValueError: for a shape that the network cannot take, or text where it has none or lacks it.
        """
        config = self.config
        self._check_sample(sample)
        if (encoder_hidden_states is None) != (config.cross_attention_dim is None):
            raise ValueError(
                f"encoder_hidden_states must be given exactly when the model has a cross_attention_dim: got "
                f"{'none' if encoder_hidden_states is None else 'some'}, cross_attention_dim is "
                f"{config.cross_attention_dim}"
            )
        if isinstance(encoder_hidden_states, torch.Tensor):
            batch_size, tokens, dim = encoder_hidden_states.shape
            if (batch_size, dim) != (sample.shape[0], config.cross_attention_dim):
                raise ValueError(
                    f"encoder_hidden_states must have shape ({sample.shape[0]}, tokens, {config.cross_attention_dim}): "
                    f"got {(batch_size, tokens, dim)}"
                )
            if encoder_attention_mask is not None and encoder_attention_mask.shape != (batch_size, tokens):
                raise ValueError(
                    f"encoder_attention_mask must have shape {(batch_size, tokens)}, one entry for each token: "
                    f"got {tuple(encoder_attention_mask.shape)}"
                )
        elif encoder_hidden_states is not None and len(encoder_hidden_states.embedding) != sample.shape[0]:
            raise ValueError(
                f"the text must have one entry for each of {sample.shape[0]} samples: got "
                f"{len(encoder_hidden_states.embedding)}"
            )
        if augment_labels is not None and augment_labels.shape != (sample.shape[0], config.augment_dim):
            raise ValueError(
                f"augment_labels must have shape ({sample.shape[0]}, augment_dim), which is {config.augment_dim}: "
                f"got {tuple(augment_labels.shape)}"
            )

        # 1. Conditioning
        timestep = torch.as_tensor(timestep, device=sample.device)
        embedding = self.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype)
        if augment_labels is not None:
            augment_labels = augment_labels.to(sample.dtype)
        embedding = self.time_embedding(embedding, augment_labels)  # (B, E)
        text = encoder_hidden_states
        if isinstance(text, torch.Tensor):
            text = self._read_text(text, encoder_attention_mask)
        contexts, mask = itertools.repeat(None), None
        if text is not None:
            embedding, contexts, mask = embedding + text.embedding, iter(text.contexts), text.mask

        # 2. Encoder
        hidden_states = self.conv_in(sample)  # (B, C, *S)
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
        output = self.conv_out(F.silu(self.norm_out(hidden_states)))  # (B, out_channels, *S)
        if not return_dict:
            return (output,)
        return MezzotintUNetOutput(sample=output)


@dataclass
class MezzotintClassifierOutput(BaseOutput):
    """
    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): log-probabilities up to a constant.
    """

    logits: torch.Tensor


class MezzotintClassifier(MezzotintEncoderMixin):
    """
    What a noisy sample shows, at any noise level: the U-Net's encoder, the mean over positions and a linear layer
    (<https://huggingface.co/papers/2105.05233>, section 4). Its gradient steers a diffusion model.

    Args:
        num_classes (`int`): how many there are.
        id2label (`dict` of `int` to `str`, *optional*): the name of each, from 0 to `num_classes - 1`.
        sample_size, in_channels, spatial_dims, block_out_channels, layers_per_block, transformer_layers_per_block,
            attention_head_dim, time_embed_dim, norm_num_groups, norm_eps, dropout, sample_mean, sample_std: as of
            `MezzotintUNetModel`, whose noisy samples it reads.

    Raises:
        ValueError: for settings that do not fit together; the message names the rule.
    """

    _skip_layerwise_casting_patterns = [*MezzotintEncoderMixin._skip_layerwise_casting_patterns, "head"]

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        id2label: dict[int, str] | None = None,
        sample_size: int | tuple[int, ...] | None = None,
        in_channels: int = 3,
        spatial_dims: int = 2,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        transformer_layers_per_block: tuple[int, ...] = (0, 1, 1),
        attention_head_dim: int = 32,
        time_embed_dim: int | None = None,
        norm_num_groups: int = 16,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        sample_mean: tuple[float, ...] = (0.0,),
        sample_std: tuple[float, ...] = (1.0,),
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2: got {num_classes}")
        if id2label is not None:
            id2label = {int(key): name for key, name in id2label.items()}  # JSON knows keys of text only
            self.register_to_config(id2label=id2label)
            if sorted(id2label) != list(range(num_classes)) or len(set(id2label.values())) != num_classes:
                raise ValueError(f"id2label must have a name of its own for 0 to {num_classes - 1}: got {id2label}")
        self._add_encoder()
        last = block_out_channels[-1]
        self.norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps)
        self.head = nn.Linear(last, num_classes)  # from zero it would learn several times more slowly

    def get_label_ids(self, labels: int | str | Iterable[int | str]) -> torch.Tensor:
        """The numbers of one or more classes, given by number or by name, as `torch.Tensor` of shape `(labels,)`.

        Raises:
            ValueError: for one that isn't there.
        """
        count, label2id = self.config.num_classes, {v: k for k, v in (self.config.id2label or {}).items()}
        labels = [labels] if isinstance(labels, (int, str)) else list(labels)
        numbers = [label2id.get(label, -1) if isinstance(label, str) else operator.index(label) for label in labels]
        for label, number in zip(labels, numbers, strict=True):
            if not 0 <= number < count:
                names = f", or one of {', '.join(map(repr, label2id))}" if label2id else ""
                raise ValueError(f"a class must be a number from 0 to {count - 1}{names}: got {label!r}")
        return torch.tensor(numbers)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> MezzotintClassifierOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): noisy, as the U-Net takes it: x_t of
                the variance-preserving process on normalised data.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            return_dict (`bool`): whether a `MezzotintClassifierOutput` or a tuple comes back.

        Raises:
            ValueError: for a shape that the network cannot take.
        """
        self._check_sample(sample)
        timestep = torch.as_tensor(timestep, device=sample.device)
        embedding = self.time_embedding(self.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype))  # (B, E)
        hidden_states = self.conv_in(sample)  # (B, C, *S)
        for block in self.down_blocks:
            hidden_states = self._run(block, hidden_states, embedding)
        hidden_states = self._run(self.mid_block, hidden_states, embedding)
        pooled = F.silu(self.norm_out(hidden_states)).flatten(2).mean(dim=2)  # (B, C)
        logits = self.head(pooled)  # (B, num_classes)
        if not return_dict:
            return (logits,)
        return MezzotintClassifierOutput(logits=logits)

    def score(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | Iterable | int | str,
    ) -> torch.Tensor:
        """The gradient of log p(class_labels | sample) with respect to the sample: what is added to the score of p_t(x)
        to make it that of p_t(x | y) (<https://huggingface.co/papers/2011.13456>, eq. 14). Also under `torch.no_grad`
        and `torch.inference_mode`.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): as of `forward`.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            class_labels (`torch.Tensor` of shape `(1,)` or `(batch_size,)`): numbers of classes, on the device of
                `sample`, or what `get_label_ids` takes.

        Returns:
            `torch.Tensor` of the shape and the dtype of `sample`.
        """
        if not isinstance(class_labels, torch.Tensor):
            class_labels = self.get_label_ids(class_labels).to(sample.device)
        with torch.inference_mode(False), torch.enable_grad():
            # no gradient can be had of what was made in inference mode, but of copies of it
            sample, timestep, labels = (torch.as_tensor(x).detach().clone() for x in (sample, timestep, class_labels))
            logits = self(sample.requires_grad_().to(self.dtype), timestep, return_dict=False)[0]
            log_p = F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
            chosen = log_p.gather(1, labels.expand(len(log_p))[:, None])  # (B, 1)
            return torch.autograd.grad(chosen.sum(), sample)[0]
