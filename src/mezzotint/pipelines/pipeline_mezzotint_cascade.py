# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A cascade (<https://huggingface.co/papers/2106.15282>; Imagen, <https://huggingface.co/papers/2205.11487>): a base
draws a small picture of a text, and one or two upscalers that read the same text draw it again, each larger.

Only the order of these steps lives here. The file travels inside checkpoints, joined with the shared ones that it
imports; components arrive as arguments.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mezzotint.pipelines.checkpoint_mezzotint import MezzotintCheckpointMixin
from mezzotint.pipelines.inputs_mezzotint import MezzotintGuidance, _check_unet, _is_number, _shown, _tensor_inputs
from mezzotint.pipelines.sampling_mezzotint import MezzotintSamplingMixin, _seen_without_defaults
from mezzotint.pipelines.upscaling_mezzotint import UPSCALER_STEPS, MezzotintUpscalingMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


class MezzotintCascadePipeline(
    MezzotintUpscalingMixin, MezzotintSamplingMixin, MezzotintCheckpointMixin, DiffusionPipeline
):
    """Text to image in two or three stages, which share one text encoder.

    Args:
        unet, scheduler: of the base. These, `text_encoder`, `tokenizer`, `guider`, `guidance_unet`, `classifier` and
            `vae` are described at `MezzotintSamplingMixin`; the last four are the base's alone.
        unet_2 (`MezzotintUNetModel`, *optional*): the first upscaler, trained by `--task upscale` to enlarge pictures
            of the size that `unet` was trained at.
        scheduler_2 (`MezzotintScheduler` or a stock one made from its config, *optional*): that of `unet_2`.
        unet_3, scheduler_3: likewise the second upscaler, which enlarges what `unet_2` draws.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae->unet_2->unet_3"
    _optional_components = [
        *MezzotintSamplingMixin._optional_components, "unet_2", "scheduler_2", "unet_3", "scheduler_3",
    ]  # fmt: skip
    title = "Cascade"
    summary = "Write what is to be drawn. It is drawn small first, and then larger."
    tasks = ("cascade",)

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
        unet_2: ModelMixin | None = None,
        scheduler_2: SchedulerMixin | None = None,
        unet_3: ModelMixin | None = None,
        scheduler_3: SchedulerMixin | None = None,
    ):
        super().__init__(unet, scheduler, text_encoder, tokenizer, guider, guidance_unet, classifier, vae)
        self.register_modules(unet_2=unet_2, scheduler_2=scheduler_2, unet_3=unet_3, scheduler_3=scheduler_3)
        self.check_stages()

    @classmethod
    def from_stages(cls, *stages: Any) -> "MezzotintCascadePipeline":
        """One pipeline of a `MezzotintPipeline` and one or two `MezzotintUpscalePipeline`, in the order in which they
        draw, with the text encoder of the first.

        Raises:
            ValueError: for stages that do not fit together: a number of them that is none of a cascade, sizes that do
                not follow from each other, or text encoders that differ.
        """
        if not 1 <= len(stages) <= 3:
            raise ValueError(f"a cascade must have a base, and one or two upscalers: got {len(stages)} stages")
        base, *others = stages
        components = dict(base.components)
        for number, stage in enumerate(others, 2):
            if stage.unet.config.cross_attention_dim is not None and not _equal(base.text_encoder, stage.text_encoder):
                raise ValueError(
                    f"all stages must read the text by one encoder, of the same weights: got another in stage {number}"
                )
            components |= {f"unet_{number}": stage.unet, f"scheduler_{number}": stage.scheduler}
        return cls(**components)

    @property
    def stages(self) -> list[tuple[Any, Any]]:
        """The U-Net and the scheduler of each stage, in the order in which they draw."""
        pairs = [(self.unet, self.scheduler), (self.unet_2, self.scheduler_2), (self.unet_3, self.scheduler_3)]
        return [pair for pair in pairs if pair[0] is not None]

    @property
    def scales(self) -> list[int]:
        """Factors by which the upscalers enlarge, in the order in which they draw."""
        return [unet.config.condition["scale"] for unet, _ in self.stages[1:]]

    @property
    def trained_for(self) -> dict[str, Any]:
        """The cascade as its task; of the copy that draws a stage, that of the stage's network."""
        return {"task": "cascade"} if self._origin is None else super().trained_for

    @property
    def default_size(self) -> tuple[int | None, ...]:
        """Height and width in pixels of what the last stage draws, where its U-Net says so; of the copy that draws a
        stage, of that one."""
        if self._origin is not None:
            return super().default_size
        scale = math.prod(self.scales)
        return tuple(size and scale * size for size in super().default_size)

    def check_stages(self) -> None:
        """Raises `ValueError` in one line for stages that do not fit together."""
        base = self.unet
        if base is None:
            return
        if (task := super().trained_for["task"]) != "text_to_image":
            raise ValueError(f"unet must draw from text alone, as the base of a cascade: got one trained for {task}")
        size = super().default_size
        for number, before in ((2, "unet"), (3, "unet_2")):
            name, unet = f"unet_{number}", getattr(self, f"unet_{number}")
            scheduler = getattr(self, f"scheduler_{number}")
            if (unet is None) != (scheduler is None):
                missing = name if unet is None else f"scheduler_{number}"
                raise ValueError(f"{name} and scheduler_{number} go together: got no {missing}")
            if unet is None:
                continue
            if getattr(self, before) is None:
                raise ValueError(f"{name} must have {before} before it, whose pictures it enlarges: got none")
            _check_unet(unet)
            about = getattr(unet.config, "condition", None) or {"task": "text_to_image"}
            if about["task"] != "upscale":
                raise ValueError(f"{name} must be trained for upscale: got one for {about['task']}")
            if unet.config.out_channels != self.channels:
                got = unet.config.out_channels
                raise ValueError(f"{name} must draw {self.channels} channels, as the base does: got {got}")
            if unet.config.cross_attention_dim not in (None, base.config.cross_attention_dim):
                raise ValueError(
                    f"{name} must read the text of the base, of {base.config.cross_attention_dim} channels: got "
                    f"{unet.config.cross_attention_dim}"
                )
            size = tuple(side and about["scale"] * side for side in size)
            own = unet.config.sample_size
            own = tuple(own) if isinstance(own, (list, tuple)) else (own, own)
            if all(size) and all(own) and own != size:
                raise ValueError(
                    f"{name} must be trained for {size[0]}x{size[1]} pixels, {about['scale']} times what {before} "
                    f"draws: got one for {own[0]}x{own[1]}"
                )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | list[int] | None = None,
        guidance_scale: float | list[float] | None = None,
        noise_level: float | list[float] = 0.1,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guider: BaseGuidance | None = None,
        dynamic_thresholding_ratio: float | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        classifier_scale: float = 1.0,
        attributes: dict[str, Any] | list[dict[str, Any]] | None = None,
        attribute_guidance_scale: dict[str, float] | None = None,
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
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures, stage by stage. Arguments that are not listed here are those of `MezzotintPipeline`, and hold
        for all stages.

        Args:
            height (`int`, *optional*): of the pictures in the end, in pixels; by default the size trained at. A
                multiple of all that the upscalers enlarge by.
            width (`int`, *optional*): likewise.
            num_inference_steps (`int` or list of `int`, *optional*): steps of the base, or of each stage; by default
                20 for the base. An upscaler that is not told of any takes 4, as it adds no more than details, and
                grain with more steps. By default a distilled stage takes those that it is distilled to.
            guidance_scale (`float` or list of `float`, *optional*): weight of the base's guidance, or of each stage's;
                by default 2 for the base. An upscaler that is not told of any has none: 1, at half the cost.
            noise_level (`float` or list of `float`): noise-conditioning augmentation: in [0, 1), standard deviation of
                the noise that is mixed into the small picture, of every upscaler or of each. More lets faults of the
                stage before be mended, and more of what was right be drawn anew.
            guider (one of `diffusers.guiders`, *optional*): in place of the base's guidance.
            class_labels, attributes: for the stages that read them; a classifier is the base's.
            generator (`torch.Generator`, or a list of one for each picture, *optional*): makes a call repeatable: each
                stage goes on drawing from it.
            latents (`torch.Tensor` of shape `(pictures, channels, height, width)` of the base, *optional*): the noise
                that the base starts from.
            output_type (`"pil"`, `"np"`, `"pt"` or `"latent"`): the last is the normalised sample of the last stage.
            callback_on_step_end (`Callable`, *optional*): as of `MezzotintPipeline`. Steps are counted through all
                stages, `pipe.num_timesteps` in all, and the tensors are of the stage's size. One that interrupts ends
                the call with the pictures of its stage.

        Raises:
            ValueError: for inputs that contradict each other or that the components cannot take, and where the result
                is not finite.
        """
        # 1. Check the inputs; each stage has its steps, its guidance and its size
        self.check_stages()
        steps, scales, levels = self._of_stages(num_inference_steps, guidance_scale, noise_level)
        guider = self.guider if guider is None else guider
        guidance = MezzotintGuidance(
            scales[0], guidance_rescale, guidance_interval, guider, class_labels, classifier_scale, attributes,
            attribute_guidance_scale, dynamic_thresholding_ratio,
        )  # fmt: skip
        text = (
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        size = [
            usual if given is None else given for given, usual in zip((height, width), self.default_size, strict=True)
        ]
        common = (num_images_per_prompt, eta, generator, latents, output_type, *callback)
        stage, reader = copy.copy(self), copy.copy(self)
        upper = zip(self.stages[1:], scales[1:], strict=True)
        guidances = [guidance, *(_of_upscaler(guidance, unet, scale) for (unet, _), scale in upper)]
        for (reader.unet, stage.scheduler), count, its in zip(self.stages, steps, guidances, strict=True):
            stage.check_inputs(count, None, None, *common, height=size[0], width=size[1])
            reader.check_guidance(its)
        whole = math.prod(self.scales)
        if any(side % whole for side in size):
            raise ValueError(f"height and width must be multiples of {whole}: got {size[0]} and {size[1]}")
        spatial = [side // whole for side in size]
        self.check_text(*text)

        # 2. What changes in a call is a copy's: one for each stage, with its timesteps
        run = self.for_one_call(guidance, cross_attention_kwargs)
        runs = [run if i == 0 else run._at(i, scales[i]) for i in range(len(steps))]
        schedules = [
            one.choose_timesteps(its, count, None, None) for one, its, count in zip(runs, guidances, steps, strict=True)
        ]
        self._num_timesteps = total = sum(map(len, schedules))

        # 3. Read the text, once for all stages
        guided = guider is not None or any(scale > 1 for scale in scales)
        text = run._read(text, guided and self.guidance_unet is None)

        # 4. Draw, and draw again larger
        images, taken = torch.empty(0), 0
        for i, (one, its, schedule) in enumerate(zip(runs, guidances, schedules, strict=True)):
            counted = self._counted(taken, total, *callback)
            prompts = 1 if i == 0 else len(images) // num_images_per_prompt
            states, its, batch_size = one.prepare_conditions(its, num_images_per_prompt, *text, prompts=prompts)
            if i == 0:
                sample = one.draw_noise(batch_size, spatial, generator, latents) * one.scheduler.init_noise_sigma
                sample = one.denoise(sample, schedule, states, its, eta, generator, *counted)
            else:
                # as `MezzotintUpscalePipeline` would be given them
                small = self.image_processor.preprocess(self.image_processor.postprocess(images, output_type="pt"))
                tiles, level = one.tiles(), levels[i - 1]
                sample = one.enlarge(small, level, tiles, schedule, states, its, eta, generator, None, *counted)
                spatial = [self.scales[i - 1] * size for size in spatial]
            images, taken = one.decode(sample, spatial), taken + len(schedule)
            if one.interrupt:
                break

        # 5. Back to pixels
        images = (
            sample if output_type == "latent" else self.image_processor.postprocess(images, output_type=output_type)
        )
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _of_stages(self, steps: Any, scales: Any, levels: Any) -> tuple[list[int], list[float], list[float]]:
        """Steps and guidance of each stage, and the noise level of each upscaler. Raises `ValueError` in one line for
        lists of other lengths."""
        stages = self.stages
        given = {
            "num_inference_steps": (steps, len(stages), "stage"),
            "guidance_scale": (scales, len(stages), "stage"),
            "noise_level": (levels, len(stages) - 1, "upscaler"),
        }
        for name, (value, count, what) in given.items():
            if isinstance(value, (list, tuple)) and len(value) != count:
                raise ValueError(f"{name} needs one entry, or one for each {what}, of which there are {count}: got "
                                 f"{_shown(value)}")  # fmt: skip
        if not isinstance(steps, (list, tuple)):
            steps = [steps, *[None] * (len(stages) - 1)]
        if not isinstance(scales, (list, tuple)):
            scales = [scales, *[1.0] * (len(stages) - 1)]
        if not isinstance(levels, (list, tuple)):
            levels = [levels] * (len(stages) - 1)
        for level in levels:
            self.check_noise_level(level)
        settled, run = [], copy.copy(self)
        for (_, run.scheduler), *asked in zip(stages, steps, scales, strict=True):
            settled.append(run.settle_steps(*asked))
            run.usual_steps = UPSCALER_STEPS  # of all that come after the base
        if unfit := [scale for _, scale in settled if not _is_number(scale)]:
            raise ValueError(f"guidance_scale must be a finite number: got {_shown(unfit[0])}")
        return [count for count, _ in settled], [scale for _, scale in settled], list(levels)

    def _at(self, stage: int, guidance_scale: float) -> "MezzotintCascadePipeline":
        """A copy of the copy that a call made of the pipeline, to draw an upper stage by."""
        run = copy.copy(self)
        run.unet, run.scheduler = self._origin.stages[stage]
        run.vae = run.guidance_unet = run.classifier = None
        run._guidance_scale = guidance_scale
        return run

    def _read(self, text: tuple, guided: bool) -> tuple:
        """The texts of a call as the encoder's hidden states in the place of what is written."""
        prompt, negative_prompt, embeds, negative_embeds, mask, negative_mask = text
        if self.unet.config.cross_attention_dim is None:
            return text
        if embeds is None:
            embeds, mask = self._encode_text(prompt, self._execution_device)
        if guided and negative_embeds is None:
            texts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
            negative_embeds, negative_mask = self._encode_text(texts, self._execution_device)
        return None, None, embeds, negative_embeds, mask, negative_mask

    @staticmethod
    def _counted(taken: int, total: int, callback: Any, names: list[str]) -> tuple[Any, list[str]]:
        """The callback of a call, with steps that count on from those `taken`, and what it asks for."""
        if callback is None:
            return None, names

        def counted(run: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
            run._num_timesteps = total
            return callback(run, taken + step, timestep, tensors)

        return counted, _tensor_inputs(callback, names)


def _of_upscaler(guidance: MezzotintGuidance, unet: Any, scale: float) -> MezzotintGuidance:
    """The guidance of an upscaler, at its own scale: of what the base is told, what this network reads too."""
    known = getattr(unet.config, "attributes", None) or {}

    def read(said: Any) -> Any:
        if isinstance(said, list):
            return [read(one) for one in said]
        return {name: value for name, value in said.items() if name in known} if isinstance(said, dict) else said

    return guidance._replace(
        scale=scale,
        guider=None,
        labels=guidance.labels if "class_labels" in known else None,
        attributes=read(guidance.attributes),
        attribute_scale=read(guidance.attribute_scale) or None,
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two networks have the same weights under the same names."""
    if one is other or one is None or other is None:
        return one is other
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        weights[name].shape == others[name].shape and torch.equal(weights[name], others[name].to(weights[name]))
        for name in weights
    )
