# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to video: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, frames come out; the
first of them may be given, or a video that is varied, filled in or continued.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
        video: Any = None,
        mask: np.ndarray | torch.Tensor | None = None,
        strength: float | None = None,
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
            video (list of pictures, array `(frames, height, width, channels)` or tensor `(frames, channels, height,
                width)` in [0, 1], or a list of them, *optional*): frames to start from, of one video or one for each
                prompt. They are noised to the first of the steps that are left by `strength`
                (SDEdit, <https://huggingface.co/papers/2108.01073>).
            mask (`np.ndarray` or `torch.Tensor` of shape `(frames,)` or `(frames, height, width)`, *optional*): of
                `video`, 1 where it is to be drawn and 0 where it stays, to the bit. What stays is put back after each
                step, with the step's noise (<https://huggingface.co/papers/2201.09865>, algorithm 1).
            strength (`float`, *optional*): the part of the steps that is taken from `video` on; by default 0.8, and 1
                with a mask.
            num_frames (`int`, *optional*): frames of each video, of which `frame_rate` are a second; by default those
                of `video`, or as many as were trained at. With a mask there may be more, which are drawn.
            height, width (`int`, *optional*): of the frames in pixels; by default those of `video` or `image`, or as
                trained.
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
        name = "image" if video is None else "video"  # of what frames come from, if any are given
        frames, drawn, strength = self.read_frames(image, video, mask, strength)
        sides = self.default_size[1:] if frames is None else frames.shape[3:]
        count = self.default_size[0] if video is None else frames.shape[2]
        counted, asked = (count, *sides), (num_frames, height, width)
        size = [x if given is None else given for x, given in zip(counted, asked, strict=True)]
        counts = corrector | dict(zip(("num_frames", "height", "width"), size, strict=True))
        self.check_inputs(*steps, num_videos_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        if frames is not None:
            frames, drawn = self.of_size(name, frames, drawn, size, longer=video is None or mask is not None)
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

        # 4. Choose the timesteps; what stays of given frames is put back after each step, with the step's noise
        schedule = run.choose_timesteps(guidance, *steps, strength)
        noise = run.draw_noise(batch_size, size, generator, latents)
        known = put_back = None
        if frames is not None:
            frames = self.for_each(name, frames, batch_size // num_videos_per_prompt, num_videos_per_prompt).to(noise)
            known, drawn = run.encode(frames, noise.shape[2:]), drawn.to(noise.device)
            if not drawn.all():
                free = torch.ones(noise.shape[2:], dtype=torch.bool, device=noise.device)  # with padding
                free[: size[0], : size[1], : size[2]] = drawn
                put_back = run.putting_back(known, free, noise, schedule)

        # 5. Denoise
        latents = run.denoise(
            run.start_from(known, noise, schedule, strength),
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
        found: Any = latents
        if output_type != "latent":
            found = self.decode(latents, size)
            if put_back is not None:
                found = torch.where(drawn, found, frames)
            processor = VideoProcessor(vae_scale_factor=1, do_resize=False)
            found = processor.postprocess_video(found, output_type=output_type)
        return CogVideoXPipelineOutput(frames=found) if return_dict else (found,)

    def read_frames(
        self, image: Any, video: Any, mask: Any, strength: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor, float]:
        """The frames that are given (videos, channels, frames, height, width) in [-1, 1], where they are to be drawn
        (frames, height, width), and the strength. A first frame is a video of one that stays.

        Raises:
            ValueError: for what is no such thing.
        """
        strength = self.settle_strength(strength, {"video": video}, {"mask": mask})
        if video is None:
            first = None if image is None else self.read_image(image)[:, :, None]
            return first, torch.zeros(1, 1, 1, dtype=torch.bool), strength
        if image is not None:
            raise ValueError("image is the first frame of what is drawn without a video: got both; mask keeps frames")
        if isinstance(video, list) and not video:
            raise ValueError("video must have frames: got none")
        first = video[0] if isinstance(video, list) else video
        # A batch of videos is a list of lists, a list of arrays of 4 axes, or an array of 5
        several = isinstance(first, list) or getattr(first, "ndim", 0) == 5 - isinstance(video, list)
        parts = [self.read_image(one) for one in (video if several else [video])]  # (T, C, H, W)
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"all of video must have one size: got {[tuple(part.shape) for part in parts]}")
        frames = torch.stack(parts).transpose(1, 2)
        drawn = torch.ones(frames.shape[2:], dtype=torch.bool)
        if mask is not None:
            given = torch.as_tensor(mask).float()
            if given.ndim == 1:
                given = given[:, None, None].expand(-1, *drawn.shape[1:])
            if given.shape != drawn.shape or not ((given >= 0) & (given <= 1)).all():
                raise ValueError(f"mask must have shape {tuple(drawn.shape)}, or {(len(drawn),)}, between 0 and 1: got "
                                 f"shape {tuple(torch.as_tensor(mask).shape)}")  # fmt: skip
            drawn = given >= 0.5
        return frames, drawn, strength

    @staticmethod
    def of_size(
        name: str, frames: torch.Tensor, drawn: torch.Tensor, size: list[int], longer: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames that are given by the argument `name`, and where they are to be drawn, as many as there are to be:
        what is missing is drawn, where the result may be `longer`.

        Raises:
            ValueError: for frames of another height or width, and for a longer result that may not be.
        """
        if [*frames.shape[3:]] != size[1:]:
            got = [*frames.shape[3:]]
            raise ValueError(f"{name} must have the height and width of what is drawn, {size[1:]}: got {got}")
        missing = size[0] - frames.shape[2]
        if missing > 0 and not longer:
            raise ValueError(
                f"num_frames must be at most those of video, {frames.shape[2]}, without a mask: got {size[0]}"
            )
        frames = F.pad(frames, (0, 0, 0, 0, 0, max(missing, 0)), mode="replicate")[:, :, : size[0]]
        drawn = drawn.expand(-1, *size[1:])
        return frames, F.pad(drawn, (0, 0, 0, 0, 0, max(missing, 0)), value=True)[: size[0]]
