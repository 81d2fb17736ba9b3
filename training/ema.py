# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Make a pipeline from another average of a run's weights, after the run.

mezzotint ema runs/mine --length 0.07 --output runs/mine-0.07

The run must have kept snapshots (--posthoc_ema_steps; see `learning/averages.py`). The length is the standard deviation
of the average's profile over the steps, as a share of the run: short averages follow the last weights, long ones are
smoother. The best length differs from run to run and with guidance; the paper's were 0.015 to 0.135 (arXiv 2312.02696,
Table 6).
"""

import os
import sys
import tempfile
from pathlib import Path

import torch

from mezzotint import MezzotintPipeline
from mezzotint_training.config.arguments import parser_of
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.engine.files import make_readable
from mezzotint_training.learning.averages import combined, fit, snapshots
from mezzotint_training.networks.saved import drop_fitted_schedules, load_pipeline


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("ema")

    def program() -> None:
        args = parser.parse_args(argv)
        run_dir, output = Path(args.run_dir), Path(args.output)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise UserError(f"output must be a new or an empty folder: got {output}")
        paths = snapshots(run_dir)
        if not paths:
            raise UserError(f"run_dir must hold snapshots, of a run with --posthoc_ema_steps: {run_dir} has none")
        step = max(paths) if args.step is None else args.step
        if step not in paths:
            raise UserError(f"step must be that of a snapshot: got {step}, possible are {_listed(list(paths))}")
        paths = {at: path for at, path in paths.items() if at <= step}
        coefficients, error = fit(list(paths), args.length)
        pipe = _pipeline(run_dir)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
        except OSError as error:
            raise UserError(f"output must be in a folder to write to: {error}") from None
        with place:
            fill(pipe, combined(paths, coefficients), run_dir)
            new = Path(place.name) / output.name
            pipe.save_pretrained(new)
            for path in new.rglob("*.safetensors"):
                make_readable(path)
            if output.exists():
                output.rmdir()
            os.replace(new, output)
        count = f"{len(paths)} snapshot{'s' if len(paths) > 1 else ''}"
        print(f"{output}: average of length {args.length:g} at step {step}, from {count} (profile off by {error:.2g})")

    return exit_code(program)


def fill(pipe: MezzotintPipeline, weights: dict[str, torch.Tensor], run_dir: Path) -> None:
    """Copy `weights`, named `{component}.{parameter}`, into the components, of which each must be given in full.

    Raises:
        UserError: for weights of other components than these.
    """
    names = sorted({name.split(".", 1)[0] for name in weights})
    modules = {name: getattr(pipe, name, None) for name in names}
    parameters = {
        f"{name}.{key}": p for name, module in modules.items() if module for key, p in module.named_parameters()
    }
    if {k: v.shape for k, v in parameters.items()} != {k: v.shape for k, v in weights.items()}:
        odd = sorted(parameters.keys() ^ weights.keys()) or ["parameters of another shape"]
        raise UserError(f"run_dir must hold the pipeline that its snapshots are of: {run_dir} differs in {odd[0]}")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])


def _pipeline(run_dir: Path) -> MezzotintPipeline:
    if not (run_dir / "model_index.json").is_file():
        raise UserError(f"run_dir must hold a finished pipeline: {run_dir} has no model_index.json")
    pipe = load_pipeline(run_dir, "run_dir")
    drop_fitted_schedules(pipe)
    return pipe


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"


if __name__ == "__main__":
    sys.exit(main())
