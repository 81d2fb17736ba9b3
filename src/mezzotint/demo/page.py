# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The page: a tab for each task, with the steps of the reverse process to leaf through, and of pictures one for the
forward process. Nothing goes to the network but what a visitor is sent, and a visitor's drawings are nobody else's."""

import base64
import contextlib
import html
import inspect
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import torch
from PIL import Image

from mezzotint import samples
from mezzotint.demo.controls import CANVAS, MOST_PICTURES, Checkpoint, Controls, in_our_words
from mezzotint.demo.pictures import curves_of, fitted, noised, schedule_of
from mezzotint.demo.results import Results
from mezzotint.drawing import Drawing, animate, as_grid, draw, tasks_of

HOUR = 3600
FONTS = {"font": ("ui-sans-serif", "system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
COLOURS = {"signal α": "#2563eb", "noise σ": "#f97316", "log SNR": "#2563eb", "t": "#78716c"}
# Pictures of few pixels are shown pixel by pixel
CSS = """
.gradio-container { max-width: 1240px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.pixels img, .animation img { image-rendering: pixelated; }
.pixels .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.pixels button img, .pixels .preview img { width: 100%; height: 100%; object-fit: contain; }
.pixels .grid-wrap { min-height: 0 !important; }
/* below their labels, which Gradio lays over them */
.pixels .grid-wrap:has(.thumbnail-item), .state .image-frame { padding-top: 1.7rem; box-sizing: border-box; }
#head h1 { font-size: 1.7rem; margin: 0 0 .1rem; }
#head p { margin: 0; color: var(--body-text-color-subdued); }
.summary { color: var(--body-text-color-subdued); }
.animation img { max-width: 100%; border-radius: var(--radius-md); display: block; margin-bottom: .4rem; }
.animation a { font-weight: 600; }
@media (max-width: 640px) { .pixels .grid-container { grid-template-columns: 1fr 1fr !important; } }
"""
# On a screen where what is drawn is out of sight, below the controls
TO_THE_PICTURES = "() => { if (innerWidth < 700) document.getElementById('NAME').scrollIntoView({behavior: 'smooth'}) }"


def make_page(about: Checkpoint, concurrency_limit: int = 1) -> gr.Blocks:
    """The page around a pipeline, to be launched by `launch`.

    Args:
        concurrency_limit: drawings at a time; who comes later waits in the queue.
    """
    page = gr.Blocks(title=f"{about.name} · mezzotint", analytics_enabled=False, delete_cache=(HOUR, HOUR))
    with page:
        gr.HTML(_head(about), elem_id="head", padding=False)
        with gr.Tabs() as tabs:
            shown = []
            for task in tasks_of(about.pipe):
                with gr.Tab(task.title, id=task.title):
                    shown.append(_TaskTab(about, task, concurrency_limit))
            forward = None
            if about.pipe.modality == "image":
                with gr.Tab("Forward process", id="forward"):
                    forward = _ForwardTab(about)
        targets = [(tab.controls.task.title, tab.controls.picture) for tab in shown if tab.takes_pictures]
        for tab in shown if forward is not None else ():
            tab.pass_on(tabs, [target for target in targets if target[1] is not tab.controls.picture], forward)
    page.queue(max_size=64, api_open=False)
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str | None]:
    """Serve the page; `options` are those of Gradio's `launch`. Returns the application, its address and, where it is
    shared, the public one."""
    theme = gr.themes.Default(primary_hue="orange", neutral_hue="stone", **FONTS)
    return page.launch(theme=theme, css=CSS, ssr_mode=False, max_file_size="20mb", footer_links=[], **options)


def _head(about: Checkpoint) -> str:
    pipe = about.pipe
    measured = samples.of(pipe.modality).measured(pipe) if all(pipe.default_size) else "any size"
    unets = [network for name, network in pipe.components.items() if name.startswith("unet") and network is not None]
    parameters = sum(p.numel() for unet in unets for p in unet.parameters())
    amount = f"{parameters / 1e6:.3g} million" if parameters >= 1e6 else f"{parameters:,}"
    where = f"the U-Net{'s' if len(unets) > 1 else ''}"
    facts = f"{tasks_of(pipe)[0].title} · {measured} · {amount} weights in {where}"
    return f"<h1>{html.escape(about.name)}</h1><p>{html.escape(facts)}</p>"


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Within it what is refused becomes a line on the page; a mistake of this program goes to its log."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise _refusal(" ".join(str(error).split())) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise _refusal("the memory is full: fewer or smaller ones need less") from None
    except Exception as error:
        traceback.print_exc()
        raise _refusal(f"this was a mistake of the program, which its log tells of ({type(error).__name__})") from None


def _refusal(line: str) -> gr.Error:
    return gr.Error(html.escape(line), title="Not drawn", print_exception=False)


class _TaskTab:
    """The tab of a task: its controls on the left, what comes of them on the right."""

    def __init__(self, about: Checkpoint, task: Any, concurrency_limit: int):
        self.about, name = about, task.title.lower().replace(" ", "_")
        self.under_way: set[tuple[str | None, threading.Event]] = set()  # of each drawing its visitor and what ends it
        gr.Markdown(task.summary, elem_classes="summary")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.controls = Controls(about, task)
            with gr.Column(scale=3, min_width=300):
                self.results = Results(about.pipe, name, MOST_PICTURES)
                self.row = gr.Row(visible=False)
                with gr.Group(visible=False) as self.process:
                    self.step = gr.Slider(1, 2, 2, step=1, label="The reverse process, step by step", interactive=True)
                    with gr.Row(equal_height=True):
                        side = {"format": "png", "elem_classes": ["pixels", "state"], "height": 260, "min_width": 130}
                        side |= {"interactive": False, "buttons": ["download"]}
                        self.noisy = gr.Image(label="Sample x_t", **side)
                        self.clean = gr.Image(label="Predicted clean x_0", **side)
                self.animation = gr.HTML(elem_classes="animation", padding=False)
                self.drawing, self.chosen = gr.State(None, time_to_live=HOUR), gr.State(0)
        private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        drawing = {
            "fn": self._handler(name), "inputs": list(self.controls.inputs.values()),
            "outputs": [self.results.gallery, self.controls.inputs["seed"], self.drawing, *self.results.more],
            "concurrency_limit": concurrency_limit, "concurrency_id": "draw",
            "show_progress_on": self.results.gallery,
        }  # fmt: skip
        asked = {"fn": self._handler(name, to_the_page=False), "outputs": self.results.in_one()}
        gr.Button(visible=False).click(**drawing | asked | {"api_name": name})
        drawing["api_visibility"] = "private"
        shown = [self.step, self.noisy, self.clean, self.animation, self.chosen, self.row, self.process]
        under_way = [self.controls.draw.click(**drawing)]
        self.controls.draw.click(None, js=TO_THE_PICTURES.replace("NAME", f"{name}_pictures"), api_visibility="private")
        if "prompt" in self.controls.inputs:
            under_way.append(self.controls.inputs["prompt"].submit(**drawing))
        for drawn in under_way:
            drawn.success(self._unfold, self.drawing, shown, **private)
        # Gradio forgets what waits in its queue, and lets what is being drawn go on
        self.controls.stop.click(self._stop, cancels=under_way, queue=False, api_visibility="private")
        states = [self.noisy, self.clean, self.step]
        self.step.input(self._leaf, [self.drawing, self.step], states, trigger_mode="always_last", **private)
        chosen = self.results.gallery.select(_choose, None, self.chosen, **private)
        if self.results.solid is not None:
            chosen.success(self.results.turned, [self.drawing, self.chosen], self.results.solid, **private)

    @property
    def takes_pictures(self) -> bool:
        return "image" in self.controls.takes

    def _handler(self, name: str, to_the_page: bool = True) -> Callable:
        """A function of the values of the inputs by their names, as Gradio's API and MCP describe it, that gives the
        pictures, the seed, the drawing and what else is shown `to_the_page`, and otherwise all samples in one."""
        inputs = self.controls.inputs

        def handler(*values):
            *values, progress, request = values
            with refusing(), self._stoppable(request) as stopped:
                call = self.controls.call(dict(zip(inputs, values, strict=True)))

                def step(i: int, n: int) -> None:
                    progress((i, n), desc="drawing", unit="steps")

                drawing = draw(self.about.pipe, self.controls.task, progress=step, stopped=stopped.is_set, **call)
                if stopped.is_set():
                    return gr.skip() if not to_the_page else [gr.skip()] * (3 + len(self.results.more))
                if not to_the_page:
                    return self.results.all_in_one(drawing)
                gallery, *more = self.results.shown(drawing)
                return gallery, call["seed"], drawing, *more

        usual = {x: None if component is self.controls.picture else component.value for x, component in inputs.items()}
        handler.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            inspect.Parameter(x, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for x, default in (usual | {"progress": gr.Progress(), "request": None}).items()
        )
        handler.__annotations__ = {"request": gr.Request}  # by which Gradio knows to hand it in
        said = [f"    {x}: {component.label}. {component.info or ''}".rstrip() for x, component in inputs.items()]
        handler.__name__, handler.__doc__ = name, "\n".join([self.controls.task.summary, "", "Args:", *said])
        return handler

    @contextlib.contextmanager
    def _stoppable(self, request: gr.Request | None) -> Iterator[threading.Event]:
        """The event that ends a visitor's drawing, for as long as it is under way."""
        drawing = (getattr(request, "session_hash", None), threading.Event())
        self.under_way.add(drawing)
        try:
            yield drawing[1]
        finally:
            self.under_way.discard(drawing)

    def _stop(self, request: gr.Request) -> None:
        """End the visitor's drawings in this tab after the steps that are being taken."""
        for visitor, stopped in [*self.under_way]:
            if visitor == request.session_hash:
                stopped.set()

    def _unfold(self, drawing: Drawing) -> list[Any]:
        """The states of a drawing, begun at its middle step, where the noisy sample and the x_0 foreseen in it differ
        most."""
        steps = len(drawing.timesteps)
        noisy, clean, step = self._leaf(drawing, -(-steps // 2))
        if steps:  # a slider has two ends
            step = gr.Slider(maximum=max(steps, 2), value=-(-steps // 2), label=step["label"])
        seen = [gr.update(visible=True), gr.update(visible=steps > 0)]
        return [step, noisy, clean, _animation(drawing), 0, *seen]

    @staticmethod
    def _leaf(drawing: Drawing | None, step: int) -> tuple[Any, Any, Any]:
        """The states of a step, counted from 1, and the slider with what it says of the step."""
        if drawing is None or not drawing.timesteps:
            return None, None, gr.skip()
        i = min(int(step), len(drawing.timesteps)) - 1
        label = f"The reverse process: step {i + 1} of {len(drawing.timesteps)}, from t = {drawing.timesteps[i]:.4g} on"
        return as_grid(drawing.noisy[i]), as_grid(drawing.clean[i]), gr.update(label=label)

    def pass_on(self, tabs: gr.Tabs, targets: list[tuple[str, Any]], forward: "_ForwardTab") -> None:
        """Buttons that take the chosen picture to where one can be given."""
        if not self.controls.task.pipeline_tag.endswith("-to-image"):  # nothing that could be given as a picture
            return
        with self.row:
            for title, picture in [*targets, ("forward", forward.picture)]:
                words = "watch it dissolve" if title == "forward" else title.lower()
                button = gr.Button(f"→ {words}", size="sm", min_width=110)
                taken = button.click(
                    _enlarged, [self.drawing, self.chosen], [picture], api_visibility="private", show_progress="hidden"
                )
                taken.success(lambda title=title: gr.Tabs(selected=title), None, tabs, api_visibility="private")
                if title == "forward":
                    taken.success(forward.forward_process, forward.inputs, forward.outputs, api_visibility="private")


def _choose(event: gr.SelectData) -> int:
    return event.index


def _enlarged(drawing: Drawing | None, chosen: int) -> Image.Image:
    with refusing():
        if drawing is None:
            raise ValueError("a picture must be drawn first, to be taken along: there is none yet")
        picture = drawing.pictures[min(chosen, len(drawing.pictures) - 1)][0]
        scale = max(1, CANVAS // max(picture.size))
        return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)


def _animation(drawing: Drawing) -> str:
    """The reverse process as moving pictures in the page itself, with a link that saves them."""
    if not drawing.timesteps:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawing.webp"
        animate(drawing, path)
        data = f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
    words = "the reverse process: x_t on the left, the predicted x_0 on the right"
    return f'<img alt="{words}" src="{data}"><a download="drawing.webp" href="{data}">Save this animation</a> ({words})'


class _ForwardTab:
    """The tab of the forward process: a picture, how far along it is, and the noise schedule."""

    def __init__(self, about: Checkpoint):
        self.about = about
        last, size = len(schedule_of(about.pipe)) - 1, about.size
        gr.Markdown(
            "Drop in a picture, or bring one that was drawn, and drag t: noise takes the place of the signal, until "
            "nothing of the picture is left. The model has learned to go the other way.", elem_classes="summary",
        )  # fmt: skip
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.picture = in_our_words(
                    gr.Image(
                        type="pil",
                        sources=["upload", "clipboard"],
                        label="Picture x_0",
                        height=280,
                        elem_classes="pixels",
                    )
                )
                self.timestep = gr.Slider(0, last, last // 4, step=1, label="Timestep t")
                self.seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
            with gr.Column(scale=3, min_width=300):
                self.dissolved = gr.Image(
                    label="Noisy picture x_t", height=280, format="png", elem_classes="pixels", interactive=False,
                    buttons=["download"],
                )  # fmt: skip
                self.levels = gr.Markdown()
                with gr.Row():
                    plot = {"x": "t", "color": "curve", "height": 220, "x_lim": [0, last], "min_width": 260}
                    plot |= {"color_title": " ", "color_map": COLOURS}
                    shares, ratio = self._curves(last // 4)
                    self.shares = gr.LinePlot(shares, y="share", title="Noise schedule", **plot)
                    self.ratio = gr.LinePlot(ratio, y="log SNR", title="Signal-to-noise ratio", **plot)
        self.size = size
        self.inputs = [self.picture, self.timestep, self.seed]
        self.outputs = [self.dissolved, self.levels, self.shares, self.ratio]
        light = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_limit": None}
        self.picture.change(self.forward_process, self.inputs, self.outputs, api_name="forward_process", **light)
        for control in (self.timestep, self.seed):
            control.change(self.forward_process, self.inputs, self.outputs, api_visibility="private", **light)

    def forward_process(self, picture: Image.Image | None, timestep: float, seed: int | None):
        """Noise a picture to a timestep of the model's schedule.

        Args:
            picture: the picture.
            timestep: from 0, least noise, to the schedule's last.
            seed: of the noise.
        """
        with refusing():
            point = curves_of(self.about.pipe, [timestep])
            said = (
                f"x_t = **{point.signal[0]:.3f}** x_0 + **{point.noise[0]:.3f}** noise · signal-to-noise ratio "
                f"**{(point.signal[0] / point.noise[0]) ** 2:.3g}**"
            )
            found = None
            if picture is not None:
                found = noised(self.about.pipe, fitted(picture, self.size), timestep, int(seed or 0))
            return found, said, *self._curves(timestep)

    def _curves(self, timestep: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The two plots' data, with the timestep as an upright line."""
        curves = curves_of(self.about.pipe)
        shares = [(t, x, "signal α") for t, x in zip(curves.timesteps, curves.signal, strict=True)]
        shares += [(t, x, "noise σ") for t, x in zip(curves.timesteps, curves.noise, strict=True)]
        shares += [(timestep, x, "t") for x in (0.0, 1.0)]
        ratio = [(t, x, "log SNR") for t, x in zip(curves.timesteps, curves.log_snr, strict=True)]
        ratio += [(timestep, x, "t") for x in (curves.log_snr.min(), curves.log_snr.max())]
        return (
            pd.DataFrame(shares, columns=["t", "share", "curve"]),
            pd.DataFrame(ratio, columns=["t", "log SNR", "curve"]),
        )
