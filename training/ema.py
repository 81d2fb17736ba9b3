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

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mezzotint import MezzotintPipeline
from mezzotint_training.config.arguments import Parser, text
from mezzotint_training.config.errors import UserError, exit_code
from mezzotint_training.engine.files import make_readable
from mezzotint_training.learning.averages import LENGTHS, LONGEST, gamma_of, snapshots
from mezzotint_training.networks.saved import load_pipeline

TOLERANCE = 0.2  # of an average's profile, beyond which it is another average


def main(argv: list[str] | None = None) -> int:
    parser = Parser("ema", __doc__)
    parser.add_argument("run_dir", type=text, help="a finished run's output_dir")
    parser.number("length", float, required=True, help=f"length of the average, above 0 and below {LONGEST:.4f}")
    parser.number("step", int, help="snapshot at which the average ends; by default the last")
    parser.add_argument("--output", type=text, required=True, help="the folder to write, new or empty")

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


def p_dot_p(t_a, gamma_a, t_b, gamma_b):
    """The inner product of the profiles of power-function averages at times `t_a` and `t_b` (Eq. 151), element by
    element: the integral of p_a(t) p_b(t) dt with p(t) = (gamma + 1) t^gamma / t_a^(gamma + 1) up to t_a and 0 beyond.
    """
    # (gamma_a + 1)(gamma_b + 1)(t_a / t_b)^gamma_b / ((gamma_a + gamma_b + 1) t_b) for t_a <= t_b            (Eq. 151)
    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def solve(steps: list[int], length: float) -> tuple[np.ndarray, float]:
    """What `fit` returns, whatever the error."""
    t, gamma = np.repeat(np.float64(steps), len(LENGTHS)), np.tile([gamma_of(x) for x in LENGTHS], len(steps))
    wanted = gamma_of(length)
    a = p_dot_p(t[:, None], gamma[:, None], t, gamma)  # (N, N)                                               (Eq. 142)
    b = p_dot_p(t, gamma, t[-1], wanted)  # (N,)                                                              (Eq. 143)
    # The minimum of |p x - p_r|^2 (Eq. 134), and with sum(x) = 1: what the weights have in common stays as it is. The
    # paper's A x = b (Eq. 141) has that for many snapshots only; for a few it would shrink all weights.
    ones = np.ones((len(t), 1))
    x = np.linalg.solve(np.block([[a, ones], [ones.T, np.zeros((1, 1))]]), np.append(b, 1))[:-1]
    squared = x @ a @ x - 2 * x @ b + (norm := p_dot_p(t[-1], wanted, t[-1], wanted))
    # far below the snapshots' own precision; a length that was kept is then its snapshot and nothing else
    return np.round(x, 7).reshape(len(steps), len(LENGTHS)), float(np.sqrt(max(0, squared) / norm))


def fit(steps: list[int], length: float) -> tuple[np.ndarray, float]:
    """The combination of snapshots that comes closest to an average of `length` at the last step: Algorithm 3.

    Args:
        steps: of the snapshots, rising.
        length: of the average, sigma_rel.

    Returns:
        what to multiply them by, (steps, `LENGTHS`), and the relative error of the profile, |p x - p_r| / |p_r|.

    Raises:
        UserError: for a length that no average has, or that so few snapshots cannot give.
    """
    if not 0 < length < LONGEST:
        raise UserError(f"length must be above 0 and below {LONGEST:.4f}: got {length:g}")
    coefficients, error = solve(steps, length)
    if error > TOLERANCE:
        possible = [x for x in np.arange(1, 58) * 0.005 if solve(steps, x)[1] <= TOLERANCE]
        raise UserError(
            f"{len(steps)} snapshots give lengths from {min(possible):.3f} to {max(possible):.3f}: got {length:g} (its "
            f"profile would be off by {error:.0%}); more snapshots, or a later step, give more"
        )
    return coefficients, error


def combined(paths: dict[int, Path], coefficients: np.ndarray) -> dict[str, torch.Tensor]:
    """The sum of the snapshots in `paths`, times their `coefficients`, by name, in float32; one is read at a time.

    Raises:
        UserError: for a snapshot that is damaged or of other weights, or a sum that is not finite.
    """
    total: dict[str, torch.Tensor] = {}
    for path, row in zip(paths.values(), coefficients, strict=True):
        try:
            if not path.is_file():
                raise ValueError("it is no plain file")  # a pipe would be waited for
            snapshot = load_file(path)
            names = set(total) or {key.split("/", 1)[1] for key in snapshot}
            if not names or snapshot.keys() != {f"{length:g}/{name}" for length in LENGTHS for name in names}:
                raise ValueError("a weight of one of the averages is missing, or another is there")
            for key, x in snapshot.items():
                length, name = key.split("/", 1)
                coefficient = row[LENGTHS.index(float(length))]
                if name not in total:
                    total[name] = torch.zeros_like(x, dtype=torch.float32)
                if coefficient:
                    total[name].add_(x.float(), alpha=coefficient)
        except (SafetensorError, ValueError, IndexError, RuntimeError, OSError):
            raise UserError(f"snapshot {path} is damaged: it is not what was written") from None
    for name, x in total.items():
        if not x.isfinite().all():
            raise UserError(f"the snapshots must hold finite numbers: their average of {name} has others")
    return total


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
    if pipe.scheduler.config.get("_fitted_schedules"):  # to the average that is there
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, "_fitted_schedules": None})
    return pipe


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"


if __name__ == "__main__":
    sys.exit(main())
