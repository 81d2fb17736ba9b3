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

from mezzotint import MezzotintPriorPipeline, MezzotintScheduler
from mezzotint_training.config.arguments import EVALUATION_DATA
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Parser
from mezzotint_training.config.recipe import data_of
from mezzotint_training.config.rules import (
    GROUPS,
    at_most,
    number,
    writable_file,
    writable_folder,
)
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples, of_channels
from mezzotint_training.data.source import fixed_items
from mezzotint_training.engine.files import hold
from mezzotint_training.learning.held_out import LEVELS, HeldOutLoss
from mezzotint_training.metrics.accuracy import accuracy, distances, figure
from mezzotint_training.metrics.copies import copies
from mezzotint_training.metrics.features import TRAINED, make_features
from mezzotint_training.metrics.intervals import average
from mezzotint_training.metrics.judges import LearnedFeatures
from mezzotint_training.metrics.likelihood import likelihood
from mezzotint_training.metrics.pictures import Real, check_seen, draw, read, real_pictures, shuffled
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.latents import Latents
from mezzotint_training.networks.saved import check_denoises, load_pipeline
from mezzotint_training.networks.towers import Embeddings, towers_of
from mezzotint_training.publishing import card

# What it says of what was trained on and held out
HELD = ("validation_split", "num_validation_samples", "max_train_samples", "modality", "sample_column")


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
    config = data_settings(args, "evaluate")
    pipe: Any = load_pipeline(args.checkpoint, device=args.device)
    by_prior = isinstance(pipe, MezzotintPriorPipeline) and pipe.prior is not None
    if (task := pipe.trained_for["task"]) not in ("text_to_image", "cascade") and not by_prior:
        raise UserError(
            f"checkpoint must be trained for text_to_image: got one for {task}, which "
            "training/benchmarks/task_quality.py measures"
        )
    if args.likelihood:
        check_pixels(pipe, "likelihood")
    if task == "cascade" and args.corrector_steps:
        raise UserError("corrector_steps is of one network: got a cascade")
    check_seen(pipe)
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
    order = shuffled(len(test.pixels), args.seed)[: args.count]
    test = test.rows(order)
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
    how |= {"eta": args.eta} | ({"corrector_steps": args.corrector_steps} if task != "cascade" else {})
    drawn = Real(draw(pipe, asked.captions, **how), asked.captions, asked.labels)
    unseen = None
    if pipe.unet.config.cross_attention_dim is not None and len(new) >= 2:
        asked = test.rows(new[torch.arange(args.count) % len(new)])
        unseen = Real(draw(pipe, asked.captions, **how), asked.captions, asked.labels)

    # 4. The figures
    results: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "settings": {k: v for k, v in vars(args).items() if k not in (*EVALUATION_DATA, "checkpoint", "output", "card")}
        | how
        | {"features": kinds, "device": str(device)},
        "data": {name: getattr(config, name) for name in EVALUATION_DATA},
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
    results["held_out_loss"] = held_out_loss(pipe, images[1], args, device) if task != "cascade" else []
    if args.likelihood:
        some = read(images[1], [], "label", as_seen=False).rows(order[: args.likelihood_count])
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


def data_settings(args: argparse.Namespace, program: str) -> TrainConfig:
    """The settings of the data for a program: those of the checkpoint's recipe, and flags over them, as `data_of`
    allows."""
    given = {name: value for name in EVALUATION_DATA if (value := getattr(args, name)) is not None}
    return TrainConfig(**data_of(args.checkpoint, given, (*EVALUATION_DATA, *HELD), program), report_to="none")


def load_for_likelihood(checkpoint: str, device: str | None, program: str) -> Any:
    """A pipeline of whose samples a likelihood can be told.

    Raises:
        UserError: for one of another task, one of latents, or one that does not denoise; `program` is what asks.
    """
    pipe: Any = load_pipeline(checkpoint, device=device)
    if (task := pipe.trained_for["task"]) != "text_to_image":
        raise UserError(f"{program} needs a checkpoint that is trained for text_to_image: got one for {task}")
    check_pixels(pipe, program)
    return pipe


def check_pixels(pipe: Any, program: str) -> None:
    """Check that the network's likelihoods are of samples; `program` is what asks.

    Raises:
        UserError: for a network of latents, or one that does not denoise.
    """
    if isinstance(pipe, MezzotintPriorPipeline):
        raise UserError(f"{program} must be of a network that reads the text: got a decoder of embeddings")
    if pipe.trained_for["task"] == "cascade":
        raise UserError(f"{program} must be of one network: got a cascade, which has none of whole pictures")
    if pipe.vae is not None:
        raise UserError(f"{program} must be of a network of pixels: got one of latents, whose bits are not of pictures")
    check_denoises(pipe)


def held_out_loss(
    pipe: Any, images: CaptionedSamples, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """The denoising loss in the middle of each quarter of the timesteps, from little noise to much."""
    unet = pipe.unet.eval()
    if pipe.vae is not None:
        images.latents = Latents(pipe.vae, images.config, SimpleNamespace(device=device))
    if pipe.trained_for["task"] == "unclip":  # of the decoder, which reads the pictures' own embeddings
        images.embeddings = Embeddings(towers_of(pipe.components), images.config, SimpleNamespace(device=device))
        images.embeds_scale = tuple(torch.tensor(pipe.trained_for[f"embeds_{name}"]) for name in ("mean", "std"))
    for name in ("mean", "std"):
        setattr(images, name, of_channels(getattr(unet.config, f"sample_{name}"), images.size))
    process = SimpleNamespace(
        process_index=0, num_processes=1, device=device, autocast=contextlib.nullcontext, gather=lambda x: x
    )

    def encode(captions: list[str]):
        if unet.config.cross_attention_dim is None or images.embeddings is not None:
            return None, None
        embeds, _, mask, _ = pipe.encode_prompt(captions, device, do_classifier_free_guidance=False)
        return embeds, mask

    items = HeldOutLoss(fixed_items(images, args.count), args.batch_size, process)
    losses = torch.from_numpy(items.losses(unet, MezzotintScheduler.from_config(pipe.scheduler.config), encode))
    return [{"level": level} | figure(average(column)) for level, column in zip(LEVELS, losses.T, strict=True)]
