# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Finds what would prevent a publication, before there is one."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi

from mezzotint.hub import refusals
from mezzotint_training.config import tasks
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import plan
from mezzotint_training.learning.learner import Learner
from mezzotint_training.publishing.card import front_matter

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
    """A problem of a publication to come, as one line; `fatal` if the upload would fail."""

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
    later = "; without push_to_hub the run can be uploaded later by `mezzotint publish`"
    if license is None:
        line = "the card must say under which licence the weights are: license is not set, say to apache-2.0"
        found.append(Problem(f"{line}{later}", True))
    if settings.get("dataset_license") is None:
        found.append(Problem("the card will not say whose the data is: dataset_license is not set", False))
    if not settings.get("validation_prompts") and not tasks.of(settings).given:
        found.append(Problem("the card will show no pictures: there are no validation_prompts", False))
    refused = refusals(name, f"---\n{front_matter(settings, None)}\n---\n", api)
    return found + [Problem(f"{text}{later}", True) for text in refused]


def foresee(
    config: TrainConfig,
    data: dict[str, Any],
    derived: Iterable[Any],
    components: dict[str, Any],
    learner: Learner,
    try_batch: Callable[[int], Any],
) -> dict[str, Any]:
    """Say what a run will do and cost, and what stands in the way of its publication; `data` is what `Source.facts`
    returned, the rest as of `plan.make_plan`, whose result is returned. All processes call this.

    Raises:
        UserError: for what would fail after the run, unless a plan is all that was asked for.
    """
    accelerator, name = learner.accelerator, config.hub_model_id or Path(config.output_dir).name
    found: list[Any] = [problems(asdict(config), name) if accelerator.is_main_process else None]
    broadcast_object_list(found)
    for text, fatal in found[0]:
        if fatal and not config.plan:
            raise UserError(text)
    planned = plan.make_plan(
        config,
        data,
        [str(one) for one in derived],
        components,
        learner.parameters,
        learner.optimizer,
        try_batch,
        [text for text, _ in found[0]],
        accelerator,
    )
    for line in plan.lines(planned, every_row=config.plan):
        accelerator.print(line)
    return planned
