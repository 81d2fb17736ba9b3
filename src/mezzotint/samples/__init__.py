# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What pipelines draw: a file for each modality, which shows a sample as a picture and writes it as a file. Libraries
that this takes are imported where they are needed, and no sooner."""

import importlib
from typing import Any


def of(modality: str) -> Any:
    """The file of a modality. Each has

    - `ENDINGS`: of files that samples are written to, first the one that is usual;
    - `measured(pipe)`: what a sample of a pipeline measures, in words;
    - `show(drawn, about, size)`: a sample, as the pipeline gives it, as a picture, where `about` is the `modality` of
      the U-Net's config and `size` the pipeline's own;
    - `states(pipe, data)`: decoded samples `(samples, channels, *size)` on the way as bytes `(samples, height, width,
      channels)`, or of videos `(samples, height, frames, width, channels)`;
    - `encoded(drawn, ending, about)`: the bytes of a file of a sample, where it is no picture.
    """
    return importlib.import_module(f"mezzotint.samples.{modality}")
