# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Upload a trained pipeline to the Hub, load it back from there and compare a picture.

mezzotint publish runs/digits --hub_model_id user/digits
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import HTTPError

from mezzotint import MezzotintPipeline, hub
from mezzotint_training.config import read_yaml
from mezzotint_training.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mezzotint publish", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", help="a finished run's output_dir")
    parser.add_argument("--hub_model_id", required=True, help="user/name")
    parser.add_argument("--hub_private_repo", action="store_true")
    parser.add_argument("--prompt", default="", help="of the picture to compare")
    args = parser.parse_args(argv)
    try:
        address = hub.push(args.folder, args.hub_model_id, private=args.hub_private_repo)
        base = None
        if (Path(args.folder) / hub.ADAPTERS).is_file():  # of a pipeline that is elsewhere
            base = read_yaml(Path(args.folder) / "recipe.yaml")["pretrained_model_name_or_path"]
        here, there = (draw(source, base, args.prompt) for source in (args.folder, args.hub_model_id))
    except (OSError, ValueError, HTTPError, UserError) as error:
        print(f"mezzotint: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if not np.array_equal(here, there):
        print(f"mezzotint: the pipeline loaded back from {args.hub_model_id} draws another picture", file=sys.stderr)
        return 1
    print(f"published: {address} (loaded back, draws the same picture)")
    return 0


def draw(source: str, base: str | None, prompt: str) -> np.ndarray:
    pipe = MezzotintPipeline.from_pretrained(base or source)
    if base is not None:
        pipe.load_lora_weights(source)
    text = {"prompt": prompt} if pipe.text_encoder is not None else {}
    picture = pipe(**text, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np")
    return np.asarray(picture.images)


if __name__ == "__main__":
    sys.exit(main())
