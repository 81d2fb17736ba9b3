# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Image to image: a picture is noised part of the way, and from there denoised as a prompt asks (SDEdit,
<https://huggingface.co/papers/2108.01073>); or the noise is found that it would be drawn from.

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
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintImg2ImgPipeline(
    MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Image-to-image generation: text to image that starts from pictures. Its components are described at
    `MezzotintSamplingMixin`; `MezzotintImg2ImgPipeline.from_pipe(pipe)` takes those of a text-to-image pipeline."""

    pipeline_tag = "image-to-image"
    title = "Image to image"
    summary = "Drop in a picture and write what is to become of it."

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        strength: float = 0.8,
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
        """Draw pictures like `image`. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what to draw.
            image (PIL image, `np.ndarray` of shape `(pictures, height, width, channels)`, `torch.Tensor` of shape
                `(pictures, channels, height, width)`, both in [0, 1], or a list): what to start from: one, or one for
                each prompt, all of one size, which is that of the result.
            strength (`float`): in [0, 1], the part of the steps that is taken: the last `int(steps * strength)`, from
                the noise level where they begin. 0 gives the picture back as it is, 1 is text to image (with custom
                timesteps it is mixed with noise at the first of them). A fitted schedule gives its timesteps only,
                unless it is begun at its start.
            num_inference_steps (`int`, *optional*): denoising steps at strength 1; by default 20, or
                those that the network is distilled to.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)`, *optional*): the noise that the
                pictures are mixed with.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs
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
        if not _is_number(strength) or not 0 <= strength <= 1:
            raise ValueError(f"strength must be a number in [0, 1]: got {_shown(strength)}")
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback, **corrector)
        self.check_guidance(guidance)
        self.check_text(*text)
        picture = self.read_image(image)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(
            guidance, num_images_per_prompt, *text, prompts=len(picture)
        )
        picture = self.for_each("image", picture, batch_size // num_images_per_prompt, num_images_per_prompt)

        noise = run.draw_noise(batch_size, picture.shape[2:], generator, latents)
        latents = run.encode(picture.to(noise), noise.shape[2:])
        if strength > 0:
            # 4. Choose the timesteps; the pictures are noised to the level of the first one
            schedule = run.choose_timesteps(guidance, *steps, strength)
            if strength == 1 and timesteps is None and sigmas is None:  # of the picture nothing is left
                latents = noise * run.scheduler.init_noise_sigma
            else:
                latents = run.scheduler.add_noise(latents, noise, schedule[:1].expand(batch_size))

            # 5. Denoise
            latents = run.denoise(latents, schedule, text, guidance, eta, generator, *callback, **corrector)

        # 6. Back to pixels
        images = latents
        if output_type != "latent":
            images = self.to_pictures(latents, image, strength, num_images_per_prompt)
            images = self.image_processor.postprocess(images, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def to_pictures(
        self, latents: torch.Tensor, image, strength: float = 0.8, num_images_per_prompt: int = 1
    ) -> torch.Tensor:
        """The pictures, in [-1, 1], of the samples that a call ends in; the other arguments are those of the call."""
        picture = self.read_image(image)
        if strength > 0:
            return self.decode(latents, picture.shape[2:])
        return self.for_each("image", picture, len(latents) // num_images_per_prompt, num_images_per_prompt).to(latents)

    @torch.no_grad()
    def invert(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        num_inference_steps: int = 50,
        num_iterations: int = 3,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The noise that `image` is drawn from: the probability flow, upwards. Given as `latents` to a pipeline of text
        to image without guidance, it draws the picture again for the same prompt, and for another one the picture as
        it would have become under that.

        Each step solves the one of DDIM (<https://huggingface.co/papers/2010.02502>, eq. 12, with sigma 0) for the
        sample that it began at, by fixed-point iteration (AIDI, <https://huggingface.co/papers/2309.04907>). Drawn
        again in as many steps of that kind (`solver_order=1` in the scheduler's config), the picture comes back the
        more exactly the more iterations there are; other solvers come near it with many steps.

        Args:
            prompt (`str` or list of `str`, *optional*): what the picture shows.
            image: as of a call.
            num_inference_steps (`int`): steps, as of the call that draws the picture again.
            num_iterations (`int`): evaluations of the network for each step.
            prompt_embeds, prompt_attention_mask (`torch.Tensor`, *optional*): as of a call.

        Returns:
            `torch.Tensor` of shape `(pictures, channels, height, width)`, with the sizes rounded up to what the U-Net
            can halve.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, for a scheduler that
                does not say what noise a prediction implies, for a distilled network, and where the result is not
                finite.
        """
        guidance = MezzotintGuidance(1.0, 0.0, None, None, None, 1.0)
        text = (prompt, None, prompt_embeds, None, prompt_attention_mask, None)
        self.check_inputs(num_inference_steps, None, None, 1, 0.0, None, None, "latent", None, [],
                          num_iterations=num_iterations)  # fmt: skip
        self.check_text(*text)
        if not hasattr(self.scheduler, "predict_noise"):
            raise ValueError(
                "inversion needs a scheduler that says what noise a prediction implies, such as MezzotintScheduler: "
                f"got {type(self.scheduler).__name__}"
            )
        if self.distilled_steps is not None:
            raise ValueError(
                "inversion follows the flow of a network that denoises: got a distilled one; take its teacher"
            )
        image = self.read_image(image)
        run = self.for_one_call(guidance)
        (embeds, mask), _, prompts = run.prepare_conditions(guidance, 1, *text, prompts=len(image))
        image = self.for_each("image", image, prompts).to(self._execution_device, torch.float32)
        schedule = run.choose_timesteps(guidance, num_inference_steps, None, None)
        text = run._read_text(run.unet, embeds, mask)
        x = run.encode(image, run.padded(image.shape[2:]))
        lower = (1.0, 0.0)  # what clean data and noise are multiplied with below the step
        with run.progress_bar(total=len(schedule)) as progress_bar:
            for t in schedule.flip(0):
                upper = run._level(run.scheduler, t)
                ratio, found = upper[0] / lower[0], x
                for _ in range(num_iterations):
                    output = run.unet(found.to(run.unet.dtype), t, **text, return_dict=False)[0].float()
                    found = ratio * x + (upper[1] - ratio * lower[1]) * run.scheduler.predict_noise(output, t, found)
                x, lower = found, upper
                progress_bar.update()
        self.maybe_free_model_hooks()
        if not x.isfinite().all():
            raise ValueError("the network must predict finite numbers, but this picture's way to noise ended in others")
        return x
