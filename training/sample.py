# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Draw pictures with a trained pipeline.

mezzotint sample runs/digits "a handwritten seven" --output seven.png
mezzotint sample runs/digits "a handwritten one" --image seven.png --strength 0.6
mezzotint sample runs/digits "a handwritten nine" --image seven.png --mask upper_half.png
mezzotint sample runs/digits-upscale --image seven.png --scale 2
mezzotint sample runs/digits-segment --image seven.png --output ink.png
mezzotint sample runs/digits-unclip --image seven.png --num_images_per_prompt 4
mezzotint sample runs/digits-layout "a handwritten seven" --mask ink.png
mezzotint sample runs/digits-cascade "a handwritten seven" --noise_level 0.2
mezzotint sample runs/digits --prompts_file prompts.txt --seed 3 14 15 --sampler EulerDiscreteScheduler
mezzotint sample runs/digits "a handwritten seven" --animation seven.webp
mezzotint sample --from seven.png --num_inference_steps 50
mezzotint sample runs/spoken-digits "a spoken seven" --output seven.wav --num_images_per_prompt 3
mezzotint sample runs/walks "a man in plate armour walking left" --output man.webp
mezzotint sample runs/minis "a red car" --output car.glb
mezzotint sample runs/spoken-digits "a spoken six" --audio seven.wav --strength 0.6 --output six.wav

Of sounds, WAV and FLAC files are written, of videos WebP, GIF and MP4, of solids VOX, GLB and PLY; of several
seven-1.wav, seven-2.wav, ...; of molecules a line each, as SMILES (.smi) or as they are drawn (.txt); or one picture
that shows all: spectrograms, frames side by side, views.
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
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

import mezzotint
from mezzotint import (
    MezzotintCascadePipeline,
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintPriorPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
    MezzotintVariationPipeline,
    samples,
)
from mezzotint.drawing import Keeping, animate, arguments_of, sampler_of, samplers_of
from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import UserError, exit_code, loading, one_line
from mezzotint_training.config.flags import Parser, text
from mezzotint_training.config.rules import (
    nearest,
    writable_file,
)
from mezzotint_training.config.tasks import MODALITIES
from mezzotint_training.engine.files import digest
from mezzotint_training.modalities.contents import unit
from mezzotint_training.modalities.images import EXTENSIONS, header, open_picture
from mezzotint_training.networks.saved import load_pipeline

# What an image is for, by what it is given with and by what the weights are trained for, and what goes with it
WITH_IMAGE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "img2img": (MezzotintImg2ImgPipeline, ("image", "strength")),
    "inpaint": (MezzotintInpaintPipeline, ("image", "mask", "strength", "num_resamples")),
    "upscale": (MezzotintUpscalePipeline, ("image", "scale", "noise_level")),
    "segment": (MezzotintSegmentPipeline, ("image",)),
    "layout": (MezzotintLayoutPipeline, ("mask",)),
    "unclip": (MezzotintVariationPipeline, ("image", "strength")),
}
TEXTLESS = (MezzotintUpscalePipeline, MezzotintSegmentPipeline, MezzotintVariationPipeline)  # which need no prompt
# What goes with something that is given, and with what
NEEDS = {"strength": ("image", "audio", "video", "molecule"), "num_resamples": ("mask",), "scale": ("image",)}
# Arguments that some pipelines have
OF_SOME = ("eta", "corrector_steps", "dynamic_thresholding_ratio", "negative_prompt")
# What samples that are no pictures go with
OWN = ("audio_length_in_s", "num_frames", "height", "width", "image", "audio", "video", "molecule", "fragment",
       "strength")  # fmt: skip
OF_OTHERS = {"audio_length_in_s": "sounds", "audio": "sounds", "num_frames": "videos", "video": "videos",
             "molecule": "molecules", "fragment": "molecules"}  # fmt: skip
FILES = ("image", "mask", "audio", "video")  # what is given as files
LINES = (".smi", ".txt")  # files in which a sample is a line
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
    parser = parser_of("sample")
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


def sample(args: argparse.Namespace) -> None:
    """Draw the pictures that the arguments ask for, and write them.

    Raises:
        UserError: for bad input, before anything is drawn.
    """
    output, animation = None, None
    if args.output is not None:
        output = writable_file("output", Path(args.output))
        endings = [ending for name in MODALITIES for ending in samples.of(name).ENDINGS]
        if output.suffix.lower() not in (*EXTENSIONS, *endings):
            raise UserError(f"output must end in one of {', '.join((*EXTENSIONS, *endings))}: got {output}")
    if args.animation is not None:
        animation = writable_file("animation", Path(args.animation))
        if animation.suffix.lower() not in MOVING:
            raise UserError(f"animation must end in one of {', '.join(MOVING)}: got {animation}")
    given = {name: value for name, value in vars(args).items() if value is not None}
    for name, needed in NEEDS.items():
        if name in given and not any(other in given for other in needed):
            raise UserError(f"{name} goes with --{' or --'.join(needed)}: got it alone")
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
    own_endings = samples.of(pipe.modality).ENDINGS
    output = output or writable_file("output", Path(f"sample{(*own_endings, '.png')[0]}"))
    if output.suffix.lower() not in (*EXTENSIONS, *own_endings):
        own = f", or end in {' or '.join(own_endings)}" if own_endings else ""
        raise UserError(f"output must be a picture file{own}, as {kind.word}s are drawn: got {output}")
    if args.sampler is not None:
        try:
            pipe.scheduler = sampler_of(pipe, args.sampler)
        except ValueError as error:
            raise UserError(f"{error}{nearest(args.sampler, list(samplers_of(pipe)))}") from None
    pipe, task = for_task(pipe, given, pictures)
    if said:
        task["attributes"] = attributes(said, pipe)
    prompts = args.prompt
    if not prompts and type(pipe) in TEXTLESS:
        prompts = [""]
    if not prompts:
        raise UserError("prompt must be given, one text or more: got none")
    guidance_scale = 1.0 if args.guidance_scale is None and not args.prompt else args.guidance_scale
    steps, guidance_scale = pipe.settle_steps(args.num_inference_steps, guidance_scale)
    pipe.set_progress_bar_config(disable=None)  # but on a terminal
    seeds = seeds_of(args, len(prompts))
    per_prompt = len(seeds) // len(prompts)
    for name in OF_SOME:
        if name in given and name not in arguments_of(type(pipe)):
            raise UserError(f"{name} is not for {type(pipe).__name__}, which these weights ask for: got it")
    task |= {name: given[name] for name in OF_SOME if name in given}
    task["ensemble_size" if isinstance(pipe, MezzotintSegmentPipeline) else pipe.per_prompt] = per_prompt
    kept = Keeping()
    try:
        (images, *_) = pipe(
            prompts,
            **task,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            return_dict=False,
            **(kept.arguments if animation else {}),
        )
    except ValueError as error:  # for arguments that the pipeline does not take
        raise UserError(one_line(error)) from None
    if pipe.modality != "image":
        write_samples(images, output, pipe, len(prompts), given)
        return
    classes = images[0] if len(images) == 1 and images[0].mode == "P" else None
    images = [image.convert("RGB") if image.mode == "P" else image for image in images]
    picture = make_image_grid(images, rows=len(prompts), cols=len(images) // len(prompts))
    if classes is not None and output.suffix.lower() == ".png":
        picture = classes  # a map of classes keeps their numbers, by which --mask reads it
    write(picture, output, given)
    if animation:
        try:
            animate(kept.drawing([(image, "") for image in images]), animation)
        except ValueError as error:
            raise UserError(f"{error}; {output} has the picture") from None
    print(f"{len(images)} picture{'s' if len(images) > 1 else ''} of {images[0].width}x{images[0].height}: {output}")


def for_task(pipe: Any, given: dict[str, Any], pictures: dict[str, Image.Image]) -> tuple[Any, dict[str, Any]]:
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
        samples_given = {name: read_sample(name, given[name], pipe) for name in ("audio", "video") if name in given}
        return pipe, {name: (given | pictures | samples_given)[name] for name in takes if name in given}
    for name, word in OF_OTHERS.items():
        if name in given:
            raise UserError(f"{name} is for {word}, and the weights draw {pipe.word}s: got it")
    if isinstance(pipe, MezzotintCascadePipeline):
        if pictures:
            raise UserError(f"{next(iter(pictures))} is not for a cascade, which draws from text alone: leave it out")
        return pipe, {name: given[name] for name in ("height", "width", "noise_level") if name in given}
    if not pictures and trained["task"] == "unclip":
        return MezzotintPriorPipeline(**pipe.components), {name: given.get(name) for name in ("height", "width")}
    if not pictures:
        if "noise_level" in given:
            raise UserError("noise_level goes with --image, or a cascade: got it alone")
        if type(pipe) is not MezzotintPipeline:  # weights that are trained for a task draw from text alone too
            pipe = MezzotintPipeline(**pipe.components)
        return pipe, {name: given.get(name) for name in ("height", "width")}
    kind = trained["task"] if trained["task"] in WITH_IMAGE else "img2img"
    if "mask" in pictures and kind == "unclip":
        raise UserError("mask is not for weights of unclip, which draw variations of a picture: leave it out")
    if "mask" in pictures:
        kind = "inpaint" if "image" in pictures else "layout"
    elif kind in ("inpaint", "layout"):  # weights that read a mask start from a picture without one too
        kind = "img2img"
    cls, takes = WITH_IMAGE[kind]
    if kind == "layout" and trained["task"] != "layout":
        raise UserError("mask goes with --image: got it alone")
    if unfit := [name for name in (*NEEDS, "noise_level") if name in given and name not in takes]:
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
        files = {name: digest(Path(told[name])) for name in FILES if name in told}
        about["pnginfo"] = PngInfo()
        text = json.dumps({"version": mezzotint.__version__, "arguments": told, "sha256": files}, ensure_ascii=False)
        about["pnginfo"].add_itxt(TOLD, text)
    picture.save(encoded, kind, **about)
    output.write_bytes(encoded.getvalue())


def write_samples(drawn: list[Any], output: Path, pipe: Any, rows: int, given: dict[str, Any]) -> None:
    """Write what is no picture: each as a file of its own, or all as one picture, by the ending of `output`."""
    kind, about = samples.of(pipe.modality), pipe.unet.config.modality
    word = f"{len(drawn)} {pipe.word}{'s' if len(drawn) > 1 else ''}"
    if output.suffix.lower() not in kind.ENDINGS:
        pictures = [kind.show(one, about, pipe.default_size) for one in drawn]
        write(make_image_grid(pictures, rows=rows, cols=len(pictures) // rows), output, given)
        print(f"{word}, shown: {output}")
        return
    files, names = [kind.encoded(one, output.suffix.lower(), about) for one in drawn], [output]
    if output.suffix.lower() in LINES:
        files = [b"".join(files)]
    if len(files) > 1:
        names = [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, len(files) + 1)]
    for name, content in zip(names, files, strict=True):
        name.write_bytes(content)
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
    return {name: kept[name] for name in arguments if kept[name] != []}  # argparse warns of a default of no prompt


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


def read_sample(name: str, path: str, pipe: Any) -> Any:
    """The sound (channels, samples) or the frames of a file, as the pipeline takes them; `name` is that of the
    argument, for the message.

    Raises:
        UserError: for a file that is not there, or holds no such thing.
    """
    reader, cell = MODALITIES[pipe.modality].reader, {"path": path, "bytes": None}
    with loading(f"{name} {path}"):
        Path(path).open("rb").close()
        if name == "audio":
            waveform = {"sampling_rate": pipe.sampling_rate}
            size = (reader.header(cell, waveform).length,)
            return unit(reader.read(cell, pipe.channels, size, waveform)[:-1])  # the last says where there is sound
        if Path(path).suffix.lower() in EXTENSIONS:  # pictures of several frames, as this program writes
            with Image.open(path) as picture:
                return [frame.copy() for frame in ImageSequence.Iterator(picture)]
        found = reader.header(cell)
        size = (reader.at_rate(found, pipe.frame_rate), found.height, found.width)
        frames = reader.read(cell, pipe.channels, size, pipe.unet.config.modality)  # (C, T, H, W)
        return (unit(frames).movedim(0, -1) / 2 + 0.5).numpy()


if __name__ == "__main__":
    sys.exit(main())
