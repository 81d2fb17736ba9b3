"""Pictures and captions as they are found in the wild, and some that were made to hurt."""

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attacks import Attack, Ground, kind, shown, victims
from PIL import Image
from victims import SHELL_MARK

EPS = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%{SHELL_MARK}) (w) file\nshowpage\n%%EOF\n".encode()


def _png(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG", **options) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path, format=kind, **options)


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x01\0\0\0\0"  # 65,536 x 65,536 pixels, it says
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "is an EPS": (_bytes(EPS), ""),
    "is HTML": (_bytes(b"<html>not found</html>"), ""),
    "is an SVG": (_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ""),
    "claims 65,536 x 65,536 pixels": (_bytes(BOMB), ""),
    "has 20,000 x 9,000 pixels": (_png((20_000, 9_000), "1"), ""),
    "has one pixel": (_png((1, 1)), "value"),
    "is 1 x 4,000": (_png((1, 4000)), "value"),
    "is a palette": (_png((8, 8), "P"), "value"),
    "is CMYK": (_png((8, 8), "CMYK", "TIFF"), "value"),
    "has 16 bits": (_png((8, 8), "I;16"), "value"),
    "has alpha": (_png((8, 8), "RGBA"), "value"),
    "is a GIF": (_png((8, 8), "P", "GIF"), "value"),
    "is a BMP": (_png((8, 8), "RGB", "BMP"), "value"),
    "is a PDF": (_png((8, 8), "RGB", "PDF"), ""),
    "is a TGA": (_png((8, 8), "RGB", "TGA"), ""),
    "is a TIFF of NaN": (lambda path: Image.fromarray(np.full((8, 8), np.nan, "f4")).save(path, "TIFF"), ""),
    "is empty": (_bytes(b""), ""),
    "is a link out of the set": (lambda path: (path.unlink(), path.symlink_to("../secrets/token")), ""),
    "is a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), ""),
    "is a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
}  # fmt: skip
NO_BYTES = ("is a link out of the set", "is a pipe", "is a folder")
CAPTIONS: list[Any] = [
    None, 3, 1.5, True, [], [None], ["a", 3], {}, {"a": 1}, "", " ", "\u0000", "\ud800", "x" * 200_000, math.nan,
    [["a"]],
]  # fmt: skip


@kind("pictures and captions")
def change_data(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("data", "table", besides=("fine-tune", "train adapters"))))
    attack = (change_a_table if victim == "train on a table" else change_a_folder)(rng, ground)
    if victim == "train, skipping":
        attack.legal = "value"  # of fewer pictures
    return attack


PLACES = ["../secrets/token", "http://localhost:1/x", "/dev/zero", "/etc/passwd", "missing.png", "", "data"]


def change_a_folder(rng: random.Random, ground: Ground) -> Attack:
    data, number, legal = ground.folder / "data", rng.randrange(12), ""
    if rng.random() < 0.6:
        name = rng.choice(sorted(FAULTS))
        make, legal = FAULTS[name]
        make(data / f"{number}.png")
        return Attack(ground.victim, f"data/{number}.png {name}", legal=legal)
    path = data / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    how = rng.choice(["a caption", "a caption", "all captions", "a name", "a line"])
    value = rng.choice({"a name": [*PLACES, None, 3], "a line": [None, [], 3, {}, "x"]}.get(how, CAPTIONS))
    if how == "a line":
        lines.append(value)
    for line in {"a line": [], "all captions": lines}.get(how, [lines[number]]):
        line["file_name" if how == "a name" else "text"] = value
    if "caption" in how and isinstance(value, str) and value.strip():
        legal = "value"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return Attack(ground.victim, f"data/metadata.jsonl: {how} {number} is {shown(value)}", legal=legal)


def change_a_table(rng: random.Random, ground: Ground) -> Attack:
    path, legal = ground.folder / "table" / "train.parquet", ""
    table = pq.read_table(path)
    images, texts = table.column("image").to_pylist(), table.column("text").to_pylist()
    names, row = ["image", "text"], rng.randrange(len(texts))
    if rng.random() < 0.5:
        what = rng.choice([name for name, (make, _) in sorted(FAULTS.items()) if name not in NO_BYTES])
        make, legal = FAULTS[what]
        make(scratch := ground.folder.parent / "scratch.png")
        images[row] = {"bytes": scratch.read_bytes(), "path": rng.choice([*PLACES, None])}
    else:
        what = rng.choice(["at a place", "null", "without a caption", "one of no rows", "numbered", "unnamed"])
        if what == "at a place":
            images[row] = {"bytes": None, "path": rng.choice(PLACES)}
            what = f"at {images[row]['path']!r}"
        elif what == "null":
            images[row] = None
        elif what == "without a caption":
            texts[row] = None
        elif what == "one of no rows":
            images, texts = [], []
        elif what == "numbered":
            texts = list(range(len(texts)))
        else:
            names = rng.choice([["image", "caption"], ["image", "image"], ["", ""], ["text", "image"]])
    made = pa.table([pa.array(images, table.schema.field("image").type), pa.array(texts)], names=names)
    pq.write_table(made.replace_schema_metadata(table.schema.metadata) if rng.random() < 0.5 else made, path)
    return Attack(ground.victim, f"table/train.parquet: picture {row} {what}", legal=legal)
