# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draw pictures with a trained pipeline.

mezzotint sample runs/digits "a handwritten seven" --output seven.png
mezzotint sample runs/digits "a handwritten one" --image seven.png --strength 0.6
mezzotint sample runs/digits "a handwritten nine" --image seven.png --mask upper_half.png
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from mezzotint import MezzotintImg2ImgPipeline, MezzotintInpaintPipeline
from mezzotint_training.config.errors import UserError, exit_code, loading, one_line
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.rules import COUNT, GUIDANCE, SEED, SIDE, Rule, at_least, at_most, writable_file
from mezzotint_training.modalities.images import EXTENSIONS, open_picture
from mezzotint_training.networks.saved import load_pipeline


def main(argv: list[str] | None = None) -> int:
    parser = Parser("sample", __doc__)
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder or a Hub name")
    parser.add_argument("prompt", nargs="+", help="one or more texts, each of which becomes a row of pictures")
    parser.add_argument("--output", default="sample.png", help="the picture file to write")
    parser.number(
        "num_images_per_prompt", int, at_least(1), at_most(1000), default=1, help="pictures in each prompt's row"
    )
    parser.number("num_inference_steps", int, *COUNT, default=20, help="sampling steps")
    parser.number("guidance_scale", float, *GUIDANCE, default=2.0, help="weight of the guidance; 1 turns it off")
    parser.number(
        "guidance_interval",
        float,
        at_least(0),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that are guided, in sigma; by default all",
    )
    parser.add_argument("--negative_prompt", help="a text to guide away from; by default the empty text")
    parser.add_argument("--image", type=text, help="a picture file to start from, of whose size the drawn ones are")
    parser.add_argument(
        "--mask", type=text, help="a picture file of the same size: what is white is drawn, what is black stays"
    )
    parser.number(
        "strength",
        float,
        Rule("above 0 and up to 1", lambda x: 0 < x <= 1),
        help="part of the steps that is taken from the picture on; by default 0.8, and 1 with a mask",
    )
    parser.number(
        "num_resamples", int, at_least(1), at_most(1000), help="times that each step is taken, with a mask (RePaint)"
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
    for name, needed in (("mask", "image"), ("strength", "image"), ("num_resamples", "mask")):
        if name in given and needed not in given:
            raise UserError(f"{name} goes with --{needed}: got it alone")
    for name in ("height", "width"):
        if name in given and "image" in given:
            raise UserError(f"{name} is that of the image: leave one of --{name} and --image out")
    pictures = {name: read(name, given[name]) for name in ("image", "mask") if name in given}
    pipe: Any = load_pipeline(args.checkpoint, device=args.device)
    task = {"height": args.height, "width": args.width}
    if pictures:
        pipe = (MezzotintInpaintPipeline if "mask" in pictures else MezzotintImg2ImgPipeline).from_pipe(pipe)
        task = {"mask_image" if name == "mask" else name: picture for name, picture in pictures.items()}
        task |= {name: given[name] for name in ("strength", "num_resamples") if name in given}
    pipe.set_progress_bar_config(disable=None)  # but on a terminal
    count = len(args.prompt) * args.num_images_per_prompt
    try:
        images = pipe(
            args.prompt,
            **task,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
            negative_prompt=args.negative_prompt,
            num_images_per_prompt=args.num_images_per_prompt,
            generator=[torch.Generator().manual_seed(args.seed + i) for i in range(count)],
        ).images
    except ValueError as error:  # for arguments that the pipeline does not take
        raise UserError(one_line(error)) from None
    # Encoded before a file is opened, which may hold another picture
    grid, encoded = make_image_grid(images, rows=len(args.prompt), cols=args.num_images_per_prompt), io.BytesIO()
    grid.save(encoded, Image.registered_extensions()[output.suffix.lower()])
    output.write_bytes(encoded.getvalue())
    print(f"{len(images)} picture{'s' if len(images) > 1 else ''} of {images[0].width}x{images[0].height}: {output}")


def read(name: str, path: str) -> Image.Image:
    """The picture in a file; `name` is that of the argument, for the message.

    Raises:
        UserError: for a file that is not there, or holds no picture.
    """
    with loading(f"{name} {path}"):
        return open_picture({"bytes": Path(path).read_bytes(), "path": None})


if __name__ == "__main__":
    sys.exit(main())
