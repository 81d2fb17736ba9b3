# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A pipeline's network as a plain function of a sample and its timestep."""

import torch

from mezzotint import MezzotintPipeline


class PipelineNetwork:
    """The U-Net of a pipeline with its prompts encoded once and guidance as in the pipeline's own loop; row i of each
    batch is of prompt i modulo their number."""

    def __init__(self, pipe: MezzotintPipeline, prompts: list[str], guidance_scale: float, batch_size: int = 256):
        self.pipe, self.guidance_scale, self.batch_size = pipe, guidance_scale, batch_size
        self.text = None
        pipe.unet.requires_grad_(False)
        if pipe.unet.config.cross_attention_dim is not None:
            with torch.no_grad():
                self.text = pipe.encode_prompt(prompts, do_classifier_free_guidance=guidance_scale != 1)

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(sample), device=sample.device)
        return torch.cat([self._answer(sample[chunk], timestep, chunk) for chunk in rows.split(self.batch_size)])

    def _answer(self, sample: torch.Tensor, timestep: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        sample = sample.to(self.pipe.unet.dtype)
        if self.text is None:
            return self.pipe.unet(sample, timestep, return_dict=False)[0].float()
        prompt, negative, mask, negative_mask = self.text
        rows = rows % len(prompt)
        if self.guidance_scale == 1:
            return self.pipe.unet(sample, timestep, prompt[rows], mask[rows], return_dict=False)[0].float()
        text, masks = torch.cat([negative[rows], prompt[rows]]), torch.cat([negative_mask[rows], mask[rows]])
        both = self.pipe.unet(torch.cat([sample] * 2), timestep, text, masks, return_dict=False)[0].float()
        uncond, cond = both.chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)
