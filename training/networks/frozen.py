# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Latents and embeddings of a run's pictures, which frozen networks, an autoencoder and a two-tower encoder, make of
them before the U-Net sees them: both, one of them, or neither."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.source import Source
from mezzotint_training.networks.latents import Latents
from mezzotint_training.networks.towers import Embeddings, towers_for

# Pixels a side at which pixels and latents were trained for as long (`benchmarks/space_quality.py`)
COMPARED = (64, 128)


class Frozen:
    """The frozen networks of a run that read its pictures.

    Attributes:
        latents (`Latents`, *optional*): with an autoencoder.
        embeddings (`Embeddings`, *optional*): of `--task unclip`.

    Args:
        config: the run's settings.
        components: of the saved pipeline that the run goes on from, if there is one.
        vae: the autoencoder, if there is one.
        accelerator: of the run.

    Raises:
        UserError: for a two-tower encoder that cannot be loaded.
    """

    def __init__(self, config: TrainConfig, components: dict[str, Any] | None, vae: Any, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        towers = towers_for(config, components) if config.task == "unclip" else None
        self.embeddings = None if towers is None else Embeddings(towers, config, accelerator)
        self.latents = None if vae is None else Latents(vae, config, accelerator)

    def fingerprints(self) -> dict[str, str]:
        """A hash of each network, by its name."""
        named = {"two towers": self.embeddings, "autoencoder": self.latents}
        return {name: one.fingerprint() for name, one in named.items() if one is not None}

    def prepare(self, source: Source, digests: dict[str, Any], folder: Path | str) -> None:
        """Give `source` the latents in place of pixels, and compute all now, into files below `folder`, unless a plan
        is all that was asked for. All processes call this.

        Args:
            source: of the run.
            digests: of its data.
            folder: for the files.

        Raises:
            UserError: for a folder that cannot be written to, or has no room left.
        """
        if self.latents is not None:
            source.take(self.latents)
        for computed in (self.latents, self.embeddings):
            if computed is not None and not self.config.plan:
                sets = (source.known, source.held_out)
                computed.prepare(sets, digests, folder, progress=self.accelerator.is_local_main_process)

    def embed(self, source: Source, unet: Any) -> None:
        """Give `source` the embeddings, at the scale that the config of the U-Net says."""
        if self.embeddings is not None:
            source.embed(self.embeddings, unet.condition["embeds_mean"], unet.condition["embeds_std"])

    def foretell(self, pictures: int, size: tuple[int, ...]) -> list[str]:
        """The line of a plan that says how long the latents of so many pictures take, after which a row may have those
        of another of its size; or, where a new network is to draw large ones in pixels, whether latents would pay."""
        if self.latents is None:
            new = self.config.pretrained_model_name_or_path is None and self.config.task == "text_to_image"
            if not new or self.config.modality not in (None, "image") or min(size) < COMPARED[0]:
                return []
            sides = " and ".join(map(str, COMPARED))
            return [
                f"{'space':<12} pixels: latents of an autoencoder of one's own (--vae) drew no better at {sides} px "
                "after minutes of a core, its training included (training/benchmarks/README.md)"
            ]
        self.latents.estimating = True
        seconds = self.latents.seconds * pictures / self.accelerator.num_processes
        return [f"{'latents':<12} of {pictures:,} pictures, about {seconds:,.0f} s before the first step"]
