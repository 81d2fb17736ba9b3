"""A small in-process stand-in for the Hugging Face Hub, for tests that publish and load repositories.

It speaks as much of the Hub's HTTP interface as the real ``huggingface_hub`` client needs to create model and
dataset repositories, commit files to them (regular and LFS) and download them again::

    with HubServer(token="hf_test") as hub:
        HfApi(endpoint=hub.url, token=hub.token).upload_folder(repo_id="user/name", folder_path=folder)
        subprocess.run([sys.executable, "load.py"], env=hub.environment(home), check=True)
        hub.files("user/name")  # {".gitattributes": b"...", "README.md": b"...", ...}

Everything is kept in memory. As on the Hub, a repository begins with a commit of ``.gitattributes``, every commit
is an immutable snapshot, an LFS upload is refused unless its bytes have the announced SHA-256, and so is a commit
whose ``README.md`` has a front matter that is not YAML. Connections break where `HubServer.fault` says so. What it is
not: it has no Xet, pull requests, tags, gating, ``.gitignore`` rules or paging, does not check what the front matter
says, and knows one account, the owner of the one token, who may write in one namespace.

The client chooses Xet over LFS by itself, whatever a server answers: Xet is off in `HubServer.environment` and, for
clients in this process, while the server is entered. The client's functions without an explicit endpoint (those
that diffusers and datasets call) read ``HF_ENDPOINT`` when imported: what calls them belongs in a subprocess.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants
from huggingface_hub.repocard import REGEX_YAML_BLOCK

BODY_LIMIT = 64 << 20
REGULAR_LIMIT = 10 << 20
LFS_SUFFIXES = (".bin", ".ckpt", ".gz", ".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors", ".zip")
LICENSES = ("apache-2.0", "cc-by-4.0", "mit", "other")  # of the many there are
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


class Reply(Exception):
    """What goes back to the client; raised where it is an error. An underscore in a header's name is a hyphen."""

    def __init__(self, status: int, content: object, **headers: str):
        super().__init__(status, content)
        self.status = status
        self.body = content if isinstance(content, bytes) else json.dumps(content, default=str).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    """An error reply, of which the client makes an exception by its code, such as ``RepoNotFound``."""
    headers |= {"X_Error_Message": ascii(message)[1:-1]} | ({"X_Error_Code": code} if code else {})
    return Reply(status, {"error": message}, **headers)


class File:
    """One version of one file, which git holds itself or as a pointer into LFS."""

    def __init__(self, data: bytes, lfs: bool = False):
        size, sha256 = len(data), hashlib.sha256(data).hexdigest()
        blob = POINTER.format(sha256, size).encode() if lfs else data
        sha1 = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        self.data, self.lfs, self.etag = data, lfs, sha256 if lfs else sha1
        self.info = {"size": size, "oid": sha1, "blobId": sha1}  # each under the names of all listings
        if lfs:
            self.info["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": len(blob)}


class Commit:
    """An immutable snapshot of a repository."""

    def __init__(self, files: dict[str, File], *said: str):
        self.files, self.said = dict(sorted(files.items())), said
        content = [(path, file.etag) for path, file in self.files.items()]
        self.id = hashlib.sha1(repr((said, content)).encode()).hexdigest()
        self.date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.card, self.verdict = read_card(files["README.md"].data.decode() if "README.md" in files else "")


class Repo:
    """One repository: its commits, the branches that name some of them, and its LFS objects."""

    def __init__(self, kind: str, name: str, private: bool):
        self.name, self.private = name, private
        self.path = f"/{name}" if kind == "model" else f"/{kind}s/{name}"
        self.objects: dict[str, bytes] = {}
        first = Commit({".gitattributes": File(GIT_ATTRIBUTES.encode())}, self.path, "initial commit")
        self.commits, self.branches = {first.id: first}, {"main": first.id}

    def at(self, revision: str) -> Commit:
        """The commit which a branch or a hash names."""
        known = self.branches.get(revision, revision)
        if known not in self.commits:
            raise error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[known]


def read_card(text: str) -> tuple[dict, dict[str, list]]:
    """A README's front matter, and the verdict of ``/api/validate-yaml`` on it."""
    block = REGEX_YAML_BLOCK.match(text)
    try:
        card = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError as problem:
        return {}, {"errors": [{"message": f"Invalid YAML: {problem}"}], "warnings": []}
    if card is None:
        return {}, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    if not isinstance(card, dict):
        return {}, {"errors": [{"message": "The metadata must be a mapping"}], "warnings": []}
    if card.get("license", "other") not in LICENSES:
        return {}, {"errors": [{"message": f'"license" must be one of {LICENSES}'}], "warnings": []}
    return card, {"errors": [], "warnings": []}


ENDPOINTS: list[tuple] = []
PARTS = {
    "api": r"/api/(?P<kind>model|dataset)s/(?P<name>[\w.-]+/[\w.-]+)",
    "repo": r"/(?:(?P<kind>dataset)s/)?(?P<name>[\w.-]+/[\w.-]+?)",
    "revision": r"(?P<revision>[^/]+)",
}


def endpoint(method: str, pattern: str, write: bool = False):
    """Serve ``method pattern`` by the decorated method of `HubServer`; with `write`, to the token's owner only."""

    def register(function):
        ENDPOINTS.append((method, re.compile(pattern.format(**PARTS)), write, function))
        return function

    return register


class HubServer:
    """The server, as a context manager; see the module's text.

    `requests` lists what was asked, as (method, path) with the path decoded and without its query; `unknown` lists
    those among them that no endpoint serves. `user` owns the token and the namespace of that name. `access` and `orgs`
    are what it says of the token's rights and of the user's organisations; it does not act on them. `fault` is called
    with the method and the path of each request: of "cut" the connection ends before anything is done, of "lose" when
    all is done but the answer; a number is the status of an error that it answers with. `after_fault` is called then,
    before the connection ends.
    """

    def __init__(self, token: str = "hf_test", user: str = "user"):
        self.token, self.user = token, user
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.access = {"displayName": "test", "role": "write"}
        self.orgs: list[dict] = []
        self.fault: Callable[[str, str], str | int | None] = lambda method, path: None
        self.after_fault: Callable[[], object] = lambda: None
        self._repos: dict[tuple[str, str], Repo] = {}
        self._tickets: dict[str, tuple[Repo, str]] = {}
        self._lock = threading.Lock()
        self._exit = ExitStack()

    def __enter__(self) -> "HubServer":
        server = self._exit.enter_context(Server(("127.0.0.1", 0), Handler))
        server.hub, self.url = self, f"http://127.0.0.1:{server.server_port}"
        client = mock.patch.multiple(constants, HF_HUB_DISABLE_XET=True, HF_HUB_OFFLINE=False)
        self._exit.enter_context(client)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._exit.callback(server.shutdown)
        return self

    def __exit__(self, *problem: object) -> None:
        self._exit.close()

    def environment(self, home: str | os.PathLike) -> dict[str, str]:
        """This process's environment, changed so that a subprocess knows this Hub alone and caches under `home`."""
        others = re.compile("(HF|HUGGING|DIFFUSERS|TRANSFORMERS)|.*_proxy$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not others.match(name)}
        off = {f"HF_HUB_DISABLE_{what}": "1" for what in ("TELEMETRY", "PROGRESS_BARS", "XET")}
        return kept | off | {"HF_ENDPOINT": self.url, "HF_HOME": os.fspath(home), "HF_TOKEN": self.token}

    def files(self, name: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """What a repository holds at a revision."""
        return {path: file.data for path, file in self._repos[repo_type, name].at(revision).files.items()}

    def message(self, name: str) -> str:
        """The message of a repository's last commit."""
        return self._repos["model", name].at("main").said[2]

    def commits(self, name: str) -> int:
        """The number of commits of a repository, the first of which holds ``.gitattributes``; 0 where there is none."""
        return len(self._repos["model", name].commits) if ("model", name) in self._repos else 0

    def answer(self, call: "Handler") -> Reply:
        """Serve one request."""
        asked = (call.command, unquote(call.path))
        self.requests.append(asked)
        try:
            for method, regex, write, function in ENDPOINTS:
                match = regex.fullmatch(call.path)
                if match and method == call.command.replace("HEAD", "GET"):
                    found = {part: unquote(text) for part, text in match.groupdict().items() if text}
                    with self._lock:
                        content = function(self, call, **self._admit(call, write, **found))
                    return content if isinstance(content, Reply) else Reply(200, content)
            self.unknown.append(asked)
            return error(404, f"This test server has no endpoint {' '.join(asked)}")
        except Reply as refusal:
            return refusal
        except (LookupError, TypeError, ValueError) as problem:
            return error(400, ascii(f"Malformed request {asked}: {problem}"))

    def _admit(self, call, write, kind="model", name=None, **parts) -> dict:
        """Check the token, and put the repository itself in the place of its name among a path's parts."""
        given = call.headers.get("Authorization")
        signed = given == f"Bearer {self.token}"
        if given and not signed:
            raise error(401, "Invalid credentials in Authorization header")
        if write and not signed:
            raise error(401, "Invalid username or password.")
        if name is None:
            return parts
        repo = self._repos.get((kind, name))
        if repo is None or (repo.private and not signed):
            raise error(404 if signed else 401, "Repository not found", "RepoNotFound")
        if write:
            self._check_namespace(name)
        return parts | {"repo": repo}

    def _check_namespace(self, name: str) -> None:
        if not name.startswith(f"{self.user}/"):
            raise error(403, f"You don't have the rights to write to {name}")

    # The account, and repositories as a whole.

    @endpoint("GET", "/api/whoami-v2", write=True)
    def _whoami(self, call):
        access = {"type": "access_token", "accessToken": self.access}
        return {"type": "user", "id": self.user, "name": self.user, "orgs": self.orgs, "auth": access}

    @endpoint("POST", "/api/validate-yaml")
    def _validate_yaml(self, call):
        verdict = read_card(call.json["content"])[1]
        return Reply(400 if verdict["errors"] else 200, verdict)

    @endpoint("POST", "/api/repos/create", write=True)
    def _create(self, call):
        kind, private = call.json.get("type") or "model", call.json.get("visibility") == "private"
        name = f"{call.json.get('organization') or self.user}/{call.json['name']}"
        self._check_namespace(name)
        status = 409 if (kind, name) in self._repos else 200
        repo = self._repos.setdefault((kind, name), Repo(kind, name, private))
        return Reply(status, {"url": self.url + repo.path, "name": name})

    @endpoint("DELETE", "/api/repos/delete", write=True)
    def _delete(self, call):
        name = f"{call.json.get('organization') or self.user}/{call.json['name']}"
        self._check_namespace(name)
        if self._repos.pop((call.json.get("type") or "model", name), None) is None:
            raise error(404, "Repository not found", "RepoNotFound")
        return {}

    @endpoint("GET", "{api}(?:/revision/{revision})?")
    def _info(self, call, repo, revision="main"):
        commit = repo.at(revision)
        info = {"id": repo.name, "sha": commit.id, "lastModified": commit.date, "private": repo.private}
        known = {"library_name", "pipeline_tag", "tags"} & commit.card.keys()
        sizes = "blobs" in call.query
        siblings = [{"rfilename": path} | (file.info if sizes else {}) for path, file in commit.files.items()]
        info |= {"gated": False, "cardData": commit.card, "siblings": siblings}
        return info | {key: commit.card[key] for key in known}

    @endpoint("POST", "{api}/branch/(?P<branch>[^/]+)", write=True)
    def _branch(self, call, repo, branch):
        if branch in repo.branches:
            raise error(409, f"Reference {branch} already exists")
        repo.branches[branch] = repo.at(call.json.get("startingPoint", "main")).id
        return {}

    # Uploads: ask how to send each file, send the LFS objects, then commit.

    @endpoint("POST", "{api}/preupload/{revision}", write=True)
    def _preupload(self, call, repo, revision):
        old, answers = repo.at(revision).files, []
        for asked in call.json["files"]:
            path, text = asked["path"], b"\0" not in base64.b64decode(asked["sample"])
            regular = text and asked["size"] <= REGULAR_LIMIT and not path.endswith(LFS_SUFFIXES)
            answer = {"path": path, "uploadMode": "regular" if regular else "lfs", "shouldIgnore": False}
            answers.append(answer | {"oid": old[path].etag if path in old else None})
        return {"files": answers}

    @endpoint("POST", r"{repo}\.git/info/lfs/objects/batch", write=True)
    def _lfs_batch(self, call, repo):
        answers = [{"oid": asked["oid"], "size": asked["size"]} for asked in call.json["objects"]]
        for answer in answers:
            if answer["oid"] not in repo.objects:
                ticket = secrets.token_urlsafe()
                self._tickets[ticket] = (repo, answer["oid"])
                answer["actions"] = {"upload": {"href": f"{self.url}/lfs/{ticket}"}}
        return {"transfer": "basic", "objects": answers}

    @endpoint("PUT", "/lfs/(?P<ticket>[^/]+)")
    def _lfs_upload(self, call, ticket):
        repo, oid = self._tickets[ticket]
        if hashlib.sha256(call.body).hexdigest() != oid:
            raise error(422, "These are not the bytes of the announced object")
        repo.objects[oid] = call.body
        return {}

    @endpoint("POST", "{api}/commit/{revision}", write=True)
    def _commit(self, call, repo, revision):
        if "create_pr" in call.query:
            raise error(403, "This test server has no pull requests")
        if revision not in repo.branches:
            raise error(404, f"Invalid branch: {revision}", "RevisionNotFound")
        head = repo.at(revision)
        files, header = dict(head.files), {}
        for operation in map(json.loads, call.body.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile" and value["oid"] in repo.objects:
                files[value["path"]] = File(repo.objects[value["oid"]], lfs=True)
            elif key in ("deletedFile", "deletedFolder"):
                folder = value["path"].rstrip("/") + "/" if key == "deletedFolder" else None
                gone = [path for path in files if path == value["path"] or (folder and path.startswith(folder))]
                if not gone:
                    raise error(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {path: file for path, file in files.items() if path not in gone}
            else:
                raise error(400, f"Cannot apply {key}: it is unknown, or its object was never uploaded")
        if not head.id.startswith(header.get("parentCommit", "")):
            raise error(412, "A commit has happened since. Please refresh and try again.")
        made = Commit(files, repo.path, head.id, header["summary"], header.get("description", ""))
        if made.verdict["errors"]:
            raise error(400, "Invalid metadata in README.md")
        repo.commits[made.id], repo.branches[revision] = made, made.id
        return {"success": True, "commitOid": made.id, "commitUrl": f"{self.url}{repo.path}/commit/{made.id}"}

    # Downloads: listings and files.

    @endpoint("GET", "{api}/tree/{revision}(?:/(?P<folder>.+))?")
    def _tree(self, call, repo, revision, folder=""):
        prefix = folder and folder + "/"
        found = [entry for entry in self._entries(repo.at(revision)) if entry["path"].startswith(prefix)]
        if not found:
            raise error(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = call.query.get("recursive") == ["true"]
        return [entry for entry in found if recursive or entry["path"].count("/") == prefix.count("/")]

    @endpoint("POST", "{api}/paths-info/{revision}")
    def _paths_info(self, call, repo, revision):
        wanted = {path.strip("/") for path in parse_qs(call.body.decode()).get("paths", [])}
        return [entry for entry in self._entries(repo.at(revision)) if entry["path"] in wanted]

    def _entries(self, commit: Commit) -> list[dict]:
        folders = {str(above) for path in commit.files for above in PurePosixPath(path).parents} - {"."}
        found = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        found += [{"type": "file", "path": path} | file.info for path, file in commit.files.items()]
        return sorted(found, key=lambda entry: entry["path"])

    @endpoint("GET", "{repo}/resolve/{revision}/(?P<path>.+)")
    def _resolve(self, call, repo, revision, path):
        commit = repo.at(revision)
        if path not in commit.files:
            raise error(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.id)
        file, size = commit.files[path], len(commit.files[path].data)
        headers = {"X_Repo_Commit": commit.id, "ETag": f'"{file.etag}"'}
        if file.lfs:
            headers |= {"X_Linked_ETag": f'"{file.etag}"', "X_Linked_Size": str(size)}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
        if part is None:
            return Reply(200, file.data, **headers)
        start, stop = int(part[1]), min(int(part[2] or size), size - 1) + 1
        return Reply(206, file.data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{size}", **headers)


class Server(ThreadingHTTPServer):
    """Gives each request a connection and a daemon thread of its own."""

    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    """Reads a request from the wire, has `HubServer.answer` serve it and writes the reply."""

    timeout = 30

    def serve(self) -> None:
        target, size = urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        self.path, self.query = target.path, parse_qs(target.query)
        if not 0 <= size <= BODY_LIMIT or "Transfer-Encoding" in self.headers:
            reply = error(413, "Only bodies of a known and moderate size are accepted")
        else:
            self.body = self.rfile.read(size)
            hub = self.server.hub
            fault = hub.fault(self.command, unquote(target.path))
            reply = hub.answer(self) if fault in (None, "lose") else None
            if isinstance(fault, int):
                reply = error(fault, "Something went wrong on our side")
            elif fault is not None:
                hub.after_fault()
                self.close_connection = True
                return
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet: `HubServer.requests` has what was asked."""
