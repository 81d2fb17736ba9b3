# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Averages of the weights for after the run: two power-function averages and their snapshots on disk, from which
`ema.py` makes one of any length. The exponential average that a run publishes is diffusers' own `EMAModel`.

Post-hoc EMA: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696,
Section 3 and Appendix C; equation numbers are its own.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import LONGEST
from mezzotint_training.engine.files import aside, clear, make_readable, sync

LENGTHS = (0.05, 0.10)  # of the two that are kept; the paper's (Section 3.2)
TOLERANCE = 0.2  # of an average's profile, beyond which it is another average


@functools.cache
def gamma_of(length: float) -> float:
    """The exponent of the profile t^gamma whose standard deviation is `length` (sigma_rel), in units of the time from
    the start until now: Algorithm 2, the positive root of Eq. 126. `length` is in (0, 12^-0.5)."""
    t = length**-2
    # gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0                             (Eq. 126)
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class PowerFunctionAverages:
    """Averages of `named` tensors with weights proportional to t^gamma, which forget the start of training at the pace
    at which it recedes.

    Only element-wise operations, in place on clones of what was given: sharded tensors work as plain ones do.

    Args:
        named: tensors by name, always the same.
    """

    def __init__(self, named: dict[str, torch.Tensor]):
        self.averages = {length: {name: x.detach().clone() for name, x in named.items()} for length in LENGTHS}

    @torch.no_grad()
    def update(self, named: dict[str, torch.Tensor], step: int) -> None:
        """Take in the tensors after update `step` (1, 2, ...), a skipped one included. The first sets them."""
        for length, average in self.averages.items():
            beta = (1 - 1 / step) ** (gamma_of(length) + 1)  # (Eq. 2, Eq. 127)
            # average <- beta average + (1 - beta) theta                                               (Eq. 2, Eq. 119)
            torch._foreach_lerp_(list(average.values()), [named[name] for name in average], 1 - beta)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state, for a checkpoint or a snapshot, by `{length}/{name}`; each has the shape of tensor `name`.
        Not copies."""
        return {f"{length:g}/{name}": x for length, average in self.averages.items() for name, x in average.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        for key, x in self.tensors().items():
            x.copy_(tensors[key])


def save_snapshot(output_dir: Path, step: int, tensors: dict[str, torch.Tensor]) -> Path:
    """Write `PowerFunctionAverages.tensors` (not sharded) as `ema/step-{step}.safetensors`, in place of one that is
    there; whole and synced, or not at all.

    In float16, 4 bytes a parameter: what they are combined with can be large numbers of opposite signs (up to 100 for a
    length of 0.015), so bfloat16's rounding, 8 times as coarse, would show. What float16 cannot hold stays as it is.
    """
    folder = output_dir / "ema"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}.safetensors"
    new = aside(output_dir, final.name)
    stored = {}
    for key, x in tensors.items():
        half = x.detach().half()
        stored[key] = (half if half.isfinite().all() else x.detach()).cpu().contiguous()
    save_file(stored, new, metadata={"step": str(step)})
    sync(new)
    new.replace(final)
    make_readable(final)
    sync(folder)
    clear(output_dir)
    return final


def snapshots(output_dir: Path) -> dict[int, Path]:
    """The snapshots in a run's folder by step, in order."""
    paths = [path for path in (output_dir / "ema").glob("step-*.safetensors") if path.stem[5:].isdecimal()]
    return dict(sorted((int(path.stem[5:]), path) for path in paths))


def drop_snapshots_after(output_dir: Path, step: int) -> None:
    """Remove the snapshots after `step`, which are those of a continuation that was given up, for a run that goes on
    from there."""
    for later, path in snapshots(output_dir).items():
        if later > step and not path.is_dir():
            path.unlink()


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
