# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to solid: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, voxels come out; a part
of them may be given, or a solid that is varied.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


@dataclass
class MezzotintVoxelPipelineOutput(BaseOutput):
    """
    Args:
        voxels (`np.ndarray` or `torch.Tensor`): the solids, as `output_type` says.
    """

    voxels: np.ndarray | torch.Tensor


class MezzotintVoxelPipeline(MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Text-to-solid generation with classifier-free guidance, or another. Its components are described at
    `MezzotintSamplingMixin`; the U-Net is of three dimensions: depth from the front backwards, height from the top
    down, width from left to right. The last channel of its samples says where there is anything: above 0 there."""

    pipeline_tag = "text-to-3d"
    title = "Text to solid"
    summary = "Write what is to be built."
    modality = "voxels"
    word = "solid"
    per_prompt = "num_solids_per_prompt"
    output_types = ("np", "pt", "latent")
    tasks = ("text_to_image",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        voxels: np.ndarray | torch.Tensor | None = None,
        mask_voxels: np.ndarray | torch.Tensor | None = None,
        strength: float | None = None,
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
        num_solids_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        cross_attention_kwargs: dict[str, Any] | None = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> MezzotintVoxelPipelineOutput | tuple:
        """Draw solids of the size that was trained at. Arguments that are not listed here are those of
        `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what is to be built.
            voxels (array `(depth, height, width, channels)`, or tensor `(channels, depth, height, width)`, in [0, 1],
                *optional*): a solid to start from: it is noised to the first of the steps that are left by `strength`
                (SDEdit, <https://huggingface.co/papers/2108.01073>).
            mask_voxels (array or tensor of shape `(depth, height, width)`, *optional*): 1 where `voxels` are to be
                drawn, 0 where they stay.
            strength (`float`, *optional*): the part of the steps that is taken from `voxels` on; by default 0.8, and 1
                with a mask.
            num_solids_per_prompt (`int`): solids for each prompt, side by side in the result.
            latents (`torch.Tensor` of shape `(solids, channels, depth, height, width)`, *optional*): the starting
                noise.
            output_type (`"np"`, `"pt"` or `"latent"`): arrays `(solids, depth, height, width, channels)` or tensors
                `(solids, channels, depth, height, width)` in [0, 1], of which the last channel is 0 or 1 and the
                colours where it is 0 are 0; or the normalised sample itself.
            return_dict (`bool`): whether a `MezzotintVoxelPipelineOutput` or the tuple `(voxels,)` comes back.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs
        guider = self.guider if guider is None else guider
        num_inference_steps, guidance_scale = self.settle_steps(num_inference_steps, guidance_scale)
        guidance = MezzotintGuidance(
            guidance_scale, guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale,
        )  # fmt: skip
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        steps = (num_inference_steps, timesteps, sigmas)
        corrector = {"corrector_steps": corrector_steps, "snr": snr}
        size = self.default_size
        counts = corrector | dict(zip(("depth", "height", "width"), size, strict=True))
        self.check_inputs(*steps, num_solids_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        given, strength = self.read_voxels(voxels, mask_voxels, strength)
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
        text, guidance, batch_size = run.prepare_conditions(guidance, num_solids_per_prompt, *text)

        # 4. Choose the timesteps; what is given is put back after each step, with the step's noise
        schedule = run.choose_timesteps(guidance, *steps, strength)
        noise = run.draw_noise(batch_size, size, generator, latents)
        known = put_back = None
        if given is not None:
            solid, drawn = (x.to(noise) for x in given)
            known = run.encode(solid, noise.shape[2:]).expand_as(noise)
            if mask_voxels is not None:
                put_back = run.putting_back(known, self.drawn_out(drawn, noise.shape[2:]) > 0, noise, schedule)

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

        # 6. Back to voxels
        found: Any = latents
        if output_type != "latent":
            data = self.decode(latents, size)
            there = (data[:, -1:] > 0).float()
            found = torch.cat([(data[:, :-1].clamp(-1, 1) / 2 + 0.5) * there, there], 1)
            found = found.permute(0, 2, 3, 4, 1).cpu().numpy() if output_type == "np" else found
        return MezzotintVoxelPipelineOutput(voxels=found) if return_dict else (found,)

    def read_voxels(
        self, voxels: Any, mask_voxels: Any, strength: Any
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, float]:
        """The solid that is given, of shape `(1, channels, depth, height, width)` in [-1, 1], where it is to be drawn,
        of shape `(1, 1, depth, height, width)`, and the strength. Raises `ValueError` in one line for what is no such
        thing."""
        strength = self.settle_strength(strength, {"voxels": voxels}, {"mask_voxels": mask_voxels})
        if voxels is None:
            return None, strength
        if mask_voxels is None:
            mask_voxels = torch.ones(self.default_size)
        for name, value in (("voxels", voxels), ("mask_voxels", mask_voxels)):
            if not isinstance(value, (np.ndarray, torch.Tensor)):
                raise ValueError(f"{name} must be an array or a tensor: got {_shown(value)}")
        solid, drawn = torch.as_tensor(voxels).float(), torch.as_tensor(mask_voxels).float()
        if isinstance(voxels, np.ndarray) and solid.ndim == 4:
            solid = solid.movedim(-1, 0)
        if (shape := (self.channels, *self.default_size)) != tuple(solid.shape) or shape[1:] != tuple(drawn.shape):
            raise ValueError(
                f"voxels must have {shape[0]} channels, and they and mask_voxels the size {shape[1:]}: got shapes "
                f"{tuple(voxels.shape)} and {tuple(mask_voxels.shape)}"
            )
        if not ((solid >= 0) & (solid <= 1)).all() or not ((drawn >= 0) & (drawn <= 1)).all():
            raise ValueError("voxels and mask_voxels must be between 0 and 1: got other numbers")
        return (solid[None] * 2 - 1, (drawn >= 0.5)[None, None].float()), strength
