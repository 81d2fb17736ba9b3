# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A finished pipeline's folder as a repository on the Hub: its model card, and its upload.

The self-contained checkpoint itself is written by `MezzotintPipeline.save_pretrained`. Needs the `train` extra (Jinja)
for cards; importing this module does not.
"""

import importlib.resources
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData

from mezzotint.pipelines.pipeline_mezzotint import LOADING

# What belongs to the run and not to the published pipeline
NOT_PUBLISHED = ["checkpoint-*", ".checkpoint-*", "logs/*", "metrics.jsonl"]
# What goes from the repository unless it comes anew: earlier code, and weights in another number of files
REPLACED = ["*_v????????.py", "*/*.safetensors", "*/*.safetensors.index.json"]


def write_card(folder: str | Path, settings: dict[str, Any], metrics: dict[str, Any], grid: str | None) -> Path:
    """Write `README.md`, the model card, from what was set and what was measured; no number in it is typed by hand.

    Args:
        folder: of the finished pipeline.
        settings: the run's settings (the fields of `TrainConfig`).
        metrics: what the run measured (the contents of `metrics.json`).
        grid: path of the sample grid, relative to `folder`.
    """
    folder = Path(folder)
    prompts = settings.get("validation_prompts") or []
    base = settings.get("pretrained_model_name_or_path")
    source = settings.get("dataset_name") or Path(settings["train_data_dir"]).resolve().name
    on_hub = settings.get("dataset_name") not in (None, "digits")
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=settings.get("license"),
        datasets=[settings["dataset_name"]] if on_hub else None,
        base_model=base if base and not Path(base).exists() else None,
        tags=["mezzotint", "diffusion", "text-to-image"],
        widget=[{"text": prompt, "output": {"url": grid}} for prompt in prompts[:1]] if grid else None,
    )
    template = importlib.resources.files("mezzotint.model_cards").joinpath("text_to_image.md.jinja")
    card = ModelCard.from_template(
        data,
        template_str=template.read_text(encoding="utf-8"),
        location=folder.as_posix(),
        settings=settings,
        metrics=metrics,
        grid=grid,
        source=source,
        prompt=prompts[0] if prompts else "",
        base_name=Path(base).resolve().name if base and Path(base).exists() else base,
    )
    path = folder / "README.md"
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8")
    return path


def push(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload a finished pipeline's folder in one commit, with the card's loading line naming `repo_id`. Code and
    weights of an earlier upload go from the repository, where diffusers might load them in place of these.

    Returns:
        the commit's address.

    Raises:
        ValueError: for a folder without `model_index.json`.
        huggingface_hub.errors.HfHubHTTPError: for what the Hub refuses.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} must hold a finished pipeline: it has no model_index.json")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    card = folder / "README.md"
    before = card.read_bytes() if card.is_file() else b""
    if before:
        card.write_text(LOADING.sub(f'from_pretrained("{repo_id}"', before.decode("utf-8")), encoding="utf-8")
    try:
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=NOT_PUBLISHED,
            delete_patterns=REPLACED,
            commit_message="Upload MezzotintPipeline",
        ).commit_url
    except Exception:
        if before:
            card.write_bytes(before)
        raise
