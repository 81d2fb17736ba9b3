# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The embedded set of sounds: tones that are made here, with captions. Small enough for the tests of all that sounds go
through; no claim is made of a model of it."""

import io
import wave

import datasets
import numpy as np

RATE = 2000  # samples a second
PITCHES = {"low": 125, "high": 500}  # Hz
ROWS = {"train": 160, "test": 48}


def tones() -> datasets.DatasetDict:
    """208 tones at 2 kHz, low and high ones that last 0.1 to 0.25 seconds and fade away, captioned "a low tone" and "a
    high tone"; 48 of them are the test split."""
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = datasets.ClassLabel(names=list(PITCHES))
    features = datasets.Features({"audio": file, "text": datasets.Value("string"), "label": kinds})
    rng, splits = np.random.default_rng(0), {}
    for split, count in ROWS.items():
        rows = {name: [] for name in features}
        for index in range(count):
            name = list(PITCHES)[index % 2]
            time = np.arange(rng.integers(200, 501)) / RATE
            tone = np.sin(2 * np.pi * (PITCHES[name] * rng.uniform(0.97, 1.03) * time + rng.random()))
            sound = rng.uniform(0.5, 0.9) * tone * np.exp(-3 * time / time[-1])
            content = io.BytesIO()
            with wave.open(content, "wb") as wav:
                wav.setparams((1, 2, RATE, len(sound), "NONE", ""))
                wav.writeframes((sound * 32767).astype("<i2").tobytes())
            rows["audio"].append({"bytes": content.getvalue(), "path": None})
            rows["text"].append(f"a {name} tone")
            rows["label"].append(index % 2)
        # A column of sounds, which `datasets` would encode with torchcodec
        rows = datasets.Dataset.from_dict(rows, features=features)
        splits[split] = rows.cast_column("audio", datasets.Audio(decode=False))
    return datasets.DatasetDict(splits)
