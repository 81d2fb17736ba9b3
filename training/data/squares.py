# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The embedded set of videos: a square that moves, made here, with captions. Small enough for the tests of all that
videos go through; no claim is made of a model of it."""

import io

import datasets
import numpy as np
from PIL import Image, ImageDraw

SIDE, FRAMES = 16, 4
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220)}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROWS = {"train": 160, "test": 48}


def squares() -> datasets.DatasetDict:
    """208 videos of 4 frames of 16x16 pixels: a square of one of three colours that moves by two pixels a frame,
    captioned "a red square moving left"; 48 of them are the test split."""
    features = datasets.Features(
        {
            "frames": datasets.List(datasets.Image()),
            "text": datasets.Value("string"),
            "direction": datasets.ClassLabel(names=list(WAYS)),
        }
    )
    rng, splits = np.random.default_rng(0), {}
    for split, count in ROWS.items():
        rows = {name: [] for name in features}
        for index in range(count):
            (way, (right, down)), colour = list(WAYS.items())[index % 4], list(COLOURS)[index % 3]
            x, y = rng.integers(4, 9, 2) - (3 * right, 3 * down)
            frames = []
            for step in range(FRAMES):
                frame, content = Image.new("RGB", (SIDE, SIDE), "white"), io.BytesIO()
                left, top = int(x + 2 * step * right), int(y + 2 * step * down)
                ImageDraw.Draw(frame).rectangle((left, top, left + 3, top + 3), COLOURS[colour])
                frame.save(content, "PNG")
                frames.append({"bytes": content.getvalue(), "path": None})
            rows["frames"].append(frames)
            rows["text"].append(f"a {colour} square moving {way}")
            rows["direction"].append(index % 4)
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(splits)
