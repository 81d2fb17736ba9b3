# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The space that a sample is drawn in, and the way from there to pixels and back: pixels themselves, or the latents of
an autoencoder (<https://huggingface.co/papers/2112.10752>), each brought to unit variance by the network's config.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it. Training takes latents
by the same functions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


def vae_factor(vae: Any) -> int:
    """Pixels along each axis that make one latent, by the config of an autoencoder of diffusers; 1 for `None`.

    Raises:
        ValueError: for one whose config does not say it.
    """
    if vae is None:
        return 1
    levels = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    if not levels:
        raise ValueError(
            "vae must be one whose config has block_out_channels or encoder_block_out_channels, as AutoencoderKL, "
            f"AutoencoderTiny and AutoencoderDC: got {type(vae).__name__}"
        )
    return 2 ** (len(levels) - 1)


def to_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The latents of pixels in [-1, 1], as the autoencoder has them, in float32; of a distribution its mode."""
    found = vae.encode(pixels.to(vae.dtype), return_dict=False)[0]
    return (found if isinstance(found, torch.Tensor) else found.mode()).float()


def to_pixels(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_latents`, as far as the autoencoder has it."""
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


class MezzotintLatentMixin:
    """Takes pixels to samples and samples to pixels."""

    unet: Any
    vae: Any
    maybe_free_model_hooks: Any
    check_modality: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along each axis for one element of a sample; 1 where pixels are drawn."""
        return vae_factor(self.vae)

    @property
    def channels(self) -> int:
        """Channels of the pictures that are drawn, and of those that are read."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.in_channels

    @property
    def default_size(self) -> tuple[int | None, ...]:
        """The size that the U-Net was trained at, where it says so: of pictures height and width in pixels."""
        self.check_modality()
        size = self.unet.config.sample_size
        sizes = (
            tuple(size) if isinstance(size, (list, tuple)) else (size,) * getattr(self.unet.config, "spatial_dims", 2)
        )
        return tuple(side and side * self.vae_scale_factor for side in sizes)

    def check_space(self) -> None:
        """Raises `ValueError` in one line for an autoencoder whose latents are not what the U-Net draws."""
        if self.vae is None or self.unet is None:
            return
        vae_factor(self.vae)
        channels, drawn = self.vae.config.get("latent_channels"), self.unet.config.out_channels
        if channels != drawn:
            raise ValueError(f"unet must draw the latents of the vae, of {channels} channels: got out_channels {drawn}")
        if (task := (getattr(self.unet.config, "condition", None) or {}).get("task", "inpaint")) != "inpaint":
            raise ValueError(f"weights that are trained to {task} draw pixels: got them with an autoencoder (vae)")

    def padded(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The sizes of the sample that holds data of the size `spatial`, rounded up to what the U-Net can halve."""
        # A U-Net of an older file has no patches and does not say it
        factor = getattr(self.unet, "downsample_factor", 2 ** (len(self.unet.config.block_out_channels) - 1))
        factors, pixels = getattr(self.unet, "downsample_factors", [factor] * len(spatial)), self.vae_scale_factor
        return tuple(-(-size // (x * pixels)) * x for size, x in zip(spatial, factors, strict=False))

    def _scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the data."""
        config, shape = self.unet.config, (1, -1, *[1] * (like.ndim - 2))
        mean, std = (torch.tensor(x).to(like).reshape(shape) for x in (config.sample_mean, config.sample_std))
        return mean, std

    def encode(self, image: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """The inverse of `decode`: `image` with its edges drawn out, as a sample of the size `spatial` with the
        network's normalisation."""
        if self.vae is not None:
            image = self.drawn_out(image, [size * self.vae_scale_factor for size in spatial])
            image = to_latents(self.vae, image)
        mean, std = self._scale(image)
        return self.drawn_out((image - mean) / std, spatial)

    def decode(self, latents: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Data in [-1, 1], of shape `(pictures, channels, *spatial)`: `latents` without normalisation, taken to pixels
        by the autoencoder where there is one, and without padding."""
        mean, std = self._scale(latents)
        data = latents * std + mean
        if self.vae is not None:
            data = to_pixels(self.vae, data)
            self.maybe_free_model_hooks()
        return data[(..., *(slice(size) for size in spatial))]

    @staticmethod
    def drawn_out(pictures: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Pictures (B, C, H, W), or other data (B, C, *S), at the size `spatial`: their last rows and columns are
        repeated."""
        missing = [whole - size for whole, size in zip(spatial, pictures.shape[2:], strict=True)]
        return F.pad(pictures, [x for size in reversed(missing) for x in (0, size)], mode="replicate")

    def covered(self, mask: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """The part of a sample of the size `spatial` that is to be drawn, of shape `(pictures, 1, *spatial)`: what any
        pixel of 1 in `mask` (pictures, 1, height, width) has a part in, and all padding."""
        factor = self.vae_scale_factor
        height, width = (whole * factor - size for whole, size in zip(spatial, mask.shape[2:], strict=True))
        mask = F.pad(mask, (0, width, 0, height), value=1.0)
        return F.max_pool2d(mask, factor) > 0

    # ------------------------------------------------------------------------------------- memory of the autoencoder

    def enable_vae_slicing(self) -> None:
        """Let the autoencoder take one picture at a time: less memory. Raises `ValueError` without one."""
        self._its_vae().enable_slicing()

    def disable_vae_slicing(self) -> None:
        """The inverse of `enable_vae_slicing`."""
        self._its_vae().disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Let the autoencoder take large pictures tile by tile: less memory. Raises `ValueError` without one."""
        self._its_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """The inverse of `enable_vae_tiling`."""
        self._its_vae().disable_tiling()

    def _its_vae(self) -> Any:
        if self.vae is None:
            raise ValueError("this pipeline draws pixels: got no autoencoder (vae) to slice or tile")
        return self.vae
