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
from safetensors.torch import save_file

from mezzotint_training.engine.files import aside, clear, make_readable, sync

LENGTHS = (0.05, 0.10)  # of the two that are kept; the paper's (Section 3.2)
LONGEST = 12**-0.5  # where gamma is 0, a plain mean of all steps (Appendix C.4)


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
    """Remove those of a continuation that was given up; for a run that goes on from `step`."""
    for later, path in snapshots(output_dir).items():
        if later > step and not path.is_dir():
            path.unlink()
