"""The checkpoints that come with the repository, and one that was written by earlier code: each is of files that a
repository can hold, names no place of the machine that made it, and draws the pictures of its card, by its own code and
by the package's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from mezzotint.drawing import class_of
from mezzotint_training.networks.saved import load_pipeline

# `emoji-16` was shipped once; it is kept as one from before
SHIPPED = Path(__file__).parents[1] / "model_cards"
FOLDERS = [SHIPPED / "emoji-64-cascade", SHIPPED / "emoji-64", Path(__file__).parent / "emoji-16"]
each = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


@each
def test_it_is_of_small_files_and_nothing_is_pickled(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert max(path.stat().st_size for path in files) < 16 * 2**20
    assert {path.suffix for path in files} == {".safetensors", ".json", ".py", ".md", ".yaml", ".png"}
    for path in files:
        if path.suffix in (".json", ".md", ".yaml"):
            assert not re.search(r"(?<![\w.])/(work|tmp|home|root|Users)\b", path.read_text(encoding="utf-8")), path


@each
def test_its_card_has_the_figures_that_were_measured(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    (found,) = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["prompt_accuracy"].values()
    for figure in (found, found["unseen"], found["real"]):
        assert f"{figure['value']:.1%}" in card


@each
@pytest.mark.parametrize("life", ["owner", "stranger", "moved"])
def test_it_draws_the_pictures_of_its_card(life, folder):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    if life == "owner":
        pipe = class_of(folder).from_pretrained(folder)
    else:
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        if life == "moved":  # components of the checkpoint's own, older code in a pipeline of the package's
            pipe = class_of(folder).from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    prompts = recipe["validation_prompts"][:3]
    drawn = pipe(
        prompts,
        num_inference_steps=recipe["num_inference_steps"],
        guidance_scale=recipe["guidance_scale"],
        generator=[torch.Generator().manual_seed(recipe["seed"]) for _ in prompts],
    ).images
    (path,) = (folder / "samples").glob("*.png")
    grid = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for column, picture in enumerate(drawn):
        # pictures of 64 pixels, whatever was drawn, with two pixels of white around each
        step = 64 // picture.width
        tile = grid[2:66:step, 68 * column + 2 : 68 * column + 66 : step]
        assert np.abs(tile - np.asarray(picture)).mean() < 1  # of 255: rounding only


@each
def test_programs_compute_in_float32_on_a_cpu_with_the_weights_as_they_are_saved(folder):
    loaded, saved = load_pipeline(folder), class_of(folder).from_pretrained(folder)
    for name, model in loaded.components.items():
        if isinstance(model, torch.nn.Module):
            of_file = getattr(saved, name).state_dict()
            for key, weight in model.state_dict().items():
                assert weight.dtype != torch.float16 and torch.equal(weight, of_file[key].to(weight.dtype)), (name, key)
