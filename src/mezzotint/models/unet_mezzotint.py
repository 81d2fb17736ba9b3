# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The network: a U-Net that reads a noisy sample, its timestep and a text, and predicts what the scheduler's
`prediction_type` asks for.

Only the network lives here; noise levels, losses and guidance do not.

Shapes: B batch, C channels, *S the spatial axes ((W), (H, W) or (D, H, W) by `spatial_dims`), N = prod(S) positions,
L text tokens, D text channels, E time-embedding channels.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from mezzotint.models.blocks_mezzotint import CONV, MezzotintBlock, MezzotintEncoderMixin, zero_init

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


class MezzotintUNetModel(MezzotintEncoderMixin, ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
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
