# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a frozen network makes of each picture of a set, computed once and kept in files: `latents.py` says it of
autoencoders, `towers.py` of two-tower encoders."""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.networks.cache import Cache, Recent

# Bytes of tensors that are kept in memory
RECENT_BYTES = 2**28
# Pictures of an accelerator's batches, the last of which are blank where there are fewer
ROWS = 16


class Computed(ABC):
    """Reads what a network makes of each row: of all versions of its picture, (versions, channels, height, width), the
    first of the picture as it is. It depends on the row alone, to the last bit, so it may be kept and forgotten at
    will: on disk after `prepare`, and what was used last in memory. A subclass has the network.

    Attributes:
        estimating: whether a row that is not known yet may have what is of another of its size, where no more than
            time and memory are asked for (`--plan`).
        seconds: that a row took when one was last computed.

    Args:
        config: the run's settings.
        accelerator: of the run.
    """

    kind = ""  # what it is, in the name of its folder and in messages

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.recent, self.cache = Recent(RECENT_BYTES), None
        self.estimating, self.known, self.seconds = False, {}, 0.0

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the network."""

    @abstractmethod
    def changes(self) -> list[Any]:
        """What is done to pictures, and by what, as plain data."""

    @abstractmethod
    def versions(self, number: int, pixels: torch.Tensor) -> torch.Tensor:
        """Versions (versions, C, H, W) in [-1, 1] of the bytes of a picture of the row `number`."""

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """What is computed, (B, channels, height, width) on the CPU, of pictures (B, C, H, W) in [-1, 1]."""

    def prepare(
        self, sets: Iterable[CaptionedSamples], data: dict[str, Any], folder: Path | str, progress: bool = True
    ) -> None:
        """Compute all rows now, into files below `folder`; what is there already stays. All processes call this.

        The files are in a folder named by a hash of all that they depend on: the network, the pictures (`data`, by
        `source.fingerprint`), their sizes and the changes to them, and the kind of device.

        Raises:
            UserError: for a folder that cannot be written to, or has no room left.
        """
        sets = [images for images in sets if images is not None]
        settings = {
            "network": self.fingerprint(),
            "pictures": data["pictures"],
            "sizes": sets[0].buckets,
            "changes": self.changes(),
            "device": self.accelerator.device.type,
            "version": torch.__version__,
        }
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        rows = {self._key(images, index).encode(): (images, index) for images in sets for index in images.good.tolist()}
        self.cache = Cache(Path(folder) / f"{self.kind}-{name}", f"cache of {self.kind}")
        self.cache.build(
            rows,
            lambda keys: self._encoded([rows[key] for key in keys]),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            progress,
        )

    def read(self, images: CaptionedSamples, index: int) -> torch.Tensor | None:
        """What is computed of a row; `None` for a bad one, which `images` then knows.

        Raises:
            UserError: for a bad picture under `on_bad_row=stop`.
        """
        key = self._key(images, index)
        found = self.recent.get(key)
        if found is None:
            kept = self.cache.read([key.encode()]) if self.cache is not None else {}
            found = kept.get(key.encode())
            size = images.buckets[images.bucket[index]]
            if found is None and self.estimating and size in self.known:
                return self.known[size]
            if found is None:
                began = time.perf_counter()
                (found,) = self._encoded([(images, index)])
                self.known[size], self.seconds = found, time.perf_counter() - began
            if found.numel() == 0:
                images.content(index)
                return None
            self.recent.put(key, found)
        return found

    def _key(self, images: CaptionedSamples, index: int) -> str:
        return f"{images.part}/{images.numbers[index]}"

    @torch.no_grad()
    def _encoded(self, rows: list[tuple[CaptionedSamples, int]]) -> list[torch.Tensor]:
        """What is computed of rows; of a bad one a tensor of nothing.

        How a convolution is rounded depends on its size. So the CPU takes each row by itself, an accelerator batches of
        one size, whatever is in them.
        """
        pictures = []
        for images, index in rows:
            pixels = images.content(index)
            number = int(images.numbers[index])
            pictures.append(None if pixels is None else self.versions(number, pixels[: images.channels]))
        found: list[torch.Tensor] = [torch.empty(0, 0, 0, 0)] * len(rows)
        with torch.autocast(self.accelerator.device.type, enabled=False):
            if self.accelerator.device.type == "cpu":
                for place, some in enumerate(pictures):
                    if some is not None:
                        found[place] = self.encode(some)
                return found
            sizes: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
            for place, some in enumerate(pictures):
                for one in some if some is not None else ():
                    sizes.setdefault(one.shape, []).append((place, one))
            parts: dict[int, list[torch.Tensor]] = {}
            for shape, members in sizes.items():
                for start in range(0, len(members), ROWS):
                    some = members[start : start + ROWS]
                    batch = torch.zeros(ROWS, *shape)
                    batch[: len(some)] = torch.stack([one for _, one in some])
                    for (place, _), one in zip(some, self.encode(batch), strict=False):
                        parts.setdefault(place, []).append(one)
        for place, some in parts.items():
            found[place] = torch.stack(some)
        return found
