# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Pictures to be compared: the real ones of a set, and those that a pipeline draws."""

import argparse
import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from mezzotint_training.config.errors import UserError, one_line
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedImages
from mezzotint_training.data.labels import labelled
from mezzotint_training.data.rows import column, held_out, load_splits
from mezzotint_training.engine.progress import progress_bar
from mezzotint_training.networks.saved import sample_size


@dataclass
class Real:
    """Pictures of a split: bytes (N, C, H, W), the captions of each, and its class, -1 where it has none."""

    pixels: torch.Tensor
    captions: list[list[str]]
    labels: torch.Tensor

    def rows(self, rows: torch.Tensor) -> "Real":
        return Real(self.pixels[rows], [self.captions[i] for i in rows.tolist()], self.labels[rows])


def real_pictures(args: argparse.Namespace, config: TrainConfig, pipe: Any) -> tuple[list[CaptionedImages], list[str]]:
    """The training and the held-out pictures at the pipeline's size, and the names of their classes, of which a set
    without labels has none. What is held out is noted in `config`.

    Raises:
        UserError: for data that isn't there, as `rows.load_splits` and `rows.held_out` do.
    """
    size = sample_size(pipe)
    splits = load_splits(config)
    split = args.split or ("test" if "test" in splits else None)
    if split is not None:
        config.validation_split, config.num_validation_samples = split, 10**9
    classes: list[str] = []
    if args.label_column is not None:
        splits, classes = labelled(splits, args.label_column)
    else:
        with contextlib.suppress(UserError):  # none, or one that holds no classes
            splits, classes = labelled(splits, "label")
    parts = held_out(config, splits)
    if parts[1] is None:
        raise UserError(f"no pictures are held out: --split names a split of {', '.join(map(repr, splits))}")
    images = [CaptionedImages(rows, config, pipe.unet.config.in_channels, size) for rows in parts]
    for some in images:
        some.read_all(progress=True)
    return images, classes


def read(images: CaptionedImages, classes: list[str], label_column: str) -> Real:
    good = [(i, pixels) for i in images.good.tolist() if (pixels := images.pixels(i)) is not None]
    captions = [images.captions[i].as_py() for i, _ in good]
    texts = [caption if isinstance(caption, list) else [caption] for caption in captions]
    number = {name: i for i, name in enumerate(classes)}
    names = column(images.rows, label_column).to_pylist() if classes else [None] * len(images.rows)
    labels = torch.tensor([number.get(names[i], -1) for i, _ in good])
    return Real(torch.stack([pixels for _, pixels in good]), texts, labels)


def shuffled(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, captions: list[list[str]], args: argparse.Namespace) -> torch.Tensor:
    """A picture of the first of each captions, as the bytes that a file would hold (N, C, H, W); each from a noise of
    its own, whatever the batch."""
    pipe.set_progress_bar_config(disable=True)
    starts, parts = range(0, len(captions), args.batch_size), []
    for start in progress_bar(starts, "drawing", len(starts)):
        some = [texts[0] for texts in captions[start : start + args.batch_size]]
        prompts = {"prompt": some} if pipe.unet.config.cross_attention_dim is not None else {}
        try:
            pictures = pipe(
                **prompts,
                **({} if prompts else {"num_images_per_prompt": len(some)}),
                num_inference_steps=args.num_inference_steps,
                guidance_scale=args.guidance_scale,
                generator=[torch.Generator().manual_seed(args.seed * 10**6 + start + i) for i in range(len(some))],
                output_type="pt",
            ).images
        except ValueError as error:  # of what the pipeline does not take, or cannot draw
            raise UserError(one_line(error)) from None
        parts.append((pictures.float().cpu() * 255).round().byte())
    return torch.cat(parts)
