# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Examples that a run draws to show what it has learned: its validation prompts, or, for a task that starts from a
picture, some pictures that are always the same, held out where there are any."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.conditions import random_mask, shrunk
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.modalities.images import as_picture

COUNT = 8
GREY = 128  # of what is hidden


class Examples(NamedTuple):
    """
    Attributes:
        prompts: a column of the grid each.
        inputs: the other arguments of the pipeline's call, one entry for each prompt.
        given: a row of pictures that shows them; none for text alone.
        truth: a row of what was to be drawn.
    """

    prompts: list[str]
    inputs: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    given: list[Image.Image] = []  # noqa: RUF012
    truth: list[Image.Image] = []  # noqa: RUF012


def examples(config: TrainConfig, images: CaptionedSamples) -> Examples:
    """What a run with these settings draws, of pictures of one size."""
    if config.task == "text_to_image":
        return Examples(config.validation_prompts)
    usual = np.bincount(images.bucket[images.good]).argmax()
    rows = [int(row) for row in images.good[images.bucket[images.good] == usual]]
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(COUNT, len(rows))).astype(int)]
    found = [(row, pixels) for row in rows if (pixels := images.content(row)) is not None]
    prompts = [images.captions[row][0] for row, _ in found]
    pixels = torch.stack([one for _, one in found])  # (N, C, H, W), bytes
    pictures = pixels[:, : images.channels]
    if config.task == "inpaint":
        masks = torch.stack(
            [random_mask(np.random.default_rng([0, number]), *pixels.shape[2:]) for number in range(len(pixels))]
        )
        given = torch.where(masks[:, None] > 0, torch.tensor(GREY, dtype=torch.uint8), pictures)
        return Examples(prompts, {"image": pictures / 255, "mask_image": masks}, *map(_shown, (given, pictures)))
    if config.task == "upscale":
        small = torch.stack([shrunk(one.float(), config.scale) for one in pictures]).round().clamp(0, 255).byte()
        given = small.repeat_interleave(config.scale, 2).repeat_interleave(config.scale, 3)
        return Examples(prompts, {"image": small / 255}, *map(_shown, (given, pictures)))
    if config.task == "unclip":  # there is no truth: what a variation may be
        return Examples([""] * len(found), {"image": pictures / 255}, _shown(pictures))
    spread = 255 // (config.num_classes - 1)
    if config.task == "layout":
        return Examples(prompts, {"mask_image": pixels[:, -1]}, *map(_shown, (pixels[:, -1:] * spread, pictures)))
    inputs = {"image": pictures / 255, "ensemble_size": 1}
    return Examples(prompts, inputs, *map(_shown, (pictures, pixels[:, -1:] * spread)))


def _shown(pixels: torch.Tensor) -> list[Image.Image]:
    return [as_picture(one) for one in pixels]
