# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of texts and pictures in one space, by a two-tower encoder (CLIP, <https://huggingface.co/papers/2103.00020>),
and pictures drawn from them (unCLIP, <https://huggingface.co/papers/2204.06125>): the prior takes a text's embedding to
a picture's, the decoder, the U-Net, draws a picture of that embedding.

Shared by the pipelines that do so: in a saved one this text stands in place of the line that imports it. Training takes
embeddings by the same functions. D is the width of the space.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mezzotint.pipelines.images_mezzotint import MezzotintImageMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _is_number, _shown
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin, _seen_without_defaults, token_limit

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


def embed_texts(two_towers: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Unit vectors (B, D) in float32 of texts, given what a tokenizer makes of them."""
    found = two_towers.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(getattr(found, "pooler_output", found).float(), dim=-1)


def embed_pictures(
    two_towers: Any, pictures: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
) -> torch.Tensor:
    """Unit vectors (B, D) in float32 of pictures, which are scaled to cover the square that the tower reads, cropped
    about their centre, and normalised.

    Args:
        two_towers: the encoder.
        pictures (`torch.Tensor` of shape `(B, C, H, W)`): in [-1, 1]; grey ones are read as colour.
        image_mean, image_std: of each colour, of pixels in [0, 1], by which the tower's pixels are normalised.
    """
    found = two_towers.get_image_features(pixel_values=pixel_values(two_towers, pictures, image_mean, image_std))
    return F.normalize(getattr(found, "pooler_output", found).float(), dim=-1)


def pixel_values(
    two_towers: Any, pictures: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
) -> torch.Tensor:
    """Pictures (B, 3, size, size) as a tower reads them; arguments as of `embed_pictures`."""
    size = two_towers.config.vision_config.image_size
    height, width = pictures.shape[2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        whole = [max(size, round(side * scale)) for side in (height, width)]
        pictures = F.interpolate(pictures, whole, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        top, left = ((side - size) // 2 for side in whole)
        pictures = pictures[..., top : top + size, left : left + size]
    mean, std = (torch.tensor(x).to(pictures).reshape(1, -1, 1, 1) for x in (image_mean, image_std))
    pictures = ((pictures + 1) / 2 - mean) / std  # (B, 3, size, size)
    return pictures.to(next(two_towers.parameters()).dtype)


def slerp(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation of unit vectors, `(sin((1 - w) a) first + sin(w a) second) / sin(a)` with the angle `a`
    between them (<https://dl.acm.org/doi/10.1145/325165.325242>, section 3.3); of equal vectors these themselves.

    Args:
        first, second (`torch.Tensor` of shape `(B, D)`): unit vectors.
        weight (number, or `torch.Tensor` of shape `(B, 1)`): 0 gives the first, 1 the second.
    """
    cosine = (first * second).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.double().acos()  # (B, 1)
    weight = torch.as_tensor(weight, device=first.device, dtype=torch.float64)
    sine = angle.sin()
    near = sine < 1e-6  # where the arc is a line
    a = torch.where(near, 1 - weight, ((1 - weight) * angle).sin() / sine)
    b = torch.where(near, weight.expand_as(angle), (weight * angle).sin() / sine)
    return F.normalize((a * first + b * second).to(first.dtype), dim=-1)


class MezzotintPriorNetwork(torch.nn.Module):
    """A prior as the denoising loop and the loss call a network: the noisy embedding is a sample of shape
    `(B, D, 1, 1)`, the embedding of the text its only token.

    Args:
        prior (`PriorTransformer`): reads no hidden states of the text (`encoder_hid_proj_type=None`).
    """

    def __init__(self, prior: Any):
        super().__init__()
        self.prior = prior
        width = prior.config.embedding_dim
        self.config = SimpleNamespace(
            in_channels=width, out_channels=width, cross_attention_dim=width, block_out_channels=(1,), attributes=None
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    @property
    def device(self) -> torch.device:
        return self.prior.device

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(B, D, 1, 1)`): the noisy embedding, of unit variance.
            timestep (`torch.Tensor` of shape `()` or `(B,)`).
            encoder_hidden_states (`torch.Tensor` of shape `(B, 1, D)`): the text's embedding.
            encoder_attention_mask, return_dict: not read.
        """
        text = encoder_hidden_states[:, 0].to(sample.dtype)
        return (self.prior(sample.flatten(1), timestep, text, return_dict=False)[0].reshape(sample.shape),)


class MezzotintEmbeddingMixin(MezzotintImageMixin, MezzotintSamplingMixin):
    """Draws pictures of embeddings: what the pipelines with a two-tower encoder share. A task's class adds `__call__`.

    Args:
        two_towers (`CLIPModel`, or another two-tower encoder of transformers): embeds texts and pictures.
        prior (`PriorTransformer`, *optional*): denoises the embedding of a picture, given that of a text.
        prior_scheduler (`MezzotintScheduler`, *optional*): the noise levels and the steps of the prior.
        unet: the decoder, which reads a picture's embedding in the place of a text; its config's `condition` has the
            scale of these embeddings and of the tower's pixels.

    The other components are described at `MezzotintSamplingMixin`.
    """

    model_cpu_offload_seq = "two_towers->prior->unet->vae"
    _optional_components = [*MezzotintSamplingMixin._optional_components, "prior", "prior_scheduler"]
    tasks = ("unclip",)

    @_seen_without_defaults
    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        two_towers: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: PreTrainedModel | None = None,
        guider: BaseGuidance | None = None,
        guidance_unet: ModelMixin | None = None,
        classifier: ModelMixin | None = None,
        vae: ModelMixin | None = None,
        prior: ModelMixin | None = None,
        prior_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__(unet, scheduler, text_encoder, tokenizer, guider, guidance_unet, classifier, vae)
        self.register_modules(two_towers=two_towers, prior=prior, prior_scheduler=prior_scheduler)
        width = getattr(two_towers.config, "projection_dim", None)
        for name, reads in (
            ("unet", None if unet is None else unet.config.cross_attention_dim),
            ("prior", None if prior is None else prior.config.get("embedding_dim")),
        ):
            if width is not None and getattr(self, name) is not None and reads != width:
                raise ValueError(f"{name} must read embeddings of the two_towers, {width} wide: got {reads}")

    @property
    def reads_prompts(self) -> bool:
        return True

    # -------------------------------------------------------------------------------------------------- embeddings

    @torch.no_grad()
    def encode_text(self, prompt: str | list[str]) -> torch.Tensor:
        """Embeddings of texts, unit vectors (texts, D) in float32; what is longer than the tower reads is cut."""
        prompt = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompt, list) or not prompt or not all(isinstance(x, str) for x in prompt):
            raise ValueError(f"prompt must be a text or a list of texts: got {_shown(prompt)}")
        if self.tokenizer is None:
            raise ValueError("this pipeline has no tokenizer: pass image_embeds instead of a prompt")
        limit = token_limit(self.two_towers, self.tokenizer)
        tokens = self.tokenizer(prompt, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
        return embed_texts(self.two_towers, tokens.to(self._tower_device)).to(self._execution_device)

    @torch.no_grad()
    def encode_image(self, image: Any) -> torch.Tensor:
        """Embeddings of pictures (as of a call's `image`), unit vectors (pictures, D) in float32."""
        pictures = self.read_image(image).to(self._tower_device, torch.float32)
        about = self.trained_for
        found = embed_pictures(self.two_towers, pictures, about["image_mean"], about["image_std"])
        return found.to(self._execution_device)

    @property
    def _tower_device(self) -> torch.device:
        """Where the encoder is: offloading by models follows calls of `forward` alone, and leaves it on the CPU."""
        device = next(self.two_towers.parameters()).device
        return self._execution_device if device.type == "meta" else device

    def interpolate(self, first: Any, second: Any, weights: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Embeddings on the way from one picture to another, to be drawn as `image_embeds`.

        Args:
            first, second: a picture, or its embedding (1, D).
            weights: of the second, one for each embedding that is wanted: 0 is the first picture, 1 the second.

        Returns:
            `torch.Tensor` of shape `(weights, D)`, unit vectors, by spherical interpolation.
        """
        ends = [self._as_embeds(x) if self._is_embeds(x) else self.encode_image(x) for x in (first, second)]
        if any(len(x) != 1 for x in ends):
            raise ValueError(f"first and second must be one picture each: got {len(ends[0])} and {len(ends[1])}")
        weights = torch.as_tensor(weights, device=ends[0].device).reshape(-1, 1)
        first, second = (x.expand(len(weights), -1) for x in ends)
        return slerp(first, second, weights)

    def _is_embeds(self, x: Any) -> bool:
        return isinstance(x, torch.Tensor) and x.ndim == 2 and x.shape[1] == self.unet.config.cross_attention_dim

    def _as_embeds(self, image_embeds: Any) -> torch.Tensor:
        """The embeddings of a call as unit vectors, of which the direction counts. Raises `ValueError` in one line."""
        if not self._is_embeds(image_embeds) or not len(image_embeds):
            got = tuple(image_embeds.shape) if isinstance(image_embeds, torch.Tensor) else _shown(image_embeds)
            width = self.unet.config.cross_attention_dim
            raise ValueError(f"image_embeds must have shape (pictures, {width}): got {got}")
        if not image_embeds.isfinite().all():
            raise ValueError("image_embeds must be finite numbers: got others")
        return F.normalize(image_embeds.to(self._execution_device, torch.float32), dim=-1)

    # ---------------------------------------------------------------------------------------------------- the prior

    @torch.no_grad()
    def draw_embeds(
        self,
        text_embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None = None,
        prior_num_inference_steps: int = 25,
        prior_guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prior_latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of pictures that texts may have, drawn by the prior.

        Args:
            text_embeds (`torch.Tensor` of shape `(pictures, D)`): of the texts, as `encode_text` gives them.
            negative_embeds (`torch.Tensor` of shape `(1 or pictures, D)`, *optional*): of those to steer away from; by
                default of the empty text.
            prior_num_inference_steps, prior_guidance_scale, generator, prior_latents: as of the call.

        Returns:
            `torch.Tensor` of shape `(pictures, D)`, unit vectors.

        Raises:
            ValueError: without a prior, for an impossible argument, and where the result is not finite.
        """
        if self.prior is None or self.prior_scheduler is None:
            raise ValueError(
                "this pipeline has no prior, which takes a text to a picture's embedding: train one, or pass "
                "image_embeds; MezzotintVariationPipeline draws variations of a picture"
            )
        if type(prior_num_inference_steps) is not int or prior_num_inference_steps < 1:
            got = _shown(prior_num_inference_steps)
            raise ValueError(f"prior_num_inference_steps must be a positive whole number: got {got}")
        if not _is_number(prior_guidance_scale):
            raise ValueError(f"prior_guidance_scale must be a finite number: got {_shown(prior_guidance_scale)}")
        count, width = text_embeds.shape
        if prior_latents is not None:
            if not isinstance(prior_latents, torch.Tensor) or prior_latents.shape != (count, width):
                got = tuple(prior_latents.shape) if isinstance(prior_latents, torch.Tensor) else _shown(prior_latents)
                raise ValueError(f"prior_latents must have shape {(count, width)}: got {got}")
            prior_latents = prior_latents[..., None, None]
        guidance = MezzotintGuidance(prior_guidance_scale, 0.0, None, None, None, 1.0)
        run = self.for_one_call(guidance)
        # The one loop denoises this too: the prior in the place of the U-Net
        vars(run).update(unet=MezzotintPriorNetwork(self.prior), scheduler=self.prior_scheduler)
        vars(run).update(guidance_unet=None, classifier=None, vae=None)
        text = text_embeds[:, None].to(self.prior.dtype)  # (N, 1, D)
        if run.do_classifier_free_guidance:
            negative_embeds = self.encode_text("") if negative_embeds is None else negative_embeds
            text = torch.cat([negative_embeds.expand(count, -1)[:, None].to(text), text])
        schedule = run.choose_timesteps(guidance, prior_num_inference_steps, None, None)
        noise = run.draw_noise(count, (1, 1), generator, prior_latents) * run.scheduler.init_noise_sigma
        found = run.denoise(noise, schedule, (text, None), guidance, 0.0, generator)
        return F.normalize(self.prior.post_process_latents(found.flatten(1)).float(), dim=-1)

    # -------------------------------------------------------------------------------------------------- the decoder

    def draw_of(
        self,
        image_embeds: torch.Tensor,
        guidance: MezzotintGuidance,
        steps: tuple[Any, Any, Any],
        size: tuple[int, int],
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        callback: tuple[Any, Any],
        output_type: str,
        return_dict: bool,
        **corrector: Any,
    ) -> ImagePipelineOutput | tuple:
        """A picture of each embedding (pictures, D), drawn by the decoder: what a call does once it has these. The
        arguments are those of the call, checked."""
        about = self.trained_for
        mean, std = (torch.tensor(about[name]).to(image_embeds) for name in ("embeds_mean", "embeds_std"))
        embeds = ((image_embeds - mean) / std)[:, None]  # (N, 1, D); nothing known is the mean, zeros
        run = self.for_one_call(guidance)
        negative = None if self.guidance_unet is not None else torch.zeros_like(embeds[:1])
        text, guidance, batch_size = run.prepare_conditions(guidance, 1, None, None, embeds, negative, None, None)
        schedule = run.choose_timesteps(guidance, *steps)
        latents = run.draw_noise(batch_size, size, generator, latents) * run.scheduler.init_noise_sigma
        images = run.denoise(latents, schedule, text, guidance, eta, generator, *callback, **corrector)
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode(images, size), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
