# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""diffusers' own pipeline around a network of ours: the peer of benchmarks that time a call.

`StableDiffusionPipeline` without its autoencoder takes any network that maps a noisy sample, a timestep and a text's
states to what the scheduler expects. Two things stand in between: arguments that only its own U-Nets have are passed
over, and the mask of a text's padding, which it never hands to a network, travels as one more channel of the states.
"""

import copy
import warnings
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mezzotint import MezzotintPipeline


class AsStock(torch.nn.Module):
    """A network that takes what `StableDiffusionPipeline` hands on, the states of `WithMask` too; from our own pipeline
    what it always takes."""

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.device, self.dtype = network, network.device, network.dtype
        self.config = FrozenDict(network.config | {"time_cond_proj_dim": None})

    # not `forward`, since what torch does around one would be timed as the sampler's
    def __call__(self, *args, timestep_cond=None, cross_attention_kwargs=None, added_cond_kwargs=None, **kwargs):
        text = kwargs.get("encoder_hidden_states")
        if isinstance(text, torch.Tensor) and text.shape[-1] > self.config.cross_attention_dim:  # (B, L, D + 1)
            kwargs |= {"encoder_hidden_states": text[..., :-1], "encoder_attention_mask": text[..., -1] > 0.5}
        return self.network(*args, **kwargs)


class WithMask(torch.nn.Module):
    """A text encoder whose states (B, L, D + 1) end in a channel that is 1 where there is text and 0 where there is
    padding."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder, self.config = encoder, copy.deepcopy(encoder.config)
        self.config.use_attention_mask = True  # by which StableDiffusionPipeline hands the tokenizer's mask over
        self.device, self.dtype = encoder.device, encoder.dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, D)
        return (torch.cat([states, attention_mask[..., None].to(states)], dim=-1),)


def stock_pipeline(network: AsStock, scheduler: SchedulerMixin, **components: Any) -> StableDiffusionPipeline:
    """diffusers' pipeline, which ends in the sample itself with `output_type="latent"`.

    Args:
        network: of samples of an eighth of the `height` and `width` that a call is given.
        scheduler: any of diffusers.
        components: `text_encoder` and `tokenizer`; without them a call is given `prompt_embeds`.
    """
    absent = "vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"
    parts: dict[str, Any] = {**dict.fromkeys(absent), "unet": network, "scheduler": copy.copy(scheduler), **components}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.scheduler = scheduler  # as it is: the pipeline would set Stable Diffusion's own steps_offset
    pipe.set_progress_bar_config(disable=True)
    return pipe


class StockPictures:
    """Prompt to picture by diffusers' pipeline, with the weights of one of ours and called like that: the text is
    encoded in the call, and the sample becomes a picture by the very functions that ours uses.

    Args:
        pipe: whose networks are taken.
        scheduler: any of diffusers.
        longest: tokens that a text is padded to, which is the tokenizer's own limit where it is not given; what ours
            never reads costs the stock pipeline time.
    """

    modality = MezzotintPipeline.modality

    def __init__(self, pipe: MezzotintPipeline, scheduler: SchedulerMixin, longest: int | None = None):
        self.ours, self.unet = pipe, pipe.unet
        tokenizer = copy.deepcopy(pipe.tokenizer)
        tokenizer.model_max_length = longest or tokenizer.model_max_length
        self.stock = stock_pipeline(
            AsStock(pipe.unet), scheduler, text_encoder=WithMask(pipe.text_encoder), tokenizer=tokenizer
        )
        height, width = pipe.padded(pipe.default_size)
        # its U-Net's samples are taken to be an eighth of the pixels
        self.size = {"height": 8 * height, "width": 8 * width}

    @torch.no_grad()
    def __call__(self, prompt: str | list[str], output_type: str = "pil", **arguments: Any) -> ImagePipelineOutput:
        latents = self.stock(prompt, **self.size, output_type="latent", **arguments).images
        pictures = self.ours.to_pictures(latents)  # pyright: ignore[reportArgumentType]
        return ImagePipelineOutput(images=self.ours.image_processor.postprocess(pictures, output_type=output_type))

    def set_progress_bar_config(self, **config: Any) -> None:
        self.stock.set_progress_bar_config(**config)
