# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How often a drawn digit is read as the one that was asked for.

    python training/benchmarks/digits_accuracy.py runs/digits
    python training/benchmarks/digits_accuracy.py runs/digits --schedulers DDIMScheduler UniPCMultistepScheduler
    python training/benchmarks/digits_accuracy.py runs/classified --guidance_scale 1 --classifier_scale 0 1 2 4
    python training/benchmarks/digits_accuracy.py runs/classified --guidance_scale 1 --classifier_scale 1 2 --prompt ""

The reader is a support vector machine trained on scikit-learn's real digits (the training split; its accuracy on the
test split is printed beside the result, as the ceiling). It is never used for fitting anything.
"""

import argparse
import sys

import diffusers
import numpy as np
import torch
from sklearn.svm import SVC

from mezzotint import MezzotintPipeline
from mezzotint_training.config.flags import Help
from mezzotint_training.data.digits import DIGIT_NAMES, digits
from mezzotint_training.metrics.intervals import share


def reader() -> tuple[SVC, float]:
    """The support vector machine, and its accuracy on real test digits."""
    splits = digits()
    pixels = {name: np.stack([np.asarray(x).ravel() / 255 for x in rows["image"]]) for name, rows in splits.items()}
    svm = SVC(C=10, gamma=0.001 * 16**2).fit(pixels["train"], splits["train"]["label"])  # pixels in [0, 1]
    return svm, svm.score(pixels["test"], splits["test"]["label"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("checkpoint", help="a pipeline trained on digits: a folder or a Hub name")
    parser.add_argument("--count", type=int, default=1000, help="pictures to draw, a tenth for each digit")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="weight of the guidance; 1 turns it off")
    parser.add_argument("--eta", type=float, default=0.0, help="noise added in each step, from 0 to 1")
    parser.add_argument("--corrector_steps", type=int, default=0,
                        help="steps of Langevin dynamics after each step but the last")  # fmt: skip
    parser.add_argument("--schedulers", nargs="+", default=[],
                        help="schedulers of diffusers to draw with instead of the checkpoint's own")  # fmt: skip
    parser.add_argument("--classifier_scale", type=float, nargs="+", default=[0.0], help="weights of the "
                        "gradient of the pipeline's classifier of digits, each measured in turn")  # fmt: skip
    parser.add_argument("--guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="noise levels that are guided, in sigma; by default all")  # fmt: skip
    parser.add_argument(
        "--prompt", default="a handwritten {}", help="the prompt, {} being the digit's name; empty is no text"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise")
    args = parser.parse_args(argv)

    pipe = MezzotintPipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    svm, ceiling = reader()
    print(f"the reader on real test digits: {100 * ceiling:.1f} %")
    own = pipe.scheduler
    for name in args.schedulers or [type(own).__name__]:
        pipe.scheduler = own if name == type(own).__name__ else getattr(diffusers, name).from_config(own.config)
        for classifier_scale in args.classifier_scale:
            measure(pipe, svm, args, classifier_scale)
    return 0


def measure(pipe: MezzotintPipeline, svm: SVC, args: argparse.Namespace, classifier_scale: float) -> None:
    """Draw, read, and print the table of what was asked for against what was read, and its sum in one line of JSON."""
    table = np.zeros((10, 10), dtype=int)  # asked for, read as
    for label, name in enumerate(DIGIT_NAMES):
        pictures = pipe(
            args.prompt.format(name),
            num_images_per_prompt=args.count // 10,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_interval=args.guidance_interval,
            class_labels=label if classifier_scale else None,
            classifier_scale=classifier_scale,
            eta=args.eta,
            corrector_steps=args.corrector_steps,
            generator=torch.Generator().manual_seed(args.seed * 10 + label),
            output_type="np",
        ).images
        for read in svm.predict(pictures.reshape(len(pictures), -1)):
            table[label, read] += 1
    hits, count = int(np.trace(table)), int(table.sum())
    accuracy, (low, high) = share(hits, count)
    if hits < count:
        print(f"asked for (rows), read as (columns):\n{table}")
    print(
        f"{type(pipe.scheduler).__name__}, {args.num_inference_steps} steps, guidance {args.guidance_scale:g}"
        f"{f', classifier {classifier_scale:g}' if classifier_scale else ''}: "
        f"{hits} of {count} read as asked for, {100 * accuracy:.1f} % "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )


if __name__ == "__main__":
    sys.exit(main())
