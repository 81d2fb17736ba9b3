# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Pictures that a visitor gives or paints, as a network reads them, and how noise takes one away."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from mezzotint import MezzotintScheduler
from mezzotint.drawing import as_grid
from mezzotint.pipelines.pipeline_mezzotint_segment import class_colours
from mezzotint.samples import as_bytes

LARGEST = 512  # pixels of a given picture's sides

# ---------------------------------------------------------------------------------------------- pictures that are given


def fitted(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """A given picture at the `(height, width)` that a network reads, scaled to cover it and cropped about its centre;
    as it is without a size.

    Raises:
        ValueError: for one that is too large to be taken as it is.
    """
    if size is None:
        if max(picture.size) > LARGEST:
            got = "x".join(map(str, picture.size))
            raise ValueError(f"a picture must have at most {LARGEST}x{LARGEST} pixels to keep its size: got {got}")
        return picture
    height, width = size
    if picture.width % width == 0 and picture.height * width == picture.width * height:  # enlarged pixel by pixel
        return picture.resize((width, height), Image.Resampling.BOX)
    return ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)


def painted_over(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """The mask, white where it is painted, of transparent layers over a picture of `(height, width)`.

    Raises:
        ValueError: where nothing is painted.
    """
    cover = np.max([np.asarray(layer.getchannel("A")) for layer in layers], axis=0) if layers else np.zeros((1, 1))
    mask = fitted(Image.fromarray(np.where(cover > 0, 255, 0).astype(np.uint8)), size)
    mask = mask.point(lambda value: 255 if value >= 128 else 0)
    if mask.getextrema()[1] == 0:
        raise ValueError("something must be painted over, to be drawn anew: nothing is, or less than a pixel")
    return mask


def painted_classes(canvas: Image.Image, num_classes: int, size: tuple[int, int]) -> Image.Image:
    """The map of classes at `(height, width)` that is painted on a canvas in the classes' colours: of each pixel the
    class of most of what it covers, each colour being the class of the nearest one."""
    pixels = np.asarray(canvas.convert("RGB"), dtype=np.int64)
    colours = np.asarray(class_colours(num_classes))
    nearest = ((pixels[:, :, None] - colours) ** 2).sum(-1).argmin(-1)  # (H, W)
    shares = [
        np.asarray(fitted(Image.fromarray(np.where(nearest == k, 255, 0).astype(np.uint8)), size))
        for k in range(num_classes)
    ]
    return Image.fromarray(np.argmax(shares, axis=0).astype(np.uint8))


# ---------------------------------------------------------------------------------------------- the forward process


def schedule_of(pipe: Any) -> Any:
    """The noise schedule that the pipeline's network was trained under, as a `MezzotintScheduler`, whatever the
    pipeline's own is."""
    return MezzotintScheduler.from_config(pipe.scheduler.config)


def noised(pipe: Any, picture: Image.Image, timestep: float, seed: int = 0) -> Image.Image:
    """A picture as the network would see it at a timestep: q(x_t | x_0), DDPM eq. 4, always with the same noise of a
    seed."""
    config = pipe.unet.config
    beside = pipe.trained_for["task"] == "segment"  # where the data are classes, and pictures stand beside them
    channels = config.in_channels - config.out_channels - 1 if beside else pipe.channels
    pixels = np.atleast_3d(np.asarray(picture.convert({1: "L", 4: "RGBA"}.get(channels, "RGB"))))
    sample = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    spatial = sample.shape[2:]
    if not beside:
        sample = pipe.encode(sample.to(pipe.device), pipe.padded(spatial))
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed)).to(sample)
    sample = schedule_of(pipe).add_noise(sample, noise, torch.tensor([float(timestep)]))
    return as_grid(as_bytes(sample if beside else pipe.decode(sample, spatial)))


class Curves(NamedTuple):
    """A noise schedule: at each of `timesteps` the share of signal alpha_t, that of noise sigma_t, and the logarithm of
    the signal-to-noise ratio, log(alpha_t^2 / sigma_t^2). Arrays of one length."""

    timesteps: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    log_snr: np.ndarray


def curves_of(pipe: Any, timesteps: Any = None) -> Curves:
    """The curves of the pipeline's noise schedule, by default at about a hundred timesteps."""
    schedule = schedule_of(pipe)
    if timesteps is None:
        timesteps = np.linspace(0, len(schedule) - 1, min(len(schedule), 101))
    ratio = schedule.timesteps_to_sigmas(torch.as_tensor(timesteps, dtype=torch.float32)).double().numpy()
    with np.errstate(divide="ignore"):
        ratio = np.minimum(ratio, 1e8)  # zero signal has no finite logarithm
        return Curves(np.asarray(timesteps), (1 + ratio**2) ** -0.5, (1 + ratio**-2.0) ** -0.5, -2 * np.log(ratio))
