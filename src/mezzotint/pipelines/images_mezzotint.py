# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Pictures and masks that a call is given, as the network reads them: what the tasks that start from a picture share.

In a saved pipeline this text stands in place of the line that imports it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from mezzotint.pipelines.inputs_mezzotint import _shown

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()

logger = logging.get_logger(__name__)


class MezzotintImageMixin:
    """Reads pictures and masks."""

    channels: int  # of pictures
    image_processor: Any

    def read_image(self, image, channels: int | None = None) -> torch.Tensor:
        """The pictures as one tensor of shape `(pictures, channels, height, width)` in [-1, 1], by default with the
        channels of what is drawn. Raises `ValueError` in one line for what is no such thing."""
        channels = channels or self.channels
        images = _alike("image", image, {1: "L", 4: "RGBA"}.get(channels, "RGB"))
        if not isinstance(images[0], Image.Image) and images[0].ndim not in (3, 4):
            raise ValueError(f"image must have 3 or 4 axes: got shape {tuple(images[0].shape)}")
        if not isinstance(images[0], Image.Image) and images[0].ndim == 4:
            images = np.concatenate(images) if isinstance(images[0], np.ndarray) else torch.cat(images)
        for one in (x for x in images if not isinstance(x, Image.Image)):
            low, high = float(one.min()), float(one.max())
            if (low < 0 or high > 1) and math.isfinite(high - low):
                raise ValueError(f"image must be between 0 (black) and 1 (white): got {low:g} to {high:g}")
        found = self.image_processor.preprocess(images)  # (B, C, H, W)
        if found.shape[1] != channels or not found.isfinite().all():
            raise ValueError(f"image must have {channels} channels of finite numbers: got shape {tuple(found.shape)}")
        return found

    @staticmethod
    def for_each(name: str, pictures: torch.Tensor, prompts: int, num_images_per_prompt: int = 1) -> torch.Tensor:
        """One of `pictures`, or one for each prompt, repeated for all that are drawn. Raises `ValueError` in one line
        for another number of them; `name` is the argument's."""
        if len(pictures) not in (1, prompts):
            raise ValueError(f"{name} needs one entry, or one for each of {prompts} prompts: got {len(pictures)}")
        return pictures.expand(prompts, *pictures.shape[1:]).repeat_interleave(num_images_per_prompt, dim=0)

    def read_mask(self, mask_image, spatial: tuple[int, int], warn: bool = True) -> torch.Tensor:
        """The masks as one tensor of shape `(masks, 1, height, width)`, 1 where a picture is to be drawn and 0 where it
        is to stay; a grey one is warned of. Raises `ValueError` in one line for what is no mask of pictures of the size
        `spatial`."""
        masks = _alike("mask_image", mask_image, "L")
        if isinstance(masks[0], Image.Image):
            masks = [np.array(x) / 255 for x in masks]
        parts = []
        for mask in masks:
            part = torch.as_tensor(mask).float()
            channel = -1 if isinstance(mask, np.ndarray) else -3
            if part.ndim > 2 and part.shape[channel] == 1:
                part = part.squeeze(channel)
            parts.append(part[None] if part.ndim == 2 else part)
        found = torch.cat(parts)  # (masks, H, W)
        if found.ndim != 3 or tuple(found.shape[1:]) != spatial:
            raise ValueError(
                f"mask_image must have shape (masks, {spatial[0]}, {spatial[1]}), the size of image: got shape "
                f"{tuple(found.shape)}"
            )
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError("mask_image must be between 0 (stays) and 1 (is drawn): got other numbers")
        grey = ((found > 0.05) & (found < 0.95)).float().mean().item()
        if grey > 0 and warn:
            logger.warning(
                f"mask_image is grey in {grey:.1%} of its pixels: from 0.5 on they are drawn, below they stay"
            )
        return (found >= 0.5).float()[:, None]

    def read_classes(self, mask_image, num_classes: int) -> torch.Tensor:
        """The maps of classes as one tensor of shape `(maps, 1, height, width)`, int64. Raises `ValueError` in one line
        for what is no such thing."""
        maps = mask_image if isinstance(mask_image, list) else [mask_image]
        if all(isinstance(one, Image.Image) for one in maps):
            if modes := sorted({one.mode for one in maps} - {"1", "L", "P"}):
                raise ValueError(f"mask_image must have one channel of class numbers: got mode {modes[0]}")
            maps = [np.array(one).astype(np.int64) for one in maps]
        maps = [torch.as_tensor(one) for one in _alike("mask_image", maps, "L")]
        maps = [one[None] if one.ndim == 2 else one for one in maps]
        found = torch.cat(maps) if all(one.ndim == 3 for one in maps) else torch.empty(0)
        if found.ndim != 3 or found.is_floating_point() and not (found == found.round()).all():
            raise ValueError(
                f"mask_image must have shape (maps, height, width), of class numbers: got {_shown(mask_image)}"
            )
        found = found.long()
        if num_classes == 2:
            found = torch.where(found == 255, 1, found)
        if not ((found >= 0) & (found < num_classes)).all():
            raise ValueError(f"mask_image must hold class numbers below {num_classes}: got {int(found.max())}")
        return found[:, None]


def _alike(name: str, images: Any, mode: str) -> list[Any]:
    """One picture, array or tensor, or a list of them, as a list of one kind and one size; pictures in a `mode`."""
    given, images = images, images if isinstance(images, list) else [images]
    kinds = {type(x) if not isinstance(x, Image.Image) else Image.Image for x in images}
    if len(kinds) != 1 or not kinds <= {Image.Image, np.ndarray, torch.Tensor}:
        raise ValueError(f"{name} must be a picture, an array or a tensor, or a list of them: got {_shown(given)}")
    if len(sizes := {x.size if isinstance(x, Image.Image) else tuple(x.shape) for x in images}) > 1:
        raise ValueError(f"all pictures of {name} must have one size: got {sorted(sizes)}")
    if kinds != {Image.Image}:
        if empty := [tuple(x.shape) for x in images if 0 in x.shape]:
            raise ValueError(f"{name} must have pixels: got shape {empty[0]}")
        return images
    try:
        return [opaque(x, mode) for x in images]
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from None


def opaque(picture: Image.Image, mode: str) -> Image.Image:
    """A picture in a `mode`, of 16 bits a pixel the upper eight; where the mode knows no transparency, on white.

    Raises:
        ValueError: for one of fractions.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are fractions, of which nothing says what is white")
    if picture.mode.startswith("I"):  # all but the darkest of which Pillow would make white
        levels, clear = np.asarray(picture), picture.info.get("transparency")
        picture = Image.fromarray((levels.clip(0, 65535) // 256).astype(np.uint8))
        if clear is not None:
            picture.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    if mode != "RGBA" and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)
