# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to video: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, frames come out; the
first of them may be given.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.cogvideo.pipeline_output import CogVideoXPipelineOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintVideoPipeline(MezzotintImageMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-video generation with classifier-free guidance, or another. Its components are described at
    `MezzotintSamplingMixin`; the U-Net is of three dimensions: time, height and width."""

    pipeline_tag = "text-to-video"
    title = "Text to video"
    summary = "Write what is to be seen, and give the first frame if there is one."
    modality = "video"
    word = "video"
    per_prompt = "num_videos_per_prompt"
    tasks = ("text_to_image",)

    @property
    def frame_rate(self) -> float:
        """Frames of a video a second, by the U-Net's config."""
        return self.unet.config.modality["frame_rate"]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_frames: int | None = None,
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
        num_videos_per_prompt: int = 1,
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
    ) -> CogVideoXPipelineOutput | tuple:
        """Draw videos. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what is to be seen.
            image (picture, array or tensor, or a list of them, *optional*): the first frame, one or one for each
                prompt; arrays `(height, width, channels)` and tensors `(channels, height, width)` in [0, 1].
            num_frames (`int`, *optional*): frames of each video, of which `frame_rate` are a second; by default as many
                as were trained at.
            height, width (`int`, *optional*): of the frames in pixels; by default those of `image`, or as trained.
            num_videos_per_prompt (`int`): videos for each prompt, side by side in the result.
            latents (`torch.Tensor` of shape `(videos, channels, frames, height, width)`, *optional*): the starting
                noise.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): for each video a list of PIL images, arrays `(videos,
                frames, height, width, channels)` or tensors `(videos, frames, channels, height, width)` in [0, 1], or
                the normalised sample itself.
            return_dict (`bool`): whether a `CogVideoXPipelineOutput`, which has `frames`, or the tuple `(frames,)`
                comes back.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs and settle the size
        guider = self.guider if guider is None else guider
        num_inference_steps, guidance_scale = self.settle_steps(num_inference_steps, guidance_scale)
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale,
        )  # fmt: skip
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        corrector = {"corrector_steps": corrector_steps, "snr": snr}
        first = None if image is None else self.read_image(image)
        sides = self.default_size[1:] if first is None else first.shape[2:]
        size = [num_frames, height, width]
        size = [x if given is None else given for x, given in zip((self.default_size[0], *sides), size, strict=True)]
        counts = corrector | dict(zip(("num_frames", "height", "width"), size, strict=True))
        self.check_inputs(*steps, num_videos_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        if first is not None and tuple(first.shape[2:]) != tuple(size[1:]):
            raise ValueError(f"image must have the height and width of the video, {size[1:]}: got {[*first.shape[2:]]}")
        self.check_guidance(guidance)
        text = (
            prompt,
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
        text, guidance, batch_size = run.prepare_conditions(guidance, num_videos_per_prompt, *text)

        # 4. Choose the timesteps; a first frame is put back after each step, with the step's noise
        schedule = run.choose_timesteps(guidance, *steps)
        noise = run.draw_noise(batch_size, size, generator, latents)
        put_back = None
        if first is not None:
            first = self.for_each("image", first, batch_size // num_videos_per_prompt, num_videos_per_prompt)
            drawn = torch.arange(noise.shape[2], device=noise.device)[:, None, None] > 0  # (T, 1, 1)
            known = run.encode(first[:, :, None].to(noise), (1, *noise.shape[3:])).expand_as(noise)
            put_back = run.putting_back(known, drawn, noise, schedule)

        # 5. Denoise
        latents = run.denoise(
            noise * run.scheduler.init_noise_sigma,
            schedule,
            text,
            guidance,
            eta,
            generator,
            *callback,
            after_step=put_back,
            **corrector,
        )

        # 6. Back to frames
        frames: Any = latents
        if output_type != "latent":
            processor = VideoProcessor(vae_scale_factor=1, do_resize=False)
            frames = processor.postprocess_video(self.decode(latents, size), output_type=output_type)
        return CogVideoXPipelineOutput(frames=frames) if return_dict else (frames,)
