"""What would prevent a publication is known before the run, and an upload holds what is on a list and nothing else, as
the real client and a Hub say it."""

import dataclasses
import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from tiny_run import tree

from mezzotint import hub
from mezzotint_training.config.errors import one_line
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.publishing import checks
from mezzotint_training.publishing.card import card_text


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with HubServer(token="hf_test") as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server
    assert server.unknown == []


def settings(**changes) -> dict:
    """Settings of a run that can be published."""
    good = {
        "push_to_hub": True, "license": "apache-2.0", "dataset_license": "CC BY 4.0", "validation_prompts": ["a boot"]
    }  # fmt: skip
    return dataclasses.asdict(TrainConfig(**{"dataset_name": "digits"} | good | changes))


def problems(
    server: HubServer, name: str = "user/boots", token: str | None = "hf_test", **changes
) -> list[checks.Problem]:
    return checks.problems(settings(**changes), name, HfApi(endpoint=server.url, token=token))


@pytest.mark.parametrize("name", ["user/boots", "boots"])
def test_a_run_that_can_be_published_has_none(server, name):
    assert problems(server, name) == []
    assert not HfApi(endpoint=server.url, token=server.token).repo_exists("user/boots")  # nothing is tried


def test_the_hub_is_asked_only_where_something_is_to_be_uploaded(server):
    assert problems(server, push_to_hub=False, license=None, token=None) == []
    assert server.requests == []


@pytest.mark.parametrize(
    "name, token, words",
    [
        ("user/boots", None, "got none"),
        ("user/boots", "hf_wrong", "a token that the Hub accepts"),
        ("other/boots", "hf_test", r"namespace of the token's \(user\): got 'other/boots'"),
        ("a/b/c", "hf_test", "a name that the Hub takes"),
        ("user/red boots", "hf_test", "a name that the Hub takes"),
        ("user/..", "hf_test", "a name that the Hub takes"),
    ],
)
def test_what_would_fail_after_the_run_is_fatal_before_it(server, name, token, words):
    [problem] = problems(server, name, token)
    assert problem.fatal and "\n" not in problem.text
    assert re.search(words, problem.text)


def test_without_the_network_the_upload_is_told_to_wait(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    [problem] = problems(server)
    assert problem.fatal and "HF_HUB_OFFLINE" in problem.text and "mezzotint publish" in problem.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    [problem] = checks.problems(settings(), "user/boots", HfApi(endpoint="http://127.0.0.1:1", token="hf_test"))
    assert problem.fatal and "needs the Hub" in problem.text and "mezzotint publish" in problem.text


READ = {"role": "read"}


def scoped(name: str, *permissions: str) -> dict:
    return {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": {"name": name}, "permissions": permissions}]}}


@pytest.mark.parametrize(
    "access, org_role, name, words",
    [
        ({"role": "write"}, "admin", "studio/boots", None),
        ({"role": "write"}, "read", "studio/boots", "may only read in studio"),
        ({"role": "write"}, "read", "user/boots", None),
        (READ, "admin", "user/boots", "may only read"),
        (scoped("user", "repo.content.read", "repo.write"), "admin", "user/boots", None),
        (scoped("user/boots", "repo.write"), "admin", "boots", None),
        (scoped("user", "repo.content.read"), "admin", "user/boots", "without repo.write"),
        (scoped("user", "repo.write"), "admin", "studio/boots", "may write to studio"),
        (scoped("user/shoes", "repo.write"), "admin", "user/boots", "without repo.write"),
    ],
)
def test_the_token_must_have_the_right_to_write_there(server, access, org_role, name, words):
    server.access, server.orgs = access, [{"name": "studio", "roleInOrg": org_role}]
    found = problems(server, name)
    assert [problem.fatal for problem in found] == ([] if words is None else [True])
    assert words is None or words in found[0].text


def test_a_licence_that_the_hub_does_not_take_is_fatal_for_an_upload_and_told_otherwise(server):
    [problem] = problems(server, license="apache2")
    assert problem.fatal and "does not take the card" in problem.text and "license" in problem.text
    [problem] = problems(server, license="Apache-2", push_to_hub=False)
    assert not problem.fatal and "'Apache-2'" in problem.text and "apache-2.0" in problem.text
    assert problems(server, license="apache-2.0", push_to_hub=False) == []


def test_what_the_card_will_lack_is_told(server):
    found = problems(server, license=None, dataset_license=None, validation_prompts=[])
    assert [problem.fatal for problem in found] == [True, False, False]
    for setting, problem in zip(("license", "dataset_license", "validation_prompts"), found, strict=True):
        assert setting in problem.text


def test_every_problem_is_told_at_once(server):
    server.access = READ
    found = problems(server, license="mine", dataset_license=None)
    assert [problem.fatal for problem in found] == [False, True, True]


# --------------------------------------------------------------------------------------------------- what is uploaded

PIPELINE = {
    "_class_name": ["pipeline_mezzotint_v00000001", "MezzotintPipeline"],
    "_diffusers_version": "0.42.1",
    "unet": ["unet_mezzotint_v00000002", "MezzotintUNetModel"],
    "scheduler": ["scheduling_mezzotint_v00000003", "MezzotintScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "guider": [None, None],
}
PUBLISHED = {
    "model_index.json", "pipeline_mezzotint_v00000001.py", "README.md", "LICENSE", "LICENSE-MIT", "NOTICE.txt",
    "recipe.yaml", "metrics.json", "evaluation.json", "samples/step-000004.png", "samples/more.png",
    "unet/config.json", "unet/unet_mezzotint_v00000002.py", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "scheduler/scheduler_config.json", "scheduler/scheduling_mezzotint_v00000003.py",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.safetensors.index.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json",
    "tokenizer/special_tokens_map.json",
}  # fmt: skip
OF_A_RUN = {
    "checkpoint-3/state.json", ".checkpoint-4/weights.safetensors", ".mezzotint/lock", "cache/0.arrow",
    "ema/step-000001.safetensors", "logs/events.out", "metrics.jsonl", ".gitignore",
}  # fmt: skip
STRAYS = {
    ".env", "id_rsa", "credentials.json", "LICENSE_KEY.pem", "wandb/run-1/output.log", ".ipynb_checkpoints/a.ipynb",
    ".git/config", ".cache/huggingface/token", "sub/checkpoint-3/weights.safetensors", "sub/unet/config.json",
    "tmp1a2b3c4d/scheduler_config.json", "other_v00000009.py", "notes.md", "README.md.orig", "model.safetensors",
    "unet/.env", "unet/id_rsa", "unet/diffusion_pytorch_model.bin", "unet/other_v00000009.py", "unet/unet.py",
    "unet/sub/config.json", "scheduler/model.pkl", "tokenizer/passwords.txt", "text_encoder/credentials.json",
    "samples/.ssh", "samples/notes.txt", "samples/deep/step-000004.png", "guider/config.json", "unet.safetensors",
}  # fmt: skip


def fill(folder: Path, *names: str) -> Path:
    """Files of these names, each with its own content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the content of {name}")
    if "model_index.json" in names:
        (folder / "model_index.json").write_text(json.dumps(PIPELINE))
    return folder


def push(folder: Path, name: str = "boots", **options) -> list[str]:
    """Upload as the token's owner, and return what was said."""
    said: list[str] = []
    address = hub.push(folder, name, token="hf_test", say=said.append, **options)
    assert re.fullmatch(r"http://[\d.:]+/user/boots/commit/\w{40}", address)
    return said


def uploaded(server: HubServer) -> set[str]:
    return server.files("user/boots").keys() - {".gitattributes"}


def test_an_upload_holds_what_is_on_the_list_and_says_what_is_not(server, tmp_path):
    folder = fill(tmp_path / "run", *PUBLISHED, *OF_A_RUN, *STRAYS)
    before = tree(folder)
    [said] = push(folder)
    assert uploaded(server) == PUBLISHED
    for name in PUBLISHED - {"recipe.yaml"}:
        assert server.files("user/boots")[name] == (folder / name).read_bytes()
    assert said.startswith("left out of the upload, as no part of what is published: .cache/, .env, .git/, ")
    left_out = hub.content(folder).left_out
    roots = {name.split("/")[0] + "/" * ("/" in name) for name in STRAYS} - {"unet/", "samples/"}
    roots -= {"scheduler/", "tokenizer/", "text_encoder/"}
    assert {name for name in left_out if "/" not in name[:-1]} == roots
    assert {"unet/.env", "unet/sub/", "samples/.ssh", "tokenizer/passwords.txt"} < set(left_out)
    assert tree(folder) == before


def test_adapters_go_with_what_stands_beside_them_and_nothing_else(server, tmp_path):
    beside = {name for name in PUBLISHED if re.match("README|LICENSE|NOTICE|recipe|metrics|evaluation|samples", name)}
    push(fill(tmp_path, hub.ADAPTERS, *beside, *OF_A_RUN, *STRAYS, "unet/config.json"))
    assert uploaded(server) == beside | {hub.ADAPTERS}
    assert server.message("user/boots") == "Upload adapters"


@pytest.mark.parametrize(
    "own", ["MezzotintImg2ImgPipeline", ["pipeline_mezzotint_v12345678", "MezzotintPipeline"], None]
)
def test_a_commit_names_the_class_of_the_pipeline(server, tmp_path, own):
    folder = fill(tmp_path, *PUBLISHED)
    index = json.loads((folder / hub.INDEX).read_text()) | {"_class_name": own}
    (folder / hub.INDEX).write_text(json.dumps({k: v for k, v in index.items() if v is not None}))
    push(folder)
    name = own[1] if isinstance(own, list) else own or "pipeline"
    assert server.message("user/boots") == f"Upload {name}"


KINDS = {
    "link": lambda path, secret: path.symlink_to(secret),
    "dangling": lambda path, secret: path.symlink_to(secret.parent / "nowhere"),
    "loop": lambda path, secret: path.symlink_to(path),
    "folder": lambda path, secret: path.symlink_to(secret.parent),
    "fifo": lambda path, secret: os.mkfifo(path),
    "socket": lambda path, secret: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["LICENSE", "samples/x.png", "unet/config.json", "unet", "samples", "stray", "unet/x"])
def test_a_link_or_a_special_file_never_gives_away_what_is_behind_it(server, tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    (tmp_path / "home").mkdir()
    secret = tmp_path / "home" / "id_rsa"
    secret.write_text("secret")
    folder = fill(tmp_path / "run", "model_index.json", "unet/model.safetensors", "samples/y.png")
    if (folder / name).is_dir():
        (folder / name).rename(tmp_path / "moved")
    KINDS[kind](folder / name, secret)
    if name in ("stray", "unet/x"):
        [said] = push(folder)
        assert said.endswith(f": {name}")
        assert uploaded(server) == {"model_index.json", "unet/model.safetensors", "samples/y.png"}
    else:
        with pytest.raises(ValueError, match=rf"run/{name} must be a plain (file|folder), and no link"):
            push(folder)
        assert server.requests == []


@pytest.mark.parametrize("index", ["", "null", "[]", "{", '"unet"', "[" * 100_000, b"\xff"])
def test_an_index_that_is_none_is_refused_before_the_hub_is_asked(server, tmp_path, index):
    (tmp_path / "model_index.json").write_bytes(index if isinstance(index, bytes) else index.encode())
    with pytest.raises(ValueError, match="must hold a finished pipeline"):
        push(tmp_path)
    assert server.requests == []


def test_an_index_leads_to_no_file_outside_of_its_components_folders(tmp_path):
    folder = fill(tmp_path / "run", "model_index.json", "unet/config.json", "..hidden/config.json")
    fill(tmp_path, "config.json", "secret/config.json", "secret/id_rsa.py")
    strange = dict.fromkeys(["..", "../secret", "..hidden", "unet", "_class_name"], ["../secret/id_rsa", "X"])
    (folder / "model_index.json").write_text(json.dumps(strange))
    assert set(hub.content(folder).files) == {"model_index.json", "unet/config.json"}


@pytest.mark.parametrize("name", sorted({*hub.PLACES}))
def test_a_recipe_names_no_place_of_the_machine(server, tmp_path, name):
    place = tmp_path / "home" / "jane doe" / "pictures"
    place.mkdir(parents=True)
    assert hub.public({name: str(place)}) == {name: "./pictures"}
    assert hub.public({name: None}) == {name: None}
    # nor does that of a run which was begun before
    settings = {"license": None, name: str(place), "validation_prompts": ["é", "x" * 200]}
    folder = fill(tmp_path / "run", "model_index.json")
    (folder / "recipe.yaml").write_text("# python 3\n" + yaml.safe_dump(settings))
    before = tree(folder)
    push(folder)
    recipe = server.files("user/boots")["recipe.yaml"].decode()
    assert yaml.safe_load(recipe) == settings | {name: "./pictures"}
    assert recipe.startswith("# python 3\n") and "jane" not in recipe and tree(folder) == before


def test_names_on_the_hub_are_no_places(monkeypatch, tmp_path):
    names = {
        "pretrained_model_name_or_path": "user/name", "text_encoder_name_or_path": "google/byt5-small",
        "dataset_name": "digits", "resume_from_checkpoint": "latest", "cache_dir": None, "hub_model_id": "/no/place",
    }  # fmt: skip
    assert hub.public(names) == names
    fill(tmp_path, "user/name/model_index.json", "digits/0.png")
    monkeypatch.chdir(tmp_path)
    assert hub.public(names) == names | {"pretrained_model_name_or_path": "./name"}


# ---------------------------------------------------------------------------------------- what is there, and what stays


def give(server: HubServer, folder: Path) -> None:
    """What somebody uploaded by hand."""
    api = HfApi(endpoint=server.url, token=server.token)
    api.create_repo("user/boots", exist_ok=True)
    api.upload_folder(repo_id="user/boots", folder_path=folder)


def test_an_upload_replaces_what_an_earlier_one_put_there_and_nothing_else(server, tmp_path):
    by_hand = {
        "lora/adapter.safetensors", "notes_v12345678.py", "unet/mine.safetensors", "unet/notes_v12345678.py",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "assets/plot.png", "LICENSE-MINE",
        "samples/0.png",
    }  # fmt: skip
    push(fill(tmp_path / "first", *PUBLISHED))
    give(server, fill(tmp_path / "by_hand", *by_hand))
    second = fill(tmp_path / "second", "model_index.json", "unet/diffusion_pytorch_model.safetensors", "LICENSE")
    (second / "model_index.json").write_text(json.dumps({**PIPELINE, "unet": ["unet_mezzotint_v0000000a", "U"]}))
    push(second)
    stays = {x for x in PUBLISHED if "/" not in x or x.startswith("samples/")} - {"evaluation.json"}
    stays -= {"pipeline_mezzotint_v00000001.py"}
    assert uploaded(server) == by_hand | stays | {"unet/diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize(
    "there, index, words",
    [
        (
            "model_index.json",
            '{"_class_name": "StableDiffusionPipeline"}',
            r"another class \(StableDiffusionPipeline\)",
        ),
        ("model_index.json", "[]", "another class"),
        (hub.ADAPTERS, "", "holds adapters: a pipeline must go into a repository of"),
    ],
)
def test_another_kind_of_repository_is_left_alone(server, tmp_path, there, index, words):
    fill(tmp_path / "there", there, "README.md")
    (tmp_path / "there" / there).write_text(index)
    give(server, tmp_path / "there")
    before = server.files("user/boots")
    with pytest.raises(ValueError, match=words):
        push(fill(tmp_path / "run", "model_index.json", "README.md"))
    assert server.files("user/boots") == before


def test_adapters_leave_a_pipeline_alone(server, tmp_path):
    push(fill(tmp_path / "pipeline", *PUBLISHED))
    before = server.files("user/boots")
    with pytest.raises(ValueError, match="holds a pipeline: adapters must go into a repository of their own"):
        push(fill(tmp_path / "adapters", hub.ADAPTERS))
    assert server.files("user/boots") == before


def test_a_card_that_somebody_wrote_or_edited_stays_until_it_may_go(server, tmp_path):
    folder = fill(tmp_path / "run", "model_index.json")
    metrics = {"pictures": 1, "parameters": {}, "steps": 1, "processes": 1, "seconds": 1, "images_per_second": 1}
    metrics |= {"threads": 1, "loss": 1.0, "device": "cpu", "processor": "", "mixed_precision": "no"}

    def card() -> str:
        return server.files("user/boots")["README.md"].decode()

    def write(**changes) -> str:
        text = card_text(folder, settings(**changes), metrics, None)
        (folder / "README.md").write_text(text)
        return text

    written = write()
    assert hub.unedited(written) and 'from_pretrained("./run", trust' in written
    assert push(folder) == []
    assert card() == written.replace('"./run"', '"user/boots"') and hub.unedited(card())
    # ours gives way to a new one of ours
    assert push(folder) == [] and server.commits("user/boots") == 2
    write(dataset_license="CC0")
    assert push(folder) == [] and "(CC0)" in card()
    # an edited one stays, of either side, and so does one by hand
    give(server, fill(tmp_path / "notes", "other.txt"))
    for text in (card().replace("Limits", "My limits"), "# By hand\n"):
        (tmp_path / "notes" / "README.md").write_text(text)
        give(server, tmp_path / "notes")
        assert not hub.unedited(text)
        [said] = push(folder)
        assert card() == text and "user/boots was written or edited by hand, and stays" in said
        assert push(folder, replace_card=True) == [] and "(CC0)" in card()
    # one that was edited here goes up, where there is none of the user's
    (folder / "README.md").write_text(write() + "\nMine.\n")
    assert push(folder) == [] and card().endswith("\nMine.\n")


def test_a_repository_is_as_private_as_was_asked_for(server, tmp_path):
    folder = fill(tmp_path, "model_index.json")
    push(folder, private=True)
    api = HfApi(endpoint=server.url, token=server.token)
    assert api.model_info("user/boots").private
    push(folder, private=False)  # no word on one that is there
    assert api.model_info("user/boots").private
    api.delete_repo("user/boots")
    push(folder, private=False)
    with pytest.raises(ValueError, match="user/boots must be private, as asked for: it is there, and public"):
        push(folder, private=True)


# ------------------------------------------------------------------------------------------------------ cut connections


@pytest.fixture
def at_once(monkeypatch):
    """The client waits between its tries, but not in a test."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


REQUESTS = {
    "info": ("GET", "/api/models/user/boots$"), "create": ("POST", "/api/repos/create"), "card": ("POST", ".*yaml"),
    "preupload": ("POST", ".*/preupload/main"), "batch": ("POST", ".*/objects/batch"), "put": ("PUT", "/lfs/.*"),
    "commit": ("POST", ".*/commit/main"),
}  # fmt: skip


@pytest.mark.parametrize("which", REQUESTS)
@pytest.mark.parametrize("fault", ["cut", "lose"])
def test_a_connection_that_stays_cut_ends_in_one_line_and_leaves_nothing_behind(
    server, tmp_path, at_once, which, fault
):
    method, path = REQUESTS[which]
    server.fault = lambda m, p: fault if m == method and re.match(path, p) else None
    folder = fill(tmp_path, *PUBLISHED)
    before = tree(folder)
    if (which, fault) == ("commit", "lose"):  # it was made: the next try finds that there is nothing left to do
        push(folder)
        assert server.commits("user/boots") == 2 and uploaded(server) == PUBLISHED
    else:
        with pytest.raises(ConnectionError, match=r"^the upload to (user/)?boots failed: .*disconnected.*$"):
            push(folder)
        # of a repository that could not even be looked at, nothing is known
        assert server.commits("user/boots") == (1 if which == "info" and fault == "x" else 0) or fault == "lose"
    assert tree(folder) == before


@pytest.mark.parametrize("which", REQUESTS)
def test_an_old_upload_is_whole_after_a_new_one_was_cut_off(server, tmp_path, at_once, which):
    push(fill(tmp_path / "old", *PUBLISHED))
    old = server.files("user/boots")
    method, path = REQUESTS[which]
    server.fault = lambda m, p: "cut" if m == method and re.match(path, p) else None
    new = fill(tmp_path / "new", *PUBLISHED)
    for name in PUBLISHED - {"model_index.json", "README.md"}:
        (new / name).write_text(f"{name}, changed")
    if which == "create":
        push(new)
    else:
        with pytest.raises(ConnectionError, match="the upload to (user/)?boots failed: "):
            push(new)
        assert server.files("user/boots") == old


@pytest.mark.parametrize("which", REQUESTS)
def test_an_error_of_the_hubs_own_ends_in_one_line_and_publishes_nothing(server, tmp_path, at_once, which):
    method, path = REQUESTS[which]
    server.fault = lambda m, p: 500 if m == method and re.match(path, p) else None
    with pytest.raises((HfHubHTTPError, ConnectionError)) as raised:
        push(fill(tmp_path, *PUBLISHED))
    assert "500" in one_line(raised.value)
    server.fault = lambda *asked: None
    assert server.commits("user/boots") <= 1
    push(tmp_path)
    assert uploaded(server) == PUBLISHED


def test_what_has_arrived_is_not_sent_again(server, tmp_path, at_once):
    give(server, fill(tmp_path / "first", "notes.txt"))
    server.fault = lambda m, p: "cut" if p.endswith("/commit/main") else None
    folder = fill(tmp_path / "run", *PUBLISHED)
    with pytest.raises(ConnectionError):
        push(folder)
    sent = [path for method, path in server.requests if method == "PUT"]
    server.fault = lambda *asked: None
    push(folder)
    assert len(sent) > 2 and [path for method, path in server.requests if method == "PUT"] == sent


def test_an_upload_goes_to_the_branch_that_was_asked_for(server, tmp_path):
    push(fill(tmp_path / "run", *PUBLISHED))
    (tmp_path / "run" / "metrics.json").write_text("{}")
    before = server.files("user/boots")
    push(tmp_path / "run", revision="next", card="---\nlicense: mit\n---\nanother")
    assert server.files("user/boots") == before
    there = server.files("user/boots", "next")
    assert there["metrics.json"] == b"{}" and there.keys() == before.keys()


def test_files_on_the_hub_are_compared_by_their_hashes(server, tmp_path):
    folder = fill(tmp_path / "run", *PUBLISHED)
    api = HfApi(endpoint=server.url, token=server.token)
    commit = hub.push(folder, "user/boots", token=server.token).rpartition("/")[2]
    files = hub.content(folder).files
    assert hub.different("user/boots", commit, files, api) == []
    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json"):
        (folder / name).write_text("changed")
    (folder / "LICENSE-2").write_text("new")
    expected = ["LICENSE-2", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert hub.different("user/boots", commit, hub.content(folder).files, api) == expected


@pytest.mark.parametrize("which", ["preupload", "batch", "put"])
def test_a_connection_that_is_cut_once_is_tried_again(server, tmp_path, at_once, which):
    method, path = REQUESTS[which]
    left = ["cut"]
    server.fault = lambda m, p: left.pop() if left and m == method and re.match(path, p) else None
    push(fill(tmp_path, *PUBLISHED))
    assert uploaded(server) == PUBLISHED and not left


def test_an_upload_over_one_that_somebody_makes_meanwhile_holds_both(server, tmp_path):
    push(fill(tmp_path / "run", *PUBLISHED))
    (tmp_path / "run" / "metrics.json").write_text("{}")
    asked = []

    def meanwhile(method, path):
        if path.endswith("/commit/main") and not asked:
            asked.append(path)
            give(server, fill(tmp_path / "by_hand", "notes.txt"))

    server.fault = meanwhile
    push(tmp_path / "run")
    assert uploaded(server) == PUBLISHED | {"notes.txt"} and server.files("user/boots")["metrics.json"] == b"{}"


def test_what_the_hub_refuses_leaves_no_empty_repository(server, tmp_path):
    folder = fill(tmp_path, "model_index.json")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match="YAML"):
        push(folder)
    assert server.commits("user/boots") == 0
