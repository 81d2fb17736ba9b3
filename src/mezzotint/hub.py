# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Uploads a finished pipeline's folder to the Hub: what of it is published, how, and why the Hub would refuse it. The
self-contained checkpoint itself is written by `MezzotintPipeline.save_pretrained`.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import transformers
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from mezzotint import markdown
from mezzotint.pipelines.checkpoint_mezzotint import BLOCKS, MODULAR_INDEX, VERSIONED, modular_index_at

# The two kinds of folders that are published: a pipeline's, and one of low-rank adapters
INDEX, ADAPTERS = "model_index.json", "pytorch_lora_weights.safetensors"
CARD, RECIPE = "README.md", "recipe.yaml"
# What else is published beside them
BESIDE = (
    r"README\.md|recipe\.yaml|(metrics|evaluation)\.json|(LICEN[CS]E|NOTICE)(-\w+)?(\.md|\.txt)?|samples/[^/]+\.png"
    r"|\.eval_results/[^/]+\.yaml"
)
# The folders of them
FOLDERS = {"samples", ".eval_results"}
# What is published of a component's folder, with its vocabulary and its own code: settings, weights, their index
COMPONENT = (
    r"((scheduler|guider|generation|tokenizer|processor|preprocessor)_)?config\.json"
    r"|(diffusion_pytorch_model|model)([.-][\w-]+)*\.safetensors(\.index(\.\w+)?\.json)?"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
)
# What a run keeps in its folder for itself, as patterns
OF_THE_RUN = (
    "checkpoint-*", ".checkpoint-*", ".mezzotint", "cache", "ema", "logs", "metrics.jsonl", ".gitignore", "stage-*"
)  # fmt: skip
# Settings that are places on the machine; the last four only where they are no name on the Hub
PLACES = (
    "train_data_dir", "output_dir", "cache_dir", "resume_from_checkpoint",
    "pretrained_model_name_or_path", "text_encoder_name_or_path", "vae", "dataset_name",
)  # fmt: skip
# The calls in a card's code that name the repository, each with the Python literal that names it
LOADING = {
    INDEX: re.compile(r'(from_pretrained\()"(?:[^"\\]|\\.)*"(?=, trust_remote_code=True\))'),
    ADAPTERS: re.compile(r'(load_lora_weights\()"(?:[^"\\]|\\.)*"'),
}
SIGNATURE = re.compile(r"<!-- mezzotint (\w+), so long as nobody has edited this card -->\s*$")


def refusals(name: str, card: str | None = None, api: HfApi | None = None) -> list[str]:
    """Why an upload would fail, a line for each reason: for want of the network, of a token, of the right to write or
    of a valid card. Nothing on the Hub is changed.

    Args:
        name: of the repository, with or without its owner.
        card: the text of its `README.md`.
        api: the client; by default the one that `push` uses.
    """
    try:
        validate_repo_id(name)
    except ValueError as error:
        return [f"hub_model_id must be a name that the Hub takes: {_one_line(error)}"]
    if is_offline_mode():
        return ["the upload needs the network: got HF_HUB_OFFLINE"]
    found = []
    try:
        refused = _no_right(name, (api or HfApi()).whoami())
        if refused is not None:
            found.append(refused)
        if card is not None and not card.lstrip().startswith("---"):
            found.append(f"{CARD} must begin with metadata between two lines of ---: got none")
        elif card is not None:
            ModelCard(card).validate()
    except LocalTokenNotFoundError:
        found.append("the upload needs a token: got none; `hf auth login` or HF_TOKEN brings one")
    except ValueError as error:
        found.append(f"the Hub does not take the card: {_one_line(error)}")
    except (OSError, HTTPError) as error:
        not_accepted = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        what = "a token that the Hub accepts" if not_accepted else "the Hub"
        found.append(f"the upload needs {what}: {_one_line(error)}")
    return found


def _no_right(name: str, account: dict[str, Any]) -> str | None:
    """The reason why an account, as `whoami` describes it, may not write to the repository `name`; `None` if it may."""
    namespace = name.split("/")[0] if "/" in name else account["name"]
    roles = {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    if namespace != account["name"] and namespace not in roles:
        mine = ", ".join([account["name"], *roles])
        return f"hub_model_id must be in a namespace of the token's ({mine}): got {name!r}"
    if roles.get(namespace) == "read":
        return f"hub_model_id must be where the token may write: {account['name']} may only read in {namespace}"
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return "the upload needs a token that may write: got one that may only read"
    if token.get("role") == "fineGrained":
        places = {namespace, f"{namespace}/{name.split('/')[-1]}"}
        scopes = token.get("fineGrained", {}).get("scoped", [])
        if not any(s["entity"].get("name") in places and "repo.write" in s["permissions"] for s in scopes):
            return f"the upload needs a token that may write to {namespace}: got a fine-grained one without repo.write"
    return None


# ------------------------------------------------------------------------------------------------------ what is told


def public(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings as they are published: in place of each path on this machine `./` and its last part."""
    found = {
        name: value
        for name in PLACES
        if isinstance(value := settings.get(name), str) and value not in ("", "latest", "digits", "tones", "chains")
        if name.endswith("_dir") or name == "resume_from_checkpoint" or is_path(value)
    }
    return settings | {name: f"./{os.path.basename(os.path.abspath(value))}" for name, value in found.items()}


def is_path(name: str) -> bool:
    """Whether something that may be a path or a name on the Hub is a path."""
    return name.startswith((".", "~")) or os.path.isabs(name) or os.path.exists(name)


def signed(text: str) -> str:
    """A card that ends in a digest of itself, by which one that somebody has edited is told from it."""
    text = text.rstrip() + "\n"
    return f"{text}\n<!-- mezzotint {_digest(text)}, so long as nobody has edited this card -->\n"


def unedited(text: str) -> bool:
    """Whether a card is as `card_text` made it, whatever repository its code names."""
    signature = SIGNATURE.search(text)
    return signature is not None and signature[1] == _digest(text[: signature.start()].rstrip() + "\n")


def _digest(text: str) -> str:
    for loading in LOADING.values():
        text = loading.sub(r"\1", text)
    return hashlib.sha256("\n".join(text.splitlines()).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------- what is published


class Content(NamedTuple):
    """The part of a folder that is published.

    Attributes:
        kind: `INDEX` for a pipeline, `ADAPTERS` for low-rank adapters.
        files: by their paths in the repository.
        left_out: names of the folder that are on no list, less what a run keeps there for itself.
        missing: paths of code that the index names and the folder lacks; a run's own has all of it.
        title: the pipeline's class, or "adapters".
    """

    kind: str
    files: dict[str, Path]
    left_out: list[str]
    missing: list[str]
    title: str


def content(folder: str | Path) -> Content:
    """The part of a folder that is published: what its `model_index.json` names, as far as it is of a known kind, or
    its adapters, and the card, licence, recipe, figures and samples beside them. Links are not followed.

    Raises:
        ValueError: for a folder that has neither a pipeline nor adapters, or has a link or another thing that is no
            plain file or folder where there must be one.
    """
    folder = Path(folder)
    listed, kind, names, code, title = BESIDE, ADAPTERS, set(FOLDERS), set(), "adapters"
    if (folder / INDEX).is_file():
        kind = INDEX
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            code, own = _code(index), index.get("_class_name")
            title = (own[1] if isinstance(own, list) else own) or "pipeline"
            listed, names = f"{BESIDE}|{_of_pipeline(index)}", {*FOLDERS, *_components(index)}
        except (ValueError, AttributeError, RecursionError):
            raise ValueError(f"{folder} must hold a finished pipeline: its {INDEX} is not a pipeline's") from None
    elif (folder / ADAPTERS).is_file():
        listed = f"{BESIDE}|{re.escape(ADAPTERS)}"
    else:
        raise ValueError(f"{folder} must hold a finished pipeline: it has no {INDEX}")
    files, left_out = {}, []
    waiting = sorted(folder.iterdir(), reverse=True)
    while waiting:
        path = waiting.pop()
        name = path.relative_to(folder).as_posix()
        of_the_list = re.fullmatch(listed, name) is not None
        plain_file, plain_folder = (not path.is_symlink() and x for x in (path.is_file(), path.is_dir()))
        if (of_the_list and not plain_file) or (name in names and not plain_folder):
            raise ValueError(
                f"{path} must be a plain {'file' if of_the_list else 'folder'}, and no link, to be published"
            )
        if of_the_list:
            files[name] = path
        elif name in names:
            waiting += sorted(path.iterdir(), reverse=True)
        elif not any(fnmatchcase(name, pattern) for pattern in OF_THE_RUN):
            left_out.append(name + "/" * plain_folder)
    for name in names - FOLDERS:
        if (config := files.get(f"{name}/config.json")) is not None:
            code |= _code_of_a_model(name, config)
    return Content(kind, files, left_out, sorted(code - files.keys()), title)


def _components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The components that an index names: of each the library or module, and the class."""
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if re.fullmatch(r"[A-Za-z]\w*", name) and isinstance(entry, list) and len(entry) == 2
        if all(isinstance(x, str) for x in entry)
    }


def _code(index: dict[str, Any]) -> set[str]:
    """The paths of a pipeline's code: its own class's and its components', as far as they are of a checkpoint.

    Raises:
        ValueError: for a class that is named by neither a name nor a file's stem and a name.
    """
    own = index.get("_class_name")
    if isinstance(own, list) and [type(x) for x in own] != [str, str]:
        raise ValueError(f"_class_name must be a class, or a file and a class: got {own}")
    modules = {"": own[0] if isinstance(own, list) else None}
    modules |= {f"{name}/": library for name, (library, _) in _components(index).items()}
    return {f"{place}{x}.py" for place, x in modules.items() if x is not None and VERSIONED.fullmatch(x)}


def _code_of_a_model(name: str, config: Path) -> set[str]:
    """The paths of the code that a component's config names (`auto_map`), as far as it is beside it.

    Raises:
        ValueError: for an `auto_map` that is no mapping to classes in files.
    """
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("auto_map", {})
    except (ValueError, AttributeError, RecursionError):  # which loading finds
        return set()
    values = found.values() if isinstance(found, dict) else [found]
    classes = [x for value in values for x in (value if isinstance(value, list) else [value]) if x is not None]
    if not isinstance(found, dict) or not all(
        isinstance(x, str) and re.fullmatch(r"[\w./-]+\.\w+", x) for x in classes
    ):
        raise ValueError(f"auto_map of {name}/config.json must name classes in files: got {repr(found)[:60]}")
    return {f"{name}/{x.rpartition('.')[0]}.py" for x in classes if "--" not in x}  # of another repository


def _of_pipeline(index: dict[str, Any]) -> str:
    """A pattern of the paths of a pipeline's own files: its index, that of the modular pipeline with its blocks, and
    the components with their code."""
    patterns = [*map(re.escape, (INDEX, BLOCKS, MODULAR_INDEX, *_code(index))), r"modular_mezzotint_v[0-9a-f]{8}\.py"]
    for name, (library, kind) in _components(index).items():
        words = getattr(getattr(transformers, kind, None), "vocab_files_names", {}) if library == "transformers" else {}
        own_names = [re.escape(x) for x in words.values() if isinstance(x, str)]
        patterns.append(f"{name}/({'|'.join([COMPONENT, *own_names])})")
    return "|".join(patterns)


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    replace_card: bool = False,
    say: Callable[[str], object] = print,
    revision: str | None = None,
    card: str | None = None,
) -> str:
    """Upload what of a folder is published (see `content`) in one commit, with the card's loading line naming
    `repo_id`. The folder is not written to.

    In one commit: who loads the repository meanwhile gets all of the old or all of the new (`upload_large_folder`
    commits parts). An upload that was cut off goes on when it is tried again, as weights that arrived are not sent
    twice.

    Of the repository's other files those go that an earlier pipeline had there by its `model_index.json`: code and
    weights that diffusers might load in place of these, and the figures of those weights. A card there that
    `card_text` did not make, or that was edited since, stays.

    Args:
        folder: of a finished pipeline, or of its adapters.
        repo_id: `user/name`, or the name alone.
        private: the repository must be private; a new one is made so.
        token: of the Hub, by default that of this machine.
        replace_card: upload the folder's card whatever card is there.
        say: is called with a line on what is left out, and on a card that stays.
        revision: the branch to upload to, made from the main one where it is not there; by default that one.
        card: its text, in the place of the folder's.

    Returns:
        the commit's address.

    Raises:
        ValueError: as `content` does; for a repository that holds something else, or is public where it must be
            private.
        ConnectionError: for an upload that was cut off; the repository is as it was, or holds all of it.
        huggingface_hub.errors.HfHubHTTPError: for what the Hub refuses.
    """
    kind, files, left_out, _, title = content(folder)
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        say(f"left out of the upload, as no part of what is published: {', '.join(left_out[:10])}{more}")
    api = HfApi(token=token)
    uploads: dict[str, bytes | Path] = dict(files)
    if RECIPE in files:
        uploads[RECIPE] = public_recipe(files[RECIPE])
    new, head = False, None
    try:
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        if card is None and CARD in files:
            card = files[CARD].read_bytes().decode("utf-8")
        if card is not None:
            uploads[CARD] = LOADING[kind].sub(lambda call: call[1] + markdown.literal(repo_id), card).encode()
        if MODULAR_INDEX in files:
            uploads[MODULAR_INDEX] = modular_index_at(files[MODULAR_INDEX].read_bytes(), repo_id)
        additions = _additions(uploads)  # reads the files, before anything is changed on the Hub
        try:
            head = api.model_info(repo_id)
        except RepositoryNotFoundError:
            new = True
            # Private or not by the organisation's own default, where nothing was asked for
            repo_id = api.create_repo(repo_id, private=private or None).repo_id
            head = api.model_info(repo_id)
        if private and not head.private:
            raise ValueError(f"{repo_id} must be private, as asked for: it is there, and public")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
            head = api.model_info(repo_id, revision=revision)
        while True:
            here = {x.rfilename for x in head.siblings or ()}
            if CARD in uploads and CARD in here and not replace_card:
                there = _read(api, repo_id, CARD, head.sha)
                if there != uploads[CARD] and not unedited(there.decode("utf-8", errors="replace")):
                    say(
                        f"the card of {repo_id} was written or edited by hand, and stays; "
                        "`mezzotint publish --replace_card` replaces it"
                    )
                    del uploads[CARD]
                    additions = _additions(uploads)
            operations = [*additions, *map(CommitOperationDelete, sorted(_stale(api, head, kind) - files.keys()))]
            try:
                return api.create_commit(
                    repo_id,
                    operations,
                    commit_message=f"Upload {title}",
                    revision=revision,
                    parent_commit=head.sha,
                ).commit_url
            except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError: around any of an LFS upload
                before, head = head.sha, api.model_info(repo_id, revision=revision)
                # After a commit of somebody else's the upload is a new one; where it was our own, the answer to which
                # was lost, nothing is left to do
                if head.sha == before:
                    if isinstance(error, RuntimeError):
                        raise _failed(repo_id, error) from None
                    raise
                additions = _additions(uploads)
    except BaseException as error:
        refused = isinstance(error, HfHubHTTPError)
        with contextlib.suppress(Exception):  # no empty repository is left behind, unless it is somebody else's
            ours = new and not (refused and head is None)
            if ours and {x.rfilename for x in api.model_info(repo_id).siblings or ()} <= {".gitattributes"}:
                api.delete_repo(repo_id)
        if isinstance(error, HTTPError) and not refused:
            raise _failed(repo_id, error) from None
        raise


def different(repo_id: str, commit: str, files: dict[str, Path], api: HfApi | None = None) -> list[str]:
    """Those of `files` whose bytes are not what a commit of a repository holds by their names, by the Hub's hashes;
    nothing is downloaded."""
    info = (api or HfApi()).model_info(repo_id, revision=commit, files_metadata=True)
    there = {x.rfilename: x for x in info.siblings or ()}
    found = []
    for name, path in sorted(files.items()):
        held = there.get(name)
        if held is not None and held.lfs is not None:
            with path.open("rb") as file:
                same = sha_fileobj(file).hex() == held.lfs.sha256
        else:
            same = held is not None and git_hash(path.read_bytes()) == held.blob_id
        found += [] if same else [name]
    return found


def _additions(uploads: dict[str, bytes | Path]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, source) for name, source in uploads.items()]


def public_recipe(path: Path) -> bytes:
    """A recipe as `public` makes it; one that is so already comes back byte for byte."""
    text = path.read_text(encoding="utf-8")
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, brackets without end
        raise ValueError(f"{path} must be YAML: {_one_line(error)}") from None
    if not isinstance(settings, dict) or settings == public(settings):
        return text.encode()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    return "\n".join([*comments, yaml.safe_dump(public(settings), sort_keys=False, allow_unicode=True)]).encode()


def _read(api: HfApi, repo_id: str, name: str, revision: str | None) -> bytes:
    """A small file of a repository."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)).read_bytes()


def _stale(api: HfApi, head: Any, kind: str) -> set[str]:
    """The files that an earlier upload left in a repository, whose newest commit is `head`, and that belong to its
    weights.

    Raises:
        ValueError: for a repository that holds something else than `kind`, or a pipeline of another class.
    """
    here: Iterable[str] = {x.rfilename for x in head.siblings or ()}
    there = next((x for x in (INDEX, ADAPTERS) if x in here), kind)
    words = {INDEX: "a pipeline", ADAPTERS: "adapters"}
    if there != kind:
        raise ValueError(f"{head.id} holds {words[there]}: {words[kind]} must go into a repository of their own")
    listed = r"evaluation\.json|\.eval_results/[^/]+\.yaml"
    if INDEX in here:
        try:
            index = json.loads(_read(api, head.id, INDEX, head.sha))
            own = index.get("_class_name")
        except (ValueError, AttributeError, RecursionError):
            index, own = {}, None
        if not (isinstance(own, list) and own and VERSIONED.fullmatch(str(own[0]))):
            raise ValueError(f"{head.id} holds a pipeline of another class ({own}): this one must go elsewhere")
        listed = f"{listed}|{_of_pipeline(index)}"
    elif ADAPTERS not in here:
        return set()
    return {name for name in here if re.fullmatch(listed, name)}


def _failed(repo_id: str, error: BaseException) -> ConnectionError:
    while error.__cause__ is not None:  # which says more than what wraps it
        error = error.__cause__
    return ConnectionError(f"the upload to {repo_id} failed: {_one_line(error) or type(error).__name__}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
