# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Loads a pipeline as a stranger does, and draws one picture: by plain diffusers and the code that the checkpoint
carries, where mezzotint cannot be imported. `load_back.py` runs this file in a process of its own:

    python -P stranger.py FOLDER

FOLDER holds what is to be drawn (`call.json`, `inputs.npz`) and gets the picture (`picture.npy`). Nothing of the
project is imported here.
"""

import json
import sys
from pathlib import Path
from typing import Any

CALL, INPUTS, PICTURE = "call.json", "inputs.npz", "picture.npy"
OURS = ("mezzotint", "mezzotint_training")


class Absent:
    """A finder of modules that, before all others, knows that mezzotint is not installed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def draw(pipe: Any, arguments: dict[str, Any], inputs: dict[str, Any], seed: int) -> Any:
    """One drawing of a pipeline, in full precision, as an array `(pictures, height, width, channels)` in [0, 1].

    Args:
        pipe: any pipeline of pictures.
        arguments: of its call.
        inputs: more of them, arrays that become tensors on the CPU.
        seed: of the starting noise.
    """
    import numpy as np
    import torch

    pipe.set_progress_bar_config(disable=True)
    with torch.autocast(pipe.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
        (picture, *_) = pipe(
            **arguments,
            **{name: torch.from_numpy(value) for name, value in inputs.items()},
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            return_dict=False,
        )
    return np.asarray(picture)


def main(folder: Path) -> None:
    sys.meta_path.insert(0, Absent)
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    asked = json.loads((folder / CALL).read_text(encoding="utf-8"))
    with np.load(folder / INPUTS, allow_pickle=False) as file:
        inputs = dict(file)
    torch.set_num_threads(asked["threads"])  # sums of as many parts are rounded alike
    pipe = DiffusionPipeline.from_pretrained(asked["pipeline"], revision=asked["revision"], trust_remote_code=True)
    if asked["adapters"] is not None:
        pipe.load_lora_weights(asked["adapters"], revision=asked["adapters_revision"])
    np.save(folder / PICTURE, draw(pipe, asked["arguments"], inputs, asked["seed"]), allow_pickle=False)


def run(folder: Path) -> str | None:
    """`main`, and why it failed, in one line; `None` if it did not."""
    try:
        main(folder)
    except Exception as error:
        found: BaseException = error
        while found.__cause__ is not None:  # which says more than what wraps it
            found = found.__cause__
        return f"{type(found).__name__}: {' '.join(str(found).split())}"
    return None


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
