# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to image: a prompt is encoded, noise is drawn, the U-Net and the scheduler take turns, pixels come out.

Only the order of these steps lives here, and how a pipeline and its adapters are read and written. The file stands
alone (it travels inside checkpoints): it imports torch, numpy, transformers and diffusers, and no component class of
ours.

It lives two lives, told apart by `__name__`. As `mezzotint.pipelines.pipeline_mezzotint` it loads checkpoints with the
installed package's classes and needs no trust in the checkpoint's code. As a file in a checkpoint it is loaded by
`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where mezzotint is not installed.
"""

import copy
import hashlib
import inspect
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import pipelines as diffusers_pipelines
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict, _load_lora_into_text_encoder
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import USE_PEFT_BACKEND, get_peft_kwargs, logging, require_peft_backend
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import ModelCard, create_repo, file_exists
from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
VERSIONED = re.compile(r"(?P<stem>\w+)_v[0-9a-f]{8}")
LOADING = re.compile(r'from_pretrained\("[^"]*"(?=, trust_remote_code=True\))')  # the card's line
# What stands beside the components in a published folder, and goes along when the pipeline is saved elsewhere
COMPANIONS = ("README.md", "LICENSE", "recipe.yaml", "metrics.json", "samples")


class MezzotintLoraLoaderMixin(LoraBaseMixin):
    """Low-rank adapters (LoRA, <https://huggingface.co/papers/2106.09685>, and DoRA) of the U-Net and of any
    `transformers` text encoder, in diffusers' format: names that begin with `unet.` and `text_encoder.`, the adapters'
    settings in the file's header. Needs peft. What is not here (`set_adapters`, `unload_lora_weights`,
    `delete_adapters`, ...) is diffusers' own."""

    _lora_loadable_modules = ["unet", "text_encoder"]

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict, return_lora_metadata: bool = False, **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """The tensors by name of a folder, a Hub repository, a safetensors file or a dict, and with
        `return_lora_metadata` the adapters' settings where there are any. `kwargs` (`weight_name`, `subfolder`,
        `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`, `proxies`) say where it is."""
        names = (
            "weight_name", "subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only",
            "proxies",
        )  # fmt: skip
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            use_safetensors=True,
            allow_pickle=False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **dict.fromkeys(names) | kwargs,
        )
        strangers = [key for key in state_dict if not key.startswith(("unet.", "text_encoder.")) or "lora" not in key]
        if strangers or not state_dict:
            raise ValueError(
                "the names of a LoRA must begin with 'unet.' or 'text_encoder.' and hold 'lora': got "
                f"{repr(strangers[0]) if strangers else 'no tensors'}"
            )
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @require_peft_backend
    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, hotswap: bool = False, **kwargs
    ) -> None:
        """Add an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a Hub repository, a safetensors file, or tensors by name.
            adapter_name (`str`, *optional*): by default the first free one of `default_0`, `default_1`, ...
            hotswap (`bool`): take the place of the U-Net's adapter of that name, as diffusers does.
            kwargs: as of `lora_state_dict`, and diffusers' `low_cpu_mem_usage`.

        Raises:
            ValueError: for tensors that are no LoRA of such a pipeline, or a name in use.
        """
        common = {"low_cpu_mem_usage": kwargs.pop("low_cpu_mem_usage", True), "hotswap": hotswap, "_pipeline": self}
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        used = {name for names in self.get_list_adapters().values() for name in names}
        if adapter_name in used and not hotswap:
            raise ValueError(f"adapter_name must be new: got {adapter_name!r}, in use are {sorted(used)}")
        adapter_name = adapter_name or next(name for i in itertools.count() if (name := f"default_{i}") not in used)
        common["adapter_name"] = adapter_name

        if any(key.startswith("unet.") for key in state_dict):
            self.unet.load_lora_adapter(dict(state_dict), prefix="unet", metadata=metadata, **common)
            self.unet.train(self.unet.training)  # the adapters' dropout too, which comes in training mode
        text = {key: value for key, value in state_dict.items() if key.startswith("text_encoder.")}
        if text and self.text_encoder is None:
            logger.warning("This pipeline has no text encoder: the LoRA's part for one is left out")
        elif text:
            if metadata is None:  # diffusers would look for CLIP's names
                bare = {key.removeprefix("text_encoder."): value for key, value in text.items()}
                ranks = {key: value.shape[1] for key, value in bare.items() if key.endswith(".lora_B.weight")}
                found = get_peft_kwargs(ranks, None, bare, is_unet=False)
                metadata = {f"text_encoder.{key}": value for key, value in found.items()}
            # diffusers knows an encoder's adapters by its own two names, and turns them back whatever the encoder;
            # transformers, which then loads them, would pass over DoRA's magnitudes
            for ours, theirs in (
                (r"\.lora_A\.", ".lora_linear_layer.down."),
                (r"\.lora_B\.", ".lora_linear_layer.up."),
                (r"\.lora_magnitude_vector$", ".lora_magnitude_vector.weight"),
            ):
                text = {re.sub(ours, theirs, key): value for key, value in text.items()}
            _load_lora_into_text_encoder(
                text, None, self.text_encoder, prefix="text_encoder", metadata=metadata, **common
            )
        _align_weights(self.unet, self.text_encoder)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike,
        unet_lora_layers: dict[str, torch.Tensor] | None = None,
        text_encoder_lora_layers: dict[str, torch.Tensor] | None = None,
        unet_lora_adapter_metadata: dict[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: dict[str, Any] | None = None,
        **kwargs,
    ) -> None:
        """Write `pytorch_lora_weights.safetensors`, from what peft's `get_peft_model_state_dict` gives of each model
        and the settings (`model.peft_config[name].to_dict()`). `kwargs` (`weight_name`, ...) are diffusers'."""
        layers = {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers}
        metadata = {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata}
        layers = {name: tensors for name, tensors in layers.items() if tensors}
        if not layers:
            raise ValueError("at least one of unet_lora_layers and text_encoder_lora_layers must be given: got neither")
        kwargs["safe_serialization"] = True  # nothing is pickled
        cls._save_lora_weights(save_directory, layers, {name: metadata[name] for name in layers}, **kwargs)

    def fuse_lora(self, components: list[str] | None = None, lora_scale: float = 1.0, **kwargs) -> None:
        """Add the active adapters to the weights of `components`, by default of both. With `unload_lora_weights` after
        it the pipeline is a plain one."""
        super().fuse_lora(components or self._lora_loadable_modules, lora_scale, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """The inverse of `fuse_lora`, up to rounding."""
        super().unfuse_lora(components or self._lora_loadable_modules, **kwargs)


def _seen_without_defaults(init: Callable) -> Callable:
    """What diffusers reads from the signature: `DiffusionPipeline.from_pretrained(folder, guider=mine)` would pass over
    the component given for an argument that has a default."""
    signature = inspect.signature(init)
    bare = [x.replace(default=inspect.Parameter.empty) for x in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=bare)  # pyright: ignore[reportFunctionMemberAccess]
    return init


class MezzotintPipeline(DiffusionPipeline, MezzotintLoraLoaderMixin):
    """
    Text-to-image generation with classifier-free guidance (<https://huggingface.co/papers/2207.12598>), or another.

    Args:
        unet (`MezzotintUNetModel`): predicts what the scheduler's `prediction_type` says. Its config holds the scale
            of the data (`sample_mean`, `sample_std`) and the default size (`sample_size`).
        scheduler (`MezzotintScheduler` or a stock one made from its config): the noise levels and the step.
        text_encoder (a `transformers` encoder, or `None` with a U-Net that reads no text).
        tokenizer (the encoder's tokenizer, or `None`).
        guider (one of `diffusers.guiders`, *optional*): combines the network's predictions in place of classifier-free
            guidance; its own settings then stand for `guidance_scale` and `guidance_rescale`.
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
        _align_weights(unet, text_encoder, guidance_unet, classifier)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
            guidance_unet=guidance_unet,
            classifier=classifier,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)
        self._guidance_scale = 1.0
        self._interrupt = False
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
        tokens = self.tokenizer(text, padding="longest", truncation=True, max_length=limit, return_tensors="pt")
        for words in self.tokenizer(text, truncation=False).input_ids:
            if len(words) > limit:
                cut = self.tokenizer.decode(words[limit - 1 :], skip_special_tokens=True)
                logger.warning(f"The text encoder takes {limit} tokens; this part of a prompt was cut off: {cut!r}")
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

    # ------------------------------------------------------------------------------------------------------ inputs

    def check_inputs(
        self,
        prompt,
        height,
        width,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
        prompt_attention_mask,
        negative_prompt_attention_mask,
        output_type,
        callback_on_step_end_tensor_inputs,
        guidance_interval,
        class_labels,
    ):
        """Raises `ValueError` in one line for a call that cannot be carried out."""
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be one of 'pil', 'np', 'pt', 'latent': got {output_type!r}")
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number: got {value!r}")
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {self._callback_tensor_inputs}: "
                f"got {sorted(unknown)}"
            )
        if guidance_interval is not None and not 0 <= guidance_interval[0] < guidance_interval[1]:
            raise ValueError(
                f"guidance_interval must be two noise levels, 0 <= low < high: got {tuple(guidance_interval)}"
            )
        if class_labels is not None and self.classifier is None:
            raise ValueError("class_labels are for a classifier, which this pipeline does not have: leave them out")
        if class_labels is not None and not hasattr(self.scheduler, "guide"):
            raise ValueError(
                f"class_labels need a scheduler that can guide, such as MezzotintScheduler: got "
                f"{type(self.scheduler).__name__}"
            )
        if self.guidance_unet is not None and (negative_prompt is not None or negative_prompt_embeds is not None):
            raise ValueError("the guidance_unet stands where a negative prompt would: leave one of the two out")
        if self.unet.config.cross_attention_dim is None:
            if any(x is not None for x in (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)):
                raise ValueError("this pipeline's U-Net reads no text: leave prompts and their embeds out")
            return
        if self.text_encoder is None and (prompt is not None or negative_prompt is not None):
            raise ValueError("this pipeline has no text encoder: pass prompt_embeds and negative_prompt_embeds instead")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                f"exactly one of prompt and prompt_embeds must be given: got {'none' if prompt is None else 'both'}"
            )
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            items = value if isinstance(value, list) else [value]
            if value is not None and (not items or not all(isinstance(x, str) for x in items)):
                raise ValueError(f"{name} must be a text or a list of texts: got {value!r}")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("at most one of negative_prompt and negative_prompt_embeds may be given: got both")
        count = len(prompt_embeds) if prompt is None else len(prompt) if isinstance(prompt, list) else 1
        for name, value in (("negative_prompt", negative_prompt), ("negative_prompt_embeds", negative_prompt_embeds)):
            if value is not None and not isinstance(value, str) and len(value) not in (1, count):
                raise ValueError(f"{name} needs one entry, or one for each of {count} prompts: got {len(value)}")
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
        ):
            if mask is not None and (embeds is None or mask.shape != embeds.shape[:2]):
                raise ValueError(
                    f"{name}_attention_mask goes with {name}_embeds, one entry for each token: got mask "
                    f"{tuple(mask.shape)}, embeds {None if embeds is None else tuple(embeds.shape)}"
                )

    def prepare_latents(self, batch_size: int, channels: int, height: int, width: int, generator, latents, device):
        """Standard normal noise of shape `(batch_size, channels, height, width)` in float32 (or `latents`), scaled to
        the scheduler's starting noise level."""
        shape = (batch_size, channels, height, width)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"a list of generators needs one for each picture: got {len(generator)} for {batch_size}")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}: got {tuple(latents.shape)}")
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

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
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
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
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures.

        Args:
            prompt (`str` or list of `str`, *optional*): what to draw. Needed by a pipeline that reads text, unless
                `prompt_embeds` is given.
            height (`int`, *optional*): of the pictures, in pixels; by default the size trained at. Any size: one that
                the U-Net cannot halve often enough is drawn larger and cropped.
            width (`int`, *optional*): likewise.
            num_inference_steps (`int`): denoising steps.
            timesteps (list of numbers, *optional*): the timesteps themselves, where the scheduler takes them.
            sigmas (list of `float`, *optional*): the noise levels themselves, where the scheduler takes them.
            guidance_scale (`float`): weight w of guidance in `uncond + w (cond - uncond)`, above 1; 1 turns it off and
                halves the cost. Where the scheduler has fitted schedules it takes that of the nearest scale.
            guidance_rescale (`float`): 0 to 1, how far the guided prediction's deviation is brought back to the
                conditional one's (<https://huggingface.co/papers/2305.08891>, section 3.4).
            guidance_interval (`(float, float)`, *optional*): guide at noise levels `low < sigma <= high` only, sigma
                the ratio sigma_t / alpha_t at a step's timestep (<https://huggingface.co/papers/2404.07724>);
                outside, the step costs one branch. Of every kind of guidance.
            guider (one of `diffusers.guiders`, *optional*): in place of the pipeline's own. It works on a copy, and
                comes back as it was.
            class_labels (number or name, list of them or `torch.Tensor`, *optional*): what the classifier is to see:
                one, or one for each prompt. Of a pipeline that reads no text, as many pictures as labels are drawn.
            classifier_scale (`float`): weight of the classifier's gradient.
            negative_prompt (`str` or list of `str`, *optional*): stands for "uncond" above in place of the empty text.
            num_images_per_prompt (`int`): pictures for each prompt, side by side in the result.
            eta (`float`): noise added in each step, for schedulers that take it (DDIM).
            generator (`torch.Generator`, or a list of one for each picture, *optional*): makes a call repeatable; with
                a list each picture depends on its own generator alone, whatever the batch.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)`, *optional*): the starting noise.
            prompt_embeds (`torch.Tensor` of shape `(prompts, tokens, channels)`, *optional*): in place of `prompt`.
            negative_prompt_embeds (`torch.Tensor`, *optional*): in place of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(prompts, tokens)`, *optional*): 1 where there is text.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*): likewise.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): PIL images, arrays `(pictures, height, width,
                channels)` or tensors `(pictures, channels, height, width)` in [0, 1], or the normalised sample itself.
            return_dict (`bool`): whether an `ImagePipelineOutput` or the tuple `(images,)` comes back.
            callback_on_step_end (`Callable`, *optional*): `callback(pipe, step, timestep, tensors)` after every
                step; the tensors that it returns replace the pipeline's own.
            callback_on_step_end_tensor_inputs (list of `str`): which of `latents`, `prompt_embeds` and
                `prompt_attention_mask` it gets; with guidance the last two hold negative and positive in one batch. The
                network reads a text when it is new: with adapters changed in between, what they make of a text stays.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take.
        """
        # 1. Check the inputs and settle the sizes
        config = self.unet.config
        size = config.sample_size
        default_height, default_width = size if isinstance(size, (list, tuple)) else (size, size)
        height = default_height if height is None else height
        width = default_width if width is None else width
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            output_type,
            callback_on_step_end_tensor_inputs,
            guidance_interval,
            class_labels,
        )
        device = self._execution_device
        guider = copy.copy(self.guider if guider is None else guider)
        self._guidance_scale = guidance_scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        self._interrupt = False

        labels = class_labels
        if labels is not None:
            labels = labels.reshape(-1) if isinstance(labels, torch.Tensor) else self.classifier.get_label_ids(labels)

        # 2. Encode the text, and that to steer away from where there is guidance by one
        if config.cross_attention_dim is not None:
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask = (
                self.encode_prompt(
                    prompt,
                    device,
                    num_images_per_prompt,
                    self.guidance_unet is None and (guider is not None or self.do_classifier_free_guidance),
                    negative_prompt,
                    prompt_embeds,
                    negative_prompt_embeds,
                    prompt_attention_mask,
                    negative_prompt_attention_mask,
                )
            )
            batch_size = len(prompt_embeds)
            if negative_prompt_embeds is not None:
                prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
                prompt_attention_mask = torch.cat([negative_prompt_attention_mask, prompt_attention_mask])
        else:
            batch_size = num_images_per_prompt * (1 if labels is None else len(labels))
        if labels is not None:
            prompts = batch_size // num_images_per_prompt
            if len(labels) not in (1, prompts):
                raise ValueError(
                    f"class_labels needs one entry, or one for each of {prompts} prompts: got {len(labels)}"
                )
            labels = labels.to(device).expand(prompts).repeat_interleave(num_images_per_prompt)

        # 3. Choose the timesteps, and those of them that are guided; the noise starts at the level of the first one
        scale = self._guidance_scale if guider is not None or self.do_classifier_free_guidance else 1.0
        schedule = self.retrieve_timesteps(num_inference_steps, device, timesteps, sigmas, scale)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # or every step would look its timestep up, and wait for the device
        self._num_timesteps = len(schedule)
        within = [True] * len(schedule)
        if guidance_interval is not None:
            low, high = guidance_interval
            within = [low < sigma <= high for sigma in self._noise_levels(schedule)]
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}

        # 4. Draw the noise, at a size that the U-Net can halve
        factor = 2 ** (len(config.block_out_channels) - 1)
        padded_height, padded_width = -(-height // factor) * factor, -(-width // factor) * factor
        latents = self.prepare_latents(
            batch_size, config.in_channels, padded_height, padded_width, generator, latents, device
        )

        # 5. Denoise. A branch is a network and its rows of the text, which it reads once a call, not once a step
        rows, negative_rows = slice(-batch_size, None), slice(batch_size)
        branches = {"both": (self.unet, slice(None)), "cond": (self.unet, rows), "uncond": (self.unet, negative_rows)}
        if self.guidance_unet is not None:
            branches["uncond"] = (self.guidance_unet, rows)
        dtype, texts, guider_enabled = self.unet.dtype, {}, guider is not None and guider.get_state()["enabled"]

        def predict(branch: str, model_input: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            network, rows = branches[branch]
            if branch not in texts:
                text = (x if x is None else x[rows] for x in (prompt_embeds, prompt_attention_mask))
                texts[branch] = self._read_text(network, *text)
            output = network(model_input.to(dtype), timestep, **texts[branch], return_dict=False)[0]
            return output.float()  # the steps are taken in float32 whatever the network's precision

        with self.progress_bar(total=len(schedule)) as progress_bar:
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
                    if self.guidance_unet is None:  # both branches in one batch
                        uncond, cond = predict("both", torch.cat([model_input] * 2), t).chunk(2)
                    else:
                        uncond, cond = predict("uncond", model_input, t), predict("cond", model_input, t)
                    # uncond + w (cond - uncond), to the bit, in one piece of memory
                    model_output = (cond - uncond).mul_(self.guidance_scale).add_(uncond)
                    if guidance_rescale > 0:
                        model_output = rescale_noise_cfg(model_output, cond, guidance_rescale)
                else:
                    model_output = predict("cond", model_input, t)
                if labels is not None and within[i]:
                    gradient = self.classifier.score(model_input, t, labels)
                    model_output = self.scheduler.guide(model_output, t, classifier_scale * gradient)
                latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in callback_on_step_end_tensor_inputs:
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    latents = callback_outputs.pop("latents", latents)
                    if callback_outputs.keys() & {"prompt_embeds", "prompt_attention_mask"}:
                        prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                        prompt_attention_mask = callback_outputs.pop("prompt_attention_mask", prompt_attention_mask)
                        texts.clear()
                progress_bar.update()

        # 6. Back to pixels: undo the normalisation and the padding
        if output_type == "latent":
            images = latents
        else:
            mean, std = (
                torch.tensor(x, device=device).reshape(1, -1, 1, 1) for x in (config.sample_mean, config.sample_std)
            )
            images = (latents * std + mean)[..., :height, :width]  # (B, C, height, width) in [-1, 1]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

    # ----------------------------------------------------------------------------------------- loading and saving

    @classmethod
    def _dict_from_json_file(cls, json_file):
        index = super()._dict_from_json_file(json_file)
        # Installed: the class to load is this one, not the checkpoint's file
        if __name__.startswith("mezzotint.") and isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][1]
        return index

    @classmethod
    def load_config(cls, *args, **kwargs):
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        # Installed: components come from the package's modules (`import mezzotint` loads them), not from the checkpoint
        if __name__.startswith("mezzotint."):
            for name, entry in index.items():
                match = VERSIONED.fullmatch(str(entry[0])) if isinstance(entry, list) and len(entry) == 2 else None
                for package in ("models", "schedulers") if match else ():
                    module = f"mezzotint.{package}.{match['stem']}"
                    if module in sys.modules:
                        index[name] = [module, entry[1]]
        return loaded

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        # diffusers moves a component along only if its exact type is annotated
        for name in ("unet", "text_encoder", "guider", "guidance_unet", "classifier"):
            if getattr(pipeline, name, None) is not None:
                kwargs.setdefault(name, getattr(pipeline, name))
        return super().from_pipe(pipeline, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write `model_index.json` and, beside it and in each component's folder, the source file of every class that
        is neither diffusers' nor transformers', so that the folder loads anywhere. Called by `save_pretrained`."""
        super().save_config(save_directory)
        folder = Path(save_directory)
        path = folder / self.config_name
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = [_ship_source(type(self), folder), type(self).__name__]
        index.pop("_name_or_path", None)  # where it was loaded from is nobody else's business
        for name, component in self.components.items():
            library = index[name][0]
            if library is None or library in LOADABLE_CLASSES or hasattr(diffusers_pipelines, library):
                continue
            component = getattr(component, "_orig_mod", component)  # of a compiled model, the model
            index[name] = [_ship_source(type(component), folder / name), type(component).__name__]
            config_path = folder / name / component.config_name
            if isinstance(component, ModelMixin) and config_path.is_file():  # for diffusers' AutoModel
                config = json.loads(config_path.read_text(encoding="utf-8"))
                config["auto_map"] = {"AutoModel": ".".join(index[name])}
                config.pop("_name_or_path", None)
                config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

        source = Path(str(getattr(self.config, "_name_or_path", None) or ""))
        if (source / self.config_name).is_file() and source.resolve() != folder.resolve():
            for companion in COMPANIONS:
                if (source / companion).is_dir():
                    shutil.copytree(source / companion, folder / companion, dirs_exist_ok=True)
                elif (source / companion).is_file():
                    shutil.copyfile(source / companion, folder / companion)
        if push_to_hub:
            repo_id, token = kwargs.get("repo_id", folder.name), kwargs.get("token")
            repo_id = create_repo(repo_id, private=kwargs.get("private"), token=token, exist_ok=True).repo_id
            self._upload_folder(folder, repo_id, token, kwargs.get("commit_message"), kwargs.get("create_pr", False))

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs,
    ) -> None:
        """As diffusers', with the code that the pipeline needs. With `push_to_hub` it is uploaded too, as the method of
        that name does; `repo_id` (by default the folder's name) and the other arguments in `kwargs` are for that.

        Raises:
            ValueError: for a pipeline with adapters, which would be saved neither apart nor in the weights.
        """
        if adapters := self.get_list_adapters() if USE_PEFT_BACKEND else {}:
            raise ValueError(
                "a pipeline is saved without adapters: fuse_lora() and then unload_lora_weights() put them into its "
                f"weights, save_lora_weights() saves them alone: got {adapters}"
            )
        options = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, **options, use_flashpack=use_flashpack)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **options, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Upload the pipeline with its code and with a model card, that of the folder that it was loaded from or else
        the repository's own, whose loading line then names `repo_id`. Arguments as diffusers'; returns the commit's
        address."""
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            card = Path(folder) / "README.md"
            if card.is_file():
                text = card.read_text(encoding="utf-8")
            elif file_exists(repo_id, card.name, token=token):
                text = ModelCard.load(repo_id, token=token).content
            else:
                text = _MINIMAL_CARD
            text = LOADING.sub(f'from_pretrained("{repo_id}"', text)
            card.write_text(text, encoding="utf-8")
            return self._upload_folder(folder, repo_id, token, commit_message, create_pr, subfolder)


_MINIMAL_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- mezzotint
---

A text-to-image diffusion pipeline. It carries its own code:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("", trust_remote_code=True)
```
"""


def _align_weights(*models: torch.nn.Module | None) -> None:
    """Put weights that lie askew in memory, as those mapped from a file do, at the 64-byte boundaries of fresh ones.
    CPU kernels round differently there: without this a saved and reloaded pipeline draws other bits."""
    for model in models:
        for tensor in [*model.parameters(), *model.buffers()] if model is not None else []:
            if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()


def _ship_source(cls: type, folder: Path) -> str:
    """Copy the file that defines `cls` into `folder` and return its module name there. The name ends in a hash of the
    content: diffusers runs the files of all checkpoints in one flat space of modules, where equal names must mean
    equal code."""
    source = Path(inspect.getfile(cls))
    match = VERSIONED.fullmatch(source.stem)
    stem = match["stem"] if match else source.stem
    content = getattr(sys.modules[cls.__module__], "SOURCE", None) or source.read_bytes()
    name = f"{stem}_v{hashlib.sha256(content).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}_v*.py"):
        if VERSIONED.fullmatch(old.stem) and old.stem != name:
            old.unlink()
    (folder / f"{name}.py").write_bytes(content)
    return name
