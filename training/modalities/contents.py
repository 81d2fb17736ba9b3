# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The whole numbers that samples are kept as, whatever their modality, and the numbers in [-1, 1] that they stand for:
bytes (of pictures, frames and solids; 0 or 255 for a bit), or 16 bits of a sound. And what is common to all that are
read from a file."""

import contextlib
import os
import re
from typing import Any

import torch


def unit(content: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Whole numbers to [-1, 1], in a type: bytes, or 16 bits, whose zero is zero."""
    return content.to(dtype) / 32768 if content.dtype == torch.int16 else content.to(dtype) / 127.5 - 1


def spacing(dtype: torch.dtype) -> float:
    """Distance in [-1, 1] between neighbouring whole numbers of a type."""
    return 1 / 32768 if dtype == torch.int16 else 1 / 127.5


def whole(data: torch.Tensor, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """The inverse of `unit`: the nearest whole numbers of a type, bytes or 16 bits."""
    if dtype == torch.int16:
        return (data * 32768).round().clamp(-32768, 32767).to(dtype)
    return ((data + 1) * 127.5).round().clamp(0, 255).to(dtype)


def file_of(cell: dict | None) -> tuple[Any, str | None]:
    """The content of a cell that is a file (`{"bytes": ..., "path": ...}`), or where it is.

    Raises:
        ValueError: for an empty cell, or for what is no plain file.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if cell else (None, None)
    if not content and not path:
        raise ValueError("there is none")
    if not content and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError("it is no plain file")
    return content, path


@contextlib.contextmanager
def faults_in_one_line():
    """Have whatever a library raises at a file that it cannot read raised as ValueError, in one line."""
    try:
        yield
    except (MemoryError, ImportError):  # of the size that is asked for, or of what is not installed: not of the file
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, TypeError, ...
        line = re.sub(r" <_io\.[^>]*>", "", " ".join(str(error).split()))  # always the same for a file
        raise ValueError(line[:300] or type(error).__name__) from None
