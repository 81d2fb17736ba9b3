# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Finds what must not leave in the files that are to be published, what is too large for the Hub, and code that is not
the installed package's. No file is changed, and nothing in one is run."""

import os
import re
import struct
import sys
import tempfile
from pathlib import Path

import mezzotint
from mezzotint.hub import Content
from mezzotint.pipelines.checkpoint_mezzotint import _ship_source

# How the keys of some services begin, by their documentation
SECRETS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})",
    "an AWS key": rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": rb"\bAIza[\w-]{35}",
    "a key of OpenAI's form": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a Slack token": rb"\bxox[abprs]-[\w-]{10,}",
    "a private key": rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": rb"\b[a-z]+://[^\s/:@\"'<>]+:[^\s/:@\"'<>]+@[\w.-]+",
}
# Where what a text encoder knows is written down, among it parts of words that look like anything
VOCABULARY = re.compile(r".*/(tokenizer\.json|vocab\.\w+|merges\.txt|added_tokens\.json|special_tokens_map\.json)")
ABSOLUTE = re.compile(r"(?<![\w.~/])(?:/[\w.@+-]+){2,}|\b[A-Za-z]:\\(?:[\w.@+ -]+\\)+[\w.@+ -]*")
SYSTEM = ("/bin/", "/dev/", "/etc/", "/lib/", "/opt/", "/proc/", "/sys/", "/usr/")  # the same on every machine
LARGEST = 50 * 10**9  # bytes of one file, the size up to which the Hub has always taken them (its "Storage limits")
HEADER = 10**8  # bytes of the longest header of safetensors


def problems(files: dict[str, Path]) -> list[str]:
    """A line for each file that must not go up as it is.

    Args:
        files: by their paths in the repository.
    """
    found = []
    for name, path in files.items():
        if (size := path.stat().st_size) > LARGEST:
            shards = "save_pretrained(…, max_shard_size=…) divides weights"
            found.append(f"{name} must be of at most {LARGEST / 1e9:.0f} GB: got {size / 1e9:.0f}; {shards}")
            continue
        content = _header(path) if path.suffix == ".safetensors" else path.read_bytes()
        found += [
            f"{name} must hold no secret: what looks like {what} is at byte {match.start():,}"
            for what, pattern in SECRETS.items()
            if not VOCABULARY.fullmatch(f"/{name}") and (match := re.search(pattern, content))
        ]
        # The code is the package's, or is told apart by `foreign_code`
        if path.suffix in (".py", ".png", ".safetensors") or VOCABULARY.fullmatch(f"/{name}"):
            continue
        places = ABSOLUTE.findall(content.decode("utf-8", errors="replace"))
        if here := [place for place in places if not place.startswith(SYSTEM) and os.path.exists(place)]:
            found.append(f"{name} must name no place on this machine: got {here[0]}")
    return found


def _header(path: Path) -> bytes:
    """The text of a safetensors file: the names of its tensors, and what else was written down with them."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return file.read(min(length, HEADER))


def foreign_code(content: Content) -> list[str]:
    """The code in a folder that is not, byte for byte, what the installed package saves there: of another version of
    it, or somebody's."""
    code, known = [name for name in content.files if name.endswith(".py")], {}
    with tempfile.TemporaryDirectory() as place:
        for cls in {x for x in vars(mezzotint).values() if isinstance(x, type) and x.__module__ in sys.modules}:
            name = _ship_source(cls, Path(place))
            known[f"{name}.py"] = Path(place, f"{name}.py").read_bytes()
    return [name for name in code if known.get(Path(name).name) != content.files[name].read_bytes()]
