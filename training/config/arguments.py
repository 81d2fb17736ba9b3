# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What each program takes on its command line. Neither a program nor anything heavy is imported for it, so that help
and refusals come at once."""

import argparse
import ast
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.cascade import Stages
from mezzotint_training.config.distillation import FOLLOWS, DistillConfig
from mezzotint_training.config.flags import Parser, add_settings, parse_args, text
from mezzotint_training.config.prior import PriorConfig
from mezzotint_training.config.recipe import PLACES
from mezzotint_training.config.rules import (
    ABOVE_0,
    COUNT,
    GROUPS,
    GUIDANCE,
    LEAST_ROUNDS,
    LONGEST,
    SEED,
    SHARE,
    SIDE,
    Rule,
    at_least,
    at_most,
)
from mezzotint_training.config.settings import HELP, TrainConfig
from mezzotint_training.config.towers import TwoTowersConfig

# Programs that take the settings of a run and nothing beside them, and what reads these
RUNS: dict[str, Callable[[list[str], str], Any]] = {
    "train": parse_args,
    "train-autoencoder": partial(parse_args, kind=AutoencoderConfig),
    "train-cascade": Stages.parsed,
    "train-two-towers": partial(parse_args, kind=TwoTowersConfig),
    "train-prior": partial(parse_args, kind=PriorConfig),
}
# The settings of `train.py` that `train-classifier` takes too, and the defaults that differ
CLASSIFIER_SETTINGS = (
    "dataset_name", "dataset_config_name", "train_data_dir", "dataset_split", "image_column", "sample_column",
    "resolution", "random_flip", "max_train_samples", "validation_split", "num_validation_samples", "on_bad_row",
    "dataloader_num_workers", "seed", "train_batch_size", "max_train_steps", "learning_rate", "lr_scheduler",
    "lr_warmup_steps", "adam_weight_decay", "max_grad_norm", "num_cpu_threads_per_process", "use_ema", "ema_decay",
    "mixed_precision", "logging_steps", "output_dir",
)  # fmt: skip
CLASSIFIER_DEFAULTS = {
    "max_train_steps": 500,
    "adam_weight_decay": 0.05,
    "logging_steps": 100,
    "output_dir": "runs/classified",
}
# What a recipe says of its data, and flags of `evaluate` can say in its place
EVALUATION_DATA = (
    "dataset_name", "dataset_config_name", "train_data_dir", "dataset_split", "image_column", "caption_column",
    "on_bad_row",
)  # fmt: skip
# Settings by which `doctor` reads a data set
DOCTOR_DATA = (
    "dataset_config_name", "dataset_split", "image_column", "caption_column", "resolution", "mask_column", "task"
)  # fmt: skip


def docstring(program: str) -> str | None:
    """What a program says of itself, by the text of its file."""
    path = Path(__file__).parents[1] / f"{program.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def parser_of(program: str) -> Parser:
    """The parser of one of `TAKES`, by its name on the command line."""
    parser = Parser(program, docstring(program))
    TAKES[program](parser)
    return parser


def check(program: str, argv: list[str]) -> None:
    """Show a program's help, or refuse its arguments, as far as can be told without it.

    Raises:
        UserError: for arguments that the program does not take.
    """
    if program in RUNS:
        RUNS[program](argv, docstring(program) or "")
    elif program in TAKES:
        parser_of(program).parse_args(argv)


def device(parser: Parser, purpose: str) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help=f"device to {purpose} on; by default cuda where there is one, or else cpu")


def train_classifier(parser: Parser) -> None:
    parser.add_argument(
        "--pipeline", type=text, required=True, help="the pipeline to be steered: a folder or a Hub name"
    )
    parser.add_argument(
        "--label_column", type=text, default="label", help="column of the classes, by number or by name"
    )
    parser.add_argument("--classifier", default="{}", help="arguments of MezzotintClassifier that differ from those of "
                        "the pipeline's U-Net, as YAML; by default none")  # fmt: skip
    parser.add_argument("--only_classifier", action="store_true", help="write the classifier without the pipeline")
    for f in fields(TrainConfig):
        if f.name in CLASSIFIER_SETTINGS:
            kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"metavar": ""}
            many = {"nargs": "+"} if f.name == "resolution" else {}
            default = CLASSIFIER_DEFAULTS.get(f.name, f.default)
            help = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
            parser.add_argument(f"--{f.name}", default=default, help=help, **kind, **many)


def sample(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=text, nargs="?", help="a trained pipeline: a folder or a Hub name")
    parser.add_argument(
        "prompt",
        nargs="*",
        help="one or more texts, each of which becomes a row of pictures; enlarging, segmenting and variations need "
        "none",
    )
    parser.add_argument("--prompts_file", type=text, help="a text file with more prompts, one a line")
    parser.add_argument(
        "--from", type=text, metavar="PICTURE", help="a PNG that was drawn by this command, whose arguments to take"
    )
    parser.add_argument("--output", help="the picture file to write, or of sounds, videos, solids and molecules one of "
                        "their own; by default sample.png, sample.wav, .webp, .vox or .smi")  # fmt: skip
    parser.add_argument(
        "--animation",
        type=text,
        help="a WebP, GIF or PNG file for the steps: the noisy sample on the left, what is foreseen in it on the right",
    )
    parser.number(
        "num_images_per_prompt",
        int,
        at_least(1),
        at_most(1000),
        default=1,
        help="pictures (sounds, videos, ...) for each prompt",
    )
    parser.number("num_inference_steps", int, *COUNT, help="sampling steps, of a cascade its base's; by default 20, 4 "
                  "of an upscaler, or of a distilled network those that it is distilled to")  # fmt: skip
    parser.add_argument(
        "--sampler", help="a scheduler of diffusers by name, such as DDIMScheduler; by default the checkpoint's own"
    )
    parser.number(
        "guidance_scale",
        float,
        *GUIDANCE,
        help="weight of the guidance; by default 2; and 1, which is none, without a prompt or of a distilled network",
    )
    parser.number("eta", float, SHARE, help="noise added in each step, from 0, the flow, to 1, the stochastic "
                  "differential equation; by default none")  # fmt: skip
    parser.number("corrector_steps", int, at_least(0), at_most(1000), help="steps of Langevin dynamics after each step "
                  "but the last, each an evaluation more; by default none")  # fmt: skip
    parser.number("dynamic_thresholding_ratio", float, Rule("above 0 and up to 1", lambda x: 0 < x <= 1),
                  help="quantile of what is foreseen, by which strong guidance is kept from saturating, say 0.995, or "
                  "0.01 for pictures on white or black; by default none")  # fmt: skip
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
        "with weights that are trained for it, or to vary; or the first frame of a video",
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
        help="part of the steps that is taken from the picture, sound, video or molecule on; by default 0.8, and 1 "
        "with a mask; of variations how far the embedding is turned towards the prompt, by default 0.5",
    )
    parser.add_argument("--audio", type=text, help="a sound file to start from, as long as which the drawn ones are")
    parser.add_argument("--video", type=text, help="a video file to start from, of whose frames' number and size the "
                        "drawn ones are")  # fmt: skip
    parser.add_argument("--molecule", type=text, help="a molecule to start from, in the notation that is drawn")
    parser.add_argument("--fragment", type=text, help="tokens of a molecule that each drawn one begins with")
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
        help="noise mixed into the image that is enlarged, so that its faults are drawn anew; by default none, or 0.1 "
        "between the stages of a cascade",
    )
    parser.number("audio_length_in_s", float, ABOVE_0, help="seconds of each sound; by default as it is drawn")
    parser.number("num_frames", int, at_least(2), at_most(4096), help="frames of each video; by default as trained")
    parser.number("height", int, *SIDE, help="height of the pictures in pixels; by default as trained")
    parser.number("width", int, *SIDE, help="width of the pictures in pixels; by default as trained")
    parser.number(
        "seed",
        int,
        *SEED,
        nargs="+",
        default=[0],
        help="seed of the starting noise; of several, every row has those of each, so that prompts can be compared",
    )
    device(parser, "draw")


def fit_scheduler(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder, or a Hub name with --output_dir")
    steps = (Rule("at least 2, one step has nothing to fit", lambda x: x >= 2), at_most(100))
    parser.number("steps", int, *steps, nargs="+", default=[4, 5, 6, 8, 10],
                  help="numbers of sampling steps, each of which gets a table")  # fmt: skip
    parser.number("guidance_scale", float, *GUIDANCE, nargs="+",
                  help="guidance scales to fit at, 1 being off; by default the recipe's, else 2")  # fmt: skip
    parser.add_argument("--prompts", nargs="+", help="prompts to fit on; by default the recipe's validation_prompts")
    trajectories = (at_least(2), at_most(100_000))
    parser.number("noises", int, *trajectories, default=40, help="trajectories to fit on, and as many to judge on")
    parser.number("correction_noises", int, at_least(0), at_most(100_000),
                  help="more trajectories, to fit the correction of the end on, rounded up to a multiple of noises; by "
                  "default as many as have 64,000 places, from 160 to 1,000; 0 for none")  # fmt: skip
    parser.number("teacher_steps", int, *COUNT, default=100, help="steps of each trajectory that is followed")
    parser.add_argument("--stock", choices=["common", "all"], default="common",
                        help="solvers of diffusers that a table must beat")  # fmt: skip
    parser.number("starts", int, *COUNT, help="number of solvers to start from; by default 36 / steps, at least 4")
    parser.number("history", int, *COUNT,
                  help="earlier predictions that a step reads; by default all up to 10 steps, else 4")  # fmt: skip
    parser.add_argument("--refit", action="store_true", help="fit anew what the checkpoint has a table for")
    parser.add_argument(
        "--output_dir", type=text, help="write a copy of the pipeline there, and leave the checkpoint as it is"
    )
    parser.number("seed", int, *SEED, default=0, help="seed of the trajectories' noises")
    device(parser, "fit")


def distill(parser: Parser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("checkpoint", type=text, help="the teacher: a finished pipeline, a folder or a Hub name")
    add_settings(parser, DistillConfig, FOLLOWS)


def pictures_of_a_set(parser: Parser) -> None:
    """Add what says which pipeline is looked at, and by which real pictures."""
    parser.add_argument("checkpoint", type=text, help="a trained pipeline: a folder or a Hub name")
    for name in EVALUATION_DATA:
        only = ", if that names a set that comes with mezzotint; any other must be named here" if name in PLACES else ""
        help = f"{HELP[name]}; by default that of the checkpoint's recipe{only}"
        parser.add_argument(f"--{name}", type=text, help=help, nargs="+" if name == "caption_column" else None)
    parser.add_argument("--split", type=text,
                        help="split of the held-out pictures; by default test, else what the run held out")  # fmt: skip
    parser.add_argument("--label_column", type=text, help="column of the classes; by default label, if there is one")


def evaluate(parser: Parser) -> None:
    pictures_of_a_set(parser)
    many = at_most(10**6)
    parser.number("count", int, at_least(2 * GROUPS), many, default=1000,
                  help="pictures to draw, and most real ones to compare with")  # fmt: skip
    parser.number("num_inference_steps", int, *COUNT, help="sampling steps, of a cascade its base's; by default the "
                  "pipeline's own, 20, or of a distilled network those that it is distilled to")  # fmt: skip
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
    parser.add_argument("--likelihood", action="store_true", help="also how likely held-out samples are, in bits per "
                        "dimension, without guidance, with and without their captions")  # fmt: skip
    parser.number("likelihood_count", int, at_least(2), many, default=256, help="most samples of --likelihood")
    parser.number("likelihood_probes", int, at_least(0), at_most(65_536), default=1,
                  help="random probes of each sample's trace (Hutchinson); 0 takes the exact trace, of small "
                  "samples: it costs as many backward passes as there are dimensions")  # fmt: skip
    parser.number("likelihood_tolerance", float, Rule("between 0 and 0.1", lambda x: 0 < x < 0.1), default=1e-4,
                  help="tolerance of the solver of the probability flow")  # fmt: skip
    parser.number("batch_size", int, at_least(1), at_most(65_536), default=128, help="pictures drawn at a time")
    parser.number("seed", int, at_least(0), at_most(10**12), default=0,  # pictures are a million apart
                  help="seed of the drawings, of the choice of pictures and of what is trained to judge")  # fmt: skip
    parser.add_argument("--output", type=text, help="a JSON file to write all figures to")
    parser.add_argument("--card", action="store_true", help="write the figures into the checkpoint's folder, as "
                        "evaluation.json, and into its model card")  # fmt: skip
    device(parser, "draw")


def classify(parser: Parser) -> None:
    pictures_of_a_set(parser)
    parser.add_argument("images", nargs="*", metavar="SAMPLE", type=text,
                        help="files of pictures, sounds or videos to classify, or strings of molecules")  # fmt: skip
    parser.add_argument("--captions", nargs="+", type=text, help="captions to choose from, two or more")
    parser.number("count", int, at_least(1), at_most(10**6), default=256, help="most held-out samples to classify")
    parser.number("rounds", int, at_least(LEAST_ROUNDS), at_most(10_000), default=32,
                  help="looks at a sample before the likeliest caption is taken where none is clearly so")  # fmt: skip
    parser.number("batch_size", int, at_least(1), at_most(65_536), default=256,
                  help="pairs of a sample and a caption at a time")  # fmt: skip
    parser.number("seed", int, at_least(0), at_most(10**10), default=0, help="seed of the noise and of the choice")
    parser.add_argument("--output", type=text, help="a JSON file for the verdicts")
    device(parser, "work")


def outliers(parser: Parser) -> None:
    pictures_of_a_set(parser)
    parser.number("count", int, at_least(2 * GROUPS), at_most(10**6), default=1000,
                  help="most samples of each kind, trained on and held out, to look at")  # fmt: skip
    parser.number("deviations", float, Rule("above 0", lambda x: x > 0), default=4.0,
                  help="robust standard deviations from the median that make a sample an outlier")  # fmt: skip
    parser.number("top", int, at_least(1), at_most(10**6), default=10, help="rows of each kind to print")
    parser.number("batch_size", int, at_least(1), at_most(65_536), default=128, help="samples at a time")
    parser.number("seed", int, at_least(0), at_most(10**12), default=0, help="seed of the noise and of the choice")
    parser.add_argument("--output", type=text, help="a JSON file for all figures and rows")
    device(parser, "work")


def ema(parser: Parser) -> None:
    parser.add_argument("run_dir", type=text, help="a finished run's output_dir")
    parser.number("length", float, required=True, help=f"length of the average, above 0 and below {LONGEST:.4f}")
    parser.number("step", int, help="snapshot at which the average ends; by default the last")
    parser.add_argument("--output", type=text, required=True, help="the folder to write, new or empty")


def publish(parser: Parser) -> None:
    parser.add_argument("folder", type=text, help="a finished run's output_dir")
    parser.add_argument("--hub_model_id", type=text, required=True, help="user/name of the repository to upload to")
    parser.add_argument("--private", "--hub_private_repo", dest="private", action="store_true",
                        help="upload to a private repository only")  # fmt: skip
    parser.add_argument("--revision", type=text, help="branch to upload to, made where it is missing; by default main")
    parser.add_argument("--dry_run", action="store_true",
                        help="make all checks, list what would go up, and change nothing")  # fmt: skip
    parser.add_argument("--license", type=text, help="licence of the weights, for a card that names none")
    parser.add_argument(
        "--replace_card", action="store_true", help="replace a card on the Hub that somebody wrote or edited by hand"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="the pipeline that adapters were trained for; by default the one that their recipe names",
    )
    parser.add_argument("--prompt", help="prompt of the picture that is compared; by default the card's first")
    parser.add_argument("--trust_remote_code", action="store_true",
                        help="let the checks run code in the folder that is not the installed package's")  # fmt: skip
    parser.add_argument("--no-evaluate", dest="evaluate", action="store_false",
                        help="publish a run that was not evaluated as it is")  # fmt: skip
    for name in PLACES:
        parser.add_argument(f"--{name}", type=text, help=f"{HELP[name]}; of the run, to evaluate it by")


def doctor(parser: Parser) -> None:
    parser.add_argument("what", nargs="?", type=text, help="a folder with a run, a pipeline or pictures, or a data "
                        "set's name; by default the installation alone")  # fmt: skip
    parser.add_argument("--hub_model_id", type=text, help="user/name to publish a folder as")
    parser.add_argument("--trust_remote_code", action="store_true",
                        help="let code in the folder run that is not the installed package's")  # fmt: skip
    for name in DOCTOR_DATA:
        many = "+" if name in ("caption_column", "resolution") else None
        parser.add_argument(f"--{name}", nargs=many, help=f"{HELP[name]}; of a data set")


TAKES: dict[str, Callable[[Parser], None]] = {
    "train-classifier": train_classifier, "sample": sample, "fit-scheduler": fit_scheduler, "distill": distill,
    "evaluate": evaluate, "classify": classify, "outliers": outliers, "ema": ema, "publish": publish,
    "doctor": doctor,
}  # fmt: skip
