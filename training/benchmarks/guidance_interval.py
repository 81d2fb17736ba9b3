# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Guidance within an interval of noise levels against guidance at all of them.

    python training/benchmarks/guidance_interval.py runs/digits
    python training/benchmarks/guidance_interval.py runs/digits --scales 2 3 4 --intervals 0.2,2 0.5,5 --count 2000

For each guidance scale, at all noise levels and within each interval (in sigma, the ratio sigma_t / alpha_t): how often
the network is looked at for a picture (a guided step with both branches counts two), how many digits are read as asked
for (by the reader of `digits_accuracy.py`) and the Fréchet distance to real test digits, in random features
(`features.py`); nothing was ever fitted on either. The floor is that of as many real training digits.

What is best on one set of noises is partly luck. So the settings are chosen on the first noises, and those chosen are
compared on fresh ones: constant guidance at its best scale by each figure, and the interval that is as good in both
figures for the fewest evaluations. Intervals are 95 % (Wilson's, and by jackknife over groups of pictures).
"""

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch

from mezzotint import MezzotintPipeline
from mezzotint_training.benchmarks.digits_accuracy import reader
from mezzotint_training.config.flags import Help
from mezzotint_training.data.digits import DIGIT_NAMES, digits
from mezzotint_training.metrics.distances import frechet_distance, gaussian
from mezzotint_training.metrics.features import RandomFeatures
from mezzotint_training.metrics.intervals import interval, jackknife, share

EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True)
class Result:
    """What one setting draws."""

    scale: float
    interval: tuple[float, float]
    evaluations: float  # of the network, a picture
    hits: int
    count: int
    distance: float
    distance_interval: tuple[float, float]

    @property
    def name(self) -> str:
        low, high = self.interval
        levels = "everywhere" if self.interval == EVERYWHERE else f"{low:g} < sigma <= {high:g}"
        return f"{self.scale:g}, {levels}" if self.scale > 1 else "off"

    def row(self) -> str:
        value, (low, high) = share(self.hits, self.count)
        accuracy = f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        distance = f"{self.distance:.3f} ({self.distance_interval[0]:.3f} to {self.distance_interval[1]:.3f})"
        return f"| {self.name} | {self.evaluations:.1f} | {accuracy} | {distance} |"


def distance_to(real: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor) -> tuple[float, tuple[float, float]]:
    """The Fréchet distance of a sample, and its interval."""
    whole = float(frechet_distance(gaussian(features), real))
    low, high = interval(whole, frechet_distance(gaussian(features[jackknife(len(features))]), real))
    return whole, (low, high)


def as_good_for_less(results: list[Result], constant: Result) -> Result | None:
    """Of what is no worse than `constant` in either figure, what costs the fewest evaluations, fewer than it does."""
    good = [
        x
        for x in results
        if x.evaluations < constant.evaluations and x.hits >= constant.hits and x.distance <= constant.distance
    ]
    return min(good, key=lambda x: (x.evaluations, x.distance), default=None)


class Measure:
    """Draws digits by one setting after the other, from the same noises."""

    def __init__(self, pipe: MezzotintPipeline, num_inference_steps: int, prompt: str):
        self.pipe, self.steps, self.prompt = pipe, num_inference_steps, prompt
        self.svm, self.ceiling = reader()
        splits = digits()
        pixels = {name: np.stack([np.asarray(x) for x in rows["image"]]) / 255 for name, rows in splits.items()}
        self.train, test = (torch.from_numpy(pixels[name]).float()[:, None] for name in ("train", "test"))
        self.features = RandomFeatures(self.train, count=16)
        self.real = gaussian(self.features(test))
        self.looked = 0
        pipe.unet.register_forward_pre_hook(self._look)

    def _look(self, _, args) -> None:
        self.looked += len(args[0])

    def __call__(self, scale: float, sigmas: tuple[float, float], count: int, seed: int) -> Result:
        self.looked, hits, pictures = 0, 0, []
        for label, name in enumerate(DIGIT_NAMES):
            drawn = self.pipe(
                self.prompt.format(name),
                num_images_per_prompt=count // 10,
                num_inference_steps=self.steps,
                guidance_scale=scale,
                guidance_interval=sigmas,
                generator=torch.Generator().manual_seed(seed * 10 + label),
                output_type="np",
            ).images
            hits += int((self.svm.predict(drawn.reshape(len(drawn), -1)) == label).sum())
            pictures.append(torch.from_numpy(drawn).permute(0, 3, 1, 2))
        features = self.features(torch.cat(pictures))
        found = distance_to(self.real, features)
        return Result(scale, sigmas, self.looked / len(features), hits, len(features), *found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", help="a pipeline trained on digits: a folder or a Hub name")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.5, 2.0, 3.0, 5.0], help="guidance scales to try")
    parser.add_argument(
        "--intervals",
        nargs="+",
        default=["0.2,2", "0.5,2", "0.5,5", "1,10", "2,20"],
        metavar="LOW,HIGH",
        help="intervals of noise levels to try, in sigma",
    )
    parser.add_argument("--count", type=int, default=400, help="pictures of each setting, a tenth for each digit")
    parser.add_argument("--fresh", type=int, default=1000, help="pictures of each setting that is compared in the end")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--prompt", default="a handwritten {}", help="the prompt, {} being the digit's name")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise")
    args = parser.parse_args(argv)

    pipe = MezzotintPipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    measure = Measure(pipe, args.num_inference_steps, args.prompt)
    chosen = torch.randperm(len(measure.train), generator=torch.Generator().manual_seed(args.seed))[: args.count]
    floor, between = distance_to(measure.real, measure.features(measure.train[chosen]))
    print(
        f"{type(pipe.scheduler).__name__}, {args.num_inference_steps} steps, {args.count} pictures of a setting; the "
        f"reader on real test digits: {100 * measure.ceiling:.1f} %; {len(chosen)} real training digits are "
        f"{floor:.3f} ({between[0]:.3f} to {between[1]:.3f}) from the test digits\n\n" + HEADER,
        flush=True,
    )
    intervals = [tuple(float(x) for x in pair.split(",")) for pair in args.intervals]
    constant, within = [], []
    for scale in [1.0, *args.scales]:
        for sigmas in [EVERYWHERE, *(intervals if scale > 1 else [])]:
            result = measure(scale, sigmas, args.count, args.seed)
            (constant if sigmas == EVERYWHERE else within).append(result)
            print(result.row(), flush=True)

    best = {min(constant, key=lambda x: x.distance), max(constant, key=lambda x: x.hits)}
    print(f"\nOn {args.fresh} fresh noises, constant guidance at its best scale and what costs less:\n\n{HEADER}")
    for result in sorted(best, key=lambda x: x.scale):
        less = as_good_for_less(within, result)
        for setting in (result, *([less] if less else [])):
            print(measure(setting.scale, setting.interval, args.fresh, args.seed + 1).row(), flush=True)
        if less is None:
            print(f"| (no interval was as good in both figures for fewer evaluations than {result.name}) | | | |")
    return 0


HEADER = "| guidance | evaluations a picture | read as asked for | Fréchet distance |\n|---|---|---|---|"


if __name__ == "__main__":
    sys.exit(main())
