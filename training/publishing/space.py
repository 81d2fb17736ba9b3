# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Writes a folder that runs as a Space on the Hub, or anywhere else: the page around a pipeline, with the pipeline's
published files and the package's own code beside it, so that it needs nothing but what its `requirements.txt` names."""

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import mezzotint
from mezzotint import hub, markdown
from mezzotint_training.config.errors import UserError, one_line

CHECKPOINT = "checkpoint"  # the folder of the pipeline
APP = '''\
"""A page around a diffusion pipeline, written by `mezzotint demo --space`. It runs the code of `mezzotint/` beside it,
and none that the pipeline may carry."""

import torch

from mezzotint.demo.controls import Checkpoint
from mezzotint.demo.page import launch, make_page
from mezzotint.drawing import class_of, on_device

SOURCE, NAME = {source}, {name}

pipe = on_device(class_of(SOURCE).from_pretrained(SOURCE), "cuda" if torch.cuda.is_available() else "cpu")
page = make_page(Checkpoint.of(pipe, SOURCE, NAME))
if __name__ == "__main__":
    launch(page)
'''


def write_space(folder: Path, checkpoint: str, name: str, modality: str = "image") -> None:
    """Write the Space of a pipeline into `folder`, which is new or empty.

    Args:
        checkpoint: the pipeline's folder, of which what is published is copied, or its name on the Hub, where the Space
            will load it from.
        name: its title.
        modality: of what it draws.

    Raises:
        UserError: for a folder that holds no pipeline that could be published.
    """
    files, metadata = {}, {}
    if Path(checkpoint).is_dir():
        try:
            kind, files, *_ = hub.content(checkpoint)
        except ValueError as error:
            raise UserError(one_line(error)) from None
        if kind != hub.INDEX:
            raise UserError(f"checkpoint must be a whole pipeline: {checkpoint} holds adapters")
        if hub.RECIPE in files:
            recipe = hub.public_recipe(files[hub.RECIPE])
            metadata = _license(recipe)
    else:
        metadata = {"models": [checkpoint]}
    package = Path(mezzotint.__file__).parent
    for path in package.rglob("*.py"):
        _copy(path, folder / "mezzotint" / path.relative_to(package))
    for place, path in files.items():
        _copy(path, folder / CHECKPOINT / place)
    if hub.RECIPE in files:
        (folder / CHECKPOINT / hub.RECIPE).write_bytes(recipe)
    source = CHECKPOINT if files else checkpoint
    app = APP.format(source=markdown.literal(source), name=markdown.literal(name))
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements(modality)) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(name, metadata), encoding="utf-8")


def requirements(modality: str = "image") -> list[str]:
    """What the page runs on, in the versions that are installed: the package's own requirements, Gradio, and of the
    extra of a modality, without which its samples are drawn all the same, what there is."""
    asked = [Requirement(line) for line in importlib.metadata.requires("mezzotint") or ()]
    names = [x.name for x in asked if x.marker is None]
    extra = [x.name for x in asked if x.marker is not None and x.marker.evaluate({"extra": modality})]
    names += ["gradio", *(name for name in extra if importlib.util.find_spec(name) is not None)]
    return [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in names]


def _license(recipe: bytes) -> dict[str, Any]:
    found = yaml.safe_load(recipe)
    name = found.get("license") if isinstance(found, dict) else None
    return {"license": name} if isinstance(name, str) else {}


def _readme(name: str, metadata: dict[str, Any]) -> str:
    about = {
        "title": name, "emoji": "🖼️", "colorFrom": "yellow", "colorTo": "red", "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"), "app_file": "app.py",
        # for which the versions in requirements.txt are made; the Hub's own default is older
        "python_version": ".".join(map(str, sys.version_info[:2])), **metadata,
    }  # fmt: skip
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\nA page around {markdown.plain(name)}. Here: `pip install -r requirements.txt`, \
then `python app.py`.\n"


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
