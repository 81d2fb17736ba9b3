# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A picture of a layout: a map of classes and a text are read, and a picture is drawn in which each pixel shows what
the map says, segmentation the other way round.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.conditions_mezzotint import classes_to_bits, picture_condition
from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintLayoutPipeline(MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Pictures of maps of classes, with weights that are trained for it (`train.py --task layout`). Its components are
    described at `MezzotintSamplingMixin`."""

    pipeline_tag = "image-to-image"
    title = "Layout to image"
    summary = "Paint what is to be where: a picture is drawn of it."
    tasks = ("layout",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        mask_image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        num_inference_steps: int = 20,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
        attributes: dict[str, Any] | list[dict[str, Any]] | None = None,
        attribute_guidance_scale: dict[str, float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
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
        dynamic_thresholding_ratio: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw what `mask_image` lays out. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what the picture shows; by default nothing is said of it.
            mask_image (PIL image, `np.ndarray` or `torch.Tensor` of shape `(maps, height, width)`, or a list): the
                class number of each pixel, of two classes 255 for the second one too: one, or one for each prompt, all
                of one size, which is that of the result.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, for weights that are
                not trained for it, and where the result is not finite.
        """
        # 1. Check the inputs
        guider = self.guider if guider is None else guider
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale, dynamic_thresholding_ratio,
        )  # fmt: skip
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback)
        self.check_guidance(guidance)
        num_classes = self.trained_for["num_classes"]
        classes = self.read_classes(mask_image, num_classes)
        spatial = classes.shape[2:]
        text = (
            self.prompt_or_none(prompt, prompt_embeds, len(classes)),
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        self.check_text(*text)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(
            guidance, num_images_per_prompt, *text, prompts=len(classes)
        )
        classes = self.for_each("mask_image", classes, batch_size // num_images_per_prompt, num_images_per_prompt)

        # 4. Choose the timesteps; the map is read as bits
        schedule = run.choose_timesteps(guidance, *steps)
        latents = run.draw_noise(batch_size, spatial, generator, latents)
        bits = self.drawn_out(classes_to_bits(classes.to(latents.device), num_classes), latents.shape[2:])

        # 5. Denoise
        latents = run.denoise(
            latents * run.scheduler.init_noise_sigma,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            condition=picture_condition(bits),
        )

        # 6. Back to pixels
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode(latents, spatial), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
