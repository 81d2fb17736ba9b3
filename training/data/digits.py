# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The embedded set: handwritten digits that scikit-learn carries, with captions."""

import io

import datasets
import numpy as np
from PIL import Image

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits() -> datasets.DatasetDict:
    """The 1,797 handwritten digits that scikit-learn carries (8x8 pixels, 16 greys; UCI Optical Recognition of
    Handwritten Digits, CC BY 4.0), captioned in three ways, with a mask of the ink: the upper half of the greys. Every
    sixth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.List(datasets.Value("string")),
            "label": datasets.Value("int64"),
            "mask": datasets.Image(),
        }
    )
    rows = {split: {name: [] for name in features} for split in ("train", "test")}
    for index, (picture, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        split = rows["test" if index % 6 == 5 else "train"]
        for column, pixels in (("image", np.round(picture * (255 / 16))), ("mask", (picture >= 8) * 255)):
            content = io.BytesIO()  # as BMP: the same bytes whatever versions of Pillow and zlib there are
            Image.fromarray(pixels.astype(np.uint8)).save(content, "BMP")
            split[column].append({"bytes": content.getvalue(), "path": None})
        name = DIGIT_NAMES[label]
        split["text"].append([f"a handwritten {name}", f"the digit {name}", str(label)])
        split["label"].append(int(label))
    return datasets.DatasetDict({name: datasets.Dataset.from_dict(r, features=features) for name, r in rows.items()})
