# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Samples and conditions by task: what is to be drawn, and what the network reads beside it, made from a row's pixels.
A function of the keys that it is given alone."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from mezzotint.pipelines.conditions_mezzotint import (
    classes_to_bits,
    enlarged_condition,
    masked_condition,
    picture_condition,
)
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.modalities.contents import unit

# The fifth word of the keys of conditions, as in `dataset.py`: what else is random in an item is alike for all tasks
CONDITION = 6


def sample_of(
    config: TrainConfig, content: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, version: int = 0
) -> torch.Tensor:
    """x_0 of a row, (channels, *size) in float32: its sample or a version's latents, normalised, or the bits
    of its classes."""
    if content.is_floating_point():
        return content[version].sub(mean).div_(std)
    if config.task == "segment":
        return classes_to_bits(content[None, -1:], config.num_classes)[0]
    return unit(content[: len(mean)]).sub_(mean).div_(std)


def condition_of(
    config: TrainConfig, sample: torch.Tensor, pixels: torch.Tensor, key: list[int], drop: bool = True
) -> torch.Tensor | None:
    """What is read beside a sample, (channels, height, width); `None` for a task that reads nothing.

    Args:
        config: the run's settings.
        sample: x_0, as `sample_of` has it.
        pixels (`torch.Tensor` of shape `(channels, height, width)`): bytes of the row.
        key: of what is random about it.
        drop: whether it is to be dropped now and then (`proportion_empty_conditions`), so that nothing is known.
    """
    if config.task in ("text_to_image", "unclip"):
        return None
    rng = np.random.default_rng([*key, CONDITION])
    dropped = rng.random() < config.proportion_empty_conditions and drop
    height, width = sample.shape[1:]
    if config.task == "inpaint":
        found = masked_condition(sample[None], random_mask(rng, height, width)[None, None])[0]
    elif config.task == "upscale":
        level = torch.tensor([rng.random() ** 2])  # low levels are what it is used at
        small = shrunk(sample, config.scale)[None]
        noise = torch.from_numpy(rng.standard_normal(small.shape, dtype=np.float32))
        found = enlarged_condition(small, (height, width), level, noise)[0]
    elif config.task == "layout":
        found = picture_condition(classes_to_bits(pixels[None, -1:], config.num_classes))[0]
    else:
        found = picture_condition(unit(pixels[:-1])[None])[0]
    if dropped:
        found.zero_()[-1] = 1
    return found


def embeds_of(config: TrainConfig, embeds: torch.Tensor, key: list[int]) -> torch.Tensor:
    """The embedding (D,) of a row's picture, of unit variance, dropped now and then (`proportion_empty_conditions`), so
    that nothing is known: zeros.

    Args:
        config: the run's settings.
        embeds: of the row.
        key: of what is random about it.
    """
    dropped = np.random.default_rng([*key, CONDITION]).random() < config.proportion_empty_conditions
    return torch.zeros_like(embeds) if dropped else embeds


def shrunk(picture: torch.Tensor, scale: int) -> torch.Tensor:
    """A picture (channels, height, width) at a `scale`-th of its size, without aliasing."""
    size = [side // scale for side in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def random_mask(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    """What is to be filled in, of shape `(height, width)`: 1 there, 0 elsewhere. A box, strokes of a brush, a half of
    the picture, a border (for outpainting); sometimes everything."""
    kind = rng.choice(["box", "strokes", "border", "half", "all"], p=[0.3, 0.3, 0.15, 0.2, 0.05])
    mask = np.zeros((height, width), np.float32)
    if kind in ("box", "border"):
        sides = [max(1, round(side * rng.uniform(0.25, 0.75))) for side in (height, width)]
        top, left = (rng.integers(whole - side + 1) for whole, side in zip((height, width), sides, strict=True))
        mask[top : top + sides[0], left : left + sides[1]] = 1
        mask = 1 - mask if kind == "border" else mask
    elif kind == "strokes":
        picture = Image.new("L", (width, height))
        pen, long = ImageDraw.Draw(picture), max(height, width)
        for _ in range(rng.integers(1, 5)):
            points = [rng.uniform((0, 0), (width, height))]
            for _ in range(rng.integers(2, 6)):
                points.append(points[-1] + rng.normal(0, long / 4, 2))
            thick = max(1, round(long * rng.uniform(0.06, 0.2)))
            pen.line([tuple(point) for point in points], fill=255, width=thick, joint="curve")
        mask = np.array(picture, np.float32) / 255
    elif kind == "half":
        axis, first = rng.integers(2), rng.integers(2)
        middle = (height, width)[axis] // 2
        place = slice(None, middle) if first else slice(middle, None)
        mask[(place,) if axis == 0 else (slice(None), place)] = 1
    else:
        mask[:] = 1
    return torch.from_numpy(np.ascontiguousarray(mask))
