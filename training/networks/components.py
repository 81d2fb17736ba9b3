# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The components that a run trains: those of a saved pipeline, or new ones made from the settings and the data."""

import inspect

from PIL import Image

from mezzotint import MezzotintScheduler, MezzotintUNetModel
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig, known_arguments
from mezzotint_training.data.augment import AUGMENT_DIM
from mezzotint_training.data.dataset import CaptionedImages
from mezzotint_training.networks.saved import load_pipeline
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder


def first_picture(rows, config: TrainConfig) -> Image.Image:
    """The first readable picture, for its size and mode; whether others are readable is not its business."""
    probe = CaptionedImages(rows, config, channels=3, size=(1, 1))
    for index in range(len(rows)):
        if probe.pixels(index) is not None:
            return probe.open(index)
    raise UserError(f"no picture could be read; the first: {probe.bad[0]}")


def picture_size(config: TrainConfig, components: dict | None, first: Image.Image) -> tuple[int, int]:
    """Height and width to train at: as asked, or the saved model's, or the first picture's."""
    saved = components["unet"].config.sample_size if components else None
    size = config.resolution or saved or (first.height, first.width)
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def level_factor(config: TrainConfig, components: dict | None, size: tuple[int, int]) -> int:
    """What height and width must be multiples of, for a U-Net that halves them from level to level.

    Raises:
        UserError: where `size` is none, with the nearest that is.
    """
    default = inspect.signature(MezzotintUNetModel).parameters["block_out_channels"].default
    levels = (
        components["unet"].config.block_out_channels if components else config.unet.get("block_out_channels", default)
    )
    if not isinstance(levels, (list, tuple)) or not levels:
        raise UserError(f"the unet's block_out_channels must be a list of numbers, one a level: got {levels!r}")
    factor = 2 ** (len(levels) - 1)
    height, width = size
    if height % factor or width % factor:
        nearest = [max(factor, round(x / factor) * factor) for x in (height, width)]
        raise UserError(
            f"resolution must be a multiple of {factor} for a model of {len(levels)} levels: got {height}x{width}, "
            f"possible is {nearest[0]}x{nearest[1]}"
        )
    return factor


def pretrained_components(config: TrainConfig) -> dict:
    """The components of a saved pipeline, every weight accounted for.

    Raises:
        UserError: for one that cannot be loaded, or has missing or surplus weights.
    """
    source, name = config.pretrained_model_name_or_path, "pretrained_model_name_or_path"
    pipe = load_pipeline(source, name, revision=config.revision)
    if config.augment_probability > 0 and pipe.unet.config.augment_dim != AUGMENT_DIM:
        raise UserError("augment_probability needs a model that was trained with it: the saved one was not")
    if config.adapter is None and pipe.scheduler.config.get("_fitted_schedules"):  # to what the network was
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, "_fitted_schedules": None})
    return dict(pipe.components)


def new_components(config: TrainConfig, data: CaptionedImages) -> dict:
    """Untrained components: the U-Net at the data's scale, the scheduler, and a text encoder with its tokenizer."""
    if config.text_encoder_name_or_path is not None:
        text_encoder, tokenizer = load_text_encoder(config.text_encoder_name_or_path)
    else:
        text_encoder, tokenizer = new_text_encoder(config)
    given = {"spatial_dims": 2, "out_channels": data.channels, "cross_attention_dim": text_encoder.config.hidden_size}
    for name, value in given.items():
        if config.unet.get(name, value) != value:
            raise UserError(f"the unet's {name} must be {value} for this data and text: got {config.unet[name]!r}")
    mean, std = data.statistics()
    arguments = {
        "in_channels": data.channels,
        "out_channels": data.channels,
        "cross_attention_dim": text_encoder.config.hidden_size,
        "augment_dim": AUGMENT_DIM if config.augment_probability > 0 else None,
        "sample_mean": mean,
        "sample_std": std,
        **known_arguments(config.unet, MezzotintUNetModel),
    }
    try:
        unet = MezzotintUNetModel(**arguments)
        scheduler = MezzotintScheduler(**known_arguments(config.scheduler, MezzotintScheduler))
    except ValueError as error:
        raise UserError(str(error)) from None
    return {"unet": unet, "scheduler": scheduler, "text_encoder": text_encoder, "tokenizer": tokenizer}
