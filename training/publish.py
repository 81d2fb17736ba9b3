# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Upload a trained pipeline to the Hub, load it back from there and compare a picture.

mezzotint publish runs/digits --hub_model_id user/digits

Before anything is uploaded, the Hub is asked whether it would take it, and the pipeline draws a picture from the very
files that go up. The folder is only read.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mezzotint import hub
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code, loading, one_line
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.tasks import TASKS, picture_channels
from mezzotint_training.networks.saved import load_pipeline


def main(argv: list[str] | None = None) -> int:
    parser = Parser("publish", __doc__)
    parser.add_argument("folder", type=text, help="a finished run's output_dir")
    parser.add_argument("--hub_model_id", type=text, required=True, help="user/name of the repository to upload to")
    parser.add_argument("--hub_private_repo", action="store_true", help="upload to a private repository only")
    parser.add_argument(
        "--replace_card", action="store_true", help="replace a card on the Hub that somebody wrote or edited by hand"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="the pipeline that adapters were trained for; by default the one that their recipe names",
    )
    parser.add_argument("--prompt", default="", help="prompt of the picture that is compared; by default none")
    return exit_code(lambda: publish(parser.parse_args(argv)))


def publish(args: argparse.Namespace) -> None:
    """Draw a picture from what is to be uploaded, upload it, and draw the same from what is there.

    Raises:
        UserError: for what cannot be published, before anything is uploaded.
        CannotGoOn: for an upload that cannot be loaded back, or draws another picture.
    """
    folder = Path(args.folder)
    try:
        kind, files, _, missing, _ = hub.content(folder)
        if missing:
            raise ValueError(f"{folder} must hold the code that its {hub.INDEX} names: {missing[0]} is missing")
        card = files[hub.CARD].read_text(encoding="utf-8") if hub.CARD in files else None
    except ValueError as error:
        raise UserError(one_line(error)) from None
    base, revision = args.pretrained_model_name_or_path, None
    if kind == hub.ADAPTERS and base is None:
        recipe = read_recipe(folder)
        base, revision = (recipe.get(name) for name in ("pretrained_model_name_or_path", "revision"))
        if not isinstance(base, str) or base.startswith("./") and not Path(base).is_dir():
            raise UserError(f"--pretrained_model_name_or_path must say what the adapters are of: {folder} says {base}")
    if kind != hub.ADAPTERS and base is not None:
        raise UserError(f"pretrained_model_name_or_path is for adapters: {folder} holds a whole pipeline")
    if refusals := hub.refusals(args.hub_model_id, card):
        raise UserError("; ".join(refusals))

    # What goes up, and nothing else of the folder
    with tempfile.TemporaryDirectory() as alone:
        for name, file in files.items():
            link = Path(alone, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        try:
            here = draw(alone, None, base, revision, args.prompt)
        except UserError as error:
            raise UserError(str(error).replace(alone, str(folder))) from None

    try:
        address = hub.push(folder, args.hub_model_id, private=args.hub_private_repo, replace_card=args.replace_card)
    except ValueError as error:
        raise UserError(one_line(error)) from None
    name, _, commit = address.removesuffix("/").rpartition("/commit/")
    try:
        there = draw("/".join(name.split("/")[-2:]), commit, base, revision, args.prompt)
    except UserError as error:
        raise CannotGoOn(f"published: {address}, but it cannot be loaded back: {error}") from None
    if not np.array_equal(here, there):
        raise CannotGoOn(f"the pipeline loaded back from {args.hub_model_id} draws another picture")
    print(f"published: {address} (loaded back, draws the same picture)")


def draw(source: str, commit: str | None, base: str | None, revision: str | None, prompt: str) -> np.ndarray:
    """A picture of the pipeline in `source`, a folder or a repository at a commit, or of the adapters there to the
    pipeline `base` at a revision."""
    if base is None:
        pipe = load_pipeline(source, revision=commit)
    else:
        pipe = load_pipeline(base, "pretrained_model_name_or_path", revision=revision)
        with loading(f"adapters {source}"):
            pipe.load_lora_weights(source, revision=commit)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": prompt} if pipe.text_encoder is not None else {}
    task, side = pipe.trained_for["task"], max(pipe.padded([8]))
    if TASKS[task].given:
        classes = {"mask_image": torch.zeros(1, side, side, dtype=torch.uint8)}
        grey = torch.full((1, picture_channels(pipe.unet.config), side, side), 0.25)
        call |= classes if task == "layout" else {"image": grey}
        call |= {"mask_image": torch.ones(1, side, side)} if task == "inpaint" else {}
        call |= {"ensemble_size": 1} if task == "segment" else {}
    try:
        (picture, *_) = pipe(
            **call,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            return_dict=False,
        )
    except ValueError as error:  # for a prompt that it does not take, or no picture
        raise UserError(one_line(error)) from None
    return np.asarray(picture)


if __name__ == "__main__":
    sys.exit(main())
