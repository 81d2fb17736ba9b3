# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Variations of a picture: others with its embedding, or with one that is turned towards a text (unCLIP,
<https://huggingface.co/papers/2204.06125>, section 3).

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
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.embeddings_mezzotint import MezzotintEmbeddingMixin, slerp
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintVariationPipeline(MezzotintEmbeddingMixin, MezzotintCheckpointMixin, DiffusionPipeline):
    """Variations of pictures, with weights that are trained for it (`train.py --task unclip`); no prior is needed. Its
    components are described at `MezzotintEmbeddingMixin`."""

    pipeline_tag = "image-to-image"
    title = "Variations"
    summary = "Drop in a picture to have others of its kind, and write what they are to become, if anything."

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list[Any] | None = None,
        strength: float = 0.5,
        source_prompt: str | list[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> ImagePipelineOutput | tuple:
        """Draw variations of `image`. Arguments that are not listed here are those of `MezzotintPipeline`.

        Args:
            prompt (`str` or list of `str`, *optional*): what the pictures are to become, one text or one for each; none
                or the empty text, or that of `source_prompt`, leaves an embedding as it is. The embedding z is turned
                towards the difference of two texts' embeddings, `slerp(z, norm(z_prompt - z_source_prompt), strength)`
                (section 3.3).
            image (PIL image, `np.ndarray` of shape `(pictures, height, width, channels)`, `torch.Tensor` of shape
                `(pictures, channels, height, width)`, both in [0, 1], or a list): of any size, all of one.
            strength (`float`): in [0, 1], how far the embedding is turned towards the texts' difference.
            source_prompt (`str` or list of `str`): what the pictures show; by default nothing is said of them.
            height (`int`, *optional*): of what is drawn, in pixels; by default the size trained at.
            width (`int`, *optional*): likewise.
            num_images_per_prompt (`int`): variations of each picture.
            image_embeds (`torch.Tensor` of shape `(pictures, D)`, *optional*): in place of `image`: what `encode_image`
                or `interpolate` gives.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
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
        if not _is_number(strength) or not 0 <= strength <= 1:
            raise ValueError(f"strength must be a number in [0, 1]: got {_shown(strength)}")
        self.check_inputs(*steps, num_images_per_prompt, eta, generator, latents, output_type, *callback, **counts)
        self.check_guidance(guidance)
        if (image is None) == (image_embeds is None):
            got = "neither" if image is None else "both"
            raise ValueError(f"exactly one of image and image_embeds must be given: got {got}")

        # 2. The embeddings of the pictures, turned towards the texts
        embeds = self._as_embeds(self.encode_image(image) if image_embeds is None else image_embeds)
        texts = prompt if isinstance(prompt, list) else [prompt or ""]
        sources = source_prompt if isinstance(source_prompt, list) else [source_prompt]
        count = max(len(embeds), len(texts))
        for name, some in (("prompt", texts), ("source_prompt", sources), ("image", embeds)):
            if len(some) not in (1, count):
                raise ValueError(f"{name} needs one entry, or one for each of {count} pictures: got {len(some)}")
        embeds = embeds.expand(count, -1)
        if any(texts):
            difference = (self.encode_text(texts) - self.encode_text(sources)).expand(count, -1)  # (N, D)
            asked = torch.tensor([[strength if text else 0.0] for text in texts], device=embeds.device)
            turned = (asked > 0) & (difference.norm(dim=-1, keepdim=True) > 1e-5)  # equal texts differ in nothing
            embeds = torch.where(turned, slerp(embeds, F.normalize(difference, dim=-1), asked), embeds)

        # 3. Their pictures
        embeds = embeds.repeat_interleave(num_images_per_prompt, dim=0)
        return self.draw_of(
            embeds, guidance, steps, size, eta, generator, latents, callback, output_type, return_dict, **corrector
        )
