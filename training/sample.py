# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draw pictures with a trained pipeline.

mezzotint sample runs/digits "a handwritten seven" --output seven.png
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers.utils import make_image_grid

from mezzotint_training.errors import UserError, exit_code, one_line
from mezzotint_training.saved import load_pipeline


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mezzotint sample", description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="a folder or a Hub name")
    parser.add_argument("prompt", nargs="+", help="one or more; a row of pictures each")
    parser.add_argument("--output", default="sample.png", help="the PNG to write (default: %(default)s)")
    parser.add_argument("--num_images_per_prompt", type=int, default=1)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="1 is off (default: %(default)s)")
    parser.add_argument(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that are guided, in sigma",
    )
    parser.add_argument("--negative_prompt")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    return exit_code(lambda: sample(args))


def sample(args: argparse.Namespace) -> None:
    """Draw and write what the arguments say.

    Raises:
        UserError: for bad input.
    """
    pipe = load_pipeline(args.checkpoint, device=args.device)
    count = len(args.prompt) * args.num_images_per_prompt
    try:
        images = pipe(
            args.prompt,
            height=args.height,
            width=args.width,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
            negative_prompt=args.negative_prompt,
            num_images_per_prompt=args.num_images_per_prompt,
            generator=[torch.Generator().manual_seed(args.seed + i) for i in range(count)],
        ).images
    except ValueError as error:  # for arguments that the pipeline does not take
        raise UserError(one_line(error)) from None
    make_image_grid(images, rows=len(args.prompt), cols=args.num_images_per_prompt).save(args.output)
    print(f"{len(images)} picture{'s' if len(images) > 1 else ''} of {images[0].width}x{images[0].height}: "
          f"{Path(args.output)}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
