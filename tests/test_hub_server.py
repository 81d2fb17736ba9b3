"""The test Hub serves what was uploaded to it, with the real client as the witness; diffusers and datasets use it in
`test_hub_roundtrip.py`."""

import hashlib
import json
import random
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = "---\nlicense: mit\nlibrary_name: diffusers\ntags: [test]\n---\n# Test\n"
TEXT = "naïve text\n".encode()
BINARY = random.Random(0).randbytes(300_000)
SMALL, LARGE = "notes/a text.txt", "model/weights.safetensors"
FILES = {"README.md": CARD.encode(), SMALL: TEXT, LARGE: BINARY}


@pytest.fixture
def hub():
    with HubServer(token="hf_test") as server:
        yield server
    assert server.unknown == []


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def folder(tmp_path):
    """A folder of a card, a text file and a binary one."""
    for path, data in FILES.items():
        target = tmp_path / "folder" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return tmp_path / "folder"


@pytest.fixture
def commit(api, folder):
    """The commit of that folder to user/name."""
    api.create_repo("user/name")
    return api.upload_folder(repo_id="user/name", folder_path=folder, commit_message="Upload")


@pytest.fixture
def download(hub, tmp_path):
    """Download one file of user/name and read it."""

    def read(path, revision=None, name="user/name", **others):
        others = {"endpoint": hub.url, "token": hub.token, "cache_dir": tmp_path / "cache"} | others
        return Path(hf_hub_download(name, path, revision=revision, **others)).read_bytes()

    return read


def test_a_folder_comes_back_byte_for_byte(hub, api, commit, download, tmp_path):
    assert FILES.items() <= hub.files("user/name").items()
    assert api.list_repo_files("user/name") == sorted([".gitattributes", *FILES])
    assert sum(method == "PUT" for method, _ in hub.requests) == 1

    client = {"endpoint": hub.url, "token": hub.token, "cache_dir": tmp_path / "cache"}
    snapshot = snapshot_download("user/name", **client)
    assert {path: (Path(snapshot) / path).read_bytes() for path in FILES} == FILES
    assert download(SMALL, cache_dir=tmp_path / "another") == TEXT
    part = urllib.request.Request(f"{hub.url}/user/name/resolve/main/{LARGE}", headers={"Range": "bytes=9-99"})
    with urllib.request.urlopen(part, timeout=10) as reply:
        assert (reply.status, reply.headers["Content-Range"]) == (206, f"bytes 9-99/{len(BINARY)}")
        assert reply.read() == BINARY[9:100]


def test_hashes_and_sizes_agree_wherever_they_are_told(hub, api, commit):
    sha256 = hashlib.sha256(BINARY).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(TEXT) + TEXT).hexdigest()
    info = api.model_info("user/name", files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    tree = {entry.path: entry for entry in api.list_repo_tree("user/name", recursive=True)}
    paths = {entry.path: entry for entry in api.get_paths_info("user/name", [SMALL, LARGE])}
    for listing in (siblings, tree, paths):
        assert (listing[LARGE].lfs.sha256, listing[LARGE].size) == (sha256, len(BINARY))
        assert (listing[SMALL].blob_id, listing[SMALL].lfs, listing[SMALL].size) == (git, None, len(TEXT))
    assert [entry.path for entry in api.list_repo_tree("user/name", "notes")] == [SMALL]
    top = [entry.path for entry in api.list_repo_tree("user/name")]
    assert top == [".gitattributes", "README.md", "model", "notes"]

    for path, etag, size in ((LARGE, sha256, len(BINARY)), (SMALL, git, len(TEXT))):
        url = f"{hub.url}/user/name/resolve/main/{path.replace(' ', '%20')}"
        metadata = api.get_hf_file_metadata(url=url)
        assert (metadata.etag, metadata.size, metadata.commit_hash) == (etag, size, commit.oid)
    assert (info.sha, info.library_name, info.card_data.license) == (commit.oid, "diffusers", "mit")


def test_an_old_commit_keeps_its_bytes(api, commit, download):
    changed = BINARY[::-1]
    second = api.upload_file(repo_id="user/name", path_in_repo=LARGE, path_or_fileobj=changed)
    assert download(LARGE) == download(LARGE, second.oid) == changed
    assert download(LARGE, commit.oid) == BINARY
    api.create_branch("user/name", branch="old/one", revision=commit.oid)
    assert download(LARGE, "old/one") == BINARY


def test_commits_change_only_what_they_say(hub, api, folder, commit):
    assert api.upload_folder(repo_id="user/name", folder_path=folder).oid == commit.oid
    api.delete_folder("notes", "user/name")
    api.delete_file("README.md", "user/name")
    assert sorted(hub.files("user/name")) == [".gitattributes", LARGE]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("README.md", "user/name")
    late = {"path_or_fileobj": b"a", "path_in_repo": "a.txt", "parent_commit": commit.oid}
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(repo_id="user/name", **late)


def test_what_is_missing_is_named_by_the_right_exception(api, commit, download):
    assert api.repo_exists("user/name") and not api.repo_exists("user/name", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        download(SMALL, name="user/missing")
    with pytest.raises(RevisionNotFoundError):
        download(SMALL, "missing")
    with pytest.raises(EntryNotFoundError):
        download("missing.txt")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id="user/name", path_in_repo="a", path_or_fileobj=b"a", revision="missing")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/name")
    assert api.create_repo("user/name", exist_ok=True).repo_id == "user/name"


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_only_the_owner_writes(hub, api, commit, token):
    stranger = HfApi(endpoint=hub.url, token=token)
    for write in (
        lambda: stranger.create_repo("user/new"),
        lambda: stranger.upload_file(repo_id="user/name", path_in_repo="a.txt", path_or_fileobj=b"a"),
        lambda: stranger.create_commit("user/name", [CommitOperationAdd("a.bin", b"\0")], commit_message="a"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            write()
        assert refused.value.response.status_code == 401
    assert FILES.keys() | {".gitattributes"} == hub.files("user/name").keys()
    assert not api.repo_exists("user/new")


def test_the_token_has_an_owner_with_one_namespace(hub, api):
    assert api.whoami()["name"] == hub.user == "user"
    assert api.create_repo("alone").repo_id == "user/alone"
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("other/name")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info("user/alone", token="hf_wrong")


def test_a_private_repository_is_hidden_from_others(hub, api, download, tmp_path):
    api.create_repo("user/secret", private=True)
    api.upload_file(repo_id="user/secret", path_in_repo="a.txt", path_or_fileobj=TEXT)
    assert download("a.txt", name="user/secret", token=hub.token) == TEXT
    assert not api.repo_exists("user/secret", token=False)
    with pytest.raises(RepositoryNotFoundError):
        download("a.txt", name="user/secret", token=False, cache_dir=tmp_path / "another")


def test_an_lfs_object_must_have_its_hash(hub, api, commit):
    def call(method, url, body):
        headers = {"Authorization": f"Bearer {hub.token}"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=10) as reply:
            return json.load(reply)

    oid = hashlib.sha256(b"announced").hexdigest()
    asked = json.dumps({"objects": [{"oid": oid, "size": 9}]}).encode()
    batch = call("POST", f"{hub.url}/user/name.git/info/lfs/objects/batch", asked)
    href = batch["objects"][0]["actions"]["upload"]["href"]
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": "a", "oid": oid}},
    ]
    ndjson = "\n".join(map(json.dumps, lines)).encode()
    for method, url, body in (
        ("PUT", href, b"different"),
        ("POST", f"{hub.url}/api/models/user/name/commit/main", ndjson),
    ):
        with pytest.raises(urllib.error.HTTPError):
            call(method, url, body)
    call("PUT", href, b"announced")
    call("POST", f"{hub.url}/api/models/user/name/commit/main", ndjson)
    assert hub.files("user/name")["a"] == b"announced"


def test_a_card_must_have_a_front_matter_of_yaml(api, commit):
    readme = {"repo_id": "user/name", "path_in_repo": "README.md"}
    for broken in (b"---\nlicense: [\n---\n", b"---\njust text\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata in README.md"):
            api.upload_file(**readme, path_or_fileobj=broken)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(**readme, path_or_fileobj=b"# No front matter\n")


def test_what_is_not_served_is_recorded():
    with HubServer() as hub, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.url}/api/spaces", timeout=10)
    assert hub.unknown == hub.requests == [("GET", "/api/spaces")]
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{hub.url}/api/spaces", timeout=10)


def test_settings_are_for_the_server_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "https_proxy"):
        monkeypatch.setenv(name, "1")
    before = constants.HF_HUB_DISABLE_XET
    with HubServer() as hub:
        assert (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE) == (True, False)
        environment = hub.environment(tmp_path)
    assert (before, True) == (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE)
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "https_proxy"}.isdisjoint(environment)
    assert (environment["HF_ENDPOINT"], environment["HF_HOME"]) == (hub.url, str(tmp_path))
