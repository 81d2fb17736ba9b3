# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""All that lies between a call's inputs and its result, whatever the task: inputs are checked, a text is encoded,
timesteps are chosen, a sample is denoised step by step under guidance, and its normalisation is undone.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it. `spatial` is a sample's
size without batch and channels: (height, width) of pictures.
"""

import copy
import inspect
import math
import numbers
import reprlib
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.hooks import PyramidAttentionBroadcastConfig
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, scale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Held while what the calls of several threads have in common is set for one of them: the scheduler's timesteps, the
# tokenizer's padding
ONE_AT_A_TIME = threading.Lock()
# Held by a call for as long as its network keeps features from step to step (diffusers' `enable_cache`)
WITH_CACHE = threading.RLock()
# Guiders of diffusers 0.42 of which the first never changes a layer and the second takes a norm that torch refuses
UNFIT_GUIDERS = ("SmoothedEnergyGuidance", "MagnitudeAwareGuidance")


def _seen_without_defaults(init: Callable) -> Callable:
    """What diffusers reads from the signature: `DiffusionPipeline.from_pretrained(folder, guider=mine)` would pass over
    the component given for an argument that has a default."""
    signature = inspect.signature(init)
    bare = [x.replace(default=inspect.Parameter.empty) for x in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=bare)  # pyright: ignore[reportFunctionMemberAccess]
    return init


class MezzotintGuidance(NamedTuple):
    """The guidance of a call; the arguments of the same names are described at `__call__`.

    Args:
        scale (`float`): weight of classifier-free guidance.
        rescale (`float`): how far the guided prediction's deviation is brought back, 0 to 1.
        interval (`(float, float)`, *optional*): the noise levels to guide at.
        guider (one of `diffusers.guiders`, *optional*): in place of classifier-free guidance.
        labels: what the classifier is to see, one or one for each prompt; in the loop their numbers, a
            `torch.Tensor` of shape `(pictures,)`.
        classifier_scale (`float`): weight of the classifier's gradient.
    """

    scale: float
    rescale: float
    interval: tuple[float, float] | None
    guider: BaseGuidance | None
    labels: Any
    classifier_scale: float


class MezzotintSamplingMixin:
    """The components that a sample is drawn with, and the steps that all tasks share. A task's class adds `__call__`.

    Args:
        unet (`MezzotintUNetModel`): predicts what the scheduler's `prediction_type` says. Its config holds the scale
            of the data (`sample_mean`, `sample_std`) and the default size (`sample_size`).
        scheduler (`MezzotintScheduler` or a stock one made from its config): the noise levels and the step.
        text_encoder (a `transformers` encoder, or `None` with a U-Net that reads no text).
        tokenizer (the encoder's tokenizer, or `None`).
        guider (one of `diffusers.guiders`, *optional*): combines the network's predictions in place of classifier-free
            guidance; its own settings then stand for `guidance_scale` and `guidance_rescale`. Those that change layers
            (`PerturbedAttentionGuidance`, `SkipLayerGuidance`, `AutoGuidance`) must be told which, with the `fqn` of a
            block's transformer layers, as `LayerSkipConfig([0], fqn="mid_block.transformer_layers")`.
            `SmoothedEnergyGuidance` and `MagnitudeAwareGuidance` don't work in diffusers 0.42 and are refused.
        guidance_unet (`MezzotintUNetModel`, *optional*): a worse version of `unet` (smaller, or trained for less long),
            whose prediction for the same text stands where that for the negative text stood: autoguidance,
            <https://huggingface.co/papers/2406.02507>.
        classifier (`MezzotintClassifier`, *optional*): its gradient draws the pictures to the `class_labels` of a call
            (<https://huggingface.co/papers/2105.05233>).
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["text_encoder", "tokenizer", "guider", "guidance_unet", "classifier"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "prompt_attention_mask"]

    @_seen_without_defaults
    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        guider: BaseGuidance | None = None,
        guidance_unet: ModelMixin | None = None,
        classifier: ModelMixin | None = None,
    ):
        super().__init__()
        networks = {
            "unet": unet,
            "text_encoder": text_encoder,
            "guidance_unet": guidance_unet,
            "classifier": classifier,
        }
        for name, network in networks.items():
            if network is not None and not isinstance(network, torch.nn.Module):
                raise ValueError(f"{name} must be a torch.nn.Module: got {_shown(network)}")
        _check_unet(unet)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
            guidance_unet=guidance_unet,
            classifier=classifier,
        )
        # With 4 channels for those of latents, its default, a picture with transparency would not be normalised
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_resize=False)
        self._guidance_scale = 1.0
        self._interrupt = False
        self._origin = None  # of the copy that a call makes, the pipeline
        self._said: set[str] = set()

    # ------------------------------------------------------------------------------------------------- conditioning

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ):
        """The text encoder's hidden states for prompts and negative prompts, repeated `num_images_per_prompt` times.

        Args:
            prompt (`str` or list of `str`, *optional*): needed unless `prompt_embeds` is given.
            device (`torch.device`, *optional*): where to; by default where the pipeline runs.
            num_images_per_prompt (`int`): pictures for each prompt.
            do_classifier_free_guidance (`bool`): whether the negative ones are wanted at all.
            negative_prompt (`str` or list of `str`, *optional*): what to steer away from; the empty text by default.
            prompt_embeds (`torch.Tensor` of shape `(prompts, tokens, channels)`, *optional*): in place of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): in place of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(prompts, tokens)`, *optional*): of `prompt_embeds`.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): of `negative_prompt_embeds`.

        Returns:
            `(prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask)`, the
            negative ones `None` without guidance. All four have the same number of tokens.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            prompt_embeds, prompt_attention_mask = self._encode_text(prompt, device)
        elif prompt_attention_mask is None:
            prompt_attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.bool)
        if do_classifier_free_guidance:
            if negative_prompt_embeds is None:
                texts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
                negative_prompt_embeds, negative_prompt_attention_mask = self._encode_text(texts, device)
            elif negative_prompt_attention_mask is None:
                negative_prompt_attention_mask = torch.ones(negative_prompt_embeds.shape[:2], dtype=torch.bool)
            if len(negative_prompt_embeds) == 1:
                negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
                negative_prompt_attention_mask = negative_prompt_attention_mask.expand(len(prompt_embeds), -1)
            length = max(prompt_embeds.shape[1], negative_prompt_embeds.shape[1])
            negative_prompt_embeds, negative_prompt_attention_mask = self._fit(
                negative_prompt_embeds, negative_prompt_attention_mask, length, num_images_per_prompt, device
            )
        else:
            length = prompt_embeds.shape[1]
            negative_prompt_embeds = negative_prompt_attention_mask = None
        prompt_embeds, prompt_attention_mask = self._fit(
            prompt_embeds, prompt_attention_mask, length, num_images_per_prompt, device
        )
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def _encode_text(self, text: str | list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self.text_encoder is None:
            raise ValueError("this pipeline has no text encoder: pass negative_prompt_embeds, or guidance_scale=1")
        text = [text] if isinstance(text, str) else text
        config = self.text_encoder.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512)
        with ONE_AT_A_TIME:
            tokens = self.tokenizer(text, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
            whole = self.tokenizer(text, truncation=False).input_ids
        for words in whole:
            if len(words) > limit:
                cut = self.tokenizer.decode(words[limit - 1 :], skip_special_tokens=True)
                shown = repr(cut) if len(cut) <= 200 else f"{cut[:100]!r} and so on, {len(cut)} characters"
                logger.warning(f"The text encoder takes {limit} tokens; this part of a prompt was cut off: {shown}")
        mask = tokens.attention_mask.to(device)
        output = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)
        return output.last_hidden_state, mask.bool()  # (P, L, D), (P, L)

    def _fit(self, embeds, mask, length: int, repeats: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad to `length` tokens, repeat each row, move and cast."""
        missing = length - embeds.shape[1]
        dtype = embeds.dtype if self.unet is None else self.unet.dtype  # prompts can be encoded before there is a U-Net
        embeds = F.pad(embeds.to(device, dtype), (0, 0, 0, missing)).repeat_interleave(repeats, dim=0)
        mask = F.pad(mask.to(device).bool(), (0, missing)).repeat_interleave(repeats, dim=0)
        return embeds, mask

    def prepare_conditions(
        self,
        guidance: MezzotintGuidance,
        num_images_per_prompt: int,
        prompt,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
        prompt_attention_mask,
        negative_prompt_attention_mask,
        prompts: int = 1,
    ):
        """The conditions that steer each picture of a call: its text, the text to steer away from if there is such
        guidance, and its label. `prompts` is the number of prompts where neither texts nor labels give it.

        Returns:
            `((prompt_embeds, prompt_attention_mask), guidance, batch_size)`: the first two hold negative and positive
            in one batch where there are both, and are `None` of a network without text.
        """
        device = self._execution_device
        if guidance.labels is not None:
            labels = (
                guidance.labels.flatten().tolist() if isinstance(guidance.labels, torch.Tensor) else guidance.labels
            )
            guidance = guidance._replace(labels=self.classifier.get_label_ids(labels))
            prompts = len(guidance.labels) if prompts == 1 else prompts
        if self.unet.config.cross_attention_dim is not None:
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask = (
                self.encode_prompt(
                    prompt,
                    device,
                    num_images_per_prompt,
                    self.guidance_unet is None and (guidance.guider is not None or self.do_classifier_free_guidance),
                    negative_prompt,
                    prompt_embeds,
                    negative_prompt_embeds,
                    prompt_attention_mask,
                    negative_prompt_attention_mask,
                )
            )
            prompts = len(prompt_embeds) // num_images_per_prompt
            if negative_prompt_embeds is not None:
                prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
                prompt_attention_mask = torch.cat([negative_prompt_attention_mask, prompt_attention_mask])
        if guidance.labels is not None:
            if len(guidance.labels) not in (1, prompts):
                got = len(guidance.labels)
                raise ValueError(f"class_labels needs one entry, or one for each of {prompts} prompts: got {got}")
            labels = guidance.labels.to(device).expand(prompts).repeat_interleave(num_images_per_prompt)
            guidance = guidance._replace(labels=labels)
        return (prompt_embeds, prompt_attention_mask), guidance, prompts * num_images_per_prompt

    # ------------------------------------------------------------------------------------------------------ inputs

    def check_inputs(
        self,
        num_inference_steps,
        timesteps,
        sigmas,
        num_images_per_prompt,
        eta,
        generator,
        latents,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        **counts,
    ) -> None:
        """Raises `ValueError` in one line for an impossible argument, one of `counts` (whole numbers by name) among
        them. Guidance and text have checks of their own."""
        _check_unet(self.unet)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be one of 'pil', 'np', 'pt', 'latent': got {output_type!r}")
        counts["num_images_per_prompt"] = num_images_per_prompt
        if timesteps is None and sigmas is None:
            counts["num_inference_steps"] = num_inference_steps
        for name, value in counts.items():
            if not _is_number(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive whole number: got {_shown(value)}")
        if not _is_number(eta) or eta < 0:
            raise ValueError(f"eta must be a finite number of at least 0: got {_shown(eta)}")
        generators = generator if isinstance(generator, list) else [generator]
        if generator is not None and not (generators and all(isinstance(x, torch.Generator) for x in generators)):
            raise ValueError(f"generator must be a torch.Generator or a list of them: got {_shown(generator)}")
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents must be a tensor: got {_shown(latents)}")
        if latents is not None and not latents.isfinite().all():
            raise ValueError("latents must be finite numbers: got others")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be a function: got {_shown(callback_on_step_end)}")
        names = _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        if unknown := [x for x in names if x not in self._callback_tensor_inputs] if isinstance(names, list) else names:
            possible, got = self._callback_tensor_inputs, _shown(unknown)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be among {possible}: got {got}")

    def check_guidance(self, guidance: MezzotintGuidance) -> None:
        """Raises `ValueError` in one line for impossible guidance, or guidance that the components cannot give."""
        for name, value, least, most in (
            ("guidance_scale", guidance.scale, -math.inf, math.inf),
            ("guidance_rescale", guidance.rescale, 0, 1),
            ("classifier_scale", guidance.classifier_scale, -math.inf, math.inf),
        ):
            if not _is_number(value) or not least <= value <= most:
                within = "" if least == -math.inf else " in [0, 1]"
                raise ValueError(f"{name} must be a finite number{within}: got {_shown(value)}")
        if guidance.interval is not None:
            levels = guidance.interval if isinstance(guidance.interval, (list, tuple)) else ()
            numeric = all(isinstance(x, numbers.Real) for x in levels)
            if len(levels) != 2 or not numeric or not 0 <= levels[0] < levels[1]:
                got = _shown(guidance.interval)
                raise ValueError(f"guidance_interval must be two noise levels, 0 <= low < high: got {got}")
        guider = guidance.guider
        if guider is not None and not isinstance(guider, BaseGuidance):
            raise ValueError(f"guider must be one of diffusers.guiders: got {_shown(guider)}")
        if type(guider).__name__ in UNFIT_GUIDERS:
            raise ValueError(f"{type(guider).__name__} does not work in this version of diffusers: take another guider")
        defaults = inspect.signature(type(guider).__init__).parameters
        for name, value in (guider.config if guider is not None else {}).items():
            if name in defaults and _is_number(defaults[name].default) and not _is_number(value):
                raise ValueError(f"the guider's {name} must be a finite number: got {_shown(value)}")
        if guidance.labels is not None and self.classifier is None:
            raise ValueError("class_labels are for a classifier, which this pipeline does not have: leave them out")
        if guidance.labels is not None and not hasattr(self.scheduler, "guide"):
            raise ValueError(
                f"class_labels need a scheduler that can guide, such as MezzotintScheduler: got "
                f"{type(self.scheduler).__name__}"
            )

    def check_text(
        self,
        prompt,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
        prompt_attention_mask,
        negative_prompt_attention_mask,
    ) -> None:
        """Raises `ValueError` in one line for texts that contradict each other or that the components cannot read."""
        if self.guidance_unet is not None and (negative_prompt is not None or negative_prompt_embeds is not None):
            raise ValueError("the guidance_unet stands where a negative prompt would: leave one of the two out")
        if self.unet.config.cross_attention_dim is None:
            if any(x is not None for x in (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)):
                raise ValueError("this pipeline's U-Net reads no text: leave prompts and their embeds out")
            return
        for name in ("text_encoder", "tokenizer"):
            if getattr(self, name) is None and (prompt is not None or negative_prompt is not None):
                what = name.replace("_", " ")
                raise ValueError(f"this pipeline has no {what}: pass prompt_embeds and negative_prompt_embeds instead")

        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                f"exactly one of prompt and prompt_embeds must be given: got {'none' if prompt is None else 'both'}"
            )
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            items = value if isinstance(value, list) else [value]
            if value is not None and (not items or not all(isinstance(x, str) for x in items)):
                raise ValueError(f"{name} must be a text or a list of texts: got {_shown(value)}")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("at most one of negative_prompt and negative_prompt_embeds may be given: got both")
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
        ):
            shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else ()
            channels = self.unet.config.cross_attention_dim
            if embeds is not None and (len(shape) != 3 or shape[2] != channels or 0 in shape[1:]):
                got = f"shape {shape}" if shape else _shown(embeds)
                raise ValueError(f"{name}_embeds must have shape (prompts, tokens, {channels}): got {got}")
            if embeds is not None and not embeds.is_floating_point():
                raise ValueError(f"{name}_embeds must be floating point: got {embeds.dtype}")
            fits = isinstance(mask, torch.Tensor) and embeds is not None and mask.shape == embeds.shape[:2]
            if mask is not None and not fits:
                raise ValueError(
                    f"{name}_attention_mask goes with {name}_embeds, one entry for each token: got mask "
                    f"{tuple(getattr(mask, 'shape', ()))}, embeds {None if embeds is None else shape}"
                )
        count = len(prompt_embeds) if prompt is None else len(prompt) if isinstance(prompt, list) else 1
        if count == 0:
            raise ValueError("prompt_embeds must have one entry for each of one or more prompts: got none")
        for name, value in (("negative_prompt", negative_prompt), ("negative_prompt_embeds", negative_prompt_embeds)):
            if value is not None and not isinstance(value, str) and len(value) not in (1, count):
                raise ValueError(f"{name} needs one entry, or one for each of {count} prompts: got {len(value)}")

    # ----------------------------------------------------------------------------------------------- before the loop

    def for_one_call(self, guidance: MezzotintGuidance, cross_attention_kwargs: dict[str, Any] | None = None):
        """A copy of the pipeline that holds what changes in a call, and that a callback is handed: calls of several
        threads, and one within a callback, leave each other alone. The pipeline itself says how the call that began
        last is guided, and then how the one that ended last was.

        Raises:
            ValueError: for `cross_attention_kwargs` other than `{"scale": number}`.
        """
        given = {} if cross_attention_kwargs is None else cross_attention_kwargs
        scale = given.get("scale", 1.0) if isinstance(given, dict) and given.keys() <= {"scale"} else None
        if not _is_number(scale):
            raise ValueError(f"cross_attention_kwargs must be {{'scale': number}}: got {_shown(given)}")
        run, guider = copy.copy(self), guidance.guider
        for name in ("unet", "text_encoder"):
            network = getattr(self, name)
            if scale != 1 and getattr(network, "peft_config", None):  # it has adapters
                setattr(run, name, network := _with_hooks_of_its_own(network))
                scale_lora_layers(network, scale)
        run._origin = self
        run._guidance_scale = guidance.scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        run._interrupt = False
        self._guidance_scale, self._interrupt = run._guidance_scale, False
        return run

    def choose_timesteps(
        self, guidance: MezzotintGuidance, num_inference_steps, timesteps, sigmas, strength: float = 1.0
    ) -> torch.Tensor:
        """The timesteps of the call that this copy of the pipeline is for, the last `strength` of those that the
        scheduler chooses. From here on the copy has a scheduler of its own."""
        scale = self._guidance_scale if guidance.guider is not None or self.do_classifier_free_guidance else 1.0
        with ONE_AT_A_TIME:  # the pipeline's scheduler keeps what it worked out; the steps are taken by a copy
            schedule = self.retrieve_timesteps(num_inference_steps, self._execution_device, timesteps, sigmas, scale)
            self.scheduler = copy.copy(self.scheduler)
        order = getattr(self.scheduler, "order", 1)  # Heun's, for one, has two timesteps for a step
        steps = num_inference_steps if timesteps is None and sigmas is None else -(-len(schedule) // order)
        first = (steps - min(int(steps * strength), steps)) * order
        if first >= len(schedule):
            raise ValueError(f"strength must leave one of {steps} steps, at least {1 / steps:.4g}: got {strength}")
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)  # or every step would look its timestep up, and wait for the device
        self._num_timesteps = self._origin._num_timesteps = len(schedule) - first
        return schedule[first:]

    def draw_noise(self, batch_size: int, spatial: Sequence[int], generator, latents) -> torch.Tensor:
        """Standard normal noise (or `latents`) in float32, of shape `(batch_size, channels, *spatial)` with the sizes
        rounded up to what the U-Net can halve."""
        # A U-Net of an older file has no patches and does not say it
        factor = getattr(self.unet, "downsample_factor", 2 ** (len(self.unet.config.block_out_channels) - 1))
        shape = (batch_size, self.unet.config.in_channels, *(-(-size // factor) * factor for size in spatial))
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"a list of generators needs one for each picture: got {len(generator)} for {batch_size}")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}: got {tuple(latents.shape)}")
        return latents.to(self._execution_device, torch.float32)

    def retrieve_timesteps(
        self, num_inference_steps, device, timesteps, sigmas, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """Set the scheduler's timesteps from a count, fitted at a guidance scale like this one where there are some, or
        from custom `timesteps` or `sigmas` where it takes them."""
        if timesteps is not None and sigmas is not None:
            raise ValueError("at most one of timesteps and sigmas may be given: got both")
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        for name, value in (("timesteps", timesteps), ("sigmas", sigmas)):
            if value is not None:
                if name not in accepted:
                    raise ValueError(f"{type(self.scheduler).__name__}.set_timesteps takes no custom {name}")
                self.scheduler.set_timesteps(**{name: value}, device=device)
                return self.scheduler.timesteps
        fitted = {"guidance_scale": guidance_scale} if "guidance_scale" in accepted else {}
        self.scheduler.set_timesteps(num_inference_steps, device=device, **fitted)
        table = getattr(self.scheduler, "fitted_schedule", None)
        if table is not None and table["guidance_scale"] != guidance_scale:
            said = (
                f"The schedule of {num_inference_steps} steps was fitted at guidance_scale "
                f"{table['guidance_scale']:g}, the nearest to {guidance_scale:g} that there is"
            )
            if said not in self._said:
                logger.warning(said)
            self._said.add(said)
        return self.scheduler.timesteps

    def _noise_levels(self, timesteps: torch.Tensor) -> list[float]:
        """sigma_t / alpha_t at each (fractional) timestep."""
        if hasattr(self.scheduler, "timesteps_to_sigmas"):
            return self.scheduler.timesteps_to_sigmas(timesteps).tolist()
        if not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(
                f"guidance_interval needs a scheduler with alphas_cumprod: got {type(self.scheduler).__name__}"
            )
        # a stock scheduler: its betas interpolated in log(sigma), as it does where it turns a sigma into a timestep
        a = self.scheduler.alphas_cumprod.double().clamp(min=torch.finfo(torch.float32).tiny).cpu().numpy()
        return np.exp(np.interp(timesteps.double().cpu(), np.arange(len(a)), np.log((1 - a) / a) / 2)).tolist()

    @staticmethod
    def _read_text(network, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> dict[str, Any]:
        """The arguments by which `network` reads a text: projected ahead, where it can do that."""
        if embeds is None:
            return {}
        project_text = getattr(network, "project_text", None)
        text = project_text(embeds, mask) if project_text is not None else None
        if text is not None:
            return {"encoder_hidden_states": text}
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    # ---------------------------------------------------------------------------------------------------- sampling

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        two = self.guidance_unet is not None or self.unet.config.cross_attention_dim is not None
        return self._guidance_scale > 1 and two

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt or (self._origin is not None and self._origin._interrupt)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep a layer on the accelerator only for as long as it works, as diffusers' method of that name. Raises
        `ValueError` for a CPU."""
        if device is not None and torch.device(device).type == "cpu":
            raise ValueError(f"device must be an accelerator, to which layers come from the CPU: got {str(device)!r}")
        super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportAttributeAccessIssue]

    def denoise(
        self,
        latents: torch.Tensor,
        schedule: torch.Tensor,
        text: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance: MezzotintGuidance,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> torch.Tensor:
        """Denoise `latents` along the `schedule` until clean data is left: the network and the scheduler take turns.
        Called on a copy that `for_one_call` made and `choose_timesteps` set.

        Args:
            latents (`torch.Tensor` of shape `(pictures, channels, *spatial)`): float32, at the first timestep's level.
            schedule (`torch.Tensor` of shape `(steps,)`): the timesteps.
            text: embeddings and mask as `prepare_conditions` returns them.
            guidance (`MezzotintGuidance`): likewise.

        Raises:
            ValueError: where the result is not finite, and for what a callback may not return.
        """
        # 1. What each step costs: the timesteps that are guided, and how the scheduler steps
        prompt_embeds, prompt_attention_mask = text
        within = [True] * len(schedule)
        if guidance.interval is not None:
            low, high = guidance.interval
            within = [low < sigma <= high for sigma in self._noise_levels(schedule)]
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        guider = copy.copy(guidance.guider)  # it comes back as it was
        guider_enabled = guider is not None and guider.get_state()["enabled"]

        # 2. A branch is a network and its rows of the text, which it reads once a call, not once a step
        rows, negative_rows = slice(-len(latents), None), slice(len(latents))
        unet, guidance_unet = self.unet, self.guidance_unet
        caches = any(getattr(network, "is_cache_enabled", False) for network in (unet, guidance_unet))
        one_state = isinstance(getattr(unet, "_cache_config", None), PyramidAttentionBroadcastConfig)
        if one_state and (guider is not None or self.do_classifier_free_guidance and not all(within)):
            raise ValueError(
                "pyramid attention broadcast keeps the attention of one batch for all steps: got a guider or a "
                "guidance_interval, under which batches differ; TaylorSeerCacheConfig goes with both"
            )
        if guider is not None and type(guider).prepare_models is not BaseGuidance.prepare_models:  # it changes layers
            unet, guidance_unet = _with_hooks_of_its_own(unet), _with_hooks_of_its_own(guidance_unet)
        branches = {"both": (unet, slice(None)), "cond": (unet, rows), "uncond": (unet, negative_rows)}
        if guidance_unet is not None:
            branches["uncond"] = (guidance_unet, rows)
        dtype, texts = self.unet.dtype, {}

        def predict(branch: str, model_input: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            network, rows = branches[branch]
            if branch not in texts:
                text = (x if x is None else x[rows] for x in (prompt_embeds, prompt_attention_mask))
                texts[branch] = self._read_text(network, *text)
            with network.cache_context(branch) if caches else nullcontext():  # what it keeps is the branch's own
                output = network(model_input.to(dtype), timestep, **texts[branch], return_dict=False)[0]
            return output.float()  # the steps are taken in float32 whatever the network's precision

        # 3. Step by step
        with WITH_CACHE if caches else nullcontext(), self.progress_bar(total=len(schedule)) as progress_bar:
            for i, t in enumerate(schedule):
                if self.interrupt:
                    continue
                model_input = self.scheduler.scale_model_input(latents, t)
                if guider is not None:
                    if guider_enabled:
                        guider.enable() if within[i] else guider.disable()
                    guider.set_state(step=i, num_inference_steps=len(schedule), timestep=t)
                    batches = guider.prepare_inputs({"branch": ("cond", "uncond")})
                    for batch in batches:
                        network = branches[batch.branch][0]
                        guider.prepare_models(network)
                        batch.noise_pred = predict(batch.branch, model_input, t)
                        guider.cleanup_models(network)
                    model_output = guider(batches)[0]
                elif within[i] and self.do_classifier_free_guidance:
                    if guidance_unet is None:  # both branches in one batch
                        uncond, cond = predict("both", torch.cat([model_input] * 2), t).chunk(2)
                    else:
                        uncond, cond = predict("uncond", model_input, t), predict("cond", model_input, t)
                    # uncond + w (cond - uncond), to the bit, in one piece of memory
                    model_output = (cond - uncond).mul_(self.guidance_scale).add_(uncond)
                    if guidance.rescale > 0:
                        model_output = rescale_noise_cfg(model_output, cond, guidance.rescale)
                else:
                    model_output = predict("cond", model_input, t)
                if guidance.labels is not None and within[i]:
                    gradient = self.classifier.score(model_input, t, guidance.labels)
                    model_output = self.scheduler.guide(model_output, t, guidance.classifier_scale * gradient)
                latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs):
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    if not isinstance(callback_outputs, dict):
                        raise ValueError(f"a callback must return tensors by name: got {_shown(callback_outputs)}")
                    latents, shape = callback_outputs.pop("latents", latents), latents.shape
                    if not isinstance(latents, torch.Tensor) or latents.shape != shape:
                        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else _shown(latents)
                        raise ValueError(f"latents of a callback must have shape {tuple(shape)}: got {got}")
                    if callback_outputs.keys() & {"prompt_embeds", "prompt_attention_mask"}:
                        before = 0 if prompt_embeds is None else len(prompt_embeds)
                        prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                        prompt_attention_mask = callback_outputs.pop("prompt_attention_mask", prompt_attention_mask)
                        # without the negative ones it may go on where nothing needs them any more
                        possible = {before, len(latents) if guider is None else before}
                        if prompt_embeds is not None and len(prompt_embeds) not in possible:
                            said, got = " or ".join(map(str, sorted(possible))), len(prompt_embeds)
                            raise ValueError(f"prompt_embeds of a callback must have {said} rows: got {got}")
                        texts.clear()
                progress_bar.update()
            self._origin.maybe_free_model_hooks()
        self._origin._guidance_scale = self._guidance_scale  # where a callback left it, as a stock pipeline says

        if not latents.isfinite().all():
            raise ValueError(
                "the network must predict finite numbers, but these weights, in this precision and with this guidance, "
                "ended in others: there is no picture"
            )
        return latents

    def decode(self, latents: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
        """Data in [-1, 1], of shape `(pictures, channels, *spatial)`: `latents` without normalisation and padding."""
        config = self.unet.config
        mean, std = (
            torch.tensor(x, device=latents.device).reshape(1, -1, *[1] * len(spatial))
            for x in (config.sample_mean, config.sample_std)
        )
        return (latents * std + mean)[(..., *(slice(size) for size in spatial))]


def _shown(value: Any) -> str:
    """The beginning of a value's `repr`, on one line."""
    return " ".join(reprlib.repr(value).split())


def _is_number(value: Any, kind: type = numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 2**63  # what tensors take; no NaN


def _check_unet(unet: torch.nn.Module | None) -> None:
    if unet is not None and not hasattr(unet.config, "sample_mean"):
        raise ValueError(
            "unet must be one whose config has the data's sample_mean and sample_std, as that of MezzotintUNetModel: "
            f"got {type(unet).__name__}"
        )


def _tensor_inputs(callback: Any, names: list[str] | None) -> list[str]:
    """The names of the tensors that a callback is handed; one of diffusers' own (`diffusers.callbacks`) names them
    itself."""
    return getattr(callback, "tensor_inputs", names) or []


def _with_hooks_of_its_own(network: torch.nn.Module | None) -> torch.nn.Module | None:
    """The modules again, around the same weights: what is hooked to them is not hooked to those of other calls."""
    weights = [*network.parameters(), *network.buffers()] if network is not None else []
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
