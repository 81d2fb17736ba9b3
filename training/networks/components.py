# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The components that a run trains: new ones, made from its settings and the data, or those of a saved pipeline
(`saved.py`) made ready."""

from typing import Any

import torch
from accelerate import Accelerator

from mezzotint import MezzotintScheduler, MezzotintUNetModel
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import known_arguments
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.tasks import channels, condition, downsample_axes, modality
from mezzotint_training.data.augment import AUGMENT_DIM, TURN_DIM
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.networks.adapters import add_adapters
from mezzotint_training.networks.cache import fingerprint
from mezzotint_training.networks.latents import check_scale
from mezzotint_training.networks.saved import check_finite
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder, train_what_is_read
from mezzotint_training.networks.towers import Embeddings


def new_components(
    config: TrainConfig,
    data: CaptionedSamples,
    attributes: dict[str, Any] | None = None,
    vae: Any = None,
    embeddings: Embeddings | None = None,
    text: tuple[Any, Any] | None = None,
) -> dict:
    """Untrained components: the U-Net at the data's scale, reading their attributes; the scheduler; and a text encoder
    with its tokenizer. With them the autoencoder whose latents the data are, if there is one; and in place of a text
    encoder the two-tower encoder whose `embeddings` are read, if there is one. `text` is an encoder with its tokenizer
    in the place of those that `config` names.

    Raises:
        UserError: for settings that do not fit the data, or latents without a scale.
    """
    diffused = data.channels if vae is None else vae.config.latent_channels
    text_encoder, about = None, condition(config)
    if embeddings is not None:
        towers, (center, spread) = embeddings.towers, embeddings.scale(data)
        tokenizer, text_dim = towers.tokenizer, len(center)
        about = {**(about or {}), "image_mean": towers.image_mean, "image_std": towers.image_std}
        about |= {"embeds_mean": center, "embeds_std": spread}
    elif text is not None:
        text_encoder, tokenizer = text
    elif config.text_encoder_name_or_path is not None:
        text_encoder, tokenizer = load_text_encoder(config.text_encoder_name_or_path)
    else:
        text_encoder, tokenizer = new_text_encoder(config)
    if text_encoder is not None:
        text_dim = text_encoder.config.hidden_size
    given = {
        "spatial_dims": modality(config).spatial_dims,
        **channels(config, diffused),
        "cross_attention_dim": text_dim,
    }
    if config.task == "text_to_image" and vae is None:
        del given["in_channels"]  # which says the channels of the pictures
    for name, value in given.items():
        if config.unet.get(name, value) != value:
            raise UserError(f"the unet's {name} must be {value} for this data and text: got {config.unet[name]!r}")
    mean, std = data.statistics() if config.task != "segment" else ([0.0], [1.0])
    if vae is not None:
        check_scale(mean, std)
    arguments = {
        **given,
        "in_channels": channels(config, diffused)["in_channels"],
        "augment_dim": AUGMENT_DIM if config.augment_probability > 0 else TURN_DIM if config.random_turn else None,
        "sample_mean": mean,
        "sample_std": std,
        "condition": about,
        "attributes": attributes,
        "modality": {"name": config.modality, **data.about} if modality(config).stem != "images" else None,
        "downsample_axes": downsample_axes(config),
        **known_arguments(config.unet, MezzotintUNetModel),
    }
    try:
        unet = MezzotintUNetModel(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    scheduler = new_scheduler(config)
    networks = {"unet": unet, "scheduler": scheduler, "text_encoder": text_encoder, "tokenizer": tokenizer}
    networks |= {} if embeddings is None else {"two_towers": embeddings.towers.model}
    return networks | ({} if vae is None else {"vae": vae})


def new_scheduler(config: TrainConfig) -> MezzotintScheduler:
    """The noise levels that the settings say.

    Raises:
        UserError: for arguments that they cannot have.
    """
    try:
        return MezzotintScheduler(**known_arguments(config.scheduler, MezzotintScheduler))
    except ValueError as error:
        raise UserError(str(error)) from None


def trains_text(config: TrainConfig) -> bool:
    """Whether the text encoder is trained too: where `train_text_encoder` says so, or else where it is new."""
    if config.train_text_encoder is not None:
        return config.train_text_encoder
    return not (config.pretrained_model_name_or_path or config.text_encoder_name_or_path)


def left_as_they_are(config: TrainConfig, components: dict[str, Any]) -> dict[str, str]:
    """A hash of each network that the run reads by and does not change, of which its checkpoints hold nothing: the text
    encoder where it is not trained, and below adapters all. To be called before `make_trainable`."""
    text = config.adapter is not None or not trains_text(config)
    names = [*(["unet"] if config.adapter is not None else []), *(["text_encoder"] if text else [])]
    return weights_of(components, names)


def weights_of(components: dict[str, Any], names: list[str]) -> dict[str, str]:
    """A hash of each of these networks, but for those that are not there, as messages call them."""
    found = {name.replace("_", " "): components[name] for name in names if components[name] is not None}
    return {name: fingerprint({}, network).hexdigest() for name, network in found.items()}


def make_trainable(config: TrainConfig, components: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Bring the networks to their device and make those ready that are trained: the U-Net, and the text encoder if
    `train_text_encoder` says so or it is new.

    Args:
        config: which also says whether they get adapters, recompute activations, lie channels-last or are compiled.
        components: `unet` and `text_encoder`, which may be `None`, are changed in place.
        accelerator: of the run.

    Returns:
        those that are trained, by name, in training mode; the parameters to train ask for gradients, others do not.

    Raises:
        UserError: for weights that are not finite, or adapters that do not fit the networks.
    """
    networks = {name: components[name] for name in ("unet", "text_encoder") if components[name] is not None}
    train_text = trains_text(config)
    trained = {name: model for name, model in networks.items() if name == "unet" or train_text}
    for name, model in networks.items():
        check_finite(name, model)
        model.to(accelerator.device).requires_grad_(name in trained).train(name in trained)
    unet, text_encoder = components["unet"], trained.get("text_encoder")
    if config.adapter is not None:
        add_adapters(config, unet, components["text_encoder"], train_text)
    elif text_encoder is not None:
        train_what_is_read(text_encoder)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if text_encoder is not None:  # by the name of transformers from 5.23 on, or the one before
            getattr(text_encoder, "activation_checkpointing_enable", text_encoder.gradient_checkpointing_enable)()
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    if config.channels_last and unet.config.spatial_dims in formats:
        unet.to(memory_format=formats[unet.config.spatial_dims])
    if config.compile:
        unet.compile()
    return trained
