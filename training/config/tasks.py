# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The tasks and the modalities, a line each: pipeline, card and columns. What a network reads for a task beside the
sample is made in `data/conditions.py`, what a sample of a modality is in `modalities/`."""

import importlib
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
    # Of several networks, each of which `train.py` trains for a task above
    "cascade": Task("MezzotintCascadePipeline", "text-to-image", "cascade.md.jinja"),
}
# Of a decoder with its prior (`train_prior.py`)
PRIOR = Task("MezzotintPriorPipeline", "text-to-image", "prior.md.jinja")


class Modality(NamedTuple):
    """
    Attributes:
        stem: of its file in `modalities/`.
        spatial_dims: axes of a sample beside its channels.
        word: a sample, in words.
        column: where samples are by default.
        sized_by: what says how large they are.
        drawn: what draws them from a text.
        settings: those that are for it and not for every modality.
        told: whether the type of a column tells it.
        downsample_axes: those along which a network halves samples, counted from 0; all by default.
    """

    stem: str
    spatial_dims: int
    word: str
    column: str
    sized_by: str
    drawn: Task
    settings: tuple[str, ...] = ()
    told: bool = True
    downsample_axes: tuple[int, ...] | None = None

    @property
    def reader(self) -> Any:
        """Its file."""
        return importlib.import_module(f"mezzotint_training.modalities.{self.stem}")

    @property
    def without(self) -> list[str]:
        """Settings that are for other modalities alone."""
        return [name for kind in MODALITIES.values() for name in kind.settings if name not in self.settings]


MODALITIES = {
    "image": Modality(
        "images", 2, "picture", "image", "resolution", TASKS["text_to_image"],
        ("task", "resolution", "aspect_ratio_buckets", "random_flip", "augment_probability", "latent_versions", "vae"),
    ),
    "audio": Modality(
        "audio", 1, "sound", "audio", "audio_length_in_s, in samples,",
        Task("MezzotintAudioPipeline", "text-to-audio", "text_to_audio.md.jinja"),
        ("sampling_rate", "audio_length_in_s", "n_fft"),
    ),
    "video": Modality(
        "video", 3, "video", "video", "num_frames, height and width",
        Task("MezzotintVideoPipeline", "text-to-video", "text_to_video.md.jinja"),
        ("resolution", "random_flip", "num_frames", "frame_rate"), downsample_axes=(1, 2),
    ),
    "voxels": Modality(
        "voxels", 3, "solid", "voxels", "the grid",
        Task("MezzotintVoxelPipeline", "text-to-3d", "text_to_voxels.md.jinja"), ("random_turn",),
    ),
    "molecules": Modality(
        "molecules", 1, "molecule", "selfies", "molecule_length_in_tokens",
        Task("MezzotintMoleculePipeline", "text-to-molecule", "text_to_molecule.md.jinja"),
        ("molecule_length_in_tokens",), told=False,
    ),
}  # fmt: skip


def of(settings: Mapping[str, Any]) -> Task:
    """The task of a run by its settings as they were written down, by an older version too."""
    if settings.get("decoder"):
        return PRIOR
    name = settings.get("modality") or "image"
    return TASKS[settings.get("task", "text_to_image")] if name == "image" else MODALITIES[name].drawn


def modality(config: TrainConfig) -> Modality:
    """What the samples of a run are."""
    return MODALITIES[config.modality or "image"]


def reader(config: TrainConfig) -> Any:
    """The file that reads the samples of a run."""
    return modality(config).reader


def sample_column(config: TrainConfig) -> str:
    """The column of samples."""
    kind = modality(config)
    return config.image_column if kind.stem == "images" else config.sample_column or kind.column


def downsample_axes(config: TrainConfig) -> tuple[int, ...] | None:
    """The axes along which a new network halves the samples of a run; `None` is all."""
    return config.unet.get("downsample_axes", modality(config).downsample_axes)


def channels(config: TrainConfig, pictures: int) -> dict[str, int]:
    """The U-Net's `in_channels` and `out_channels` for pictures of so many channels."""
    drawn = class_bits(config.num_classes) if config.task == "segment" else pictures
    # A picture, or a map of classes, and how little is known of it
    read = class_bits(config.num_classes) if config.task == "layout" else pictures
    beside = 0 if config.task in ("text_to_image", "unclip") else read + 1
    return {"in_channels": drawn + beside, "out_channels": drawn}


def trained_task(unet: Any) -> Task:
    """The task of a U-Net of this config, text to image where it is of one that is not known here."""
    if about := unet.get("modality"):
        return MODALITIES.get(about["name"], MODALITIES["image"]).drawn
    return TASKS.get(trained_for(unet), TASKS["text_to_image"])


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
