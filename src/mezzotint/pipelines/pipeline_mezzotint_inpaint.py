# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Inpainting: what a mask covers is drawn, the rest stays. With weights that are trained for it the network reads the
picture and the mask; with any others the known part is put back after each step, at the noise level of then
(<https://huggingface.co/papers/2011.13456>, appendix I.2).

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.conditions_mezzotint import masked_condition
from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# State of schedulers whose steps reckon with others that cannot be taken out: of LMS, (I)PNDM and KDPM2
NOT_ALONE = {"derivatives", "ets", "sigmas_interpol"}


class MezzotintInpaintPipeline(
    MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Inpainting and outpainting, with any weights, and with those that are trained for it (`train.py --task
    inpaint`). Its components are described at `MezzotintSamplingMixin`; `MezzotintInpaintPipeline.from_pipe(pipe)`
    takes those of a pipeline of another task."""

    pipeline_tag = "image-to-image"
    title = "Inpaint"
    summary = "Drop in a picture and paint over what is to be drawn anew: the rest stays as it is."
    tasks = ("inpaint", "text_to_image", "upscale", "layout")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        mask_image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        strength: float = 1.0,
        num_resamples: int = 1,
        padding_mask_crop: int | None = None,
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
        """Draw what `mask_image` covers of `image`, so that it goes with the rest, which stays as it is, bit for bit.
        Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what the whole picture is to be.
            image (PIL image, `np.ndarray` of shape `(pictures, height, width, channels)`, `torch.Tensor` of shape
                `(pictures, channels, height, width)`, both in [0, 1], or a list): one, or one for each prompt, all of
                one size, which is that of the result.
            mask_image (PIL image, `np.ndarray` or `torch.Tensor` of shape `(masks, height, width)`, in [0, 1], or a
                list): one, or one for each picture. From 0.5 on (white) a pixel is drawn, below (black) it stays;
                grey ones are warned of. To draw around a picture, set it into a larger one and cover the frame.
            strength (`float`): above 0 and up to 1, as of `MezzotintImg2ImgPipeline`: below 1 what is drawn begins with
                what the picture holds there.
            num_resamples (`int`): times that each step is taken, with new noise in between, so that what is drawn and
                what is known come together (RePaint, <https://huggingface.co/papers/2201.09865>, section 4.2). The cost
                is that of so many times the steps, which are of the first order then and want to be many. Weights that
                are trained for the task need none.
            padding_mask_crop (`int`, *optional*): draw only the part of the picture that holds all masks, with so many
                pixels about it, at the size that was trained at, and set it back: for small holes in large pictures.
            num_inference_steps (`int`, *optional*): denoising steps at strength 1; by default 20, or
                those that the network is distilled to.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)`, *optional*): the noise that is
                started from, and that the known part is mixed with.

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
        crop = padding_mask_crop
        if crop is not None and (not _is_number(crop, numbers.Integral) or crop < 0):
            raise ValueError(f"padding_mask_crop must be a whole number of at least 0: got {_shown(crop)}")
        if not _is_number(strength) or not 0 < strength <= 1:
            raise ValueError(f"strength must be a number above 0 and up to 1: got {_shown(strength)}")
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback,
                          num_resamples=num_resamples, **corrector)  # fmt: skip
        self.check_guidance(guidance)
        self.check_text(*text)
        trained = self.trained_for["task"] == "inpaint"
        if trained and num_resamples > 1:
            raise ValueError(
                f"num_resamples is for weights that are not trained for inpainting: got {num_resamples}, possible is 1"
            )
        given = self._picture_and_mask(image, mask_image, crop)

        # 2. What changes in a call is a copy's
        run = self.for_one_call(guidance, cross_attention_kwargs)

        # 3. Encode the text, and that to steer away from where there is guidance by one
        text, guidance, batch_size = run.prepare_conditions(
            guidance, num_images_per_prompt, *text, prompts=len(given.picture)
        )
        prompts = batch_size // num_images_per_prompt
        picture = self.for_each("image", given.picture, prompts, num_images_per_prompt)
        mask = self.for_each("mask_image", given.mask, prompts, num_images_per_prompt)

        # 4. Choose the timesteps; what is known is noised to the level of each, always with the same noise
        if num_resamples > 1 and "solver_order" in run.scheduler.config:
            # Steps of a higher order reckon with the sample of the step before, which had other noise
            fitted = {"fitted_schedules": None} if hasattr(run.scheduler, "fitted_schedules") else {}
            run.scheduler = type(run.scheduler).from_config(run.scheduler.config, solver_order=1, **fitted)
        schedule = run.choose_timesteps(guidance, *steps, strength)
        if num_resamples > 1 and NOT_ALONE & vars(run.scheduler).keys():
            raise ValueError(
                "num_resamples needs a scheduler whose steps stand alone, such as MezzotintScheduler: got "
                f"{type(run.scheduler).__name__}"
            )
        noise = run.draw_noise(batch_size, picture.shape[2:], generator, latents)
        known = run.encode(picture.to(noise), noise.shape[2:])
        drawn = self.covered(mask.to(noise), noise.shape[2:])

        latents = run.scheduler.add_noise(known, noise, schedule[:1].expand(batch_size))
        if strength == 1:  # of the picture nothing is left where it is drawn
            latents = torch.where(drawn, noise * run.scheduler.init_noise_sigma, latents)

        # 5. Denoise
        latents = run.denoise(
            latents,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            after_step=None if trained else run.putting_back(known, drawn, noise, schedule),
            num_resamples=num_resamples,
            **corrector,
            condition=masked_condition(known, drawn.to(known)) if trained else None,
        )

        # 6. Back to pixels, with those that are known from the picture itself
        images = latents
        if output_type != "latent":
            images = self._finished(latents, given, num_images_per_prompt)
            images = self.image_processor.postprocess(images, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def to_pictures(
        self,
        latents: torch.Tensor,
        image,
        mask_image,
        padding_mask_crop: int | None = None,
        num_images_per_prompt: int = 1,
    ) -> torch.Tensor:
        """The pictures, in [-1, 1], of the samples that a call ends in; the other arguments are those of the call. What
        is known is that of `image` itself, bit for bit."""
        given = self._picture_and_mask(image, mask_image, padding_mask_crop, warn=False)
        return self._finished(latents, given, num_images_per_prompt)

    def _finished(self, latents: torch.Tensor, given: "_Given", num_images_per_prompt: int) -> torch.Tensor:
        """The pictures of a last sample, as of `to_pictures`, for inputs that `_picture_and_mask` has read."""
        prompts = len(latents) // num_images_per_prompt

        def of_all(pictures: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            named = (("image", pictures), ("mask_image", masks))
            pictures, masks = (self.for_each(*each, prompts, num_images_per_prompt).to(latents) for each in named)
            return pictures, masks

        picture, mask = of_all(given.picture, given.mask)
        pictures = torch.where(mask > 0, self.decode(latents, picture.shape[2:]), picture)
        if given.place is None:
            return pictures
        whole, hole = of_all(given.whole, given.hole)
        whole, place = whole.clone(), given.place
        whole[place] = torch.where(hole[place] > 0, _resized(pictures, whole[place].shape[2:]), whole[place])
        return whole

    def _picture_and_mask(self, image, mask_image, crop: int | None = None, warn: bool = True) -> "_Given":
        """The pictures and masks of a call, of which `crop` may leave only a part to be drawn with."""
        picture = self.read_image(image)
        mask = self.read_mask(mask_image, (picture.shape[2], picture.shape[3]), warn)
        if crop is None or not mask.any():
            return _Given(picture, mask, picture, mask, None)
        spatial = self.default_size
        if None in spatial:
            raise ValueError("padding_mask_crop needs a U-Net that says its sample_size: got none")
        left, top, right, bottom = self.image_processor.get_crop_region(
            Image.fromarray((255 * mask.amax((0, 1))).byte().numpy()), spatial[1], spatial[0], crop
        )
        place = (..., slice(top, bottom), slice(left, right))
        hole = mask[place]  # of which no part may be lost where it becomes smaller
        hole = F.adaptive_max_pool2d(hole, [min(sides) for sides in zip(hole.shape[2:], spatial, strict=True)])
        part = F.interpolate(hole, spatial, mode="nearest")
        return _Given(_resized(picture[place], spatial), part, picture, mask, place)


class _Given(NamedTuple):
    """Pictures (B, C, H, W) and masks (B, 1, H, W) that are drawn with, those that were given, and the place of the
    ones in the others, where they are a part of them."""

    picture: torch.Tensor
    mask: torch.Tensor
    whole: torch.Tensor
    hole: torch.Tensor
    place: tuple[Any, ...] | None


def _resized(pictures: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Pictures (B, C, H, W) of another size."""
    return F.interpolate(pictures, tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
