# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draws with a pipeline and shows how: the tasks that its weights allow, the samplers that it can take, and all the
states that samples came through, also as an animation."""

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
from mezzotint import MezzotintPipeline, samples

SHOWN = 256  # pixels to which small pictures are enlarged in an animation


class Drawing(NamedTuple):
    """
    Attributes:
        pictures: of each sample that was drawn, with a caption.
        timesteps: of each step, the timestep at which it began.
        noisy: the sample x_t after each step, uint8 of shape `(samples, height, width, channels)`.
        clean: x_0 as predicted at each step, likewise.
        samples: what was drawn, as the pipeline gives it.
    """

    pictures: list[tuple[Image.Image, str]]
    timesteps: list[float]
    noisy: list[np.ndarray]
    clean: list[np.ndarray]
    samples: list[Any]


class Keeping:
    """Keeps the states that a call of a pipeline comes through, given its `arguments`.

    Args:
        progress: is called with each step, counted from 1, and their number.
        stopped: is asked after each step; where it says so, no more are taken.
    """

    def __init__(
        self,
        progress: Callable[[int, int], object] = lambda step, steps: None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.progress, self.stopped = progress, stopped
        self.timesteps, self.noisy, self.clean = [], [], []

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call, by which it hands over its states."""
        names = ["latents", "pred_original_sample"]
        return {"callback_on_step_end": self.keep, "callback_on_step_end_tensor_inputs": names}

    def keep(self, run: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        for states, name in ((self.noisy, "latents"), (self.clean, "pred_original_sample")):
            del states[step:]  # of a step that is taken again
            spatial = [size * run.vae_scale_factor for size in tensors[name].shape[2:]]
            states.append(samples.of(run.modality).states(run, run.decode(tensors[name].float(), spatial)))
        del self.timesteps[step:]
        self.timesteps.append(float(timestep))
        self.progress(step + 1, run.num_timesteps)
        run._interrupt = run._interrupt or self.stopped()
        return {}

    def drawing(self, pictures: list[tuple[Image.Image, str]], drawn: list[Any] | None = None) -> Drawing:
        """The states that were kept, with the samples that came of them, `drawn`, by default `pictures`. The states of
        videos become the frames side by side."""
        drawn, states = drawn or [picture for picture, _ in pictures], [self.noisy, self.clean]
        frame = drawn[0][0] if isinstance(drawn[0], list) else drawn[0]
        if isinstance(frame, Image.Image):  # the network may have drawn it larger, to be cropped
            states = [[state[:, : frame.height, ..., : frame.width, :] for state in kept] for kept in states]
        noisy, clean = ([state.reshape(*state.shape[:2], -1, state.shape[-1]) for state in kept] for kept in states)
        return Drawing(pictures, self.timesteps, noisy, clean, drawn)


def class_of(source: str | Path, revision: str | None = None) -> Any:
    """The pipeline of the package to load a folder or a Hub repository by: the one that its index names, if that has
    components of its own or draws no pictures, and `MezzotintPipeline` for all others, whose components are alike."""
    try:
        name = MezzotintPipeline.load_config(source, revision=revision)["_class_name"]
    except (OSError, ValueError):  # which whoever loads it says
        return MezzotintPipeline
    plain, cls = MezzotintPipeline, getattr(mezzotint, str(name), MezzotintPipeline)
    own = cls._get_signature_types().keys() > plain._get_signature_types().keys()
    return cls if own or cls.modality != plain.modality else plain


def on_device(pipe: Any, device: str | torch.device) -> Any:
    """The pipeline `pipe`, moved to a device; to a CPU, which computes little in float16, with the components that are
    of that type in float32."""
    if torch.device(device).type == "cpu":
        for model in pipe.components.values():
            if isinstance(model, torch.nn.Module) and model.dtype == torch.float16:
                model.float()
    return pipe.to(device)


def tasks_of(pipe: Any) -> list[Any]:
    """The pipelines of the package that draw with the weights of `pipe`: first the one that they are trained for, then
    text to image, then the others."""
    found = [getattr(mezzotint, name) for name in mezzotint.__all__]
    found = [cls for cls in found if issubclass(cls, DiffusionPipeline) and cls.modality == pipe.modality]
    found = [cls for cls in found if pipe.trained_for["task"] in cls.tasks]
    found = [cls for cls in found if all(getattr(pipe, name, None) is not None for name in cls.needs)]
    return sorted(found, key=lambda cls: (cls.tasks[0] != pipe.trained_for["task"], cls is not MezzotintPipeline))


def arguments_of(cls: Any) -> dict[str, Any]:
    """The arguments of a call of the pipeline `cls`, with their defaults."""
    return {name: argument.default for name, argument in inspect.signature(cls.__call__).parameters.items()}


def samplers_of(pipe: Any) -> dict[str, Any]:
    """The classes of schedulers by name that can take the pipeline's steps, its own first: those that it says are
    compatible, but for the ones that lack a package, cannot hold its noise schedule, have timesteps of their own, or
    cannot take a step by what the network predicts."""
    own = type(pipe.scheduler)
    others = sorted(own._get_compatibles(), key=lambda cls: cls.__name__)
    return {own.__name__: own} | {cls.__name__: cls for cls in others if _takes_steps(cls, pipe.scheduler)}


def sampler_of(pipe: Any, name: str) -> Any:
    """The pipeline's scheduler, where that is its class's name, or a new one of the class of that name.

    Raises:
        ValueError: for a name that is not among `samplers_of`.
    """
    own = type(pipe.scheduler)
    if name == own.__name__:
        return pipe.scheduler
    cls = next((cls for cls in own._get_compatibles() if cls.__name__ == name), None)
    if cls is None or not _takes_steps(cls, pipe.scheduler):
        raise ValueError(f"sampler must be one of {', '.join(samplers_of(pipe))}: got {name!r}")
    return _converted(cls, pipe.scheduler)


def _takes_steps(cls: Any, scheduler: Any) -> bool:
    """Whether schedulers of class `cls` can take the place of `scheduler`."""
    known = inspect.signature(cls.__init__).parameters
    holds = "rescale_betas_zero_snr" in known or not scheduler.config.get("rescale_betas_zero_snr")
    if hasattr(cls, "_backends") or "sigma_data" in known or not holds:  # EDM's are functions of sigma
        return False
    try:
        one, sample = _converted(cls, scheduler), torch.zeros(1, 1, 1, 1)
        one.set_timesteps(2)
        one.step(one.scale_model_input(sample, one.timesteps[0]), one.timesteps[0], sample)
    except (NotImplementedError, ValueError):  # of the noise schedule, or of the kind of prediction
        return False
    return True


def _converted(cls: Any, scheduler: Any) -> Any:
    """A scheduler of class `cls` with the noise schedule of another."""
    known = inspect.signature(cls.__init__).parameters
    config = {key: value for key, value in scheduler.config.items() if key in known and key != "solver_order"}
    config |= {"lower_order_final": True} if "lower_order_final" in known else {}  # which ends on clean data
    config |= {"skip_prk_steps": True} if "skip_prk_steps" in known else {}  # which come in fours, not to be cut
    return cls.from_config(config)


def draw(
    pipe: Any,
    cls: Any,
    count: int = 1,
    seed: int = 0,
    sampler: str | None = None,
    progress: Callable[[int, int], object] = lambda step, steps: None,
    stopped: Callable[[], bool] = lambda: False,
    **arguments: Any,
) -> Drawing:
    """Draw samples with the pipeline `cls` and the components of `pipe`, and keep the states that they came through.

    Args:
        count: samples, the first by the seed `seed`, the next by `seed + 1`, ...
        sampler: name of one of `samplers_of`, by default the pipeline's own.
        progress: is called with each step and their number.
        stopped: is asked after each step; where it says so, no more are taken, and what was reached comes back.
        arguments: of the call.

    Raises:
        ValueError: in one line, for what the pipeline does not take.
    """
    run = cls(**{**pipe.components, "scheduler": sampler_of(pipe, sampler or type(pipe.scheduler).__name__)})
    run.set_progress_bar_config(disable=True)
    kept = Keeping(progress, stopped)
    number = "ensemble_size" if "ensemble_size" in arguments_of(cls) else cls.per_prompt
    result = run(
        **{number: count},
        **arguments,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(count)],
        **kept.arguments,
    )
    if "uncertainty" in result:
        doubt = Image.fromarray((255 * result.uncertainty[0]).round().astype(np.uint8))
        return kept.drawing(
            [(result.prediction[0].convert("RGB"), "classes"), (doubt, "doubt: bright where drawings differ")]
        )
    drawn, about = list(result.to_tuple()[0]), pipe.unet.config.get("modality") or {}
    pictures = [samples.of(cls.modality).show(one, about, run.default_size) for one in drawn]
    return kept.drawing([(picture, f"seed {seed + i}") for i, picture in enumerate(pictures)], drawn)


def as_grid(state: np.ndarray) -> Image.Image:
    """The pictures of one state side by side, in as many columns as make a square of them, if possible."""
    pictures = [Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels) for pixels in state]
    width, height = pictures[0].size
    columns = min(len(pictures), int(np.ceil(np.sqrt(len(pictures) * height / width))))
    rows = -(-len(pictures) // columns)
    pictures += [Image.new(pictures[0].mode, pictures[0].size, "white")] * (rows * columns - len(pictures))
    return make_image_grid(pictures, rows=rows, cols=columns)


def animate(drawing: Drawing, path: str | Path) -> None:
    """Write the states of a drawing as an animation, x_t on the left and the predicted x_0 on the right, which rests on
    its end: WebP, GIF or PNG by the path's ending. Small pictures are enlarged, pixel by pixel.

    Raises:
        ValueError: where no step was taken.
    """
    if not drawing.noisy:
        raise ValueError("an animation needs a step at least: got none")
    frames = []
    for noisy, clean in zip(drawing.noisy, drawing.clean, strict=True):
        pair = [as_grid(noisy).convert("RGB"), as_grid(clean).convert("RGB")]
        scale = max(1, SHOWN // max(pair[0].size))
        pair = [x.resize([scale * side for side in x.size], Image.Resampling.NEAREST) for x in pair]
        frames.append(make_image_grid([ImageOps.expand(x, border=4, fill="white") for x in pair], rows=1, cols=2))
    frames = [x.resize(frames[-1].size, Image.Resampling.NEAREST) for x in frames]  # of small stages too
    step = max(40, min(200, 4000 // len(frames)))  # milliseconds: about four seconds in all
    durations = [*[step] * (len(frames) - 1), 2000]
    lossless = {"lossless": True} if Path(path).suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **lossless)
