# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to image: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, pixels come out.

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
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintPipeline(MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-image generation with classifier-free guidance (<https://huggingface.co/papers/2207.12598>), or another.
    Its components are described at `MezzotintSamplingMixin`."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
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
        corrector_steps: int = 0,
        snr: float = 0.16,
        dynamic_thresholding_ratio: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures. Threads may share the pipeline, with generators of their own, and a callback may call it.

        Args:
            prompt (`str` or list of `str`, *optional*): what to draw. Needed by a pipeline that reads text, unless
                `prompt_embeds` is given.
            height (`int`, *optional*): of the pictures, in pixels; by default the size trained at. Any size: one that
                the U-Net cannot halve often enough is drawn larger and cropped.
            width (`int`, *optional*): likewise.
            num_inference_steps (`int`, *optional*): denoising steps; by default 20, or those that the network is
                distilled to (the first of its scheduler's `consistency_steps`).
            timesteps (list of numbers, *optional*): the timesteps themselves, where the scheduler takes them.
            sigmas (list of `float`, *optional*): the noise levels themselves, where the scheduler takes them.
            guidance_scale (`float`, *optional*): weight w of guidance in `uncond + w (cond - uncond)`, above 1; 1 turns
                it off and halves the cost; by default 2, or 1 of a distilled network, which has guidance in it. Where
                the scheduler has fitted schedules it takes that of the nearest scale.
            guidance_rescale (`float`): 0 to 1, how far the guided prediction's deviation is brought back to the
                conditional one's (<https://huggingface.co/papers/2305.08891>, section 3.4).
            guidance_interval (`(float, float)`, *optional*): guide at noise levels `low < sigma <= high` only, sigma
                the ratio sigma_t / alpha_t at a step's timestep (<https://huggingface.co/papers/2404.07724>);
                outside, the step costs one branch. Of every kind of guidance.
            guider (one of `diffusers.guiders`, *optional*): in place of the pipeline's own. It works on a copy, and
                comes back as it was.
            class_labels (number or name, list of them or `torch.Tensor`, *optional*): the class, for a network that
                reads it, or what the classifier is to see: one, or one for each prompt. Of a pipeline that reads no
                text, as many pictures as labels are drawn.
            classifier_scale (`float`): weight of the classifier's gradient.
            attributes (`dict` or list of `dict`, *optional*): names and values of what the network was trained to read
                beside the text (`unet.config.attributes`): one, or one for each prompt. What is left out is unknown.
            attribute_guidance_scale (`dict`, *optional*): weights of some attributes by name, each an evaluation more:
                `uncond + w (cond - uncond) + w_1 (cond_1 - cond) + ...`, where every prediction knows one attribute
                more than the one before (InstructPix2Pix, <https://huggingface.co/papers/2211.09800>, eq. 3). Others
                have `guidance_scale`.
            negative_prompt (`str` or list of `str`, *optional*): stands for "uncond" above in place of the empty text.
            num_images_per_prompt (`int`): pictures for each prompt, side by side in the result.
            eta (`float`): noise added in each step, for schedulers that take it: 0 follows the flow, 1 the reverse SDE
                (DDIM's, and SDE-DPM-Solver++'s in multistep steps). Not with a fitted schedule or a distilled network.
            generator (`torch.Generator`, or a list of one for each picture, *optional*): makes a call repeatable; with
                a list each picture depends on its own generator alone, whatever the batch.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)`, *optional*): the starting noise.
            prompt_embeds (`torch.Tensor` of shape `(prompts, tokens, channels)`, *optional*): in place of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): in place of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(prompts, tokens)`, *optional*): 1 where there is text.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): likewise.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): PIL images, arrays `(pictures, height, width,
                channels)` or tensors `(pictures, channels, height, width)` in [0, 1], or the normalised sample itself.
            return_dict (`bool`): whether an `ImagePipelineOutput` or the tuple `(images,)` comes back.
            callback_on_step_end (`Callable`, *optional*): `callback(pipe, step, timestep, tensors)` after every
                step; the tensors that it returns replace the pipeline's own. `pipe` is a copy of this pipeline for this
                call alone: with `pipe._guidance_scale` and `pipe._interrupt` it steers this call and no other.
            callback_on_step_end_tensor_inputs (list of `str`): which of `latents`, `pred_original_sample` (x_0 as
                predicted at the step, under guidance; for previews), `prompt_embeds` and `prompt_attention_mask` it
                gets; with guidance the last two hold negative and positive in one batch. The network reads a text when
                it is new: with adapters changed in between, what they make of a text stays. One of
                `diffusers.callbacks` says itself what it gets.
            cross_attention_kwargs (`dict`, *optional*): `{"scale": number}` multiplies the weight of all adapters
                (LoRA) of the U-Net and the text encoder in this call; 0 draws as without them.
            corrector_steps (`int`): steps of Langevin dynamics after each step but the last, each of which costs as
                much as a step (predictor-corrector, <https://huggingface.co/papers/2011.13456>, Algorithm 5). Not with
                a fitted schedule, a distilled network or a scheduler of diffusers.
            snr (`float`): the signal-to-noise ratio of these, above 0; they are the longer the greater it is.
            dynamic_thresholding_ratio (`float`, *optional*): above 0 and up to 1, the quantile of |x_0| of which every
                step makes the range of pixels where it is beyond that, so that strong guidance does not saturate
                (Imagen, <https://huggingface.co/papers/2205.11487>, section 2.3, where it is 0.995). Pictures with a
                white or black ground, which is at the edge of the range, grow grey by that; a small quantile, say 0.01,
                clips to the range alone (static thresholding). Of networks of pixels; by default none.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs and settle the size
        default_height, default_width = self.default_size
        height = default_height if height is None else height
        width = default_width if width is None else width
        guider = self.guider if guider is None else guider
        num_inference_steps, guidance_scale = self.settle_steps(num_inference_steps, guidance_scale)
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale, dynamic_thresholding_ratio,
        )  # fmt: skip
        text = (
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        corrector = {"corrector_steps": corrector_steps, "snr": snr}
        counts = corrector | {"height": height, "width": width}
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        self.check_guidance(guidance)
        self.check_text(*text)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(guidance, num_images_per_prompt, *text)

        # 4. Choose the timesteps; the noise starts at the level of the first one
        schedule = run.choose_timesteps(guidance, *steps)
        latents = run.draw_noise(batch_size, (height, width), generator, latents) * run.scheduler.init_noise_sigma

        # 5. Denoise
        latents = run.denoise(latents, schedule, text, guidance, eta, generator, *callback, **corrector)

        # 6. Back to pixels
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.to_pictures(latents, height, width), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def to_pictures(self, latents: torch.Tensor, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """The pictures, in [-1, 1], of the samples that a call ends in; the other arguments are those of the call."""
        default_height, default_width = self.default_size
        height, width = height or default_height, width or default_width
        return self.decode(latents, (height, width))  # pyright: ignore[reportArgumentType]
