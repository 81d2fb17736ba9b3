# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Pictures that were drawn, which are what shows them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from mezzotint.pipelines.conditions_mezzotint import bits_to_classes
from mezzotint.pipelines.pipeline_mezzotint_segment import painted
from mezzotint.samples import as_bytes

ENDINGS = ()


def measured(pipe: Any) -> str:
    """The size of a pipeline's pictures, in words."""
    height, width = pipe.default_size
    return f"{width}x{height} pixels"


def show(drawn: Image.Image, about: Mapping[str, Any], size: tuple[int, ...]) -> Image.Image:
    """A picture, as it is."""
    return drawn


def states(pipe: Any, data: torch.Tensor) -> np.ndarray:
    """Decoded samples (pictures, channels, height, width) as bytes (pictures, height, width, channels); bits of several
    classes in the classes' colours."""
    if pipe.trained_for["task"] == "segment" and pipe.trained_for["num_classes"] > 2:
        num_classes = pipe.trained_for["num_classes"]
        maps = bits_to_classes(data, num_classes).cpu().numpy()
        return np.stack([np.asarray(painted(classes, num_classes).convert("RGB")) for classes in maps])
    return as_bytes(data)
