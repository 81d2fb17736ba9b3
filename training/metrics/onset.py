# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Whether a run has begun to copy its training pictures: a small copy rate, looked at while it trains.

A network first learns what pictures have in common and only later single ones, the later the larger the set
(<https://huggingface.co/papers/2505.17638>). From then on the held-out loss rises, and what is drawn looks better than
it is.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mezzotint_training.config.errors import UserError
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.metrics.copies import copies
from mezzotint_training.metrics.pictures import SEEN, draw, seen_of
from mezzotint_training.modalities.contents import unit

# Pictures that are compared with at the most, and the side to which each is averaged: a copy is one at any size
REFERENCE, SIDE = 10_000, 16
STEPS, BATCH = 10, 64  # of the drawings, which are without guidance
ALARMS = 0.05  # share of real pictures that pass for copies
FEWEST = 2 / ALARMS  # held-out pictures without which that share cannot be told


class CopyWatch:
    """Draws pictures for captions that are trained on, always from the same noise, and says how many of them are nearer
    to one training picture than real pictures are.

    Args:
        known: what is trained on; of a large set as many as `REFERENCE`, evenly spread.
        held_out: real pictures that are not; `None` where there are none.
        count: pictures to draw each time.

    Attributes:
        onset: the update at which copies were first seen, `None` until then.
        passes: pictures that pass through the network for one look; 0 where there are too few held-out pictures or
            none are to be drawn: `look` then finds nothing.
    """

    def __init__(self, known: CaptionedSamples, held_out: CaptionedSamples | None, count: int):
        self.known, self.held_out, self.count = known, held_out, count
        self.onset: int | None = None
        pictures = known.config.modality in (None, "image")
        self.side = min(SIDE, *(side for size in known.buckets for side in size)) if pictures else SIDE
        self.features: tuple[torch.Tensor, torch.Tensor] | None = None
        usable = held_out is not None and len(held_out) >= FEWEST and len(known) >= 2
        usable = usable and (pictures or known.config.modality in SEEN)
        self.passes = count * STEPS if usable else 0

    def look(self, step: int, pipe: Any, say: Callable[[str], None]) -> dict[str, Any]:
        """Figures for the log: the share of `count` drawings that pass for copies (of real pictures it is `ALARMS`),
        and whether copying has begun: whether that share is larger than of real pictures by more than chance.

        Args:
            step: updates so far.
            pipe: with the weights to be looked at.
            say: is told in a line that copies are seen for the first time.
        """
        if not self.passes or self.held_out is None:
            return {}
        if self.features is None:
            self.features = self._features(self.known), self._features(self.held_out)
        texts = [self.known.captions[row] for row in self.known.spread(self.count).tolist()]
        try:
            pictures = draw(pipe, texts, STEPS, 1.0, BATCH, seed=0, progress=False)
            found = copies(self._small(pictures), self.features[1], self.features[0], ALARMS)
        except (UserError, ValueError):  # nothing finite is drawn, or all training pictures are alike
            return {}
        copying = found.drawn.interval[0] > found.real.interval[1]
        if copying and self.onset is None:
            self.onset = step
            say(
                f"step {step:,}: copies begin: {found.drawn.value:.0%} of {len(pictures)} drawn pictures are "
                f"suspiciously near to one training picture, of real pictures {found.real.value:.0%}; more pictures or "
                "dropout delay it, an earlier checkpoint is without"
            )
        return {"copy_rate": found.drawn.value, "copying": copying}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"copies": self.onset}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, also of a checkpoint that was written before there was one."""
        self.onset = state.get("copies")

    def _features(self, images: CaptionedSamples) -> torch.Tensor:
        pixels = [seen_of(images, row) for row in images.spread(REFERENCE).tolist()]
        return torch.cat([self._small(one[None]) for one in pixels if one is not None])

    def _small(self, pictures: torch.Tensor) -> torch.Tensor:
        """Bytes (N, C, H, W) of any size, to (N, D)."""
        return F.adaptive_avg_pool2d(unit(pictures), self.side).flatten(1).double()
