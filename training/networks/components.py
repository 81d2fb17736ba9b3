# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""New components for a run, made from its settings and the data. Those of a saved pipeline are in `saved.py`."""

from mezzotint import MezzotintScheduler, MezzotintUNetModel
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import known_arguments
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.augment import AUGMENT_DIM
from mezzotint_training.data.dataset import CaptionedImages
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder


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
