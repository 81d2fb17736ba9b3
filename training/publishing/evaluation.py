# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Measures what a trained pipeline draws, for `mezzotint evaluate` and, before a publication, for `mezzotint publish`.
What the figures are is said in `evaluate.py`."""

import argparse
import contextlib
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mezzotint import MezzotintScheduler
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.recipe import PLACES, data_of
from mezzotint_training.config.rules import (
    COUNT,
    GUIDANCE,
    SHARE,
    Rule,
    at_least,
    at_most,
    number,
    writable_file,
    writable_folder,
)
from mezzotint_training.config.settings import HELP, TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples, of_channels
from mezzotint_training.data.source import fixed_items
from mezzotint_training.engine.files import hold
from mezzotint_training.learning.held_out import LEVELS, HeldOutLoss
from mezzotint_training.metrics.accuracy import accuracy, distances, figure
from mezzotint_training.metrics.copies import copies
from mezzotint_training.metrics.features import TRAINED, make_features
from mezzotint_training.metrics.intervals import GROUPS, average
from mezzotint_training.metrics.judges import LearnedFeatures
from mezzotint_training.metrics.likelihood import likelihood
from mezzotint_training.metrics.pictures import Real, draw, read, real_pictures, shuffled
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.latents import Latents
from mezzotint_training.networks.saved import check_denoises, load_pipeline
from mezzotint_training.publishing import card

# What a recipe says of its data, and flags can say in its place
DATA = (
    "dataset_name", "dataset_config_name", "train_data_dir", "dataset_split", "image_column", "caption_column",
    "on_bad_row",
)  # fmt: skip
# What it says of what was trained on and held out
HELD = ("validation_split", "num_validation_samples", "max_train_samples", "modality", "sample_column")


def arguments(parser: Parser) -> Parser:
    """The same parser, with the arguments of an evaluation."""
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder or a Hub name")
    for name in DATA:
        only = ", if that names digits; any other set must be named here" if name in PLACES else ""
        help = f"{HELP[name]}; by default that of the checkpoint's recipe{only}"
        parser.add_argument(f"--{name}", type=text, help=help, nargs="+" if name == "caption_column" else None)
    parser.add_argument("--split", type=text,
                        help="split of the held-out pictures; by default test, else what the run held out")  # fmt: skip
    parser.add_argument("--label_column", type=text, help="column of the classes; by default label, if there is one")
    many = at_most(10**6)
    parser.number("count", int, at_least(2 * GROUPS), many, default=1000,
                  help="pictures to draw, and most real ones to compare with")  # fmt: skip
    parser.number("num_inference_steps", int, *COUNT, help="sampling steps; by default the pipeline's own, 20, or of "
                  "a distilled network those that it is distilled to")  # fmt: skip
    parser.number("guidance_scale", float, *GUIDANCE, help="weight of the guidance; 1 turns it off, which is the "
                  "default of a distilled network; else 2")  # fmt: skip
    parser.number("eta", float, SHARE, default=0.0, help="noise added in each step, from the flow's, 0, to the "
                  "stochastic differential equation's, 1")  # fmt: skip
    parser.number("corrector_steps", int, at_least(0), at_most(1000), default=0,
                  help="steps of Langevin dynamics after each step but the last, each an evaluation more")  # fmt: skip
    parser.add_argument("--features", nargs="+", type=text, metavar="KIND", help="random: a fixed random network; "
                        "classifier or two-tower: trained here, on real pictures; inception: through torch-fidelity; "
                        "clip, dinov2, or any picture encoder's folder or Hub name: through transformers (default: "
                        "random, and classifier for a set with labels, else two-tower)")  # fmt: skip
    parser.number("judge_steps", int, at_least(1), many, default=1000,
                  help="updates for which the classifier or the two-tower model is trained")  # fmt: skip
    parser.number("choices", int, at_least(2), many, default=32,
                  help="most captions that the two-tower model picks from")  # fmt: skip
    parser.add_argument("--copy_features", default="pixels", metavar="KIND",
                        help="what copies are looked for in: pixels, or one of --features")  # fmt: skip
    parser.number("copy_alarms", float, Rule("between 0 and 1", lambda x: 0 < x < 1), default=0.05,
                  help="share of real pictures that may be taken for copies")  # fmt: skip
    parser.add_argument("--likelihood", action="store_true", help="also how likely held-out pictures are, in bits per "
                        "dimension, without guidance, with and without their captions")  # fmt: skip
    parser.number("likelihood_count", int, at_least(2), many, default=256, help="most pictures of --likelihood")
    parser.number("likelihood_probes", int, at_least(0), at_most(65_536), default=1,
                  help="random probes of each picture's trace (Hutchinson); 0 takes the exact trace, of small "
                  "pictures: it costs as many backward passes as there are dimensions")  # fmt: skip
    parser.number("likelihood_tolerance", float, Rule("between 0 and 0.1", lambda x: 0 < x < 0.1), default=1e-4,
                  help="tolerance of the solver of the probability flow")  # fmt: skip
    parser.number("batch_size", int, at_least(1), at_most(65_536), default=128, help="pictures drawn at a time")
    parser.number("seed", int, at_least(0), at_most(10**12), default=0,  # pictures are a million apart
                  help="seed of the drawings, of the choice of pictures and of what is trained to judge")  # fmt: skip
    parser.add_argument("--output", type=text, help="a JSON file to write all figures to")
    parser.add_argument("--card", action="store_true", help="write the figures into the checkpoint's folder, as "
                        "evaluation.json, and into its model card")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to draw on")
    return parser


def measure_and_keep(args: argparse.Namespace, parser: Parser) -> dict[str, Any]:
    """Evaluate, and with `card` put the figures into the checkpoint's folder and its card, which no other program may
    write to meanwhile.

    Args:
        args: as `parser` gives them.
        parser: with the arguments of an evaluation.

    Raises:
        UserError: as `evaluate` does.
    """
    folder = Path(args.checkpoint)
    with hold(folder, "checkpoint") if args.card and card.of_a_run(folder) else contextlib.nullcontext():
        results = evaluate(args) | {"command": command(args, parser)}
        if args.card:
            card.keep(folder, results)
    return results


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Draw pictures, measure them, and return every figure as plain data.

    Raises:
        UserError: for bad input; before anything is drawn, but for features that cannot be loaded.
    """
    folder = Path(args.checkpoint)
    if args.output:
        writable_file("output", Path(args.output))
    if args.card:
        if not card.of_a_run(folder):
            raise UserError(f"card needs the folder of a finished run, with recipe.yaml and metrics.json: got {folder}")
        writable_folder("checkpoint", folder)
        card.check(folder)
    config = data_settings(args)
    pipe: Any = load_pipeline(args.checkpoint, device=args.device)
    if (task := pipe.trained_for["task"]) != "text_to_image":
        raise UserError(
            f"checkpoint must be trained for text_to_image: got one for {task}, which "
            "training/benchmarks/task_quality.py measures"
        )
    if args.likelihood:
        if pipe.modality != "image":
            raise UserError(f"likelihood is of pictures, whose bytes it is of: got a pipeline of {pipe.word}s")
        if pipe.vae is not None:
            raise UserError(
                "likelihood must be of a network of pixels: got one of latents, whose bits are not of pictures"
            )
        check_denoises(pipe)
    device = pipe.device
    steps, scale = pipe.settle_steps(args.num_inference_steps, args.guidance_scale)
    number("num_inference_steps", int, steps, at_most(pipe.scheduler.config.num_train_timesteps))

    # 1. Real pictures, or pictures of sounds: all that were trained on, and held-out ones
    images, classes = real_pictures(config, pipe, args.split, args.label_column)
    train, test = (read(x, classes, args.label_column or "label") for x in images)
    if min(len(test.pixels), len(train.pixels)) < 2 * GROUPS:
        raise UserError(
            f"the intervals need {2 * GROUPS} or more pictures: got {len(train.pixels)} to train on and "
            f"{len(test.pixels)} held-out ones"
        )
    if args.card:
        card.check_trained_on(folder, len(train.pixels))
    test = test.rows(shuffled(len(test.pixels), args.seed)[: args.count])
    few = shuffled(len(train.pixels), args.seed)
    floor = train.rows(few[: args.count])  # independent of the held-out ones, as what is drawn for their captions is
    asked = train.rows(few[torch.arange(args.count) % len(few)])
    known = {caption for captions in train.captions for caption in captions}
    new = torch.tensor([i for i, captions in enumerate(test.captions) if captions[0] not in known])

    # 2. The judges
    kinds = args.features or ["random", "classifier" if classes else "two-tower"]
    if args.copy_features not in ("pixels", *kinds):
        raise UserError(f"copy_features must be pixels or among the features ({', '.join(kinds)}): got "
                        f"{args.copy_features!r}")  # fmt: skip
    kinds = sorted(dict.fromkeys(kinds), key=lambda kind: kind in TRAINED)  # what cannot be loaded is said at once
    features = {kind: make_features(kind, train, classes, device, args.judge_steps, args.seed) for kind in kinds}

    # 3. Pictures for captions that were trained on, and for those that were not, if there are any
    how = {"num_inference_steps": steps, "guidance_scale": scale, "batch_size": args.batch_size, "seed": args.seed}
    how |= {"eta": args.eta, "corrector_steps": args.corrector_steps}
    drawn = Real(draw(pipe, asked.captions, **how), asked.captions, asked.labels)
    unseen = None
    if pipe.unet.config.cross_attention_dim is not None and len(new) >= 2:
        asked = test.rows(new[torch.arange(args.count) % len(new)])
        unseen = Real(draw(pipe, asked.captions, **how), asked.captions, asked.labels)

    # 4. The figures
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "settings": {k: v for k, v in vars(args).items() if k not in (*DATA, "checkpoint", "output", "card")}
        | how
        | {"features": kinds},
        "data": {name: getattr(config, name) for name in DATA},
        "word": pipe.word,
        "versions": {name: importlib.metadata.version(name) for name in ("mezzotint", "torch", "diffusers")},
        "pictures": {
            "drawn": len(drawn.pixels), "held_out": len(test.pixels), "train": len(train.pixels),
            "floor": len(floor.pixels), "new_captions": len(new),
        },
        "features": {},
    }  # fmt: skip
    seen = {name: [look(x) for x in (drawn.pixels, test.pixels, floor.pixels)] for name, look in features.items()}
    for name, (of_drawn, of_test, of_floor) in seen.items():
        real = distances(of_floor, of_test)
        results["features"][name] = {k: figure(v, real[k]) for k, v in distances(of_drawn, of_test).items()}
    results["prompt_accuracy"] = {
        kind: found
        for kind, judge in features.items()
        if isinstance(judge, LearnedFeatures)
        and (found := accuracy(judge, drawn, unseen, test, args.choices, args.seed))
    }
    if args.copy_features == "pixels":
        flat = [unit(x).flatten(1).double() for x in (drawn.pixels, test.pixels, train.pixels)]
    else:
        flat = [*seen[args.copy_features][:2], features[args.copy_features](train.pixels)]
    flat = [x if device.type == "mps" else x.to(device) for x in flat]  # which knows no float64
    found = copies(*flat, rate=args.copy_alarms)
    results["copy_rate"] = figure(found.drawn, found.real) | {
        "features": args.copy_features, "threshold": found.threshold, "same": found.same,
    }  # fmt: skip
    results["held_out_loss"] = held_out_loss(pipe, images[1], args, device)
    if args.likelihood:
        some = test.rows(torch.arange(min(args.likelihood_count, len(test.pixels))))
        how = {"probes": args.likelihood_probes, "tolerance": args.likelihood_tolerance}
        results["likelihood"] = likelihood(pipe, some, **how, batch_size=args.batch_size, seed=args.seed)
    return results


# ----------------------------------------------------------------------------------------------------------- its parts


def command(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The words of the command line that measures the same, without what is at its default."""
    words = ["mezzotint", "evaluate", args.checkpoint]
    for name, value in vars(args).items():
        if name not in ("checkpoint", "output") and value != parser.get_default(name):
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def data_settings(args: argparse.Namespace) -> TrainConfig:
    """The settings of the data: those of the checkpoint's recipe, and flags over them, as `data_of` allows."""
    given = {name: value for name in DATA if (value := getattr(args, name)) is not None}
    return TrainConfig(**data_of(args.checkpoint, given, (*DATA, *HELD), "evaluate"), report_to="none")


def held_out_loss(
    pipe: Any, images: CaptionedSamples, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """The denoising loss in the middle of each quarter of the timesteps, from little noise to much."""
    unet = pipe.unet.eval()
    if pipe.vae is not None:
        images.latents = Latents(pipe.vae, images.config, SimpleNamespace(device=device))
    for name in ("mean", "std"):
        setattr(images, name, of_channels(getattr(unet.config, f"sample_{name}"), images.size))
    process = SimpleNamespace(
        process_index=0, num_processes=1, device=device, autocast=contextlib.nullcontext, gather=lambda x: x
    )

    def encode(captions: list[str]):
        if unet.config.cross_attention_dim is None:
            return None, None
        embeds, _, mask, _ = pipe.encode_prompt(captions, device, do_classifier_free_guidance=False)
        return embeds, mask

    items = HeldOutLoss(fixed_items(images, args.count), args.batch_size, process)
    losses = torch.from_numpy(items.losses(unet, MezzotintScheduler.from_config(pipe.scheduler.config), encode))
    return [{"level": level} | figure(average(column)) for level, column in zip(LEVELS, losses.T, strict=True)]
