# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Text to image, image to image and inpainting as blocks of diffusers' modular pipelines: encode the text, denoise, go
back to pixels. A block takes its step with the method of the task's pipeline that takes it there, so that both draw the
same pictures, bit for bit.

The file travels inside checkpoints, joined with those that it imports. There `ModularPipeline.from_pretrained` finds it
by `modular_config.json`, and the components by `modular_model_index.json`, which names the classes of this file for
those whose code is in the checkpoint.
"""

import functools
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.modular_pipelines import AutoPipelineBlocks, ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

from mezzotint.pipelines.pipeline_mezzotint import MezzotintPipeline
from mezzotint.pipelines.pipeline_mezzotint_img2img import MezzotintImg2ImgPipeline
from mezzotint.pipelines.pipeline_mezzotint_inpaint import MezzotintInpaintPipeline

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()
# What the text step makes of the prompts, and the pipelines' calls take in their place
EMBEDDED = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
OUTPUT_TYPE = InputParam("output_type", str, "pil", description="`pil`, `np`, `pt`, or `latent` for no pictures")

# diffusers looks for the classes that an index names among the modules that are loaded, where those of checkpoints have
# longer names. This one ends in a hash of the file's text, so that it always means the same
if not __name__.startswith("mezzotint."):
    sys.modules[__name__.rpartition(".")[2]] = sys.modules[__name__]


# ------------------------------------------------------------------------------------------------------- components


def _load_remote(path: str, subfolder: str, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """The component in `subfolder` of a saved pipeline, by the class and the code that its `model_index.json` names."""
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
    place = {name: kwargs[name] for name in names if name in kwargs}
    module, name = DiffusionPipeline.load_config(path, **place)[subfolder]
    place |= {"subfolder": subfolder, "trust_remote_code": trust_remote_code}
    cls = get_class_from_dynamic_module(path, module_file=f"{module}.py", class_name=name, **place)
    return cls.from_pretrained(path, subfolder=subfolder, **kwargs)


class MezzotintRemoteModel(ModelMixin):
    """A network whose code is in the checkpoint: what `from_pretrained` returns is of that class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder: str = "", **kwargs):
        return _load_remote(pretrained_model_name_or_path, subfolder, **kwargs)


class MezzotintRemoteScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler whose code is in the checkpoint: what `from_pretrained` returns is of that class."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, subfolder: str = "", **kwargs):
        return _load_remote(pretrained_model_name_or_path, subfolder, **kwargs)


# ------------------------------------------------------------------------------------------------------------ steps


class _MezzotintStep(ModularPipelineBlocks):
    """A step of drawing. `task` is the class of pipeline that takes it, `needed` are the components that it needs; one
    of the others may be absent."""

    task: Any = MezzotintPipeline
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def expected_components(self) -> list[ComponentSpec]:
        kinds = MezzotintPipeline._get_signature_types()
        return [ComponentSpec(name, kinds[name][0]) for name in (*self.needed, *self.optional)]

    def pipeline(self, components: Any) -> Any:
        """The task's pipeline around the components of a modular one."""
        found = {name: getattr(components, name, None) for name in MezzotintPipeline._get_signature_types()}
        if absent := [name for name in self.needed if found[name] is None]:
            raise ValueError(
                f"{absent[0]} must be loaded before anything is drawn: pipe.load_components(trust_remote_code=True)"
            )
        pipe = self.task(**found)
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipe

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """The bar of the steps, as of a pipeline: `disable=True` for none."""
        self._progress_bar_config = kwargs


class MezzotintTextEncoderStep(_MezzotintStep):
    """Encodes the prompts; of a network that reads no text it does nothing."""

    optional = ("text_encoder", "tokenizer", "unet", "guidance_unet")
    names = ("prompt", "negative_prompt", *EMBEDDED)

    @property
    def description(self) -> str:
        return type(self).__doc__ or ""

    @property
    def inputs(self) -> list[InputParam]:
        return _inputs(self.task.__call__, self.names)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam(x.name, torch.Tensor, x.description) for x in _inputs(self.task.__call__, EMBEDDED)]

    @torch.no_grad()
    def __call__(self, components, state):
        pipe, block = self.pipeline(components), self.get_block_state(state)
        text = tuple(block[name] for name in self.names)
        if pipe.unet is not None:
            pipe.check_text(*text)
        for kind in ("", "negative_"):
            if block[f"{kind}prompt"] is not None:
                found = pipe.encode_prompt(block[f"{kind}prompt"], do_classifier_free_guidance=False)
                block[f"{kind}prompt_embeds"], _, block[f"{kind}prompt_attention_mask"], _ = found
        self.set_block_state(state, block)
        return components, state


class _MezzotintDenoiseStep(_MezzotintStep):
    needed = ("unet", "scheduler")
    optional = ("text_encoder", "tokenizer", "guider", "guidance_unet", "classifier", "vae")

    @property
    def description(self) -> str:
        return f"{self.task.title}: denoises samples, by default with guidance."

    @property
    def inputs(self) -> list[InputParam]:
        others = ("prompt", "negative_prompt", "output_type", "return_dict")
        return [x for x in _inputs(self.task.__call__) if x.name not in others]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("latents", torch.Tensor, "Samples without noise, normalised as the network has them.")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        arguments = {x.name: block[x.name] for x in self.inputs}
        (block.latents,) = self.pipeline(components)(**arguments, output_type="latent", return_dict=False)
        self.set_block_state(state, block)
        return components, state


class _MezzotintDecodeStep(_MezzotintStep):
    needed = ("unet",)
    optional = ("vae",)

    @property
    def description(self) -> str:
        return f"{self.task.title}: takes samples back to pixels."

    @property
    def inputs(self) -> list[InputParam]:
        names = tuple(inspect.signature(self.task.to_pictures).parameters)[2:]
        return [
            InputParam("latents", torch.Tensor, description="Samples without noise."),
            *_inputs(self.task.__call__, names),
            OUTPUT_TYPE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", list, "The pictures, of the kind that `output_type` says.")]

    @torch.no_grad()
    def __call__(self, components, state):
        pipe, block = self.pipeline(components), self.get_block_state(state)
        if block.output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be one of 'pil', 'np', 'pt', 'latent': got {block.output_type!r}")
        block.images = block.latents
        if block.output_type != "latent":
            arguments = {x.name: block[x.name] for x in self.inputs if x.name != "output_type"}
            pictures = pipe.to_pictures(**arguments)
            block.images = pipe.image_processor.postprocess(pictures, output_type=block.output_type)
        self.set_block_state(state, block)
        return components, state


class MezzotintTextToImageDenoiseStep(_MezzotintDenoiseStep):
    task = MezzotintPipeline


class MezzotintImageToImageDenoiseStep(_MezzotintDenoiseStep):
    task = MezzotintImg2ImgPipeline


class MezzotintInpaintDenoiseStep(_MezzotintDenoiseStep):
    task = MezzotintInpaintPipeline


class MezzotintTextToImageDecodeStep(_MezzotintDecodeStep):
    task = MezzotintPipeline


class MezzotintImageToImageDecodeStep(_MezzotintDecodeStep):
    task = MezzotintImg2ImgPipeline


class MezzotintInpaintDecodeStep(_MezzotintDecodeStep):
    task = MezzotintInpaintPipeline


# ------------------------------------------------------------------------------------------------------------ blocks


class _MezzotintAutoBlocks(AutoPipelineBlocks):
    """The step of the task that the call's pictures say."""

    block_names = ["inpaint", "img2img", "text2img"]
    block_trigger_inputs = ["mask_image", "image", None]

    @property
    def description(self) -> str:
        return type(self).__doc__ or ""

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """The bar of the steps, whichever task they are of: `disable=True` for none."""
        for block in self.sub_blocks.values():
            block.set_progress_bar_config(**kwargs)


class MezzotintAutoDenoiseStep(_MezzotintAutoBlocks):
    """Denoises: what `mask_image` covers of `image`, an `image` that has become noise, or noise."""

    block_classes = [
        MezzotintInpaintDenoiseStep,
        MezzotintImageToImageDenoiseStep,
        MezzotintTextToImageDenoiseStep,
    ]


class MezzotintAutoDecodeStep(_MezzotintAutoBlocks):
    """Takes samples back to pixels; what an inpainted picture holds beside the mask is put back."""

    block_classes = [MezzotintInpaintDecodeStep, MezzotintImageToImageDecodeStep, MezzotintTextToImageDecodeStep]


class MezzotintBlocks(SequentialPipelineBlocks):
    """Text to image, image to image and inpainting. With a checkpoint:

        pipe = ModularPipeline.from_pretrained("user/name", trust_remote_code=True)
        pipe.load_components(trust_remote_code=True)
        pipe(prompt="a red boot", output="images")[0]

    Around the components of a pipeline that is loaded: `blocks = MezzotintBlocks().init_pipeline()`, then
    `blocks.update_components(**pipe.components)`.
    """

    block_classes = [MezzotintTextEncoderStep, MezzotintAutoDenoiseStep, MezzotintAutoDecodeStep]
    block_names = ["text_encoder", "denoise", "decode"]
    _workflow_map = {
        "text2image": {"prompt": True},
        "image2image": {"image": True, "prompt": True},
        "inpainting": {"mask_image": True, "image": True, "prompt": True},
    }

    @property
    def description(self) -> str:
        return "Text to image, image to image and inpainting with a Mezzotint checkpoint."

    @property
    def outputs(self) -> list[Any]:
        return [x for x in self.intermediate_outputs if getattr(x, "name", None) == "images"]


def _inputs(call: Any, names: tuple[str, ...] | None = None) -> list[InputParam]:
    """The arguments of a call, those of `names` alone where they are given, as inputs of a block."""
    said = {**_described(MezzotintPipeline.__call__), **_described(call)}
    return [
        InputParam(x.name, x.annotation, x.default, description=said.get(x.name, ""))
        for x in inspect.signature(call).parameters.values()
        if x.name != "self" and (names is None or x.name in names)
    ]


@functools.cache
def _described(call: Any) -> dict[str, str]:
    """Descriptions of a call's arguments, by name, from its docstring."""
    entries = re.findall(r"^ {4}(\w+)(?: \([^:]*\))?: (.+(?:\n {8}.+)*)", inspect.getdoc(call) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for name, text in entries:
        like_the_one_before = text.startswith("likewise") and found
        found[name] = list(found.values())[-1] if like_the_one_before else " ".join(text.split())
    return found
