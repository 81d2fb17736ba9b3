# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Segmentation as conditional generation: the classes of a picture's pixels are drawn as analog bits by a network that
reads the picture (<https://huggingface.co/papers/2210.06366>). Drawn several times, they say where there is doubt.

A drawing ends on the mean of what each bit may be, given the noisy bits of its last step, and not on -1 or 1: averaged
over the drawings this is the probability of a class, with less variance than the count of their signs (Rao-Blackwell).
Drawn in one step it is what the network foresees in pure noise, to which more drawings add little.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

import colorsys
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.conditions_mezzotint import bits_to_shares, picture_condition
from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


@dataclass
class MezzotintSegmentOutput(BaseOutput):
    """
    Args:
        prediction (list of PIL images in mode `P`, whose pixels are class numbers; or `np.ndarray` or `torch.Tensor` of
            shape `(pictures, height, width)`, int64): the likeliest class of each pixel.
        probabilities (`np.ndarray`, or `torch.Tensor` for `output_type="pt"`, of shape `(pictures, classes, height,
            width)`): how likely a pixel is of a class, the mean over the drawings.
        uncertainty (`np.ndarray` or `torch.Tensor` of shape `(pictures, height, width)`): in [0, 1], the entropy of
            these, 1 where all classes are alike.
    """

    prediction: Any
    probabilities: Any
    uncertainty: Any


class MezzotintSegmentPipeline(
    MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Segmentation, with weights that are trained for it (`train.py --task segment`). Its components are described at
    `MezzotintSamplingMixin`."""

    pipeline_tag = "image-segmentation"
    title = "Segment"
    summary = "Drop in a picture to have it divided into classes."
    tasks = ("segment",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        ensemble_size: int = 4,
        num_inference_steps: int = 10,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> MezzotintSegmentOutput | tuple:
        """Divide `image` into its classes. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what the picture shows; by default nothing is said of it.
            image (PIL image, `np.ndarray` of shape `(pictures, height, width, channels)`, `torch.Tensor` of shape
                `(pictures, channels, height, width)`, both in [0, 1], or a list): one, or one for each prompt, all of
                one size.
            ensemble_size (`int`): drawings of each picture, over which the probabilities of the classes are averaged.
            generator (`torch.Generator`, or a list with one for each drawing, *optional*): of the noise.
            latents (`torch.Tensor` of shape `(drawings, bits, height, width)`, *optional*): the noise.
            output_type (`str`): `"pil"`, `"np"`, `"pt"`, or `"latent"` for the drawings as they are, with no shares.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, for weights that are
                not trained for it, and where the result is not finite.
        """
        # 1. Check the inputs
        guider = self.guider if guider is None else guider
        guidance = MezzotintGuidance(guidance_scale, guidance_rescale, guidance_interval, guider, None, 1.0)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        self.check_inputs(*steps, 1, eta, generator, latents, output_type, *callback, ensemble_size=ensemble_size)
        self.check_guidance(guidance)
        image = self.read_image(image, self.unet.config.in_channels - self.unet.config.out_channels - 1)
        text = (
            self.prompt_or_none(prompt, prompt_embeds, len(image)),
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        self.check_text(*text)
        num_classes = self.trained_for["num_classes"]
        spatial = image.shape[2:]

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(guidance, ensemble_size, *text, prompts=len(image))
        image = self.for_each("image", image, batch_size // ensemble_size, ensemble_size)

        # 4. Choose the timesteps; the picture is read as it is
        schedule = run.choose_timesteps(guidance, *steps)
        noise = run.draw_noise(batch_size, spatial, generator, latents)
        condition = picture_condition(self.drawn_out(image.to(noise), noise.shape[2:]))

        # 5. Denoise
        bits = run.denoise(
            noise * run.scheduler.init_noise_sigma,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            condition=condition,
        )
        if output_type == "latent":
            output = MezzotintSegmentOutput(prediction=bits, probabilities=None, uncertainty=None)
            return output if return_dict else (bits, None, None)

        # 6. Average the drawings
        shares = bits_to_shares(self.decode(bits, spatial), num_classes)
        probabilities = shares.unflatten(0, (-1, ensemble_size)).mean(dim=1)  # (B, K, H, W)
        prediction = probabilities.argmax(dim=1)
        uncertainty = -torch.xlogy(probabilities, probabilities).sum(dim=1) / math.log(num_classes)
        found = [prediction, probabilities, uncertainty.clamp(0, 1)]
        if output_type != "pt":
            found = [x.cpu().numpy() for x in found]
        if output_type == "pil":
            found[0] = [painted(classes, num_classes) for classes in found[0]]
        output = MezzotintSegmentOutput(*found)
        return output if return_dict else tuple(found)


def class_colours(num_classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class, RGB up to 255: the first is black, of two the other is white, of more each has a hue."""
    if num_classes == 2:
        return [(0, 0, 0), (255, 255, 255)]
    hues = [colorsys.hsv_to_rgb(i / (num_classes - 1), 0.8, 1.0) for i in range(num_classes - 1)]
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues)]


def painted(classes: np.ndarray, num_classes: int) -> Image.Image:
    """A map of class numbers, of shape `(height, width)`, as a picture in their colours, in mode `P`."""
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(list(itertools.chain.from_iterable(class_colours(num_classes))))
    return picture
