# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A publication from its checks to the proof: what is to go up and what would prevent it, the picture that it must
draw, the upload, and the upload loaded back by a stranger."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import ModelCard
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import enable_progress_bars

import mezzotint
from mezzotint import hub
from mezzotint.pipelines.checkpoint_mezzotint import _MINIMAL_CARD
from mezzotint_training.config.errors import CannotGoOn, UserError, loading, one_line
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.networks.saved import load_pipeline
from mezzotint_training.publishing import contents, load_back
from mezzotint_training.publishing.load_back import Drawing, Source, Verdict


class Publication(NamedTuple):
    """What is to be published.

    Attributes:
        folder: that it is in.
        content: the part of the folder that goes up.
        card: the text of the card.
        base: of adapters, the pipeline that they are for, and its revision.
        foreign: paths of code in it that is not the installed package's.
    """

    folder: Path
    content: hub.Content
    card: str
    base: tuple[str, str | None] | None
    foreign: list[str]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.content.files.values())


def prepare(folder: Path, license: str | None = None, base: str | None = None) -> tuple[Publication, list[str]]:
    """What of a folder is to be published, and a line for each thing in it that prevents that. Nothing is loaded, and
    the Hub is not asked.

    Args:
        folder: a finished run's, or any saved pipeline's.
        license: the Hub's identifier of one, for a card that names none.
        base: the pipeline that adapters are for; by default the one that their recipe names.

    Raises:
        UserError: for a folder without a whole pipeline or adapters.
    """
    try:
        content = hub.content(folder)
        if content.missing:
            raise ValueError(f"{folder} must hold the code that its {hub.INDEX} names: {content.missing[0]} is missing")
        card = content.files[hub.CARD].read_text(encoding="utf-8") if hub.CARD in content.files else None
    except ValueError as error:
        raise UserError(one_line(error)) from None
    found, revision = contents.problems(content.files), None
    if content.kind == hub.ADAPTERS and base is None:
        recipe = read_recipe(folder)
        base, revision = (recipe.get(name) for name in ("pretrained_model_name_or_path", "revision"))
        if not isinstance(base, str) or base.startswith("./") and not Path(base).is_dir():
            raise UserError(f"--pretrained_model_name_or_path must say what the adapters are of: {folder} says {base}")
    elif content.kind != hub.ADAPTERS and base is not None:
        raise UserError(f"pretrained_model_name_or_path is for adapters: {folder} holds a whole pipeline")
    try:
        card = licensed(card or _MINIMAL_CARD.format(task=_tag(content)), license)
    except ValueError as error:
        found.append(one_line(error))
    foreign = contents.foreign_code(content)
    if base is not None:
        foreign += contents.foreign_code(hub.content(base)) if Path(base, hub.INDEX).is_file() else [base]
    return Publication(folder, content, card or "", None if base is None else (base, revision), foreign), found


def licensed(card: str, license: str | None) -> str:
    """A card that names the licence of the weights: its own, or `license`; signed again if it was signed.

    Raises:
        ValueError: for one that names none where none is given, or another.
    """
    parsed = ModelCard(card) if card.lstrip().startswith("---") else None
    named = parsed.data.get("license") if parsed is not None else None
    if parsed is not None and named is None and license is None:
        raise ValueError(f"{hub.CARD} must say under which licence the weights are: --license, say apache-2.0, adds it")
    if parsed is None or license is None or named == license:
        return card
    if named is not None:
        raise ValueError(f"license must be the one that {hub.CARD} names, {named}: got {license}")
    parsed.data.license = license
    text = str(parsed)
    return hub.signed(hub.SIGNATURE.sub("", text)) if hub.unedited(card) else text


def _tag(content: hub.Content) -> str:
    return getattr(getattr(mezzotint, content.title, None), "pipeline_tag", "text-to-image")


@contextlib.contextmanager
def alone(publication: Publication) -> Iterator[str]:
    """A folder of links to what goes up, and to nothing else of the publication's folder."""
    with tempfile.TemporaryDirectory() as place:
        for name, file in publication.content.files.items():
            link = Path(place, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield place


class Proof(NamedTuple):
    """A drawing, and the picture that it comes to by the package's own code from the files that go up."""

    drawing: Drawing
    picture: np.ndarray


def proof(publication: Publication, prompt: str | None = None) -> Proof:
    """Draw the first picture of the card, or a small one where there is no card of a run, from what is to go up.

    Args:
        prompt: in place of the card's.

    Raises:
        UserError: for a pipeline that does not load or draw.
    """
    folder = str(publication.folder)
    try:
        with alone(publication) as place:
            if publication.base is None:
                pipe: Any = load_pipeline(place)
                cls = getattr(mezzotint, publication.content.title, type(pipe))  # that a stranger gets
                pipe = pipe if type(pipe) is cls else cls(**pipe.components)
            else:
                base, revision = publication.base
                pipe = load_pipeline(base, "pretrained_model_name_or_path", revision=revision)
                with loading(f"adapters {place}"):
                    pipe.load_lora_weights(place)
            drawing = _drawing(publication, pipe, prompt)
            return Proof(drawing, drawing.by(pipe))
    except (UserError, ValueError) as error:  # the latter for a prompt that it does not take, or no picture
        raise UserError(one_line(error).replace(place, folder)) from None


def _drawing(publication: Publication, pipe: Any, prompt: str | None) -> Drawing:
    """That of the card's example, where a run has written one."""
    recipe, call = read_recipe(publication.folder), {}
    prompts = recipe.get("validation_prompts")
    of_text = publication.content.title in ("MezzotintPipeline", "MezzotintCascadePipeline")
    if of_text and isinstance(prompts, list) and prompts and prompt is None:
        prompt = str(prompts[0])
        steps, scale = recipe.get("num_inference_steps"), recipe.get("guidance_scale")
        call |= {"num_inference_steps": steps} if isinstance(steps, int) else {}
        call |= {"guidance_scale": float(scale)} if isinstance(scale, int | float) else {}
    seed = recipe.get("seed")
    return load_back.drawing(pipe, prompt or "", seed if isinstance(seed, int) else 0, **call)


def as_a_stranger(
    publication: Publication, proof: Proof, name: str | None = None, commit: str | None = None
) -> Verdict:
    """Load what is to go up, or what is there as `name` at a commit, where mezzotint is not installed, and compare.

    Raises:
        CannotGoOn: for what does not load there.
    """
    with alone(publication) as place:
        where = (name or place, commit)
        if publication.base is None:
            return load_back.as_a_stranger(Source(*where), *proof)
        return load_back.as_a_stranger(Source(*publication.base, *where), *proof)


def upload(
    publication: Publication,
    name: str,
    proof: Proof | None,
    private: bool = False,
    replace_card: bool = False,
    revision: str | None = None,
    say: Callable[[str], object] = print,
) -> str:
    """Upload, compare every file's hash, load back as a stranger and compare the picture; then say where it is.

    Args:
        name: of the repository, with or without its owner.
        proof: what it must draw; with `None` it is not loaded back, which is said.
        private, replace_card, revision, say: as of `hub.push`.

    Returns:
        the commit's address.

    Raises:
        UserError: for what `hub.push` refuses.
        CannotGoOn: for an upload that failed, or is not what was to go up.
    """
    if sys.stderr.isatty() and HF_HUB_DISABLE_PROGRESS_BARS is not True:
        enable_progress_bars()  # which transformers turns off with its own
    options = {"private": private or None, "replace_card": replace_card, "revision": revision, "say": say}
    try:
        address = hub.push(publication.folder, name, card=publication.card, **options)
    except ValueError as error:
        raise UserError(one_line(error)) from None
    place, _, commit = address.removesuffix("/").rpartition("/commit/")
    name = "/".join(place.split("/")[-2:])
    told = f"uploaded: {address}, but"
    try:
        changed = {hub.CARD, hub.RECIPE, hub.MODULAR_INDEX}  # which name the repository, and no place of this machine
        files = {x: path for x, path in publication.content.files.items() if x not in changed}
        if different := hub.different(name, commit, files):
            raise CannotGoOn(f"{told} {different[0]} there is not what went up")
        verdict = as_a_stranger(publication, proof, name, commit) if proof is not None else None
    except (OSError, HTTPError) as error:
        raise CannotGoOn(f"{told} it cannot be loaded back: {one_line(error)}") from None
    except CannotGoOn as error:
        raise CannotGoOn(f"{told} {str(error).removeprefix(told).strip()}") from None
    if verdict is not None and not verdict.same:
        raise CannotGoOn(f"{told} loaded back it draws {verdict}")
    say(f"published: {address}")
    if verdict is None:
        say("not loaded back where mezzotint is not installed; `mezzotint publish --dry_run` does that from here")
    else:
        say(f"loaded back where mezzotint is not installed: {verdict} ({verdict.seconds:.1f} s)")
    return address
