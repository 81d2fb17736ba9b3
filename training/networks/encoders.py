# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Published networks of transformers, as training and evaluation read them: whatever a folder or a repository says of
itself, none of its code runs, nothing in it is unpickled, and no weight is made up that it lacks."""

from typing import Any

POOLER = "pooler."  # which many encoders are published without


def load_whole(cls: Any, source: str) -> tuple[Any, bool]:
    """A network in evaluation mode, and whether it came with its pooler.

    Call it within `errors.loading`: what transformers raises is of many kinds.

    Args:
        cls: a model class of transformers, `AutoModel` among them.
        source: a folder or a Hub name.

    Raises:
        ValueError: for weights that are missing or of another shape, but for a pooler's.
    """
    model, report = cls.from_pretrained(
        source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    bad = [key for key in missing if not key.startswith(POOLER)]
    if bad:
        raise ValueError(f"{len(bad)} weights are missing or of another shape ({', '.join(bad[:3])})")
    return model, not missing
