# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The `mezzotint` command: it names the programs and hands on to them. Nothing heavy is imported before that."""

import importlib
import sys

COMMANDS = {
    "train": "train a pipeline, from scratch or from a saved one",
    "train-cascade": "train a base and its upscalers one after the other, to one pipeline",
    "train-autoencoder": "train an autoencoder, in whose latents a pipeline can be trained",
    "train-two-towers": "train a two-tower encoder, which embeds pictures and texts in one space",
    "train-prior": "train a prior, by which a decoder of embeddings draws from text",
    "train-classifier": "train a classifier of noisy samples, which steers a saved pipeline",
    "sample": "draw pictures with a trained pipeline",
    "demo": "open a page in the browser around a trained pipeline",
    "fit-scheduler": "fit a trained pipeline's scheduler to its network: few steps that end where many would",
    "distill": "distil a trained pipeline to one to four steps: few steps, learned",
    "evaluate": "measure what a trained pipeline draws, against real pictures",
    "classify": "tell which caption a picture is likeliest under: a classifier that nobody trained",
    "outliers": "find training rows that are unlike the others, have a wrong caption, or are remembered",
    "ema": "make a pipeline from another average of a run's weights",
    "publish": "upload a trained pipeline to the Hub, load it back and compare",
    "doctor": "say what is wrong with this installation, a run's folder or a data set, and what mends it",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mezzotint COMMAND [--help] ...\n\ncommands:")
        for name, purpose in COMMANDS.items():
            print(f"  {name:18}{purpose}")
        print("\nOn several processes: accelerate launch -m mezzotint_training.train ...")
        return 0
    if argv[0] == "--version":
        print(importlib.import_module("importlib.metadata").version("mezzotint"))
        return 0
    if argv[0] not in COMMANDS:
        print(f"mezzotint: unknown command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        # Help and refusals come before the program and all that it brings
        check = importlib.import_module("mezzotint_training.config.arguments").check
        errors = importlib.import_module("mezzotint_training.config.errors")
        if code := errors.exit_code(lambda: check(argv[0], argv[1:])):
            return code
        program = importlib.import_module(f"mezzotint_training.{argv[0].replace('-', '_')}")
    except ModuleNotFoundError as error:
        print(f"mezzotint: {argv[0]} needs {error.name}; pip install 'mezzotint[train]' brings it", file=sys.stderr)
        return 2
    return program.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
