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

from mezzotint.models.blocks_mezzotint import (
    CONV,
    MezzotintBlock,
    MezzotintLinearSkip,
    depth_to_space,
    space_to_depth,
    zero_init,
)
from mezzotint.models.encoder_mezzotint import MezzotintEncoderMixin, _is_finite

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
