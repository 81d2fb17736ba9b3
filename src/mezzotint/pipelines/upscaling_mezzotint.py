# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A small picture drawn again, larger, by a network that reads the small one: what super-resolution and the upper
stages of a cascade share.

In a saved pipeline this text stands in place of the line that imports it.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from mezzotint.pipelines.conditions_mezzotint import enlarged_condition
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()

UPSCALER_STEPS = 4  # where a call says nothing: the small picture settles most, and more steps add grain


class MezzotintUpscalingMixin:
    """Enlarges with noise-conditioning augmentation, in tiles where the result is larger than what was trained at."""

    unet: Any
    scheduler: Any
    padded: Any
    encode: Any
    draw_noise: Any
    denoise: Any

    @staticmethod
    def check_noise_level(noise_level: Any) -> None:
        """Raises `ValueError` in one line for what is no level of noise in a small picture."""
        if not _is_number(noise_level) or not 0 <= noise_level < 1:
            raise ValueError(f"noise_level must be a number from 0 up to 1, and below it: got {_shown(noise_level)}")

    def tiles(self, tile_size: int | None = None, tile_overlap: int | None = None) -> tuple[int, int]:
        """Pixels of a tile along each axis, rounded up to what the U-Net can halve, and those that neighbours share.
        Raises `ValueError` in one line for an overlap that leaves nothing of a tile."""
        if tile_size is None:
            trained = self.unet.config.sample_size
            tile_size = max(trained) if isinstance(trained, (list, tuple)) else trained or 64
        (tile,) = self.padded([tile_size])
        overlap = max(tile // 4, 1) if tile_overlap is None else tile_overlap
        if overlap >= tile:
            raise ValueError(f"tile_overlap must be below tile_size, {tile}: got {overlap}")
        return tile, overlap

    def enlarge(
        self,
        image: torch.Tensor,
        noise_level: float,
        tiles: tuple[int, int],
        schedule: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        eta: float,
        generator: Any,
        latents: torch.Tensor | None,
        *callback: Any,
    ) -> torch.Tensor:
        """The clean sample of pictures as many times as large as `image` as the network is trained for. Called on a
        copy that `for_one_call` made and `choose_timesteps` set.

        Args:
            image (`torch.Tensor` of shape `(pictures, channels, height, width)`): in [-1, 1].
            noise_level (`float`): in [0, 1), standard deviation of the noise that is mixed into the small pictures.
            tiles: what `tiles` returned.
            schedule, text, guidance, eta, generator, callback: as `denoise` takes them.
            latents (`torch.Tensor`, *optional*): the starting noise.
        """
        scale = self.unet.config.condition["scale"]
        latents = self.draw_noise(len(image), [scale * size for size in image.shape[2:]], generator, latents)
        image = image.to(latents)
        small = self.encode(image, tuple(-(-size // scale) for size in latents.shape[2:]))
        noise = None
        if noise_level > 0:
            noise = randn_tensor(small.shape, generator=generator, device=small.device, dtype=small.dtype)
        height, width = (scale * size for size in small.shape[2:])
        level = torch.full((len(image),), float(noise_level))
        condition = enlarged_condition(small, (height, width), level, noise)
        condition = condition[:, :, : latents.shape[2], : latents.shape[3]]
        return self.denoise(
            latents * self.scheduler.init_noise_sigma,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            condition=condition,
            evaluate=_InTiles(*tiles, self.unet.config.out_channels),
        )


class _InTiles:
    """Calls a network on overlapping tiles, which agree at every step, so that there are no seams (MultiDiffusion,
    <https://huggingface.co/papers/2302.08113>)."""

    def __init__(self, tile: int, overlap: int, channels: int):
        self.tile, self.overlap, self.channels = tile, overlap, channels

    def __call__(self, network: Any, inputs: torch.Tensor, timestep: torch.Tensor, **text: Any) -> torch.Tensor:
        corners = [_corners(size, self.tile, self.overlap) for size in inputs.shape[2:]]
        if len(corners[0]) == len(corners[1]) == 1:
            return network(inputs, timestep, **text, return_dict=False)[0]
        total = torch.zeros(len(inputs), self.channels, *inputs.shape[2:], device=inputs.device)
        weight = torch.zeros(inputs.shape[2:], device=inputs.device)
        for top, left in itertools.product(*corners):
            place = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            found = network(inputs[place].contiguous(), timestep, **text, return_dict=False)[0].float()
            ramps = [_ramp(size, self.overlap, found.device) for size in found.shape[2:]]
            share = ramps[0][:, None] * ramps[1]
            total[place] += share * found
            weight[place] += share
        return total / weight


def _corners(size: int, tile: int, overlap: int) -> Sequence[int]:
    """Where the tiles of an axis begin."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _ramp(size: int, overlap: int, device: torch.device) -> torch.Tensor:
    """The weight of each position of a tile, of shape `(size,)`: it falls towards both ends over the overlap."""
    place = torch.arange(size, device=device) + 0.5
    return (torch.minimum(place, size - place) / overlap).clamp(max=1)
