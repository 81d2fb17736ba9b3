# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draw pictures with a trained pipeline.

mezzotint sample runs/digits "a handwritten seven" --output seven.png
mezzotint sample runs/digits "a handwritten one" --image seven.png --strength 0.6
mezzotint sample runs/digits "a handwritten nine" --image seven.png --mask upper_half.png
mezzotint sample runs/digits-upscale --image seven.png --scale 2
mezzotint sample runs/digits-segment --image seven.png --output ink.png
mezzotint sample runs/digits-layout "a handwritten seven" --mask ink.png
mezzotint sample runs/digits --prompts_file prompts.txt --seed 3 14 15 --sampler EulerDiscreteScheduler
mezzotint sample runs/digits "a handwritten seven" --animation seven.webp
mezzotint sample --from seven.png --num_inference_steps 50
mezzotint sample runs/spoken-digits "a spoken seven" --output seven.wav --num_images_per_prompt 3
mezzotint sample runs/walks "a man in plate armour walking left" --output man.webp
mezzotint sample runs/minis "a red car" --output car.glb

Of sounds, WAV and FLAC files are written, of videos WebP, GIF and MP4, of solids VOX, GLB and PLY; of several
seven-1.wav, seven-2.wav, ...; or one picture that shows all: spectrograms, frames side by side, views.
A PNG tells how it was drawn, and --from draws it again, with what is given beside it in place of what it tells.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mezzotint
from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)
from mezzotint.drawing import Keeping, animate, arguments_of, sampler_of, samplers_of
from mezzotint_training.config.errors import UserError, exit_code, loading, one_line
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.rules import (
    ABOVE_0,
    COUNT,
    GUIDANCE,
    SEED,
    SHARE,
    SIDE,
    Rule,
    at_least,
    at_most,
    nearest,
    writable_file,
)
from mezzotint_training.config.tasks import MODALITIES
from mezzotint_training.engine.files import digest
from mezzotint_training.modalities.images import EXTENSIONS, header, open_picture
from mezzotint_training.networks.saved import load_pipeline

# What an image is for, by what it is given with and by what the weights are trained for, and what goes with it
WITH_IMAGE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "img2img": (MezzotintImg2ImgPipeline, ("image", "strength")),
    "inpaint": (MezzotintInpaintPipeline, ("image", "mask", "strength", "num_resamples")),
    "upscale": (MezzotintUpscalePipeline, ("image", "scale", "noise_level")),
    "segment": (MezzotintSegmentPipeline, ("image",)),
    "layout": (MezzotintLayoutPipeline, ("mask",)),
}
# What goes with a picture, and with which
NEEDS = {"strength": "image", "num_resamples": "mask", "scale": "image", "noise_level": "image"}
OWN = ("audio_length_in_s", "num_frames", "height", "width", "image")  # what samples that are no pictures go with
TOLD = "mezzotint"  # the text of a PNG that tells how it was drawn
UNTOLD = ("output", "animation", "device", "from", "prompts_file")  # what is of the call and not of the picture
MOVING = (".webp", ".gif", ".png")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: sample(arguments(argv)))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The arguments as given, beside those that a picture tells.

    Raises:
        UserError: for a flag that is unknown or breaks its rule, a file that is not there or holds something else.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if (picture := getattr(args, "from")) is not None:
        parser.set_defaults(**told_by(picture, parser))
        args = parser.parse_args(argv)
    if args.checkpoint is None:
        parser.error("the following arguments are required: checkpoint")
    if args.prompts_file is not None:
        with loading(f"prompts_file {args.prompts_file}"):
            lines = Path(args.prompts_file).read_text(encoding="utf-8").splitlines()
        args.prompt = [*args.prompt, *(line for line in lines if line.strip())]
    return args


def _parser() -> Parser:
    parser = Parser("sample", __doc__)
    parser.add_argument("checkpoint", type=text, nargs="?", help="a trained pipeline: a folder or a Hub name")
    parser.add_argument(
        "prompt",
        nargs="*",
        help="one or more texts, each of which becomes a row of pictures; enlarging and segmenting need none",
    )
    parser.add_argument("--prompts_file", type=text, help="a text file with more prompts, one a line")
    parser.add_argument(
        "--from", type=text, metavar="PICTURE", help="a PNG that was drawn by this command, whose arguments to take"
    )
    parser.add_argument("--output", help="the picture file to write, or of sounds, videos and solids one of their "
                        "own; by default sample.png, sample.wav, sample.webp or sample.vox")  # fmt: skip
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
        help="pictures, sounds, videos or solids for each prompt",
    )
    parser.number("num_inference_steps", int, *COUNT, help="sampling steps; by default 20, or of a distilled network "
                  "those that it is distilled to")  # fmt: skip
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to draw on")
    return parser


def sample(args: argparse.Namespace) -> None:
    """Draw the pictures that the arguments ask for, and write them.

    Raises:
        UserError: for bad input, before anything is drawn.
    """
    output, animation = None, None
    if args.output is not None:
        output = writable_file("output", Path(args.output))
        endings = [ending for kind in MODALITIES.values() for ending in kind.reader.ENDINGS]
        if output.suffix.lower() not in (*EXTENSIONS, *endings):
            raise UserError(f"output must end in one of {', '.join((*EXTENSIONS, *endings))}: got {output}")
    if args.animation is not None:
        animation = writable_file("animation", Path(args.animation))
        if animation.suffix.lower() not in MOVING:
            raise UserError(f"animation must end in one of {', '.join(MOVING)}: got {animation}")
    given = {name: value for name, value in vars(args).items() if value is not None}
    for name, needed in NEEDS.items():
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
    kind = MODALITIES[pipe.modality]
    output = output or writable_file("output", Path(f"sample{(*kind.reader.ENDINGS, '.png')[0]}"))
    if output.suffix.lower() not in (*EXTENSIONS, *kind.reader.ENDINGS):
        raise UserError(f"output must be a picture file, as {kind.word}s are drawn: got {output}")
    if args.sampler is not None:
        try:
            pipe.scheduler = sampler_of(pipe, args.sampler)
        except ValueError as error:
            raise UserError(f"{error}{nearest(args.sampler, list(samplers_of(pipe)))}") from None
    pipe, task = for_task(pipe, given, pictures)
    if said:
        task["attributes"] = attributes(said, pipe)
    prompts = args.prompt
    if not prompts and type(pipe) in (MezzotintUpscalePipeline, MezzotintSegmentPipeline):
        prompts = [""]
    if not prompts:
        raise UserError("prompt must be given, one text or more: got none")
    guidance_scale = 1.0 if args.guidance_scale is None and not args.prompt else args.guidance_scale
    steps, guidance_scale = pipe.settle_steps(args.num_inference_steps, guidance_scale)
    pipe.set_progress_bar_config(disable=None)  # but on a terminal
    seeds = seeds_of(args, len(prompts))
    per_prompt = len(seeds) // len(prompts)
    if "corrector_steps" in given and "corrector_steps" not in arguments_of(type(pipe)):
        raise UserError(f"corrector_steps is not for {type(pipe).__name__}, which these weights ask for: got it")
    task |= {name: given[name] for name in ("eta", "corrector_steps") if name in given}
    task["ensemble_size" if isinstance(pipe, MezzotintSegmentPipeline) else pipe.per_prompt] = per_prompt
    kept = Keeping()
    try:
        (images, *_) = pipe(
            prompts,
            **task,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
            negative_prompt=args.negative_prompt,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            return_dict=False,
            **(kept.arguments if animation else {}),
        )
    except ValueError as error:  # for arguments that the pipeline does not take
        raise UserError(one_line(error)) from None
    if pipe.modality != "image":
        write_samples(images, output, pipe, len(prompts), given)
        return
    images = [image.convert("RGB") if image.mode == "P" else image for image in images]
    write(make_image_grid(images, rows=len(prompts), cols=len(images) // len(prompts)), output, given)
    if animation:
        animate(kept.drawing([(image, "") for image in images]), animation)
    print(f"{len(images)} picture{'s' if len(images) > 1 else ''} of {images[0].width}x{images[0].height}: {output}")


def for_task(
    pipe: Any, given: dict[str, Any], pictures: dict[str, Image.Image]
) -> tuple[MezzotintPipeline, dict[str, Any]]:
    """The pipeline for what is given, around the components of `pipe`, and the arguments of its task.

    Raises:
        UserError: for what does not go together, or not with these weights.
    """
    trained = pipe.trained_for
    if pipe.modality != "image":
        own = arguments_of(type(pipe))
        takes = [name for name in OWN if name in own]
        unfit = [x for x in (*OWN, "mask", "animation") if x in given and x not in takes]
        if unfit:
            raise UserError(f"{unfit[0]} is not for {type(pipe).__name__}, which these weights ask for: got it")
        return pipe, {name: (given | pictures)[name] for name in takes if name in given}
    for name, word in (("audio_length_in_s", "sounds"), ("num_frames", "videos")):
        if name in given:
            raise UserError(f"{name} is for {word}, and the weights draw {pipe.word}s: got it")
    if not pictures:
        if type(pipe) is not MezzotintPipeline:  # weights that are trained for a task draw from text alone too
            pipe = MezzotintPipeline(**pipe.components)
        return pipe, {name: given.get(name) for name in ("height", "width")}
    kind = trained["task"] if trained["task"] in WITH_IMAGE else "img2img"
    if "mask" in pictures:
        kind = "inpaint" if "image" in pictures else "layout"
    cls, takes = WITH_IMAGE[kind]
    if kind == "layout" and trained["task"] != "layout":
        raise UserError("mask goes with --image: got it alone")
    if unfit := [name for name in NEEDS if name in given and name not in takes]:
        raise UserError(f"{unfit[0]} is not for {cls.__name__}, which these weights and arguments ask for: got it")
    if "scale" in given and given["scale"] != trained["scale"]:
        raise UserError(f"scale must be {trained['scale']}, which the weights are trained for: got {given['scale']}")
    task = {name: (given | pictures)[name] for name in takes if name in given and name != "scale"}
    if "mask" in task:
        task["mask_image"] = task.pop("mask")
    return cls(**pipe.components), task


def attributes(said: dict[str, str], pipe: MezzotintPipeline) -> dict[str, Any]:
    """Names and values of `--attributes`, with numbers where the network reads numbers.

    Raises:
        UserError: for a text where a number is read.
    """
    known = pipe.unet.config.get("attributes") or {}
    numeric = {name for name, about in known.items() if not isinstance(about[0], str)}
    try:
        return {name: float(value) if name in numeric else value for name, value in said.items()}
    except ValueError as error:
        raise UserError(f"attributes must be numbers where the network reads numbers: {one_line(error)}") from None


def seeds_of(args: argparse.Namespace, prompts: int) -> list[int]:
    """The seed of each picture, those of a prompt side by side: of one seed all pictures count on from it, of several
    those of each prompt do from each."""
    count = args.num_images_per_prompt
    if len(args.seed) == 1:
        return [args.seed[0] + i for i in range(prompts * count)]
    return [seed + i for seed in args.seed for i in range(count)] * prompts


def write(picture: Image.Image, output: Path, given: dict[str, Any]) -> None:
    """Write a picture; a PNG tells the arguments that drew it. It is encoded before the file is opened, which may hold
    another picture."""
    kind, encoded, about = Image.registered_extensions()[output.suffix.lower()], io.BytesIO(), {}
    if kind == "PNG":
        told = {name: value for name, value in given.items() if name not in UNTOLD}
        files = {name: digest(Path(told[name])) for name in ("image", "mask") if name in told}
        about["pnginfo"] = PngInfo()
        text = json.dumps({"version": mezzotint.__version__, "arguments": told, "sha256": files}, ensure_ascii=False)
        about["pnginfo"].add_itxt(TOLD, text)
    picture.save(encoded, kind, **about)
    output.write_bytes(encoded.getvalue())


def write_samples(drawn: list[Any], output: Path, pipe: Any, rows: int, given: dict[str, Any]) -> None:
    """Write what is no picture: each as a file of its own, or all as one picture, by the ending of `output`."""
    reader, about = MODALITIES[pipe.modality].reader, pipe.unet.config.modality
    word = f"{len(drawn)} {pipe.word}{'s' if len(drawn) > 1 else ''}"
    if output.suffix.lower() not in reader.ENDINGS:
        pictures = [reader.show(one, about, pipe.default_size) for one in drawn]
        write(make_image_grid(pictures, rows=rows, cols=len(pictures) // rows), output, given)
        print(f"{word}, shown: {output}")
        return
    names = [output]
    if len(drawn) > 1:
        names = [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, len(drawn) + 1)]
    for name, one in zip(names, drawn, strict=True):
        name.write_bytes(reader.encoded(one, output.suffix.lower(), about))
    print(f"{word}: {', '.join(map(str, names))}")


def told_by(path: str, parser: Parser) -> dict[str, Any]:
    """The arguments that a picture was drawn with.

    Args:
        path: of a PNG that this program wrote.
        parser: of this program's arguments, whose rules they keep.

    Raises:
        UserError: for a file that is not there, that holds no picture or none of this program's, or whose picture was
            made of files that have changed.
    """
    with loading(f"from {path}"):
        with Image.open(path) as picture:
            found = getattr(picture, "text", {}).get(TOLD)
        if found is None:
            raise ValueError("it does not tell how it was drawn, as a PNG of mezzotint sample does")
        told = json.loads(found)
        arguments, words = told["arguments"], []
        for name, value in arguments.items():
            if name in UNTOLD:
                raise ValueError(f"it tells {name}, which is not of a picture")
            if name not in ("checkpoint", "prompt"):
                words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
        kept = vars(parser.parse_args(words))
        kept |= {"checkpoint": text(arguments["checkpoint"]), "prompt": [text(x) for x in arguments["prompt"]]}
        for name, before in told["sha256"].items():
            if digest(Path(kept[name])) != before:
                raise ValueError(f"the {name} {kept[name]} has changed since")
    return {name: kept[name] for name in arguments}


def read(name: str, path: str) -> Image.Image:
    """The picture in a file; `name` is that of the argument, for the message.

    Raises:
        UserError: for a file that is not there, or holds no picture.
    """
    with loading(f"{name} {path}"):
        cell = {"bytes": Path(path).read_bytes(), "path": None}
        if header(cell).animated:
            raise ValueError("it has several frames: give one of them")
        return open_picture(cell)


if __name__ == "__main__":
    sys.exit(main())
