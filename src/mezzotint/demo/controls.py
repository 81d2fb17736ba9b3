# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Controls of a page: one for each argument that a task's pipeline takes and its checkpoint can follow. A
task whose arguments are all here needs no line of its own."""

import contextlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import yaml
from huggingface_hub import hf_hub_download
from PIL import Image

from mezzotint.demo.pictures import LARGEST, fitted, painted_classes, painted_over
from mezzotint.drawing import arguments_of, samplers_of
from mezzotint.hub import RECIPE
from mezzotint.pipelines.pipeline_mezzotint_segment import class_colours

MOST_PICTURES, MOST_STEPS = 16, 100
NEW_SEEDS = 10**6  # few enough to be read and typed again
CANVAS = 384  # pixels of a side that is painted on
UNKNOWN = "(not said)"


@dataclass
class Checkpoint:
    """A pipeline, with all that its page says and offers of it.

    Attributes:
        pipe: the pipeline, of any task.
        name: what it is called.
        prompts: texts to offer.
        defaults: arguments of a call in place of the pipeline's own defaults.
    """

    pipe: Any
    name: str
    prompts: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, pipe: Any, source: str, name: str) -> "Checkpoint":
        """A pipeline with what the recipe of the run in `source`, its folder or its name on the Hub, offers: prompts,
        steps and guidance that its samples were drawn with. Whatever is odd in it is passed over."""
        recipe = {}
        with contextlib.suppress(Exception):  # there need be none; somebody else may have written it
            path = os.path.join(source, RECIPE) if os.path.isdir(source) else hf_hub_download(source, RECIPE)
            with open(path, encoding="utf-8") as file:
                recipe = dict(yaml.safe_load(file))
        prompts = recipe.get("validation_prompts")
        prompts = [text[:200] for text in prompts if isinstance(text, str)] if isinstance(prompts, list) else []
        steps, guidance = recipe.get("num_inference_steps"), recipe.get("guidance_scale")
        defaults = {"num_inference_steps": steps} if isinstance(steps, int) and 1 <= steps <= MOST_STEPS else {}
        if isinstance(guidance, (int, float)) and 0 <= guidance <= 100:
            defaults["guidance_scale"] = guidance
        return cls(pipe, name, tuple(prompts[:8]), defaults)

    @property
    def reads_text(self) -> bool:
        return self.pipe.unet.config.cross_attention_dim is not None

    @property
    def attributes(self) -> dict[str, list[Any]]:
        return dict(getattr(self.pipe.unet.config, "attributes", None) or {})

    @property
    def can_be_guided(self) -> bool:
        return self.reads_text or bool(self.attributes) or self.pipe.guidance_unet is not None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, of a video's frames too, that the network was trained at."""
        height, width = self.pipe.default_size[-2:]
        return height or 64, width or 64


def in_our_words(component: Any) -> Any:
    """A component that takes a picture, which from now on says in our words when a file holds none. (A class derived
    from it would make Gradio write a file beside this one.)"""
    preprocess = component.preprocess

    def preprocess_or_say(payload):
        try:
            return preprocess(payload)
        except Exception:  # Pillow's readers raise OSError, SyntaxError, struct.error, ...
            line = "the file must be a picture that can be opened: got another"
            raise gr.Error(line, title="Not drawn", print_exception=False) from None

    component.preprocess = preprocess_or_say
    return component


def blank(width: int, height: int) -> Image.Image:
    """A canvas on which nothing is painted yet: all of it is of the first class."""
    return Image.new("RGB", (width, height), class_colours(2)[0])


# By argument, what sets it: a function of the checkpoint and the default, None where the checkpoint cannot follow.
# Those of `AT_HAND` are always in sight
CONTROLS: dict[str, Callable[[Checkpoint, Any], Any]] = {
    "strength": lambda about, default: (
        gr.Slider(0, 1, default, label="Strength", info="how far what is drawn may go from the picture")
        if about.pipe.modality == "image"
        else None
    ),
    "fragment": lambda about, default: gr.Textbox(
        "", label="Fragment", info="what each begins with, in the notation that is drawn; empty: nothing", max_lines=1
    ),
    # an empty number is shown, and then sent, as 0 (Gradio 6.31)
    "audio_length_in_s": lambda about, default: gr.Number(
        0,
        label="Seconds",
        info="of each; 0: as long as it is drawn",
        minimum=0,
        maximum=4 * about.pipe.default_size[0] / about.pipe.sampling_rate,
    ),
    "num_frames": lambda about, default: gr.Number(
        about.pipe.default_size[0], label="Frames", precision=0, minimum=1, maximum=4 * about.pipe.default_size[0]
    ),
    "noise_level": lambda about, default: gr.Slider(
        0, 0.95, default, label="Noise level", info="noise mixed into the small picture, so that faults are drawn anew"
    ),
    "num_inference_steps": lambda about, default: gr.Slider(1, MOST_STEPS, default, step=1, label="Steps"),
    "guidance_scale": lambda about, default: (
        gr.Slider(0, max(10, default), default, step=0.1, label="Guidance", info="1 is none")
        if about.can_be_guided
        else None
    ),
    "prior_guidance_scale": lambda about, default: gr.Slider(
        0, 10, default, step=0.1, label="Guidance of the prior", info="1 is none"
    ),
    "source_prompt": lambda about, default: gr.Textbox(
        "", label="What the picture shows", info="the prompt then says what is to change"
    ),
    "negative_prompt": lambda about, default: (
        gr.Textbox("", label="Negative prompt", info="what to steer away from") if about.reads_text else None
    ),
    "num_resamples": lambda about, default: (
        gr.Slider(1, 20, default, step=1, label="Resamples", info="times that each step is taken (RePaint)")
        if about.pipe.trained_for["task"] != "inpaint"
        else None
    ),
    "guidance_rescale": lambda about, default: (
        gr.Slider(0, 1, default, label="Guidance rescale", info="how far contrast is brought back")
        if about.can_be_guided
        else None
    ),
    "dynamic_thresholding_ratio": lambda about, default: (
        gr.Number(0, label="Dynamic thresholding", info="quantile, say 0.995 or 0.01; 0: none", minimum=0, maximum=1)
        if about.can_be_guided and about.pipe.vae is None
        else None
    ),
    "classifier_scale": lambda about, default: (
        gr.Slider(0, 10, default, label="Weight of the classifier") if about.pipe.classifier is not None else None
    ),
    "eta": lambda about, default: gr.Slider(
        0, 1, default, label="Eta", info="noise added in each step, by samplers that can"
    ),
    "height": lambda about, default: gr.Number(
        about.size[0], label="Height", precision=0, minimum=1, maximum=min(LARGEST, 4 * about.size[0])
    ),
    "width": lambda about, default: gr.Number(
        about.size[1], label="Width", precision=0, minimum=1, maximum=min(LARGEST, 4 * about.size[1])
    ),
}
AT_HAND = ("strength", "noise_level", "num_inference_steps", "guidance_scale", "fragment", "audio_length_in_s")


class Controls:
    """The controls of one task, laid out where they are made, and what a call is given by them.

    Args:
        about: the checkpoint.
        task: the pipeline's class.
    """

    def __init__(self, about: Checkpoint, task: Any):
        self.about, self.task, self.takes = about, task, arguments_of(task)
        self.inputs: dict[str, Any] = {}  # components by the names of the values that a call is given
        self.picture: Any = None  # the one that takes a picture, where there is one
        self.attributes: dict[str, str] = {}  # names of inputs by those of attributes
        self._given_pictures()
        if about.reads_text and "prompt" in self.takes:
            self.inputs["prompt"] = gr.Textbox(
                about.prompts[0] if about.prompts else "", label="Prompt", lines=1, max_lines=3, max_length=2000,
                placeholder=f"what {about.pipe.word} to draw; empty: any",
            )  # fmt: skip
            if len(about.prompts) > 1:
                gr.Examples([[text] for text in about.prompts], self.inputs["prompt"], label="Prompts to try")
        self._conditions()
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", size="lg", scale=4, min_width=160)
            self.stop = gr.Button("Stop", size="lg", scale=1, min_width=80)
        with gr.Row():
            number = "Drawings" if "ensemble_size" in self.takes else f"{about.pipe.word.capitalize()}s"
            usual = self.takes.get("ensemble_size", about.defaults.get("count", 4))
            self.inputs["count"] = gr.Slider(1, MOST_PICTURES, usual, step=1, label=number, min_width=120)
            self._add("num_inference_steps")
        for name in AT_HAND:
            self._add(name)
        with gr.Row(equal_height=True):
            self.inputs["seed"] = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=2**53, min_width=100, scale=2
            )
            self.inputs["new_seed"] = gr.Checkbox(True, label="new each time", min_width=160, scale=3, container=True)
        with gr.Accordion("More", open=False):
            names = list(samplers_of(about.pipe))
            self.inputs["sampler"] = gr.Dropdown(names, value=names[0], label="Sampler")
            self._add("negative_prompt")
            if "guidance_interval" in self.takes and about.can_be_guided:
                with gr.Row():
                    low = {"label": "Guide above noise level", "info": "sigma, the ratio of noise to signal"}
                    self.inputs["guidance_low"] = gr.Number(0, minimum=0, min_width=140, **low)
                    high = {"label": "and up to", "info": "0: up to the highest"}
                    self.inputs["guidance_high"] = gr.Number(0, minimum=0, min_width=140, **high)
            for name in CONTROLS:
                self._add(name)
            if self.picture is not None and not self._paints_classes and not self._may_begin:
                self.inputs["keep_size"] = gr.Checkbox(
                    False, label="Keep the picture's size", info=f"{self._size_said}, unless this is ticked"
                )

    @property
    def _paints_classes(self) -> bool:
        return "mask_image" in self.takes and "image" not in self.takes

    @property
    def _may_begin(self) -> bool:
        """Whether the picture is a first frame, which need not be given."""
        return self.about.pipe.modality == "video"

    @property
    def read_size(self) -> tuple[int, int]:
        """Height and width of the picture that the network was trained to be given."""
        trained = self.about.pipe.trained_for
        scale = (
            trained.get("scale", 1) if self.task.tasks[0] == trained["task"] else 1
        )  # of the result to what is given
        height, width = self.about.size
        return -(-height // scale), -(-width // scale)

    @property
    def _size_said(self) -> str:
        height, width = self.read_size
        return f"It is scaled and cropped to the {width}x{height} pixels that the network was trained with"

    def _given_pictures(self) -> None:
        """The picture that a task is given, and what is painted on it."""
        side = {"height": CANVAS, "elem_classes": "pixels"}
        if "image" in self.takes and "mask_image" in self.takes:
            self.picture = gr.ImageEditor(
                type="pil", sources=["upload", "clipboard"], layers=False, transforms=(), label="Picture and mask",
                brush=gr.Brush(default_size=CANVAS // 8, colors=["#f97316"], color_mode="fixed"),
                placeholder="Drop in a picture,\nthen paint over a part", canvas_size=(CANVAS, CANVAS), **side,
            )  # fmt: skip
        elif "image" in self.takes:
            label = "First frame, if there is one" if self._may_begin else "Picture"
            side |= {"height": CANVAS // 2} if self._may_begin else {}
            self.picture = gr.Image(type="pil", sources=["upload", "clipboard"], label=label, **side)
        elif "mask_image" in self.takes:
            colours = [
                f"#{r:02x}{g:02x}{b:02x}" for r, g, b in class_colours(self.about.pipe.trained_for["num_classes"])
            ]
            height, width = (CANVAS * side // max(self.about.size) for side in self.about.size)
            self.picture = gr.ImageEditor(
                blank(width, height), type="pil", sources=[], layers=False, transforms=(), label="Layout",
                brush=gr.Brush(default_size=CANVAS // 8, colors=[*colours[1:], colours[0]], color_mode="fixed"),
                canvas_size=(width, height), fixed_canvas=True, **side,
            )  # fmt: skip
        if self.picture is not None:
            self.inputs["picture"] = in_our_words(self.picture)

    def _conditions(self) -> None:
        """Add controls of what stands beside the text: classes and numbers that the network reads, or the classifier's
        classes."""
        known = self.about.attributes if "attributes" in self.takes else {}
        with gr.Row(visible=bool(known)):
            self._attributes(known)
        classifier = self.about.pipe.classifier
        if classifier is not None and "class_labels" in self.takes and "class_labels" not in known:
            names = dict(classifier.config.id2label or {}) or {i: i for i in range(classifier.config.num_classes)}
            choices = [(UNKNOWN, -1), *((str(label), int(number)) for number, label in names.items())]
            self.inputs["class_labels"] = gr.Dropdown(choices, value=-1, label="Class, as the classifier sees it")

    def _attributes(self, known: Mapping[str, Any]) -> None:
        for i, (name, about) in enumerate(sorted(known.items())):
            self.attributes[name] = f"attribute_{i}"
            label = "Class" if name == "class_labels" else name[:1].upper() + name[1:].replace("_", " ")
            if isinstance(about[0], str):
                component: Any = gr.Dropdown([UNKNOWN, *about], value=UNKNOWN, label=label, min_width=180)
            else:
                usual = f"a number, usually {about[0] - about[1]:.3g} to {about[0] + about[1]:.3g}; empty: not said"
                # a Number is never empty
                component = gr.Textbox("", label=label, info=usual, max_lines=1, min_width=180)
            self.inputs[self.attributes[name]] = component

    def _add(self, name: str) -> None:
        if name in self.inputs or name not in self.takes:
            return
        usual = self.takes[name]
        if not (name == "guidance_scale" and usual == 1):  # of a task that needs no prompt to guide by
            usual = self.about.defaults.get(name, usual)
        if usual is None:  # which the pipeline settles, where it is one of these
            steps, scale = self.about.pipe.settle_steps(None, None)
            usual = {"num_inference_steps": steps, "guidance_scale": scale}.get(name)
        component = CONTROLS[name](self.about, usual)
        if component is not None:
            self.inputs[name] = component

    def call(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `draw` for the values of the inputs.

        Raises:
            ValueError: in one line, for what is missing or too much.
        """
        values = dict(values)
        call = {name: values[name] for name in ("count", "sampler", *CONTROLS) if name in values}
        for name in ("count", "seed", "num_inference_steps", "height", "width", "num_frames", "num_resamples"):
            if name in values and values[name] is None:
                raise ValueError(f"{name.replace('_', ' ')} must be a number: got nothing")
        call["seed"] = random.randrange(NEW_SEEDS) if values["new_seed"] else int(values["seed"])
        for name, most in (("count", MOST_PICTURES), ("num_inference_steps", MOST_STEPS)):
            if not 1 <= call[name] <= most:
                raise ValueError(f"{name.replace('_', ' ')} must be from 1 to {most}: got {call[name]}")
            call[name] = int(call[name])
        call |= {name: values[name].strip() for name in ("prompt", "fragment") if name in values}
        # where there is none
        for name in ("negative_prompt", "dynamic_thresholding_ratio", "fragment", "audio_length_in_s"):
            if not call.get(name):
                call.pop(name, None)
        if values.get("guidance_low") or values.get("guidance_high"):
            low, high = (values.get(name) for name in ("guidance_low", "guidance_high"))
            call["guidance_interval"] = (low or 0.0, high or float("inf"))
        said = {name: values[key] for name, key in self.attributes.items()}
        said = {name: value for name, value in said.items() if value not in (None, "", UNKNOWN)}
        for name, value in said.items():
            if not isinstance(self.about.attributes[name][0], str):
                try:
                    said[name] = float(value)
                except ValueError:
                    raise ValueError(f"{name.replace('_', ' ')} must be a number, or empty: got {value!r}") from None
        if said:
            call["attributes"] = said
        if values.get("class_labels", -1) >= 0:
            call["class_labels"] = values["class_labels"]
        return call | self._pictures(values)

    def _pictures(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self.picture is None:
            return {}
        given = values["picture"]
        size = None if values.get("keep_size") else self.read_size
        if self._may_begin:
            return {} if given is None else {"image": fitted(given, (values["height"], values["width"]))}
        if not isinstance(self.picture, gr.ImageEditor):
            if given is None:
                raise ValueError("a picture must be dropped in: got none")
            return {"image": fitted(given, size)}
        background = given and given["background"]
        if self._paints_classes:
            classes = self.about.pipe.trained_for["num_classes"]
            canvas = given and given["composite"]
            return {"mask_image": painted_classes(canvas or blank(1, 1), classes, self.read_size)}
        if background is None or background.getextrema()[-1][1] == 0:
            raise ValueError("a picture must be dropped in, and a part of it painted over: got none")
        image = fitted(background, size)
        return {"image": image, "mask_image": painted_over(given["layers"], (image.height, image.width))}
