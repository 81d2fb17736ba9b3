# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What benchmarks of a trained checkpoint judge its pictures by: captions of its own set that all rows share, held-out
pictures, and two kinds of features, of which one can read what was asked for."""

from functools import cached_property
from typing import Any

import torch

from mezzotint_training.config.recipe import data_of
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.features import Features, make_features
from mezzotint_training.metrics.intervals import Figure
from mezzotint_training.metrics.judges import LearnedFeatures
from mezzotint_training.metrics.pictures import Real, draw, read, real_pictures, shuffled
from mezzotint_training.networks.saved import load_pipeline


class CheckpointJudge:
    """Real pictures of a checkpoint's set, and networks that know them.

    Args:
        checkpoint: the folder of a finished run, whose pipeline is loaded as `pipe`.
        train_data_dir: its set; digits need none.
        count: pictures to draw of each row, and held-out ones to compare with, at most.
        judge_steps: updates of what is trained to judge.
        device: of the pipeline.

    Attributes:
        known: real pictures that were trained on.
        asked: those of them whose captions and classes are asked for.
        held_out: real pictures to compare with.
    """

    def __init__(self, checkpoint: str, train_data_dir: str | None, count: int, judge_steps: int, device: str = "cpu"):
        given = {"train_data_dir": train_data_dir} if train_data_dir else {}
        names = ("image_column", "caption_column", "validation_split", "num_validation_samples", "max_train_samples")
        real = TrainConfig(**data_of(checkpoint, given, names, "the benchmark"), report_to="none")
        self.pipe: Any = load_pipeline(checkpoint, device=device)
        images, classes = real_pictures(real, self.pipe, None, None)
        self.known, held_out = (read(x, classes, "label") for x in images)
        self.held_out = held_out.rows(shuffled(len(held_out.pixels), 0)[:count])
        asked = shuffled(len(self.known.pixels), 0)[torch.arange(count) % len(self.known.pixels)]
        self.asked, self.classes, self.judge_steps = self.known.rows(asked), classes, judge_steps

    @cached_property
    def features(self) -> dict[str, Features]:
        """By name "random" and, of a set with classes, "classifier", else "two-tower", which is trained here."""
        kinds, cpu = ["random", "classifier" if self.classes else "two-tower"], torch.device("cpu")
        return {kind: make_features(kind, self.known, self.classes, cpu, self.judge_steps, 0) for kind in kinds}

    @cached_property
    def references(self) -> dict[str, torch.Tensor]:
        """The features of `held_out`, by the same names."""
        return {kind: look(self.held_out.pixels) for kind, look in self.features.items()}

    def draw(self, pipe: Any, num_inference_steps: int, guidance_scale: float, **more: Any) -> torch.Tensor:
        """A picture for each of the captions asked for, from a noise that is the same for all pipelines, as bytes."""
        captions = self.asked.captions
        return draw(pipe, captions, num_inference_steps, guidance_scale, batch_size=100, seed=0, progress=False, **more)

    def accuracy(self, pixels: torch.Tensor) -> Figure | None:
        """How often these are read as asked for; `None` where nothing can be told apart."""
        drawn = Real(pixels, self.asked.captions, self.asked.labels)
        (judge,) = (look for look in self.features.values() if isinstance(look, LearnedFeatures))
        found = accuracy(judge, drawn, None, self.held_out)
        return None if found is None else Figure(found["value"], tuple(found["interval"]))
