# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Progress bars, and the most memory that a process has held."""

import resource
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress_bar(items: Iterable[T], description: str, total: int, show: bool = True) -> Iterator[T]:
    """Iterate over `items`, with a progress bar on a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    yield from track(items, description, total=total, console=console, transient=True)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes: of the GPU where it computes on one, else of the
    machine (its peak resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
