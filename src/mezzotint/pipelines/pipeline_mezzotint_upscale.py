# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Super-resolution: a small picture is drawn again, larger, by a network that reads the small one (SR3,
<https://huggingface.co/papers/2104.07636>). Pictures of any size are drawn in overlapping tiles, which agree at every
step, so that there are no seams (MultiDiffusion, <https://huggingface.co/papers/2302.08113>).

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
from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin
from mezzotint.pipelines.upscaling_mezzotint import UPSCALER_STEPS, MezzotintUpscalingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintUpscalePipeline(
    MezzotintUpscalingMixin, MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Super-resolution, with weights that are trained for it (`train.py --task upscale`). Its components are described
    at `MezzotintSamplingMixin`."""

    pipeline_tag = "image-to-image"
    title = "Upscale"
    summary = "Drop in a small picture to have it drawn again, larger."
    tasks = ("upscale",)
    usual_steps = UPSCALER_STEPS

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        noise_level: float = 0.0,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        num_inference_steps: int = UPSCALER_STEPS,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
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
        """Draw `image` as many times as large as the weights were trained for. Arguments that are not listed here are
        those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what the picture shows; by default nothing is said of it.
            image (PIL image, `np.ndarray` of shape `(pictures, height, width, channels)`, `torch.Tensor` of shape
                `(pictures, channels, height, width)`, both in [0, 1], or a list): the small picture, of any size: one,
                or one for each prompt, all of one size.
            noise_level (`float`): in [0, 1), standard deviation of the noise that is mixed into the small picture
                (conditioning augmentation): the higher, the more is drawn anew. 0 trusts every pixel; for pictures that
                a model drew, or a camera under a poor light, 0.1 to 0.3 let faults be mended.
            num_inference_steps (`int`): sampling steps: few, as the small picture settles most, and more add grain.
            tile_size (`int`, *optional*): pixels of the result, along each axis, that the network sees at a time; by
                default as many as it was trained at. What memory a call needs goes by it, not by the picture.
            tile_overlap (`int`, *optional*): pixels that neighbouring tiles share; by default a quarter of a tile.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)` of the result, *optional*): the noise
                that is started from.

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
        self.check_noise_level(noise_level)
        counts = {"tile_size": tile_size, "tile_overlap": tile_overlap}
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback,
                          **{name: value for name, value in counts.items() if value is not None})  # fmt: skip
        self.check_guidance(guidance)
        image = self.read_image(image)
        text = (
            self.prompt_or_none(prompt, prompt_embeds, len(image)),
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        self.check_text(*text)
        tiles = self.tiles(tile_size, tile_overlap)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(guidance, num_images_per_prompt, *text, prompts=len(image))
        image = self.for_each("image", image, batch_size // num_images_per_prompt, num_images_per_prompt)

        # 4. Choose the timesteps, and denoise, tile by tile, beside the small picture
        schedule = run.choose_timesteps(guidance, *steps)
        latents = run.enlarge(image, noise_level, tiles, schedule, text, guidance, eta, generator, latents, *callback)

        # 5. Back to pixels
        images = latents
        if output_type != "latent":
            spatial = [self.trained_for["scale"] * size for size in image.shape[2:]]
            images = self.image_processor.postprocess(self.decode(latents, spatial), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
