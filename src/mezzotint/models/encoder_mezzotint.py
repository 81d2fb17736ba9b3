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

from mezzotint.models.blocks_mezzotint import CONV, MezzotintBlock

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
