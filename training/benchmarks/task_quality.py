# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well the tasks that start from a picture are done, each beside what one would do without it, on test pictures.

    pip install -c constraints.txt -e ".[benchmarks]"
    python training/benchmarks/task_quality.py segment --data path/to/nuclei-64 --minutes 8
    python training/benchmarks/task_quality.py layout --checkpoint runs/digits-layout
    python training/benchmarks/task_quality.py upscale --data path/to/emoji-32 --scale 2 --minutes 8
    python training/benchmarks/task_quality.py inpaint --data path/to/emoji-32 --minutes 8
    python training/benchmarks/task_quality.py attributes --minutes 3
    python training/benchmarks/task_quality.py attributes --data path/to/emoji-32 --minutes 8
    python training/benchmarks/task_quality.py img2img --checkpoint model_cards/emoji-64 --data path/to/emoji-64

- segment: Dice of the classes, and whether the map of doubt finds the errors (the chance that a wrong pixel has more
  doubt than a right one; expected calibration error of the probabilities), beside a U-Net of the same size that is
  trained by cross-entropy for the same processor time.
- layout: digits from the mask of their ink, beside the training picture whose mask is nearest.
- upscale: PSNR, and kernel distance on the features of a two-tower model, beside bicubic and Lanczos enlargement and a
  U-Net of the same size that is trained to the mean (by squares) for the same processor time; over steps, noise_level
  and guidance; and how much a picture of 500x300 in tiles changes across their edges.
- inpaint: distance in the hole and how often a two-tower model finds the caption again, over a box, a half and strokes:
  a network that is trained for it and, with one of text to image that had the same time, our loop that puts back what
  is known, and diffusers' `RePaintScheduler`; beside the nearest known pixel and biharmonic filling (scikit-image).
- attributes: digits by class and by how much ink they have, without text: how often a support vector machine of real
  digits reads the class, and how the ink of drawn ones follows what was asked for; classes 0 to 4 were trained on with
  little ink only, 5 to 9 with much. Each of the two has a weight of its own. With --data, emoji: faces by expression,
  and people by what they are and by the tone of their skin, of which half were trained on in light or dark tones only.
- img2img: faithfulness and accuracy for another picture's caption over `strength`, beside diffusers' loop with
  `DDIMScheduler` on the same weights; and how exactly a picture comes back by `invert`.

Networks are trained by `train.py`, small ones (`task_runs.UNET`) with settings that --settings changes. Grids go to
--output.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, RePaintScheduler
from PIL import Image
from scipy import ndimage, stats

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)
from mezzotint_training.benchmarks.attribute_quality import attributes
from mezzotint_training.benchmarks.digits_accuracy import reader
from mezzotint_training.benchmarks.task_runs import UNET, Set, fitted, found_again, grid, in_parts, psnr, shown
from mezzotint_training.config import plain_yaml
from mezzotint_training.config.flags import Help
from mezzotint_training.data.conditions import random_mask, shrunk
from mezzotint_training.data.digits import digits
from mezzotint_training.metrics.distances import kernel_distance
from mezzotint_training.metrics.features import make_features
from mezzotint_training.metrics.intervals import Figure, average, estimated, share
from mezzotint_training.modalities.contents import unit
from mezzotint_training.modalities.images import as_picture

# --------------------------------------------------------------------------------------------------------- segmentation


def segment(args: argparse.Namespace, root: Path) -> list[list[str]]:
    data = Set(args, 64, task="segment")
    folder, seconds = data.trained(args, root, task="segment", proportion_empty_prompts=1.0,
                                   proportion_empty_conditions=0.0)  # fmt: skip
    pixels, truth = data.test.pixels[:, :3], data.test.pixels[:, 3].bool()
    pipe = MezzotintSegmentPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    known = data.train.pixels
    masks = known[:, 3:].float()

    def inputs(rows: torch.Tensor) -> torch.Tensor:
        return unit(known[rows, :3])

    plain = fitted(
        folder, inputs, lambda y, rows: F.binary_cross_entropy_with_logits(y, masks[rows]), len(known), 1, seconds
    )
    found, pictures = [], []
    for steps, drawings in ((1, 1), (2, 1), (args.steps, 1), (2, args.samples), (args.steps, args.samples), (0, 0)):
        if drawings:
            call = {"num_inference_steps": steps, "ensemble_size": drawings, "output_type": "pt"}
            generator = torch.Generator().manual_seed(0)
            p = in_parts(lambda x, call=call, g=generator: pipe(image=x / 255, generator=g, **call).probabilities[:, 1],
                         pixels, size=16)  # fmt: skip
            name = f"{steps} step{'s' * (steps > 1)}, {drawings} drawing{'s' * (drawings > 1)}"
        else:
            p = in_parts(lambda x: plain(unit(x), torch.zeros(len(x))).sample.sigmoid()[:, 0], pixels)
            name = "U-Net by cross-entropy"
        found.append([name, str(steps * drawings or 1), *quality_of(p, truth)])
        print(found[-1], flush=True)
        pictures.append(p)
    every = len(pixels) // 12
    grid(args.output / "segment.png", [pixels[::every], *((255 * x[::every, None]).byte() for x in pictures),
                                       truth[::every, None].byte() * 255])  # fmt: skip
    return [["", "evaluations", "Dice", "doubt finds errors (AUC)", "calibration error"], *found]


def quality_of(p: torch.Tensor, truth: torch.Tensor) -> tuple[str, str, str]:
    """Of probabilities (N, H, W) of the second of two classes: the mean Dice of pictures, the chance that a wrong pixel
    has more doubt than a right one, and the expected calibration error over ten bins."""
    guess = p > 0.5
    dice = 2 * (guess & truth).sum((1, 2)) / (guess.sum((1, 2)) + truth.sum((1, 2))).clamp(min=1)
    doubt, wrong = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)), guess != truth
    a, b = doubt[wrong].numpy(), doubt[~wrong].numpy()
    finds = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) if len(a) else math.nan
    bins = (p * 10).long().clamp(max=9)
    error = sum(
        ((bins == i).float().mean() * (p[bins == i].mean() - truth[bins == i].float().mean()).abs()).item()
        for i in range(10)
        if (bins == i).any()
    )
    return shown(average(dice), 3), f"{finds:.3f}", f"{error:.4f}"


def layout(args: argparse.Namespace, root: Path) -> list[list[str]]:
    """The other way round, of digits: grey pictures from the mask of their ink, the upper half of the greys."""
    pipe = MezzotintLayoutPipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    pictures, masks, labels, texts = {}, {}, {}, {}
    for split, rows in digits().items():
        pictures[split], masks[split] = (
            torch.stack([torch.from_numpy(np.array(x)) for x in rows[name]]) for name in ("image", "mask")
        )
        labels[split], texts[split] = np.array(rows["label"]), [x[0] for x in rows["text"]]
    truth, mask, svm = pictures["test"].float() / 255, masks["test"], reader()[0]

    def drawn(prompts: list[str] | None, scale: float) -> torch.Tensor:
        call: dict[str, Any] = {"guidance_scale": scale, "num_inference_steps": args.steps, "output_type": "pt"}
        return pipe(prompts, mask, generator=torch.Generator().manual_seed(0), **call).images[:, 0]

    apart = (mask[:, None] != masks["train"]).flatten(2).sum(2)
    methods = {
        "the mask itself": mask.float() / 255,
        "the training picture of the nearest mask": pictures["train"][apart.argmin(1)].float() / 255,
        "drawn, nothing said": drawn(None, 1.0),
        "drawn, with its caption": drawn(texts["test"], 1.0),
        "drawn, with its caption, guidance 2": drawn(texts["test"], 2.0),
        "the pictures themselves": truth,
    }
    found = []
    for name, some in methods.items():
        kept = ((some >= 0.5) == (mask > 0)).float().mean((1, 2))
        far = (some - truth).square().mean((1, 2)).sqrt()
        right = share(int((svm.predict(some.flatten(1).numpy()) == labels["test"]).sum()), len(some))
        found.append([name, shown(average(kept), 3), shown(average(far), 3), shown(right, 3)])
    grid(args.output / "layout.png", [(255 * x[:12, None]).byte() for x in (mask > 0, *methods.values())])
    return [["", "pixels as the mask has them", "RMS distance to the picture", "digit read"], *found]


# ----------------------------------------------------------------------------------------------------- super-resolution


def upscale(args: argparse.Namespace, root: Path) -> list[list[str]]:
    data = Set(args, args.size, unet=UNET | {"patch_size": max(2, args.size // 16)})  # as --size has it
    folder, seconds = data.trained(args, root, task="upscale", scale=args.scale)
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    truth = data.test.pixels[: args.count]
    small = torch.stack([shrunk(x.float(), args.scale) for x in truth]).round().clamp(0, 255).byte()
    pipe = MezzotintUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    captions = [texts[0] for texts in data.test.captions[: args.count]]

    def drawn(seed: int = 0, prompted: bool = False, **call: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        call = {"num_inference_steps": args.steps, "generator": generator, "output_type": "pt"} | call
        return in_parts(
            lambda x, rows: (
                (pipe([captions[i] for i in rows] if prompted else None, x / 255, **call).images * 255).round().byte()
            ),
            small,
            torch.arange(len(small)),
        )

    known = data.train.pixels
    little = torch.stack([shrunk(x.float(), args.scale) for x in known]).round().clamp(0, 255)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x.float(), (args.size, args.size), mode="bicubic").clamp(0, 255)

    def inputs(rows: torch.Tensor) -> torch.Tensor:
        return unit(enlarged(little[rows]))

    plain = fitted(
        folder, inputs, lambda y, rows: F.mse_loss(y, unit(known[rows]) - inputs(rows)), len(known), 3, seconds
    )

    def regressed(x: torch.Tensor) -> torch.Tensor:
        base = unit(enlarged(x))
        return ((base + plain(base, torch.zeros(len(x))).sample).clamp(-1, 1) * 127.5 + 127.5).round().byte()

    lanczos = [as_picture(x).resize((args.size, args.size), Image.Resampling.LANCZOS) for x in small]
    samples = [drawn(seed) for seed in range(args.samples)]
    rows = {
        "bicubic": enlarged(small).round().byte(),
        "Lanczos": torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in lanczos]),
        "U-Net by squares": in_parts(regressed, small),
        **{f"{n} step{'s' * (n > 1)}": drawn(num_inference_steps=n) for n in (1, 2, 4)},
        f"{args.steps} steps": samples[0],
        f"{2 * args.steps} steps": drawn(num_inference_steps=2 * args.steps),
        **{f"{args.steps} steps, `noise_level` {level}": drawn(noise_level=level) for level in (0.1, 0.3)},
        **{f"{args.steps} steps, its caption, guidance {scale}": drawn(prompted=True, guidance_scale=scale)
           for scale in (1.5, 3.0)},
        f"mean of {args.samples} drawings of {args.steps} steps": torch.stack(samples).float().mean(0).round().byte(),
        "the pictures themselves": truth,
    }  # fmt: skip
    real, others, found = judge(truth), judge(known), []
    for name, pixels in rows.items():
        seen = judge(pixels)
        near = f"{1000 * kernel_distance(seen, real).item():.1f}"
        (distance,) = estimated(kernel_distance, seen, others)
        low, high = distance.interval
        far = shown(Figure(1000 * distance.value, (1000 * low, 1000 * high)), 0)
        found.append([name, shown(average(psnr(pixels, truth))), near, far])
    found[-1][1:3] = ["", ""]
    given = small[:12].repeat_interleave(args.scale, 2).repeat_interleave(args.scale, 3)
    grid(args.output / f"upscale-{args.size}.png", [given, *rows.values()])
    for line in seams(pipe, small):
        print(line, flush=True)
    return [["", "PSNR, dB", "KID x 1000 to them", "to pictures of training"], *found]


def seams(pipe: Any, small: torch.Tensor) -> list[str]:
    """How much more a picture of 500x300, a board of small ones, changes across the edges of tiles than elsewhere, by
    how far they overlap: beside what it changes there when it is enlarged without tiles."""
    rng = np.random.default_rng(0)
    columns, rows = -(-500 // small.shape[-1]), -(-300 // small.shape[-2])
    board = torch.cat([torch.cat(list(small[rng.integers(0, len(small), columns)]), dim=2) for _ in range(rows)], dim=1)
    wide, said = board[None, :, :300, :500] / 255, []
    scale = pipe.trained_for["scale"]
    plain = F.interpolate(wide, scale_factor=scale, mode="bicubic").clamp(0, 1)
    for given in (None, 1):
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 5, "output_type": "pt", "tile_overlap": given}
        big = pipe(image=wide, generator=generator, **call).images
        tile, overlap = pipe.tiles(None, given)
        ends = {x - 1 for first in range(0, big.shape[-1] - tile, tile - overlap) for x in (first, first + tile)}
        edges = sorted(ends - {-1})
        patch = pipe.unet.config.patch_size  # a network of patches changes most between them, tiles or not
        others = sorted({*range(patch - 1, big.shape[-1] - 1, patch)} - ends)
        ratios = []
        for picture in (big, plain):
            steps = picture.diff(dim=-1).abs().mean((0, 1, 2))
            ratios.append(float(steps[edges].mean() / steps[others].mean()))
        said.append(
            f"500x300 to {big.shape[-1]}x{big.shape[-2]} in tiles of {tile} that overlap by {overlap}: changes across "
            f"their edges are {ratios[0]:.3f} of others; enlarged without tiles, bicubic, {ratios[1]:.3f}"
        )
    return said


# ----------------------------------------------------------------------------------------------------------- inpainting


def inpaint(args: argparse.Namespace, root: Path) -> list[list[str]]:
    from skimage.restoration import inpaint_biharmonic

    data = Set(args, args.size)
    trained, _ = data.trained(args, root, task="inpaint")
    usual, _ = data.trained(args, root, task="text_to_image")
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    truth, captions = data.test.pixels[: args.count], data.test.captions[: args.count]
    prompts = [texts[0] for texts in captions]
    specialist = MezzotintInpaintPipeline.from_pretrained(trained)
    generalist = MezzotintInpaintPipeline(**MezzotintPipeline.from_pretrained(usual).components)
    side, n, found = args.size, args.steps, []
    masks = {"box": torch.zeros(side, side), "half": torch.zeros(side, side)}
    masks["box"][side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    masks["half"][:, side // 2 :] = 1
    rng = np.random.default_rng(0)
    strokes = [random_mask(rng, side, side) for _ in range(40 * len(truth))]
    strokes = [x for x in strokes if 0.1 < x.mean() < 0.35 and x[0].any() != x[:, 0].all()][: len(truth)]
    for kind in ("box", "half", "strokes"):
        mask = torch.stack(strokes[: len(truth)]) if kind == "strokes" else masks[kind].expand(len(truth), -1, -1)
        some = truth[: len(mask)]

        def ours(pipe: Any, some=some, mask=mask, **call: Any) -> torch.Tensor:
            pipe.set_progress_bar_config(disable=True)
            call = {"guidance_scale": 2.0, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | call
            return in_parts(
                lambda x, m, rows: (pipe([prompts[i] for i in rows], x / 255, m, **call).images * 255).round().byte(),
                some, mask, torch.arange(len(some)))  # fmt: skip

        def theirs(some=some, mask=mask) -> torch.Tensor:
            return in_parts(lambda x, m, rows: repaint(generalist, [prompts[i] for i in rows], x, m, args.steps),
                            some, mask, torch.arange(len(some)))  # fmt: skip

        methods: dict[str, tuple[int, Callable]] = {
            "nearest known pixel": (0, lambda some=some, mask=mask: torch.stack(list(map(nearest, some, mask)))),
            "biharmonic (scikit-image)": (0, lambda some=some, mask=mask: torch.stack([
                torch.from_numpy((inpaint_biharmonic(x.permute(1, 2, 0).numpy() / 255, m.numpy() > 0, channel_axis=-1)
                                  * 255).round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
                for x, m in zip(some, mask, strict=True)])),
            "put back, text-to-image weights": (n, lambda ours=ours: ours(generalist, num_inference_steps=n)),
            "put back, num_resamples 5": (5 * n, lambda ours=ours: ours(
                generalist, num_inference_steps=n, num_resamples=5)),
            "RePaintScheduler, the same weights": (evaluations(n), theirs),
            "trained for it": (n, lambda ours=ours: ours(specialist, num_inference_steps=n)),
        }  # fmt: skip
        pictures = []
        for name, (cost, method) in methods.items():
            drawn = method()
            hole = mask[:, None].expand_as(some) > 0
            error = ((drawn.float() - some.float()) / 255).square().mul(hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
            right = found_again(judge, drawn, captions, data)
            found.append([kind, name, str(cost), shown(average(error.sqrt()), 3), right])
            print(found[-1], flush=True)
            pictures.append(drawn)
        hidden = torch.where(mask[:, None] > 0, torch.tensor(128, dtype=torch.uint8), some)
        grid(args.output / f"inpaint-{kind}.png", [hidden, *pictures, some])
    found.append(["", "the pictures themselves", "", "0", found_again(judge, truth, captions, data)])
    return [["hole", "", "evaluations", "RMS distance in it", "caption found"], *found]


def nearest(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A picture whose hole holds the nearest known pixels."""
    known: Any = ndimage.distance_transform_edt(mask.numpy() > 0, return_distances=False, return_indices=True)
    return picture[:, torch.from_numpy(known[0]), torch.from_numpy(known[1])]


def _repaint(steps: int) -> RePaintScheduler:
    scheduler = RePaintScheduler(beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(steps, jump_length=2, jump_n_sample=5)
    return scheduler


def evaluations(steps: int) -> int:
    """Of the network, in RePaint's course of so many steps."""
    times = _repaint(steps).timesteps.tolist()
    return sum(t < last for t, last in zip(times, [times[0] + 1, *times], strict=False))


@torch.no_grad()
def repaint(pipe: Any, prompts: list[str], pixels: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """diffusers' `RePaintPipeline` on a network that reads text and predicts velocities: its loop and its scheduler."""
    scheduler, ours = _repaint(steps), pipe.scheduler
    scheduler.alphas_cumprod = ours.alphas_cumprod.float()
    config = pipe.unet.config
    mean, std = (torch.tensor(x).reshape(1, -1, 1, 1) for x in (config.sample_mean, config.sample_std))
    original, keep = (unit(pixels) - mean) / std, 1 - mask[:, None]
    generator = torch.Generator().manual_seed(0)
    text, none, text_mask, none_mask = pipe.encode_prompt(prompts)
    assert scheduler.timesteps is not None
    texts, masks = torch.cat([none, text]), torch.cat([none_mask, text_mask])
    x, last = torch.randn(original.shape, generator=generator), scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < last:
            uncond, cond = pipe.unet(torch.cat([x] * 2), t, texts, masks).sample.chunk(2)
            noise = ours.predict_noise(uncond + 2.0 * (cond - uncond), t, x)
            x = scheduler.step(noise, int(t), x, original, keep, generator).prev_sample
        else:
            x = scheduler.undo_step(x, int(last), generator)
        last = t
    drawn = (((x * std + mean).clamp(-1, 1) + 1) * 127.5).round().byte()
    return torch.where(mask[:, None] > 0, drawn, pixels)


# -------------------------------------------------------------------------------------------- image to image, inversion


def img2img(args: argparse.Namespace, root: Path) -> list[list[str]]:
    base = MezzotintPipeline.from_pretrained(args.checkpoint)
    size = base.unet.config.sample_size
    data = Set(args, size)
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    some = data.test.pixels[: args.count]
    # Each picture is to become what the one after it shows
    captions = [*data.test.captions[1 : args.count], data.test.captions[0]]
    prompts = [texts[0] for texts in captions]
    pipe: Any = MezzotintImg2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    features, found, pictures = judge(some), [], [some]
    schedulers = {
        "MezzotintScheduler": pipe.scheduler,
        "DDIMScheduler": DDIMScheduler.from_config(pipe.scheduler.config),
    }
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        for name, scheduler in schedulers.items():
            pipe.scheduler = scheduler
            generator = torch.Generator().manual_seed(0)
            drawn = in_parts(
                lambda x, rows, strength=strength, generator=generator: (
                    pipe([prompts[i] for i in rows], x / 255, strength, args.steps, generator=generator,
                         guidance_scale=3.0, output_type="pt").images * 255).round().byte(),
                some, torch.arange(len(some)), size=16)  # fmt: skip
            far = 1 - F.cosine_similarity(judge(drawn), features)
            right = found_again(judge, drawn, captions, data)
            found.append([f"strength {strength}", name, shown(average(psnr(drawn, some))), shown(average(far)), right])
            print(found[-1], flush=True)
            if name == "MezzotintScheduler":
                pictures.append(drawn)
    grid(args.output / "img2img.png", pictures)
    own = [texts[0] for texts in data.test.captions[: args.count]]
    cut, edited = some[:24], []
    first = type(base.scheduler).from_config(base.scheduler.config, solver_order=1)
    for steps in (10, 20, 50):
        pipe.scheduler = base.scheduler = first
        base.set_progress_bar_config(disable=True)
        noise = pipe.invert(own[: len(cut)], cut / 255, num_inference_steps=steps)
        call = {"latents": noise, "num_inference_steps": steps, "output_type": "pt"}
        back = (base(own[: len(cut)], guidance_scale=1.0, **call).images * 255).round().byte()
        edited.append((base(prompts[: len(cut)], guidance_scale=3.0, **call).images * 255).round().byte())
        found.append([f"invert, {steps} steps", "solver_order 1", shown(average(psnr(back, cut))), "", ""])
    grid(args.output / "invert.png", [cut, back, *edited])
    return [["", "scheduler", "PSNR to the picture, dB", "distance of features", "the new caption found"], *found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    tasks = {
        "segment": segment,
        "layout": layout,
        "upscale": upscale,
        "inpaint": inpaint,
        "attributes": attributes,
        "img2img": img2img,
    }
    parser.add_argument("task", choices=tasks, help="what is measured")
    parser.add_argument("--data", help="folder of the set; digits need none")
    parser.add_argument("--caption_column", default="text", help="column of captions")
    parser.add_argument("--checkpoint", help="the pipeline: of text to image for img2img, of digits for layout")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each run's training")
    parser.add_argument("--size", type=int, default=32, help="pixels a side, for upscale and inpaint")
    parser.add_argument("--scale", type=int, default=2, help="times to enlarge")
    parser.add_argument("--settings", type=plain_yaml.load, default={}, help="YAML: settings of the training runs")
    parser.add_argument("--runs", type=Path, help="folder that keeps the networks; those there are not trained anew")
    parser.add_argument("--flip", action="store_true", help="mirror half of the training pictures")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--samples", type=int, default=8, help="drawings of a picture, for means and doubt")
    parser.add_argument("--count", type=int, default=192, help="test pictures")
    parser.add_argument("--judge_steps", type=int, default=500, help="updates of the model that judges")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the grids and the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        rows = tasks[args.task](args, args.runs or Path(root))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    print("\n".join(lines))
    (args.output / f"{args.task}.json").write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
