# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Results of a tab: a picture of each drawn sample in a gallery, with players of sounds, solids to turn, the strings
of molecules, and files of what is no picture."""

import importlib.util
from typing import Any

import gradio as gr
import numpy as np

from mezzotint import samples
from mezzotint.drawing import Drawing, as_grid


class Results:
    """The components that show samples, made where they are to stand.

    Args:
        pipe: the pipeline that draws them.
        name: of the tab, in identifiers.
        most: samples at a time.
    """

    def __init__(self, pipe: Any, name: str, most: int):
        self.pipe, self.kind, self.about = pipe, samples.of(pipe.modality), pipe.unet.config.get("modality") or {}
        words = f"{pipe.word.capitalize()}s"
        self.gallery = gr.Gallery(
            label=words, columns=4, height="auto", object_fit="contain", format="png", elem_classes="pixels",
            elem_id=f"{name}_pictures", buttons=["download", "fullscreen"], interactive=False,
        )  # fmt: skip
        self.players, self.solid, self.strings, self.files = [], None, None, None
        if pipe.modality == "audio":
            player = {"visible": False, "interactive": False, "buttons": ["download"], "min_width": 260}
            with gr.Row():
                self.players = [gr.Audio(**player) for _ in range(most)]
        elif pipe.modality == "voxels":
            if importlib.util.find_spec("trimesh") is not None:
                # in sight from the start: one that comes later stays empty (Gradio 6.31)
                self.solid = gr.Model3D(label="The chosen one, to turn", interactive=False, height=320)
            saved = {"file_count": "multiple", "interactive": False, "visible": False, "height": 180}
            self.files = gr.File(label="To be saved", **saved)
        elif pipe.modality == "molecules":
            label = f"{words}, in {pipe.notation.upper()}"
            self.strings = gr.Textbox(label=label, interactive=False, visible=False, buttons=["copy"])

    @property
    def more(self) -> list[Any]:
        """The components beside the gallery."""
        return [x for x in (*self.players, self.solid, self.strings, self.files) if x is not None]

    def shown(self, drawing: Drawing) -> list[Any]:
        """The values of the gallery and of the components beside it (`more`) for a drawing."""
        media, captions = [picture for picture, _ in drawing.pictures], [caption for _, caption in drawing.pictures]
        if self.pipe.modality == "video":
            media = self._written(drawing)
        columns = min(4, len(media))
        values: list[Any] = [gr.Gallery(list(zip(media, captions, strict=True)), columns=columns)]
        if self.players:
            written = dict(zip(captions, self._written(drawing), strict=True))
            values += [gr.Audio(path, label=caption, visible=True) for caption, path in written.items()]
            values += [gr.Audio(None, visible=False)] * (len(self.players) - len(written))
        if self.solid is not None:
            values.append(self.turned(drawing, 0))
        if self.strings is not None:
            values.append(gr.Textbox("\n".join(drawing.samples), lines=len(drawing.samples), visible=True))
        if self.files is not None:
            values.append(gr.File(self._written(drawing), visible=True))
        return values

    def turned(self, drawing: Drawing, chosen: int) -> str:
        """The path of one of the solids of a drawing as a mesh."""
        return self._written(drawing, ".glb", slice(chosen, chosen + 1))[0]

    def in_one(self) -> Any:
        """A component for all samples of a drawing, which programs and language models are given: pictures side by
        side, which is what Gradio's tools can hand on as a picture, strings a line each, or files."""
        label = f"All {self.pipe.word}s"
        if self.strings is not None:
            return gr.Textbox(label=label, visible=False)
        if self.kind.ENDINGS:
            return gr.File(label=label, file_count="multiple", visible=False)
        return gr.Image(label=label, format="png", visible=False)

    def all_in_one(self, drawing: Drawing) -> Any:
        """The value of the component that `in_one` makes for a drawing."""
        if self.strings is not None:
            return "\n".join(drawing.samples)
        if self.kind.ENDINGS:
            return self._written(drawing)
        return as_grid(np.stack([np.asarray(picture.convert("RGB")) for picture, _ in drawing.pictures]))

    def _written(self, drawing: Drawing, ending: str | None = None, which: slice = slice(None)) -> list[str]:
        """The paths of files of samples, by default with the usual ending, in Gradio's cache, which is emptied."""
        ending, paths = ending or self.kind.ENDINGS[0], []
        for sample, (_, caption) in zip(drawing.samples[which], drawing.pictures[which], strict=True):
            content, name = self.kind.encoded(sample, ending, self.about), caption.replace(" ", "-") + ending
            paths.append(gr.processing_utils.save_bytes_to_cache(content, name, self.gallery.GRADIO_CACHE))
        return paths
