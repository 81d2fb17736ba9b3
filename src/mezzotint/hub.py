# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A finished pipeline's folder as a repository on the Hub: its model card, its upload, and what would prevent either.

The self-contained checkpoint itself is written by `MezzotintPipeline.save_pretrained`. Needs the `train` extra (Jinja)
for cards; importing this module does not.
"""

import difflib
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from mezzotint.pipelines.pipeline_mezzotint import LOADING

# What belongs to the run and not to the published pipeline
NOT_PUBLISHED = ["checkpoint-*", ".checkpoint-*", "cache/*", "ema/*", "logs/*", "metrics.jsonl"]
# What a folder of low-rank adapters holds in place of a pipeline
ADAPTERS = "pytorch_lora_weights.safetensors"
# What goes from the repository unless it comes anew: earlier code, weights in another number of files, their figures
REPLACED = ["*_v????????.py", "*/*.safetensors", "*/*.safetensors.index.json", "evaluation.json"]
# The Hub's licence identifiers (its documentation, "Licenses"), for where it cannot be asked itself
LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
}  # fmt: skip


class Problem(NamedTuple):
    """Something about a publication to come, in one line; `fatal` where the upload would fail."""

    text: str
    fatal: bool


def problems(settings: dict[str, Any], name: str, api: HfApi | None = None) -> list[Problem]:
    """What is wrong with the token, the repository's name, the licence and the card, before there is one.

    The Hub is asked only where `push_to_hub` is set, and nothing on it is changed.

    Args:
        settings: the run's settings (the fields of `TrainConfig`).
        name: of the repository, with or without its owner.
        api: the client; by default the one that `push` uses.
    """
    found, license = [], settings.get("license")
    if not settings.get("push_to_hub"):
        if license is not None and license not in LICENSES:
            near = difflib.get_close_matches(license.lower(), LICENSES, n=3, cutoff=0.5)
            hint = f"; near it are {', '.join(near)}" if near else ""
            found.append(Problem(f"license must be one of the Hub's identifiers: got {license!r}{hint}", False))
        return found
    for setting, what in (("license", "under which licence the weights are"), ("dataset_license", "whose the data is")):
        if settings.get(setting) is None:
            found.append(Problem(f"the card will not say {what}: {setting} is not set", False))
    if not settings.get("validation_prompts"):
        found.append(Problem("the card will show no pictures: there are no validation_prompts", False))
    later = "; without push_to_hub the run can be uploaded later by `mezzotint publish`"
    try:
        validate_repo_id(name)
    except ValueError as error:
        found.append(Problem(f"hub_model_id must be a name that the Hub takes: {_one_line(error)}", True))
        return found
    if is_offline_mode():
        found.append(Problem(f"push_to_hub needs the network: got HF_HUB_OFFLINE{later}", True))
        return found
    try:
        refusal = _no_right(name, (api or HfApi()).whoami())
        if refusal is not None:
            found.append(Problem(refusal, True))
        ModelCard(f"---\n{_card_data(settings, None)}\n---\n").validate()
    except LocalTokenNotFoundError:
        found.append(Problem("push_to_hub needs a token: got none; `hf auth login` or HF_TOKEN brings one", True))
    except ValueError as error:
        found.append(Problem(f"the Hub does not take the card: {_one_line(error)}", True))
    except (OSError, HTTPError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        what = "needs a token that the Hub accepts" if refused else "needs the Hub"
        found.append(Problem(f"push_to_hub {what}: {_one_line(error)}{'' if refused else later}", True))
    return found


def _no_right(name: str, account: dict[str, Any]) -> str | None:
    """Why an account, as `whoami` tells of it, may not write to the repository `name`; `None` where it may."""
    namespace = name.split("/")[0] if "/" in name else account["name"]
    roles = {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    if namespace != account["name"] and namespace not in roles:
        mine = ", ".join([account["name"], *roles])
        return f"hub_model_id must be in a namespace of the token's ({mine}): got {name!r}"
    if roles.get(namespace) == "read":
        return f"hub_model_id must be where the token may write: {account['name']} may only read in {namespace}"
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return "push_to_hub needs a token that may write: got one that may only read"
    if token.get("role") == "fineGrained":
        places = {namespace, f"{namespace}/{name.split('/')[-1]}"}
        scopes = token.get("fineGrained", {}).get("scoped", [])
        if not any(s["entity"].get("name") in places and "repo.write" in s["permissions"] for s in scopes):
            return f"push_to_hub needs a token that may write to {namespace}: got a fine-grained one without repo.write"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def write_card(
    folder: str | Path,
    settings: dict[str, Any],
    metrics: dict[str, Any],
    grid: str | None,
    evaluation: dict[str, Any] | None = None,
) -> Path:
    """Write `README.md`, the model card, from what was set and what was measured; no number in it is typed by hand.

    Args:
        folder: of the finished pipeline.
        settings: the run's settings (the fields of `TrainConfig`).
        metrics: what the run measured (the contents of `metrics.json`).
        grid: path of the sample grid, relative to `folder`.
        evaluation: what `mezzotint evaluate` measured (the contents of `evaluation.json`), with `table`, all of it in
            Markdown, and `command`, the line that made it; `None` where nothing was.
    """
    folder = Path(folder)
    scheduler, schedules = folder / "scheduler" / "scheduler_config.json", []
    if scheduler.is_file():
        schedules = json.loads(scheduler.read_text(encoding="utf-8")).get("fitted_schedules") or []
    prompts, base = settings.get("validation_prompts") or [], settings.get("pretrained_model_name_or_path")
    name = "lora.md.jinja" if settings.get("adapter") else "text_to_image.md.jinja"
    template = importlib.resources.files("mezzotint.model_cards").joinpath(name)
    card = ModelCard.from_template(
        _card_data(settings, grid),
        template_str=template.read_text(encoding="utf-8"),
        location=folder.as_posix(),
        settings=settings,
        metrics=metrics,
        grid=grid,
        evaluation=evaluation,
        schedules=[schedule for schedule in schedules if "held_out_rmse" in schedule.get("provenance", {})],
        source=settings.get("dataset_name") or Path(settings["train_data_dir"]).resolve().name,
        prompt=prompts[0] if prompts else "",
        base=base,
        base_name=Path(base).resolve().name if base and Path(base).exists() else base,
    )
    path = folder / "README.md"
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8")
    return path


def _card_data(settings: dict[str, Any], grid: str | None) -> ModelCardData:
    """The card's front matter."""
    prompts, base = settings.get("validation_prompts") or [], settings.get("pretrained_model_name_or_path")
    on_hub = settings.get("dataset_name") not in (None, "digits")
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=settings.get("license"),
        datasets=[settings["dataset_name"]] if on_hub else None,
        base_model=base if base and not Path(base).exists() else None,
        tags=["mezzotint", "diffusion", "text-to-image", *(["lora"] if settings.get("adapter") else [])],
        widget=[{"text": prompt, "output": {"url": grid}} for prompt in prompts[:1]] if grid else None,
    )


def push(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload the folder of a finished pipeline, or of its adapters, in one commit, with the card's loading line naming
    `repo_id`. Code and weights of an earlier upload go from the repository, where diffusers might load them in place of
    these, and so do the figures of those weights.

    Returns:
        the commit's address.

    Raises:
        ValueError: for a folder that has neither `model_index.json` nor adapters.
        huggingface_hub.errors.HfHubHTTPError: for what the Hub refuses.
    """
    folder = Path(folder)
    loading, call = LOADING, "from_pretrained"
    if not (folder / "model_index.json").is_file():
        if not (folder / ADAPTERS).is_file():
            raise ValueError(f"{folder} must hold a finished pipeline: it has no model_index.json")
        loading, call = re.compile(r'load_lora_weights\("[^"]*"'), "load_lora_weights"
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    card = folder / "README.md"
    before = card.read_bytes() if card.is_file() else b""
    if before:
        card.write_text(loading.sub(f'{call}("{repo_id}"', before.decode("utf-8")), encoding="utf-8")
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
