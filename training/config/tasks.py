# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The tasks, a line each: pipeline, card and columns. What a network reads for one beside the sample is made in
`data/conditions.py`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mezzotint.pipelines.conditions_mezzotint import class_bits
from mezzotint_training.config.settings import TrainConfig


class Task(NamedTuple):
    """
    Attributes:
        pipeline: the name of its class in `mezzotint`.
        tag: its name on the Hub.
        card: its template in `model_cards/`.
        given: what the trained network is given, in words; empty where that is the text alone.
        masks: whether a set needs `mask_column`.
    """

    pipeline: str
    tag: str
    card: str
    given: str = ""
    masks: bool = False


TASKS = {
    "text_to_image": Task("MezzotintPipeline", "text-to-image", "text_to_image.md.jinja"),
    "inpaint": Task("MezzotintInpaintPipeline", "image-to-image", "inpaint.md.jinja", "pictures with a hole"),
    "upscale": Task("MezzotintUpscalePipeline", "image-to-image", "upscale.md.jinja", "small pictures"),
    "segment": Task("MezzotintSegmentPipeline", "image-segmentation", "segment.md.jinja", "pictures", masks=True),
    "layout": Task("MezzotintLayoutPipeline", "image-to-image", "layout.md.jinja", "maps of classes", masks=True),
    "unclip": Task("MezzotintVariationPipeline", "image-to-image", "unclip.md.jinja", "pictures, as embeddings"),
}
# Of a decoder with its prior (`train_prior.py`)
PRIOR = Task("MezzotintPriorPipeline", "text-to-image", "prior.md.jinja")


def of(settings: Mapping[str, Any]) -> Task:
    """The task of a run by its settings as they were written down, by an older version too."""
    return PRIOR if settings.get("decoder") else TASKS[settings.get("task", "text_to_image")]


def channels(config: TrainConfig, pictures: int) -> dict[str, int]:
    """The U-Net's `in_channels` and `out_channels` for pictures of so many channels."""
    drawn = class_bits(config.num_classes) if config.task == "segment" else pictures
    # A picture, or a map of classes, and how little is known of it
    read = class_bits(config.num_classes) if config.task == "layout" else pictures
    beside = 0 if config.task in ("text_to_image", "unclip") else read + 1
    return {"in_channels": drawn + beside, "out_channels": drawn}


def trained_for(unet: Any) -> str:
    """The task that a U-Net of this config is trained for."""
    return (unet.get("condition") or {}).get("task", "text_to_image")


def picture_channels(unet: Any) -> int:
    """The channels of the pictures that a U-Net of this config is trained on."""
    return unet.in_channels - unet.out_channels - 1 if trained_for(unet) == "segment" else unet.out_channels


def condition(config: TrainConfig) -> dict[str, Any] | None:
    """What a U-Net's config says of the task, of one that reads a condition."""
    if config.task == "text_to_image":
        return None
    about = {"scale": config.scale} if config.task == "upscale" else {}
    return {"task": config.task, **about, **({"num_classes": config.num_classes} if TASKS[config.task].masks else {})}
