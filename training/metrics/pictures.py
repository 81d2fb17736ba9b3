# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Pictures to be compared: the real ones of a set, and those that a pipeline draws; of sounds, pictures of them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.tasks import MODALITIES
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.labels import labelled
from mezzotint_training.data.rows import column, held_out, load_splits
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.metrics import audio
from mezzotint_training.networks.saved import sample_size

# What judges look at in the place of samples that are no pictures, by their modality: of sounds spectrograms, of videos
# and solids one picture whose channels are those of all frames, or of all slices from front to back
SEEN = {
    "audio": lambda content, about: audio.seen(content, about["sampling_rate"], about.get("n_fft")),
    "video": lambda content, about: content.flatten(1, 2),
    "voxels": lambda content, about: content.flatten(1, 2),
}


@dataclass
class Real:
    """Pictures of a split, or of its sounds: bytes (N, C, H, W), or its samples as they are, whole numbers (N, C, *S);
    the captions of each, its class, -1 where it has none, and its row."""

    pixels: torch.Tensor
    captions: list[list[str]]
    labels: torch.Tensor
    numbers: torch.Tensor | None = None

    def rows(self, rows: torch.Tensor) -> "Real":
        numbers = None if self.numbers is None else self.numbers[rows]
        return Real(self.pixels[rows], [self.captions[i] for i in rows.tolist()], self.labels[rows], numbers)


def real_pictures(
    config: TrainConfig, pipe: Any, split: str | None, label_column: str | None
) -> tuple[list[CaptionedSamples], list[str]]:
    """The training and the held-out samples at the pipeline's size, and the names of their classes, of which a set
    without labels has none. What is held out is noted in `config`.

    Args:
        config: of which the settings of the data are read.
        pipe: that is measured, for the size and the channels.
        split: of the held-out pictures; `None` is "test", or what the run held out where there is none.
        label_column: of the classes; `None` is "label" where that holds classes.

    Raises:
        UserError: for data that isn't there, as `rows.load_splits` and `rows.held_out` do.
    """
    size = sample_size(pipe)
    splits = load_splits(config)
    if (modality := config.modality or "image") != pipe.modality:
        raise UserError(f"the set must hold what the pipeline draws, {pipe.word}s: got a set of modality {modality}")
    split = split or ("test" if "test" in splits else None)
    if split is not None:
        config.validation_split, config.num_validation_samples = split, 10**9
    classes: list[str] = []
    if label_column is not None:
        splits, classes = labelled(splits, label_column)
    else:
        with contextlib.suppress(UserError):  # none, or one that holds no classes
            splits, classes = labelled(splits, "label")
    parts = held_out(config, splits)
    if parts[1] is None:
        raise UserError(f"no {pipe.word}s are held out: --split names a split of {', '.join(map(repr, splits))}")
    about = pipe.unet.config.get("modality")
    images = [CaptionedSamples(rows, config, pipe.channels, size, about=about) for rows in parts]
    for some in images:
        some.read_all(progress=True)
    return images, classes


def check_seen(pipe: Any) -> None:
    """Check that there is something to see of what a pipeline draws.

    Raises:
        UserError: where there is not.
    """
    if pipe.modality not in ("image", *SEEN):
        raise UserError(f"evaluate looks at what can be seen, which {pipe.word}s cannot: their benchmark measures them")


def seen(modality: str | None, content: torch.Tensor, about: Mapping[str, Any] | None) -> torch.Tensor:
    """What judges look at, bytes (N, C, H, W): pictures themselves, or pictures of other samples (N, C, *S)."""
    return SEEN[modality](content, about or {}) if modality in SEEN else content


def seen_of(images: CaptionedSamples, row: int) -> torch.Tensor | None:
    """What judges look at of a row, (C, H, W); `None` for a bad one."""
    content = images.content(row)
    return None if content is None else seen(images.config.modality, content[None], images.about)[0]


def read(images: CaptionedSamples, classes: list[str], label_column: str, as_seen: bool = True) -> Real:
    """All good samples of a split as judges look at them, or as they are, with their captions and classes."""
    look = partial(seen_of, images) if as_seen else images.content
    good = [(i, pixels) for i in images.good.tolist() if (pixels := look(i)) is not None]
    texts = [images.captions[i] for i, _ in good]
    number = {name: i for i, name in enumerate(classes)}
    names = column(images.rows, label_column).to_pylist() if classes else [None] * len(images.rows)
    labels = torch.tensor([number.get(names[i], -1) for i, _ in good])
    numbers = torch.from_numpy(images.numbers[[i for i, _ in good]])
    return Real(torch.stack([pixels for _, pixels in good]), texts, labels, numbers)


def shuffled(count: int, seed: int) -> torch.Tensor:
    """The numbers below `count` in an order that only `seed` decides."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def draw(
    pipe: Any,
    captions: list[list[str]],
    num_inference_steps: int | list[int],
    guidance_scale: float,
    batch_size: int,
    seed: int,
    progress: bool = True,
    **more: Any,
) -> torch.Tensor:
    """A picture of the first of each captions, as the bytes that a file would hold (N, C, H, W), or of a sound what
    judges look at (`seen`); each from a noise of its own, whatever the batch. `more` are arguments of the pipeline's
    call.

    Raises:
        UserError: for what the pipeline does not take, or cannot draw.
    """
    pipe.set_progress_bar_config(disable=True)
    starts, parts = range(0, len(captions), batch_size), []
    for start in progress_bar(starts, "drawing", len(starts), progress):
        some = [texts[0] for texts in captions[start : start + batch_size]]
        prompts = {"prompt": some} if pipe.unet.config.cross_attention_dim is not None else {}
        try:
            drawn = pipe(
                **prompts,
                **({} if prompts else {pipe.per_prompt: len(some)}),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                **more,
                generator=[torch.Generator().manual_seed(seed * 10**6 + start + i) for i in range(len(some))],
                output_type="pt" if pipe.modality == "image" else "np",
            )
        except ValueError as error:  # of what the pipeline does not take, or cannot draw
            raise UserError(one_line(error)) from None
        if pipe.modality == "image":
            parts.append((drawn.images.float().cpu() * 255).round().byte())
        else:
            content = MODALITIES[pipe.modality].reader.content
            about = pipe.unet.config.modality
            samples = torch.stack([content(one, pipe.channels, pipe.default_size, about) for one in drawn[0]])
            parts.append(seen(pipe.modality, samples, about))
    return torch.cat(parts)
