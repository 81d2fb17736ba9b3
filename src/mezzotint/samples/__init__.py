# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Samples that pipelines draw: a file for each modality shows one as a picture and writes it to a file. Libraries
that this takes are imported where they are needed, and no sooner."""

import importlib
from typing import Any

import numpy as np
import torch


def of(modality: str) -> Any:
    """The file of a modality. Each has

    - `ENDINGS`: of files that samples are written to, first the one that is usual;
    - `measured(pipe)`: the size of a pipeline's samples, in words;
    - `show(drawn, about, size)`: a sample, as the pipeline gives it, as a picture, where `about` is the `modality` of
      the U-Net's config and `size` the pipeline's own;
    - `states(pipe, data)`: decoded samples `(samples, channels, *size)` on the way as bytes `(samples, height, width,
      channels)`, or of videos `(samples, height, frames, width, channels)`;
    - `encoded(drawn, ending, about)`: the bytes of a file of a sample, where it is no picture.
    """
    return importlib.import_module(f"mezzotint.samples.{modality}")


def as_bytes(data: torch.Tensor) -> np.ndarray:
    """Decoded samples `(samples, channels, *size)` in [-1, 1], beyond which they are cut, as bytes `(samples, *size,
    channels)`."""
    return ((data.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()
