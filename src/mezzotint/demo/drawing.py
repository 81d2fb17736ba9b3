# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a page shows of a pipeline: the tasks that its weights allow, pictures with all the states that they came
through, and how noise takes a picture away. Nothing of a page is known here."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

import mezzotint
from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint.pipelines.conditions_mezzotint import bits_to_classes
from mezzotint.pipelines.pipeline_mezzotint_segment import class_colours, painted

LARGEST = 512  # pixels of a given picture's sides
SHOWN = 256  # pixels to which small pictures are enlarged in an animation


class Drawing(NamedTuple):
    """
    Attributes:
        pictures: what was drawn, each with a caption.
        timesteps: of each step, the timestep at which it began.
        noisy: the sample x_t after each step, uint8 of shape `(pictures, height, width, channels)`.
        clean: x_0 as predicted at each step, likewise.
    """

    pictures: list[tuple[Image.Image, str]]
    timesteps: list[float]
    noisy: list[np.ndarray]
    clean: list[np.ndarray]


def tasks_of(pipe: Any) -> list[Any]:
    """The pipelines of the package that draw with the weights of `pipe`: first the one that they are trained for, then
    text to image, then the others."""
    found = [getattr(mezzotint, name) for name in mezzotint.__all__]
    found = [cls for cls in found if issubclass(cls, DiffusionPipeline) and pipe.trained_for["task"] in cls.tasks]
    return sorted(found, key=lambda cls: (cls.tasks[0] != pipe.trained_for["task"], cls is not MezzotintPipeline))


def arguments_of(cls: Any) -> dict[str, Any]:
    """The arguments of a call of the pipeline `cls`, with their defaults."""
    return {name: argument.default for name, argument in inspect.signature(cls.__call__).parameters.items()}


def samplers_of(pipe: Any) -> dict[str, Any]:
    """The classes of schedulers by name that can take the pipeline's steps, its own first: those that it says are
    compatible, but for the ones that lack a package, cannot hold its noise schedule, or have timesteps of their own."""
    own = type(pipe.scheduler)
    found = {own.__name__: own}
    for cls in sorted(own._get_compatibles(), key=lambda cls: cls.__name__):
        known = inspect.signature(cls.__init__).parameters
        holds = "rescale_betas_zero_snr" in known or not pipe.scheduler.config.get("rescale_betas_zero_snr")
        if not hasattr(cls, "_backends") and "sigma_data" not in known and holds:  # EDM's are functions of sigma
            found[cls.__name__] = cls
    return found


def sampler_of(pipe: Any, name: str) -> Any:
    """The pipeline's scheduler, where that is its class's name, or a new one of the class of that name.

    Raises:
        ValueError: for a name that is not among `samplers_of`.
    """
    samplers = samplers_of(pipe)
    if name not in samplers:
        raise ValueError(f"sampler must be one of {', '.join(samplers)}: got {name!r}")
    if samplers[name] is type(pipe.scheduler):
        return pipe.scheduler
    known = inspect.signature(samplers[name].__init__).parameters
    config = {key: value for key, value in pipe.scheduler.config.items() if key in known and key != "solver_order"}
    config |= {"lower_order_final": True} if "lower_order_final" in known else {}  # which ends on clean data
    return samplers[name].from_config(config)


def draw(
    pipe: Any,
    cls: Any,
    count: int = 1,
    seed: int = 0,
    sampler: str | None = None,
    progress: Callable[[int, int], object] = lambda step, steps: None,
    **arguments: Any,
) -> Drawing:
    """Draw pictures with the pipeline `cls` and the components of `pipe`, and keep the states that they came through.

    Args:
        count: pictures, the first by the seed `seed`, the next by `seed + 1`, ...
        sampler: name of one of `samplers_of`, by default the pipeline's own.
        progress: is called with each step and their number.
        arguments: of the call.

    Raises:
        ValueError: in one line, for what the pipeline does not take.
    """
    run = cls(**{**pipe.components, "scheduler": sampler_of(pipe, sampler or type(pipe.scheduler).__name__)})
    run.set_progress_bar_config(disable=True)
    timesteps, noisy, clean = [], [], []

    def keep(run: Any, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        for states, name in ((noisy, "latents"), (clean, "pred_original_sample")):
            del states[step:]  # of a step that is taken again
            states.append(_as_pixels(run, tensors[name]))
        del timesteps[step:]
        timesteps.append(float(timestep))
        progress(step + 1, run.num_timesteps)
        return {}

    number = "ensemble_size" if "ensemble_size" in arguments_of(cls) else "num_images_per_prompt"
    result = run(
        **{number: count},
        **arguments,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(count)],
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    )
    if "images" in result:
        pictures = [(picture, f"seed {seed + i}") for i, picture in enumerate(result.images)]
    else:
        doubt = Image.fromarray((255 * result.uncertainty[0]).round().astype(np.uint8))
        pictures = [(result.prediction[0].convert("RGB"), "classes"), (doubt, "doubt: bright where drawings differ")]
    width, height = pictures[0][0].size  # the network may have drawn them larger, to be cropped
    noisy, clean = ([state[:, :height, :width] for state in states] for states in (noisy, clean))
    return Drawing(pictures, timesteps, noisy, clean)


def _as_pixels(run: Any, sample: torch.Tensor) -> np.ndarray:
    """A normalised sample as uint8 of shape `(pictures, height, width, channels)`; bits of several classes in the
    classes' colours."""
    data = run.decode(sample.float(), sample.shape[2:])
    if run.trained_for["task"] == "segment" and run.trained_for["num_classes"] > 2:
        num_classes = run.trained_for["num_classes"]
        maps = bits_to_classes(data, num_classes).cpu().numpy()
        return np.stack([np.asarray(painted(classes, num_classes).convert("RGB")) for classes in maps])
    pixels = (data.clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def as_grid(state: np.ndarray) -> Image.Image:
    """The pictures of one state side by side, in as many rows as columns if possible."""
    pictures = [Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels) for pixels in state]
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    pictures += [Image.new(pictures[0].mode, pictures[0].size)] * (rows * columns - len(pictures))
    return make_image_grid(pictures, rows=rows, cols=columns)


def animate(drawing: Drawing, path: str | Path) -> None:
    """Write the states of a drawing as an animation, x_t on the left and the predicted x_0 on the right, which rests on
    its end: WebP, GIF or PNG by the path's ending. Small pictures are enlarged, pixel by pixel."""
    frames = []
    for noisy, clean in zip(drawing.noisy, drawing.clean, strict=True):
        pair = [as_grid(noisy).convert("RGB"), as_grid(clean).convert("RGB")]
        scale = max(1, SHOWN // max(pair[0].size))
        pair = [x.resize([scale * side for side in x.size], Image.Resampling.NEAREST) for x in pair]
        frames.append(make_image_grid([ImageOps.expand(x, border=4, fill="white") for x in pair], rows=1, cols=2))
    step = max(40, min(200, 4000 // len(frames)))  # milliseconds: about four seconds in all
    durations = [*[step] * (len(frames) - 1), 2000]
    lossless = {"lossless": True} if Path(path).suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **lossless)


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
    channels = config.in_channels - config.out_channels - 1 if beside else config.out_channels
    pixels = np.atleast_3d(np.asarray(picture.convert({1: "L", 4: "RGBA"}.get(channels, "RGB"))))
    mean, std = (
        torch.tensor([0.0] if beside else x).reshape(1, -1, 1, 1) for x in (config.sample_mean, config.sample_std)
    )
    std = torch.ones(1) if beside else std
    sample = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 - mean) / std
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed))
    sample = schedule_of(pipe).add_noise(sample, noise, torch.tensor([float(timestep)]))
    data = (sample * std + mean).clamp(-1, 1)
    return as_grid(((data + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


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
