# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Checks of a call's inputs, whatever the task: each raises in one line, with the rule and what it got.

Shared by all pipelines: in a saved one this text stands in place of the line that imports it.
"""

import difflib
import inspect
import math
import numbers
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.guiders import BaseGuidance

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# Guiders of diffusers 0.42 of which the first never changes a layer and the second takes a norm that torch refuses
UNFIT_GUIDERS = ("SmoothedEnergyGuidance", "MagnitudeAwareGuidance")


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
        attributes: what is said beside the text, one or one for each prompt; in the loop a `torch.Tensor` of shape
            `(pictures, features)`.
        attribute_scale (`dict`, *optional*): weights of some of them, each for itself.
        thresholding (`float`, *optional*): the quantile of |x_0| that x_0 is thresholded at in every step.
    """

    scale: float
    rescale: float
    interval: tuple[float, float] | None
    guider: BaseGuidance | None
    labels: Any
    classifier_scale: float
    attributes: Any = None
    attribute_scale: dict[str, float] | None = None
    thresholding: float | None = None


class MezzotintInputsMixin:
    """Checks the inputs of a call against the components."""

    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    guidance_unet: Any
    classifier: Any
    check_space: Any
    _callback_tensor_inputs: list[str]
    # What people see of a task where they choose one: its name, and a line on what to do
    title: str = "Text to image"
    summary: str = "Write what is to be drawn."
    # What is drawn: its modality, a word for it, the argument that says how many, and the forms that it comes in
    modality: str = "image"
    word: str = "picture"
    per_prompt: str = "num_images_per_prompt"
    output_types: tuple[str, ...] = ("pil", "np", "pt", "latent")
    # Tasks that a network may be trained for whose samples a pipeline draws, first the one that it is for
    tasks: tuple[str, ...] = ("text_to_image", "inpaint", "upscale", "layout")
    needs: tuple[str, ...] = ()  # optional components without which it draws nothing

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
        corrector_steps=0,
        snr=0.16,
        **counts,
    ) -> None:
        """Raises `ValueError` in one line for an impossible argument, one of `counts` (whole numbers by name) among
        them. Guidance and text have checks of their own."""
        _check_unet(self.unet)
        self.check_space()
        self.check_modality()
        if (task := self.trained_for["task"]) not in self.tasks:
            best = {"text_to_image": "MezzotintPipeline", "inpaint": "MezzotintInpaintPipeline"}
            best |= {"upscale": "MezzotintUpscalePipeline", "segment": "MezzotintSegmentPipeline"}
            best |= {"layout": "MezzotintLayoutPipeline", "unclip": "MezzotintPriorPipeline"}
            raise ValueError(
                f"{type(self).__name__} needs weights that are trained for {' or '.join(self.tasks)}: got some for "
                f"{task}, which {best.get(task, 'a newer version of mezzotint')} takes"
            )
        if not hasattr(self.scheduler, "init_noise_sigma"):  # a flow-matching one
            raise ValueError(
                "scheduler must be one that holds a diffusion's noise schedule, such as DDIMScheduler: got "
                f"{type(self.scheduler).__name__}"
            )
        if output_type not in self.output_types:
            raise ValueError(
                f"output_type must be one of {', '.join(map(repr, self.output_types))}: got {output_type!r}"
            )
        counts[self.per_prompt] = num_images_per_prompt
        if timesteps is None and sigmas is None:
            counts["num_inference_steps"] = num_inference_steps
        for name, value in counts.items():
            if not _is_number(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive whole number: got {_shown(value)}")
        if not _is_number(eta) or eta < 0:
            raise ValueError(f"eta must be a finite number of at least 0: got {_shown(eta)}")
        if not _is_number(corrector_steps, numbers.Integral) or corrector_steps < 0:
            raise ValueError(f"corrector_steps must be a whole number of at least 0: got {_shown(corrector_steps)}")
        if not _is_number(snr) or snr <= 0:
            raise ValueError(f"snr must be a finite number above 0: got {_shown(snr)}")
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

    def check_modality(self) -> None:
        """Raises `ValueError` in one line for weights that draw something else."""
        if (drawn := (getattr(self.unet.config, "modality", None) or {"name": "image"})["name"]) != self.modality:
            best = {"image": "MezzotintPipeline", "audio": "MezzotintAudioPipeline"}
            best |= {"video": "MezzotintVideoPipeline", "voxels": "MezzotintVoxelPipeline"}
            best |= {"molecules": "MezzotintMoleculePipeline"}
            raise ValueError(
                f"{type(self).__name__} needs weights that draw samples of modality {self.modality}: got some of "
                f"modality {drawn}, which {best.get(drawn, 'a newer version of mezzotint')} takes"
            )

    @property
    def reads_prompts(self) -> bool:
        """Whether a call takes a text."""
        return self.text_encoder is not None

    @property
    def trained_for(self) -> dict[str, Any]:
        """The task that the U-Net is trained for, by its config: its name as `task`, and what goes with it;
        `{"task": "text_to_image"}` where the config says nothing."""
        return dict(getattr(self.unet.config, "condition", None) or {"task": "text_to_image"})

    @staticmethod
    def settle_strength(strength: Any, sample: dict[str, Any], mask: dict[str, Any]) -> float:
        """The part of the steps that is taken from a sample on: by default 0.8, or 1 where a mask says what of it is
        drawn; 1 where none is given. Both come by the argument's name. Raises `ValueError` in one line for an
        impossible one."""
        ((name, given),), ((masked, drawn),) = sample.items(), mask.items()
        if given is None:
            if drawn is not None or strength is not None:
                raise ValueError(f"{'strength' if drawn is None else masked} goes with {name}: got it alone")
            return 1.0
        strength = (0.8 if drawn is None else 1.0) if strength is None else strength
        if not _is_number(strength) or not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1: got {_shown(strength)}")
        return strength

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
        ratio = guidance.thresholding
        if ratio is not None and (not _is_number(ratio) or not 0 < ratio <= 1):
            raise ValueError(f"dynamic_thresholding_ratio must be a number above 0 and up to 1: got {_shown(ratio)}")
        if ratio is not None and getattr(self, "vae", None) is not None:
            raise ValueError("dynamic_thresholding_ratio is of pixels, and this network draws latents: leave it out")
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
        known = getattr(self.unet.config, "attributes", None) or {}
        self._check_attributes(known, guidance)
        if guidance.labels is not None and self.classifier is None and "class_labels" not in known:
            raise ValueError(
                "class_labels are for a network that reads them, or a classifier, which this pipeline does not have: "
                "leave them out"
            )
        if guidance.labels is not None and "class_labels" not in known and not hasattr(self.scheduler, "guide"):
            raise ValueError(
                f"class_labels need a scheduler that can guide, such as MezzotintScheduler: got "
                f"{type(self.scheduler).__name__}"
            )

    @staticmethod
    def _attributes_of(known: dict[str, list[Any]], guidance: MezzotintGuidance) -> list[dict[str, Any]] | None:
        """The attributes of a call, the label among them where the network reads it: one `dict`, or one for each
        prompt; `None` where nothing is said. Raises `ValueError` in one line for what is no such thing."""
        said = guidance.attributes
        every: list[Any] = said if isinstance(said, list) else [said] if said is not None else []
        if not all(isinstance(one, dict) for one in every) or said == []:
            raise ValueError(f"attributes must be a dict of names and values, or a list of them: got {_shown(said)}")
        if guidance.labels is None or "class_labels" not in known:
            return every or None
        labels = _listed(guidance.labels)
        every = every or [{}]
        if 1 not in (len(labels), len(every)) and len(labels) != len(every):
            raise ValueError(f"class_labels and attributes must be as many: got {len(labels)} and {len(every)}")
        count = max(len(labels), len(every))
        labels, every = (some * (count if len(some) == 1 else 1) for some in (labels, every))
        return [{**one, "class_labels": label} for one, label in zip(every, labels, strict=True)]

    def _check_attributes(self, known: dict[str, list[Any]], guidance: MezzotintGuidance) -> None:
        """Raises `ValueError` in one line for attributes that the network does not read."""
        every, scales = self._attributes_of(known, guidance) or [], guidance.attribute_scale
        for name, value in [pair for one in every for pair in one.items()]:
            _check_known(known, name, "attributes")
            about = known[name]
            if isinstance(about[0], str):
                numbered = _is_number(value, numbers.Integral) or isinstance(value, torch.Tensor)
                if value not in about and not (numbered and 0 <= int(value) < len(about)):
                    near = difflib.get_close_matches(str(value), about, 1)
                    raise ValueError(f"{name} must be one of {_shown(list(about))}: got {_shown(value)}"
                                     f"{f'; near it is {near[0]!r}' if near else ''}")  # fmt: skip
            elif not _is_number(value):
                raise ValueError(f"{name} must be a finite number: got {_shown(value)}")
        if scales is not None and not (isinstance(scales, dict) and all(map(_is_number, scales.values()))):
            raise ValueError(f"attribute_guidance_scale must be a dict of names and numbers: got {_shown(scales)}")
        for name in scales or {}:
            _check_known(known, name, "attribute_guidance_scale")
        if scales and guidance.guider is not None:
            raise ValueError("attribute_guidance_scale is of classifier-free guidance: leave it or the guider out")

    def prompt_or_none(self, prompt, prompt_embeds, count: int) -> Any:
        """The prompt; for a task that needs none `count` empty ones, where the network reads text and is given none."""
        if prompt is None and prompt_embeds is None and self.unet.config.cross_attention_dim is not None:
            return [""] * count
        return prompt

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


def _shown(value: Any) -> str:
    """The beginning of a value's `repr`, on one line."""
    return " ".join(reprlib.repr(value).split())


def _check_known(known: dict[str, list[Any]], name: Any, argument: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"; near it is {near[0]!r}" if near else ""
        raise ValueError(f"{argument} must be among {sorted(known) or 'none'}: got {_shown(name)}{hint}")


def _listed(labels: Any) -> list[Any]:
    """Class labels as a list, however they are given. Raises `ValueError` for none."""
    labels = labels.flatten().tolist() if isinstance(labels, torch.Tensor) else labels
    labels = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
    if not labels:
        raise ValueError("class_labels must be one, or one for each prompt: got none")
    return labels


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
