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
CAPTIONS: list[Any] = [
    None, 3, 1.5, True, [], [None], ["a", 3], {}, {"a": 1}, "", " ", "\u0000", "\ud800", "x" * 200_000, math.nan,
    [["a"]],
]  # fmt: skip


@kind("pictures and captions")
def change_data(rng: random.Random, ground: Ground) -> Attack:
    victim = ground.lay(rng.choice(victims("data", "table", besides=("fine-tune", "train adapters"))))
    skips = "skipping" in victim
    if victim == "train on a table":
        path = ground.folder / "table" / "train.parquet"
        table = pq.read_table(path)
        images, texts = table.column("image").to_pylist(), table.column("text").to_pylist()
        row = rng.randrange(len(texts))
        if rng.random() < 0.6:
            name = rng.choice([x for x in FAULTS if "link" not in x and "pipe" not in x and "folder" not in x])
            (scratch := ground.folder / "scratch").write_bytes(b"")
            FAULTS[name][0](scratch)
            images[row] = {
                "bytes": scratch.read_bytes(),
                "path": rng.choice(["x.png", None, "../secrets/token", "/etc/passwd"]),
            }
            scratch.unlink()
            what, legal = f"picture {row} {name}", FAULTS[name][1]
        else:
            change = rng.choice(
                ["no bytes, a path", "null", "null caption", "no captions", "other columns", "numbers", "no rows"]
            )
            what, legal = f"row {row}: {change}", ""
            if change == "no bytes, a path":
                images[row] = {
                    "bytes": None,
                    "path": rng.choice(["../secrets/token", "http://localhost:1/x", "/dev/zero"]),
                }
            elif change == "null":
                images[row] = None
            elif change == "null caption":
                texts[row] = None
            elif change == "no rows":
                images, texts = [], []
            elif change == "numbers":
                texts = list(range(len(texts)))
        columns = {"image": pa.array(images, table.schema.field("image").type), "text": pa.array(texts)}
        if "no captions" in what:
            del columns["text"]
        elif "other columns" in what:
            columns = {f"{k} ": v for k, v in columns.items()}
        made = pa.table(columns)
        pq.write_table(made.replace_schema_metadata(table.schema.metadata) if rng.random() < 0.5 else made, path)
        return Attack(victim, what, legal=legal)
    data = ground.folder / "data"
    number = rng.randrange(12)
    if rng.random() < 0.6:
        name = rng.choice(sorted(FAULTS))
        FAULTS[name][0](data / f"{number}.png")
        return Attack(victim, f"data/{number}.png {name}", legal="value" if skips else FAULTS[name][1])
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    legal, caption, how = (
        "",
        rng.choice(CAPTIONS),
        rng.choice(["caption", "caption", "all captions", "name", "twice", "line"]),
    )
    if how == "caption":
        lines[number]["text"], legal = caption, "value" if isinstance(caption, str) and caption.strip() else ""
    elif how == "all captions":
        lines = [line | {"text": caption} for line in lines]
        legal = "value" if isinstance(caption, str) and caption.strip() else ""
    elif how == "name":
        caption = rng.choice(
            ["../secrets/token", "missing.png", "", None, 3, "/etc/passwd", "http://localhost:1/x", "metadata.jsonl"]
        )
        lines[number]["file_name"] = caption
    elif how == "twice":
        lines.append(lines[number])
    text = "\n".join(map(json.dumps, lines)) + "\n"
    if how == "line":
        caption = rng.choice(["{", "null", "[]", "3", "{}", "\x00", "[" * 5000])
        text += caption + "\n"
    (data / "metadata.jsonl").write_text(text)
    return Attack(victim, f"data/metadata.jsonl {how} {number}: {shown(caption)}", legal="value" if skips else legal)
