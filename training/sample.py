# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draw pictures with a trained pipeline.

mezzotint sample runs/digits "a handwritten seven" --output seven.png
mezzotint sample runs/digits "a handwritten one" --image seven.png --strength 0.6
mezzotint sample runs/digits "a handwritten nine" --image seven.png --mask upper_half.png
mezzotint sample runs/digits-upscale --image seven.png --scale 2
mezzotint sample runs/digits-segment --image seven.png --output ink.png
mezzotint sample runs/digits-layout "a handwritten seven" --mask ink.png
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)
from mezzotint_training.config.errors import UserError, exit_code, loading, one_line
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.rules import COUNT, GUIDANCE, SEED, SHARE, SIDE, Rule, at_least, at_most, writable_file
from mezzotint_training.modalities.images import EXTENSIONS, open_picture, read_header
from mezzotint_training.networks.saved import load_pipeline

# What an image is for, by what it is given with and by what the weights are trained for, and what goes with it
WITH_IMAGE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "img2img": (MezzotintImg2ImgPipeline, ("image", "strength")),
    "inpaint": (MezzotintInpaintPipeline, ("image", "mask", "strength", "num_resamples")),
    "upscale": (MezzotintUpscalePipeline, ("image", "scale", "noise_level")),
    "segment": (MezzotintSegmentPipeline, ("image",)),
    "layout": (MezzotintLayoutPipeline, ("mask",)),
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("sample", __doc__)
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder or a Hub name")
    parser.add_argument(
        "prompt",
        nargs="*",
        help="one or more texts, each of which becomes a row of pictures; enlarging and segmenting need none",
    )
    parser.add_argument("--output", default="sample.png", help="the picture file to write")
    parser.number(
        "num_images_per_prompt", int, at_least(1), at_most(1000), default=1, help="pictures in each prompt's row"
    )
    parser.number("num_inference_steps", int, *COUNT, help="sampling steps; by default 20, or of a distilled network "
                  "those that it is distilled to")  # fmt: skip
    parser.number(
        "guidance_scale",
        float,
        *GUIDANCE,
        help="weight of the guidance; by default 2; and 1, which is none, without a prompt or of a distilled network",
    )
    parser.number(
        "guidance_interval",
        float,
        at_least(0),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that are guided, in sigma; by default all",
    )
    parser.add_argument("--negative_prompt", help="a text to guide away from; by default the empty text")
    parser.add_argument(
        "--attributes",
        nargs="+",
        metavar="NAME=VALUE",
        help="what the network was trained to read beside the text, the class as class_labels: class_labels=7 ink=0.3",
    )
    parser.add_argument(
        "--image",
        type=text,
        help="a picture file to start from, of whose size the drawn ones are; or to enlarge or divide into classes, "
        "with weights that are trained for it",
    )
    parser.add_argument(
        "--mask",
        type=text,
        help="a picture file of the same size: what is white is drawn, what is black stays; alone, a map of classes to "
        "be drawn, with weights that are trained for it",
    )
    parser.number(
        "strength",
        float,
        SHARE,
        help="part of the steps that is taken from the picture on; by default 0.8, and 1 with a mask",
    )
    parser.number(
        "num_resamples", int, at_least(1), at_most(1000), help="times that each step is taken, with a mask (RePaint)"
    )
    parser.number(
        "scale",
        int,
        at_least(2),
        at_most(8),
        help="times to enlarge the image, as often as the weights are trained for",
    )
    parser.number(
        "noise_level",
        float,
        Rule("from 0 up to 1, and below it", lambda x: 0 <= x < 1),
        help="noise mixed into the image that is enlarged, so that its faults are drawn anew; by default none",
    )
    parser.number("height", int, *SIDE, help="height of the pictures in pixels; by default as trained")
    parser.number("width", int, *SIDE, help="width of the pictures in pixels; by default as trained")
    parser.number("seed", int, *SEED, default=0, help="seed of the starting noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to draw on")
    return exit_code(lambda: sample(parser.parse_args(argv)))


def sample(args: argparse.Namespace) -> None:
    """Draw the pictures that the arguments ask for, and write them.

    Raises:
        UserError: for bad input, before anything is drawn.
    """
    output = writable_file("output", Path(args.output))
    if output.suffix.lower() not in EXTENSIONS:
        raise UserError(f"output must end in one of {', '.join(EXTENSIONS)}: got {output}")
    given = {name: value for name, value in vars(args).items() if value is not None}
    needs = {"strength": "image", "num_resamples": "mask", "scale": "image", "noise_level": "image"}
    for name, needed in needs.items():
        if name in given and needed not in given:
            raise UserError(f"{name} goes with --{needed}: got it alone")
    for name in ("height", "width"):
        if name in given and "image" in given:
            raise UserError(f"{name} is that of the image: leave one of --{name} and --image out")
    pictures = {name: read(name, given[name]) for name in ("image", "mask") if name in given}
    said = {}
    for one in args.attributes or ():
        name, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"attributes must be name=value: got {one!r}")
        said[name] = value
    pipe: Any = load_pipeline(args.checkpoint, device=args.device)
    trained, prompts = pipe.trained_for, args.prompt
    task = {"height": args.height, "width": args.width, "num_images_per_prompt": args.num_images_per_prompt}
    if pictures:
        kind = trained["task"] if trained["task"] in WITH_IMAGE else "img2img"
        if "mask" in pictures:
            kind = "inpaint" if "image" in pictures else "layout"
        cls, takes = WITH_IMAGE[kind]
        if kind == "layout" and trained["task"] != "layout":
            raise UserError("mask goes with --image: got it alone")
        if unfit := [name for name in needs if name in given and name not in takes]:
            raise UserError(f"{unfit[0]} is not for {cls.__name__}, which these weights and arguments ask for: got it")
        if "scale" in given and given["scale"] != trained["scale"]:
            raise UserError(f"scale must be {trained['scale']}, which the weights are trained for: got {args.scale}")
        pipe = cls(**pipe.components)
        names = {"mask": "mask_image"}
        task = {names.get(name, name): given[name] for name in takes if name in given and name not in pictures}
        task |= {names.get(name, name): picture for name, picture in pictures.items()}
        task.pop("scale", None)
        if not prompts and kind in ("upscale", "segment"):
            prompts = [""]
        task["ensemble_size" if kind == "segment" else "num_images_per_prompt"] = args.num_images_per_prompt
    elif type(pipe) is not MezzotintPipeline:  # weights that are trained for a task draw from text alone too
        pipe = MezzotintPipeline(**pipe.components)
    if said:
        known = pipe.unet.config.get("attributes") or {}
        numeric = {name for name, about in known.items() if not isinstance(about[0], str)}
        try:
            task["attributes"] = {k: float(value) if k in numeric else value for k, value in said.items()}
        except ValueError as error:
            raise UserError(f"attributes must be numbers where the network reads numbers: {one_line(error)}") from None
    if not prompts:
        raise UserError("prompt must be given, one text or more: got none")
    guidance_scale = 1.0 if args.guidance_scale is None and not args.prompt else args.guidance_scale
    steps, guidance_scale = pipe.settle_steps(args.num_inference_steps, guidance_scale)
    pipe.set_progress_bar_config(disable=None)  # but on a terminal
    count = len(prompts) * args.num_images_per_prompt
    try:
        (images, *_) = pipe(
            prompts,
            **task,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
            negative_prompt=args.negative_prompt,
            generator=[torch.Generator().manual_seed(args.seed + i) for i in range(count)],
            return_dict=False,
        )
    except ValueError as error:  # for arguments that the pipeline does not take
        raise UserError(one_line(error)) from None
    # Encoded before a file is opened, which may hold another picture
    images = [image.convert("RGB") if image.mode == "P" else image for image in images]
    grid, encoded = make_image_grid(images, rows=len(prompts), cols=len(images) // len(prompts)), io.BytesIO()
    grid.save(encoded, Image.registered_extensions()[output.suffix.lower()])
    output.write_bytes(encoded.getvalue())
    print(f"{len(images)} picture{'s' if len(images) > 1 else ''} of {images[0].width}x{images[0].height}: {output}")


def read(name: str, path: str) -> Image.Image:
    """The picture in a file; `name` is that of the argument, for the message.

    Raises:
        UserError: for a file that is not there, or holds no picture.
    """
    with loading(f"{name} {path}"):
        cell = {"bytes": Path(path).read_bytes(), "path": None}
        if read_header(cell).animated:
            raise ValueError("it has several frames: give one of them")
        return open_picture(cell)


if __name__ == "__main__":
    sys.exit(main())
