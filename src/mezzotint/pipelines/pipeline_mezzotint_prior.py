# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to image by way of a picture's embedding: a prior draws the embedding for a text, a decoder a picture of it
(unCLIP, <https://huggingface.co/papers/2204.06125>).

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.embeddings_mezzotint import MezzotintEmbeddingMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintPriorPipeline(MezzotintEmbeddingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-image generation through a prior, with weights that are trained for it (`train.py --task unclip`, then
    `train_prior.py`). Its components are described at `MezzotintEmbeddingMixin`."""

    title = "Text to image by a prior"
    summary = "Write what is to be drawn: its embedding is drawn first, then a picture of that."
    needs = ("prior",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        prior_num_inference_steps: int = 25,
        prior_guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prior_latents: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures. Arguments that are not listed here are those of `MezzotintPipeline`, and of the decoder.

        Args:
            prompt (`str` or list of `str`, *optional*): what to draw. Needed unless `image_embeds` is given.
            prior_num_inference_steps (`int`): denoising steps of the prior.
            prior_guidance_scale (`float`): weight of classifier-free guidance in the prior; 1 turns it off.
            negative_prompt (`str` or list of `str`, *optional*): what the prior is to steer away from.
            num_images_per_prompt (`int`): pictures for each prompt, each of an embedding of its own.
            generator (`torch.Generator`, or a list of one for each picture, *optional*): of the prior's noise, and then
                of the decoder's.
            prior_latents (`torch.Tensor` of shape `(pictures, D)`, *optional*): the noise that embeddings begin as.
            image_embeds (`torch.Tensor` of shape `(pictures, D)`, *optional*): in place of the prior's embeddings; of
                each a picture is drawn, `num_images_per_prompt` times.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, without a prior, and
                where the result is not finite.
        """
        # 1. Check the inputs and settle the size
        default_height, default_width = self.default_size
        size = (default_height if height is None else height, default_width if width is None else width)
        guider = self.guider if guider is None else guider
        num_inference_steps, guidance_scale = self.settle_steps(num_inference_steps, guidance_scale)
        guidance = MezzotintGuidance(guidance_scale, guidance_rescale, guidance_interval, guider, None, 1.0)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        corrector = {"corrector_steps": corrector_steps, "snr": snr}
        counts = corrector | {"height": size[0], "width": size[1]}
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        self.check_guidance(guidance)
        if (prompt is None) == (image_embeds is None):
            got = "neither" if prompt is None else "both"
            raise ValueError(f"exactly one of prompt and image_embeds must be given: got {got}")

        # 2. The embeddings to draw pictures of, by the prior or as they are given
        if prompt is not None:
            text = self.encode_text(prompt)
            negative = None if negative_prompt is None else self.encode_text(negative_prompt)
            if negative is not None and len(negative) not in (1, len(text)):
                got = len(negative)
                raise ValueError(f"negative_prompt needs one entry, or one for each of {len(text)} prompts: got {got}")
            if negative is not None:
                negative = negative.expand(len(text), -1).repeat_interleave(num_images_per_prompt, dim=0)
            image_embeds = self.draw_embeds(
                text.repeat_interleave(num_images_per_prompt, dim=0),
                negative,
                prior_num_inference_steps,
                prior_guidance_scale,
                generator,
                prior_latents,
            )
        else:
            image_embeds = self._as_embeds(image_embeds).repeat_interleave(num_images_per_prompt, dim=0)

        # 3. Their pictures
        return self.draw_of(
            image_embeds, guidance, steps, size, eta, generator, latents, callback, output_type, return_dict,
            **corrector,
        )  # fmt: skip
