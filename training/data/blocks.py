# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The embedded set of solids: boxes and balls, made here, with captions. Small enough for the tests of all that solids
go through; no claim is made of a model of it."""

import datasets
import numpy as np

SIDE = 8  # voxels
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220)}
KINDS = ("box", "ball")
ROWS = {"train": 160, "test": 48}


def blocks() -> datasets.DatasetDict:
    """208 solids of 8x8x8 voxels, boxes and balls of three colours, captioned "a red box"; 48 of them are the
    test split."""
    features = datasets.Features(
        {
            "voxels": datasets.Array4D((SIDE, SIDE, SIDE, 4), "uint8"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(KINDS)),
        }
    )
    rng, splits = np.random.default_rng(0), {}
    places = np.stack(np.meshgrid(*[np.arange(SIDE) + 0.5] * 3, indexing="ij"), -1)  # (D, H, W, 3)
    for split, count in ROWS.items():
        rows = {name: [] for name in features}
        for index in range(count):
            kind, colour = KINDS[index % 2], list(COLOURS)[index % 3]
            if kind == "ball":
                there = np.linalg.norm(places - rng.uniform(3.5, 4.5, 3), axis=-1) < rng.uniform(2, 3.4)
            else:
                low, high = rng.integers(0, 3, 3), rng.integers(5, 9, 3)
                there = ((places > low) & (places < high)).all(-1)
            voxels = np.zeros((SIDE, SIDE, SIDE, 4), np.uint8)
            voxels[there] = (*COLOURS[colour], 255)
            rows["voxels"].append(voxels)
            rows["text"].append(f"a {colour} {kind}")
            rows["label"].append(index % 2)
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(splits)
