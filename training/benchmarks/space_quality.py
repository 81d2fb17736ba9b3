# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Which space pays: latents of an autoencoder of one's own beside patches of pixels, both trained for as long, the
autoencoder's training and the encoding of the set included.

    python training/benchmarks/space_quality.py emoji-64 --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2
    python training/benchmarks/space_quality.py scenes-128 --data path/to/emoji-64 --text path/to/all-MiniLM-L6-v2
    python training/benchmarks/space_quality.py emoji-64 --data ... --text ... --trained folder/

Pixels are the recipe `emoji-64`, latents the recipes `train-autoencoder/emoji-64` and `emoji-64-latents`, on the same
text of a frozen encoder: both U-Nets see 16x16 places and have the same widths. At 128 px, on scenes that are made of
the emoji (`scenes.py`), they do so by patches of 8x8 and an autoencoder of factor 8. Of the processor time --share goes
to the autoencoder, the rest to the encoding of the set and to the U-Net in latents. With --trained they are those that
a run of this command left there. What is drawn is judged as in `quality.py`, by a two-tower model of real training
pictures: how often it picks, among 32 captions of the test split, which nobody was trained on, what was asked for, and
the kernel distance (KID) to real pictures on its features. Real pictures that went through the autoencoder are the
ceiling of what is drawn in its latents.

A grid goes to --output: a row of real pictures, then of each in the order of the table.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mezzotint.pipelines.latents_mezzotint import to_latents, to_pixels
from mezzotint_training.benchmarks.cascade_quality import Judge, cells, loaded, show
from mezzotint_training.benchmarks.quality import SCALES, encoding_seconds, prepare, run, steps_within
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.recipe import read_named
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.modalities.contents import unit, whole
from mezzotint_training.networks.latents import load_autoencoder

RECIPE = "emoji-64"
GUIDANCE = (1.0, 2.0, 3.0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("scale", choices=["emoji-64", "scenes-128"], help="the set")
    parser.add_argument("--data", required=True, help="folder of the emoji")
    parser.add_argument("--text", required=True, help="folder or Hub name of the frozen text encoder")
    parser.add_argument("--seconds", type=float, default=600, help="processor time of either side")
    parser.add_argument("--share", type=float, default=0.3, help="part of the latents' time that the autoencoder has")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--trained", help="a folder with what this command trained, to measure it again")
    parser.add_argument("--count", type=int, default=500, help="pictures that each row is judged by")
    parser.add_argument("--sampling_steps", type=int, default=20, help="steps of either network")
    parser.add_argument("--judge_steps", type=int, default=1000, help="updates of the network that judges")
    parser.add_argument("--batch_size", type=int, default=128, help="pictures drawn at a time")
    parser.add_argument("--output", default="space_quality", help="a folder for runs, the grid and figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    place = Path(args.trained or args.output)
    shared = prepare(args.scale, args.data, place, args.text)
    if args.trained is None:
        train(args, shared, place)
    judge = Judge(args, shared, output)
    rows = [["", "guidance", "read as asked for", "KID x 1000"]]
    for scale in GUIDANCE:
        for name in ("pixels", "latents"):
            rows.append([name, f"{scale:g}", *cells(judge.drawn("space", loaded(place / name), scale))])
    through = through_autoencoder(load_autoencoder(str(place / "autoencoder")), judge.of.asked.pixels)
    rows.append(["real pictures, through the autoencoder", "", *cells(judge.of.judge(through, judge.of.asked))])
    rows.append(["real pictures", "", *cells(judge.of.of_real())])
    show(rows)
    return 0


def train(args: argparse.Namespace, shared: TrainConfig, place: Path) -> None:
    """Train both sides; `trained.json` says for how long."""
    scale, told = SCALES[args.scale], {}
    common = scale.recipe | {"lr_warmup_steps": 50, "num_copy_samples": 0, "validation_prompts": [], "load_back": False}
    pixels = replace(shared, **common, output_dir=str(place / "pixels"))
    recipe = read_named(RECIPE, AutoencoderConfig) | {"output_dir": str(place / "autoencoder"), "load_back": False}
    recipe |= {"train_data_dir": shared.train_data_dir, "resolution": [scale.size]}
    unseen = {"num_validation_samples": 0, "report_to": "none", "validation_steps": 10**6, "checkpointing_steps": 10**6}
    autoencoder = AutoencoderConfig(**recipe | unseen)

    def finish(name: str, config: TrainConfig, seconds: float, before: float = 0.0) -> None:
        """A run of as many updates as fit into so many seconds, of which some were spent before."""
        (steps,) = steps_within([seconds - before], "ours", config, args.threads)
        ended = run("ours", replace(config, max_train_steps=steps, logging_steps=steps), args.threads)
        told[name] = {"updates": steps, "processor": before + ended.processor, "wall": ended.wall}
        print(f"{name}: {steps} updates, {before + ended.processor:.0f} s of processor time", flush=True)

    finish("pixels", pixels, args.seconds)
    finish("autoencoder", autoencoder, args.share * args.seconds)
    in_latents = {"vae": str(place / "autoencoder"), "unet": read_named(f"{RECIPE}-latents")["unet"]}
    own_levels = {name: value for name, value in common.items() if name != "logit_mean"}  # that of the recipe
    latents = replace(shared, **own_levels, **in_latents, output_dir=str(place / "latents"))
    encoding = encoding_seconds(latents, args.threads)
    finish("latents", latents, args.seconds - told["autoencoder"]["processor"], before=encoding)
    (place / "trained.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def through_autoencoder(vae: Any, pixels: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Pictures (N, C, H, W) in bytes, encoded and decoded."""
    found = []
    for some in pixels.split(batch):
        found.append(whole(to_pixels(vae, to_latents(vae, unit(some)))))
    return torch.cat(found)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"space_quality: {error}")
