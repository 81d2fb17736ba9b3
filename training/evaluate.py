# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Measure what a trained pipeline draws, with no download: each figure with its 95 % interval and with what real
pictures come to beside it.

    mezzotint evaluate runs/digits --card
    mezzotint evaluate runs/mine --train_data_dir pictures/ --split test --count 2000 --output metrics.json

With --card the figures go into the checkpoint's folder, and its model card is written anew with them.

The pictures are drawn for captions of training pictures. The figures:

- Kernel distance (KID), Fréchet distance, sliced-Wasserstein distance, precision and recall, on each kind of
  --features, between drawn and held-out pictures. Beside each stands the floor: the same figure of training pictures,
  which perfect drawings would reach.
- Prompt accuracy: how often a classifier of the training split (where there are labels) reads what was asked for, or
  how often a two-tower model of it picks a picture's own caption among several; for captions that were trained on, and
  for held-out ones that were not. Beside it stands the same figure of held-out pictures.
- Copy rate: the share of pictures that are suspiciously nearer to one training picture than to any other. Beside it
  stands that of held-out pictures, --copy_alarms by design: what exceeds it is copied. (In pixels, a copy passes for
  new if it is shifted, or if its picture has near relatives in the set.)
- The denoising loss of held-out pictures.
- With --likelihood, bits per dimension of held-out samples as they are to the network without guidance: by the
  probability-flow ODE, which gives a density, and by the variational bound, which lies above it; and the bits that a
  caption saves. Bytes are dequantised uniformly, and the density is that of samples at the schedule's least noise.

The networks that judge are never used for fitting anything. Everything is a function of --seed.
"""

import json
import sys
from pathlib import Path

from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import exit_code
from mezzotint_training.metrics.table import table
from mezzotint_training.publishing import evaluation


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("evaluate")

    def program() -> None:
        args = parser.parse_args(argv)
        results = evaluation.measure_and_keep(args, parser)
        print(f"### {args.checkpoint}\n\n{table(results)}")
        if args.output:
            Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    return exit_code(program)


if __name__ == "__main__":
    sys.exit(main())
