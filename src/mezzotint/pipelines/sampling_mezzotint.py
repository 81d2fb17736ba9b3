# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""All that lies between a call's inputs and its result, whatever the task: a text is encoded, timesteps are chosen, a
sample is denoised step by step under guidance, and its normalisation is undone. What inputs may be is in
`inputs_mezzotint.py`.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it. `spatial` is a sample's
size without batch and channels: (height, width) of pictures.
"""

import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging, scale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mezzotint.pipelines.conditions_mezzotint import attribute_vector
from mezzotint.pipelines.guidance_mezzotint import MezzotintGuidedNetwork, _with_hooks_of_its_own
from mezzotint.pipelines.inputs_mezzotint import (
    MezzotintGuidance,
    MezzotintInputsMixin,
    _check_unet,
    _is_number,
    _listed,
    _shown,
    _tensor_inputs,
)
from mezzotint.pipelines.latents_mezzotint import MezzotintLatentMixin

logger = logging.get_logger(__name__)

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Held while what the calls of several threads have in common is set for one of them: the scheduler's timesteps, the
# tokenizer's padding
ONE_AT_A_TIME = threading.Lock()
# Held by a call for as long as its network keeps features from step to step (diffusers' `enable_cache`)
WITH_CACHE = threading.RLock()


def token_limit(encoder: torch.nn.Module, tokenizer: Any) -> int:
    """The most tokens of a text that a text encoder, or the text tower of two, and its tokenizer take: those of the
    tokenizer, or as many as there are positions, or 512. Where positions are counted from behind the padding's
    (RoBERTa, <https://huggingface.co/papers/1907.11692>), no token is at those before."""
    config = getattr(encoder.config, "text_config", encoder.config)
    positions = getattr(config, "max_position_embeddings", None) or 512
    for name, layer in encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None:
            positions -= layer.padding_idx + 1
    return min(tokenizer.model_max_length, positions)


def _seen_without_defaults(init: Callable) -> Callable:
    """Hide a signature's defaults from diffusers: `DiffusionPipeline.from_pretrained(folder, guider=mine)` would pass
    over the component given for an argument that has a default."""
    signature = inspect.signature(init)
    bare = [x.replace(default=inspect.Parameter.empty) for x in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=bare)  # pyright: ignore[reportFunctionMemberAccess]
    return init


class MezzotintSamplingMixin(MezzotintLatentMixin, MezzotintInputsMixin):
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
        vae (`AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC` of diffusers, *optional*): the autoencoder whose
            latents `unet` draws (<https://huggingface.co/papers/2112.10752>); `sample_mean`, `sample_std` and
            `sample_size` are of latents then. Without one `unet` draws pixels.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer", "guider", "guidance_unet", "classifier", "vae"]
    _callback_tensor_inputs = ["latents", "pred_original_sample", "prompt_embeds", "prompt_attention_mask"]
    usual_steps = 20  # of a network that is not distilled, where a call does not say

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
        vae: ModelMixin | None = None,
    ):
        super().__init__()
        networks = {
            "unet": unet,
            "text_encoder": text_encoder,
            "guidance_unet": guidance_unet,
            "classifier": classifier,
            "vae": vae,
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
            vae=vae,
        )
        self.check_space()
        # With 4 channels for those of latents, its default, a picture with transparency would not be normalised
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_resize=False)
        self._guidance_scale = 1.0
        self._interrupt = False
        self._origin = self._device_of_call = None  # of the copy that a call makes: the pipeline, and where it works
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
        limit = token_limit(self.text_encoder, self.tokenizer)
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
        device, known = self._execution_device, getattr(self.unet.config, "attributes", None) or {}
        said = self._attributes_of(known, guidance) if known else None
        guidance = guidance._replace(attributes=None, labels=None if "class_labels" in known else guidance.labels)
        if guidance.labels is not None:
            guidance = guidance._replace(labels=self.classifier.get_label_ids(_listed(guidance.labels)))
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
        if said is not None:
            if self.unet.config.cross_attention_dim is None and prompts == 1:
                prompts = len(said)
            if len(said) not in (1, prompts):
                raise ValueError(f"attributes needs one entry, or one for each of {prompts} prompts: got {len(said)}")
            vectors = torch.stack([attribute_vector(known, one) for one in said]).to(device)
            vectors = vectors.expand(prompts, -1).repeat_interleave(num_images_per_prompt, dim=0)
            guidance = guidance._replace(attributes=vectors)
        if guidance.labels is not None:
            if len(guidance.labels) not in (1, prompts):
                got = len(guidance.labels)
                raise ValueError(f"class_labels needs one entry, or one for each of {prompts} prompts: got {got}")
            labels = guidance.labels.to(device).expand(prompts).repeat_interleave(num_images_per_prompt)
            guidance = guidance._replace(labels=labels)
        return (prompt_embeds, prompt_attention_mask), guidance, prompts * num_images_per_prompt

    # ----------------------------------------------------------------------------------------------- before the loop

    @property
    def distilled_steps(self) -> list[int] | None:
        """The numbers of steps that the network is distilled to, by the config of its scheduler, or of a stock one made
        from it; `None` where it is not distilled."""
        steps = self.scheduler.config.get("_consistency_steps")  # which a stock scheduler does not check
        return list(steps) if isinstance(steps, (list, tuple)) and steps else None

    def settle_steps(self, num_inference_steps: int | None, guidance_scale: float | None) -> tuple[int, float]:
        """The number of steps and the guidance scale of a call, where it leaves them to the pipeline: `usual_steps` and
        2, or the first of `distilled_steps` and 1 of a distilled network, which has guidance in it."""
        steps, scale = (self.usual_steps, 2.0) if self.distilled_steps is None else (self.distilled_steps[0], 1.0)
        return (
            steps if num_inference_steps is None else num_inference_steps,
            scale if guidance_scale is None else guidance_scale,
        )

    @property
    def _execution_device(self) -> torch.device:
        """Where a call works. In a call it is looked up once: diffusers goes through all modules each time."""
        return self._device_of_call or super()._execution_device  # pyright: ignore[reportAttributeAccessIssue]

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
        origin, guider = self, guidance.guider
        if self._origin is not None:  # it is of a call that goes on, which keeps its steps and its guidance
            origin = copy.copy(self)
            origin.scheduler = copy.deepcopy(self.scheduler)
        run = copy.copy(origin)
        for name in ("unet", "text_encoder"):
            network = getattr(self, name)
            if scale != 1 and getattr(network, "peft_config", None):  # it has adapters
                setattr(run, name, network := _with_hooks_of_its_own(network))
                scale_lora_layers(network, scale)
        run._origin = origin
        run._device_of_call = self._execution_device
        run._guidance_scale = guidance.scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        run._interrupt = False
        origin._guidance_scale, origin._interrupt = run._guidance_scale, False
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
            state = vars(self.scheduler)  # where lists hold what the steps remember
            state.update({name: list(value) for name, value in state.items() if isinstance(value, list)})
        in_fours = getattr(self.scheduler, "prk_timesteps", None)
        if strength < 1 and in_fours is not None and len(in_fours):
            raise ValueError("strength below 1 would cut the first steps of a PNDMScheduler, four evaluations each, in "
                             "two: it needs one with skip_prk_steps=True")  # fmt: skip
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
        """Standard normal noise (or `latents`) in float32, of the shape of `batch_size` samples that hold data of the
        size `spatial`, as `padded` has it."""
        shape = (batch_size, self.unet.config.out_channels, *self.padded(spatial))
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"a list of generators needs one for each {self.word}: got {len(generator)} for {batch_size}"
            )
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
        reads = self.unet.config.cross_attention_dim is not None or getattr(self.unet.config, "attributes", None)
        return self._guidance_scale > 1 and bool(self.guidance_unet is not None or reads)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt or (self._origin is not None and self._origin.interrupt)

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
        after_step: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        num_resamples: int = 1,
        condition: torch.Tensor | None = None,
        evaluate: Callable[..., torch.Tensor] | None = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
    ) -> torch.Tensor:
        """Denoise `latents` along the `schedule` until clean data is left: the network and the scheduler take turns.
        Called on a copy that `for_one_call` made and `choose_timesteps` set.

        Args:
            latents (`torch.Tensor` of shape `(pictures, channels, *spatial)`): float32, at the first timestep's level.
            schedule (`torch.Tensor` of shape `(steps,)`): the timesteps.
            text: embeddings and mask as `prepare_conditions` returns them.
            guidance (`MezzotintGuidance`): likewise.
            after_step (function, *optional*): what a task makes of the sample after each step, before a callback sees
                it: of the sample and the step's number, counted from 0.
            num_resamples (`int`): times that each step is taken; before each but the first the sample is noised again
                to the level that the step begins at (RePaint, <https://huggingface.co/papers/2201.09865>, algorithm 1).
            condition (`torch.Tensor` of shape `(pictures, channels, *spatial)`, *optional*): what the network reads
                beside the sample: a picture, and a last channel that says how little is known of it, from 0 to 1. By
                default, for a network that reads one, nothing is known.
            evaluate (function, *optional*): takes a network with the arguments of its call, and returns its prediction,
                in the place of that call.
            corrector_steps (`int`): Langevin steps after each step but the last, at the level that it leads to, each an
                evaluation more (<https://huggingface.co/papers/2011.13456>, Algorithm 5). A callback sees the sample
                before them.
            snr (`float`): their signal-to-noise ratio.

        Raises:
            ValueError: where the result is not finite, for what a callback may not return, and for `corrector_steps`
                with a scheduler that has none.
        """
        # 1. What each step costs: the timesteps that are guided, and how the scheduler steps
        within = [True] * len(schedule)
        if guidance.interval is not None:
            low, high = guidance.interval
            within = [low < sigma <= high for sigma in self._noise_levels(schedule)]
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        if corrector_steps and not hasattr(self.scheduler, "corrector_step"):
            raise ValueError(f"corrector_steps needs a MezzotintScheduler: got {type(self.scheduler).__name__}")
        network = MezzotintGuidedNetwork(self, latents, text, guidance, within, condition, evaluate)

        # 2. Step by step
        before: Any = None  # the scheduler as the step found it
        # below 0 are the corrector's, at the level that the step before led to
        counts = [range(-corrector_steps if i else 0, num_resamples) for i in range(len(schedule))]
        steps = [(i, t, again) for i, t in enumerate(schedule) for again in counts[i]]
        with WITH_CACHE if network.caches else nullcontext(), self.progress_bar(total=len(steps)) as progress_bar:
            for i, t, again in steps:
                if self.interrupt:
                    continue
                if num_resamples > 1 and again >= 0:
                    if again:
                        latents, self.scheduler = self._noised_again(latents, schedule, i, before, generator), before
                    before = copy.deepcopy(self.scheduler)
                model_input = self.scheduler.scale_model_input(latents, t)
                model_output = network(model_input, t, i)
                if guidance.thresholding is not None:
                    model_output = self._thresholded(model_output, t, model_input, guidance.thresholding)
                if again < 0:
                    latents = self.scheduler.corrector_step(model_output, t, latents, snr, generator)
                else:
                    latents = self.scheduler.step(model_output, t, latents, **step_kwargs, return_dict=False)[0]
                if after_step is not None:
                    latents = after_step(latents, i if again >= 0 else i - 1)
                if callback_on_step_end is not None and again >= 0:
                    names = _tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
                    tensors = dict(zip(("prompt_embeds", "prompt_attention_mask"), network.text, strict=True))
                    tensors["latents"] = latents
                    if "pred_original_sample" in names:
                        tensors["pred_original_sample"] = self._predict_original_sample(model_output, t, model_input)
                    returned = callback_on_step_end(self, i, t, {name: tensors[name] for name in names}) or {}
                    latents = self._called_back(returned, latents, network)
                progress_bar.update()
            self._origin.maybe_free_model_hooks()
        self._origin._guidance_scale = self._guidance_scale  # where a callback left it, as a stock pipeline says

        if not latents.isfinite().all():
            raise ValueError(
                "the network must predict finite numbers, but these weights, in this precision and with this guidance, "
                f"ended in others: there is no {self.word}"
            )
        return latents

    @staticmethod
    def _called_back(returned: Any, latents: torch.Tensor, network: MezzotintGuidedNetwork) -> torch.Tensor:
        """The sample as a callback leaves it, by what it `returned`; another text is the `network`'s from here on.

        Raises:
            ValueError: for what a callback may not return.
        """
        if not isinstance(returned, dict):
            raise ValueError(f"a callback must return tensors by name: got {_shown(returned)}")
        found, shape = returned.pop("latents", latents), latents.shape
        if not isinstance(found, torch.Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else _shown(found)
            raise ValueError(f"latents of a callback must have shape {tuple(shape)}: got {got}")
        if returned.keys() & {"prompt_embeds", "prompt_attention_mask"}:
            embeds, mask = network.text
            rows = 0 if embeds is None else len(embeds)
            embeds, mask = returned.pop("prompt_embeds", embeds), returned.pop("prompt_attention_mask", mask)
            # without the negative ones it may go on where nothing needs them any more
            possible = {rows, len(found) if network.guider is None else rows}
            if embeds is not None and len(embeds) not in possible:
                said, got = " or ".join(map(str, sorted(possible))), len(embeds)
                raise ValueError(f"prompt_embeds of a callback must have {said} rows: got {got}")
            network.read(embeds, mask)
        return found

    def start_from(
        self, known: torch.Tensor | None, noise: torch.Tensor, schedule: torch.Tensor, strength: float
    ) -> torch.Tensor:
        """The sample that `denoise` begins with: `noise` at the scheduler's scale, or, with a strength below 1, the
        clean and normalised sample `known` noised to the first of the timesteps
        (SDEdit, <https://huggingface.co/papers/2108.01073>)."""
        if strength < 1:
            return self.scheduler.add_noise(known, noise, schedule[:1].expand(len(noise)))
        return noise * self.scheduler.init_noise_sigma

    def putting_back(
        self, known: torch.Tensor, drawn: torch.Tensor, noise: torch.Tensor, schedule: torch.Tensor
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """An `after_step` of `denoise` that puts what is known in its place, noised to the level that the step led to,
        always with the same noise.

        Args:
            known (`torch.Tensor` of the sample's shape): the clean sample, normalised.
            drawn (`torch.Tensor`, bool): true where the sample is drawn and not known; goes with its shape.
            noise (`torch.Tensor` of the sample's shape): standard normal.
            schedule (`torch.Tensor` of shape `(steps,)`): the timesteps.
        """

        def put_back(latents: torch.Tensor, i: int) -> torch.Tensor:
            level = known
            if i + 1 < len(schedule):
                level = self.scheduler.add_noise(known, noise, schedule[i + 1].expand(len(noise)))
            return torch.where(drawn, latents, level)

        return put_back

    def _noised_again(self, latents: torch.Tensor, schedule: torch.Tensor, i: int, before: Any, generator):
        """The sample after step `i` with so much noise more that it is at the level at which the step began, where the
        scheduler was as in `before`."""
        (alpha, sigma), (next_alpha, next_sigma) = self._level(before, schedule[i]), (1.0, 0.0)
        if i + 1 < len(schedule):
            next_alpha, next_sigma = self._level(self.scheduler, schedule[i + 1])
        ratio = alpha / next_alpha
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return ratio * latents + max(sigma**2 - (ratio * next_sigma) ** 2, 0.0) ** 0.5 * noise

    def _predict_original_sample(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor):
        """x_0 as the network's output at `sample`, of unit variance, implies it, whatever the scheduler."""
        if hasattr(self.scheduler, "predict_original_sample"):
            return self.scheduler.predict_original_sample(model_output, timestep, sample)
        (ratio,), kind = self._noise_levels(timestep.reshape(1)), self.scheduler.config.prediction_type
        alpha, sigma = (1 + ratio**2) ** -0.5, (1 + ratio**-2) ** -0.5
        if kind == "sample":
            return model_output
        return (sample - sigma * model_output) / alpha if kind == "epsilon" else alpha * sample - sigma * model_output

    def _thresholded(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, ratio: float):
        """The network's output with dynamic thresholding of the x_0 that it implies (Imagen,
        <https://huggingface.co/papers/2205.11487>, section 2.3): a picture's x_0, in the units of pixels, is clamped to
        [-s, s] and divided by s, the quantile of its |x_0|, or 1 where that is less: what is within [-1, 1] then stays
        to the bit."""
        mean, std = self._scale(sample)
        clean = self._predict_original_sample(model_output, timestep, sample) * std + mean
        s = torch.quantile(clean.flatten(1).abs(), ratio, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
        change = (clean.clamp(-s, s) / s - clean) / std
        (level,), kind = self._noise_levels(timestep.reshape(1)), self.scheduler.config.prediction_type
        alpha, sigma = (1 + level**2) ** -0.5, (1 + level**-2) ** -0.5
        if kind == "sample":
            return model_output + change
        # x_0 = (x_t - sigma_t eps) / alpha_t, and x_0 = alpha_t x_t - sigma_t v
        return model_output - change * (alpha / sigma if kind == "epsilon" else 1 / sigma)

    @staticmethod
    def _level(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
        """The factors of clean data and of noise at a timestep, in the scale of the scheduler's samples."""
        one, zero = torch.ones(1, 1, 1, 1, device=timestep.device), torch.zeros(1, 1, 1, 1, device=timestep.device)
        pairs = ((one, zero), (zero, one))
        data, noise = (float(scheduler.add_noise(*pair, timestep.reshape(1))) for pair in pairs)
        return data, noise
