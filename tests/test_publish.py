"""The publish program: nothing is uploaded before it would be taken and has drawn a picture, the folder is only read,
and a publication that is killed leaves the repository as it was or as it should be.

    pytest -n 0 tests/test_publish.py --kills 40
"""

import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import hub_server
import pytest
import torch
import yaml
from evaluations import EVALUATION
from hub_server import HubServer
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from tiny_run import pictures, run, trained, tree

from mezzotint import hub as hub_module
from mezzotint_training import publish as publish_program
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.recipe import PLACES
from mezzotint_training.publishing import evaluation

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each publication runs in a fork")


class Publisher:
    """Runs `mezzotint publish` in forks of a process that has everything imported and knows the test Hub alone."""

    def __init__(self, environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        self.child = 0

    def __call__(self, *argv, load_back: bool = True) -> tuple[int, str, str]:
        """What it returns, or minus the signal that killed it, and what it prints."""
        self.process.stdin.write(json.dumps([load_back, [str(x) for x in argv]]) + "\n")
        self.process.stdin.flush()
        self.child = json.loads(self.process.stdout.readline())
        return tuple(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server
    assert server.unknown == []


@pytest.fixture(scope="module")
def publish(hub, tmp_path_factory):
    found = Publisher(hub.environment(tmp_path_factory.mktemp("home")) | {"OMP_NUM_THREADS": "1"})
    yield found
    found.process.kill()
    found.process.communicate()


@pytest.fixture
def folder(save_pipe, tmp_path, monkeypatch):
    """A finished pipeline with a card and a recipe."""
    monkeypatch.chdir(tmp_path)
    save_pipe(tmp_path / "run")
    card = '---\nlicense: mit\n---\npipe = from_pretrained("./run", trust_remote_code=True)\n'
    (tmp_path / "run" / "README.md").write_text(card)
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 0\nan_old_setting: 1\n")
    return tmp_path / "run"


def state(folder: Path) -> dict:
    """All that could change in a folder: its files, and the time of each change in it."""
    return tree(folder) | {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_folder_that_may_only_be_read_is_published(hub, publish, folder):
    before = state(folder)
    code, out, err = publish(folder, "--hub_model_id", "user/read-only")
    assert (code, err) == (0, "") and out.startswith(f"published: {hub.url}/user/read-only/commit/")
    assert "loaded back where mezzotint is not installed: the same picture, to the bit" in out
    assert state(folder) == before
    card = hub.files("user/read-only")["README.md"].decode()
    assert 'from_pretrained("user/read-only", trust_remote_code=True)' in card
    names = {name for name in tree(folder) if (folder / name).is_file()}
    assert hub.files("user/read-only").keys() - {".gitattributes"} == names


def spoil_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def spoil_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def pickle_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def link_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(folder / "weights")
    path.symlink_to(folder / "weights")


def spoil_numbers(folder: Path) -> None:
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = {name: x.fill_(torch.nan) for name, x in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def lose_tokenizer(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index["tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))


def lose_code(folder: Path) -> None:
    next(folder.glob("unet/*.py")).unlink()


def name_no_file(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"][0] = True
    (folder / "model_index.json").write_text(json.dumps(index))


def nest_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("seed: " + "[" * 5000 + "]" * 5000)


def whole_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: none of these\n---\n")


def empty_card(folder: Path) -> None:
    (folder / "README.md").write_text("")


def no_license(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n")


def tell_secret(folder: Path) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\nmy token is hf_{'aB3' * 12}\n")


def tell_secret_in_weights(folder: Path) -> None:
    (path,) = (folder / "unet").glob("*.safetensors")
    save_file(load_file(path), path, metadata={"format": "pt", "note": "AKIA" + "Z7" * 8})


def tell_place(folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({"from": str(folder.parent)}))


def link_out(folder: Path) -> None:
    (folder / "samples").mkdir()
    (folder / "samples" / "x.png").symlink_to("/etc/passwd")


def change_code(folder: Path) -> None:
    (code,) = folder.glob("unet/*.py")
    code.write_text(f"{code.read_text()}\nPath('ran').touch()\n")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (no_license, "README.md must say under which licence the weights are: --license, say apache-2.0, adds it"),
        (tell_secret, "README.md must hold no secret: what looks like a Hugging Face token is at byte "),
        (tell_secret_in_weights, "safetensors must hold no secret: what looks like an AWS key is at byte "),
        (tell_place, "metrics.json must name no place on this machine: got /"),
        (link_out, "samples/x.png must be a plain file, and no link, to be published"),
        (change_code, "that is not the installed package's (unet/unet_mezzotint_v"),
        (spoil_weights, "run cannot be loaded: "),
        (pickle_weights, "run cannot be loaded: "),
        (spoil_index, "run must hold a finished pipeline: its model_index.json is not a pipeline's"),
        (name_no_file, "run must hold a finished pipeline: its model_index.json is not a pipeline's"),
        (lose_code, "run must hold the code that its model_index.json names: unet/unet_mezzotint_v"),
        (link_weights, "diffusion_pytorch_model.safetensors must be a plain file, and no link, to be published"),
        (spoil_numbers, "weights must be finite numbers: "),
        (lose_tokenizer, "this pipeline has no tokenizer"),
        (nest_recipe, "recipe.yaml cannot be read as YAML: "),
        (whole_card, "the Hub does not take the card: "),
        (empty_card, "README.md must begin with metadata between two lines of ---: got none"),
    ],
)
def test_what_cannot_be_published_is_found_before_anything_is_uploaded(hub, publish, folder, spoil, words):
    spoil(folder)
    before, asked = state(folder), len(hub.requests)
    code, out, err = publish(folder, "--hub_model_id", "user/spoilt")
    assert (code, out) == (2, "") and err.startswith("mezzotint: ") and words in err and err.count("\n") == 1
    assert {path for _, path in hub.requests[asked:]} <= {"/api/whoami-v2", "/api/validate-yaml"}
    assert state(folder) == before


TRUSTED = ["--license", "mit", "--pretrained_model_name_or_path", "./gone", "--trust_remote_code"]


@pytest.mark.parametrize(
    "recipe, argv, words",
    [
        (None, [], "--pretrained_model_name_or_path must say what the adapters are of: "),
        ("pretrained_model_name_or_path: ./gone\n", [], "run says ./gone"),
        ("pretrained_model_name_or_path: [1]\n", [], "run says [1]"),
        ("seed: [1", [], "recipe.yaml cannot be read as YAML"),
        ("- 1", [], "recipe.yaml must hold"),
        (None, TRUSTED, "pretrained_model_name_or_path ./gone cannot be loaded"),
        (None, TRUSTED[:-1], "and that is not the installed package's (./gone): read it, then --trust_remote_code"),
    ],
)
def test_adapters_say_what_they_are_of(publish, tmp_path, recipe, argv, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / hub_module.ADAPTERS).write_bytes(b"")
    if recipe is not None:
        (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    code, out, err = publish(tmp_path / "run", "--hub_model_id", "user/adapters", *argv)
    assert (code, out) == (2, "") and err.startswith("mezzotint: ") and words in err and err.count("\n") == 1


def test_a_dry_run_shows_what_would_go_up_and_changes_nothing(hub, publish, folder):
    (folder / "notes.txt").write_text("mine")
    before, asked = state(folder), len(hub.requests)
    code, out, err = publish(folder, "--hub_model_id", "user/dry", "--dry_run")
    assert (code, err) == (0, "") and state(folder) == before
    assert {path for _, path in hub.requests[asked:]} <= {"/api/whoami-v2", "/api/validate-yaml"}
    listed = {line.split()[-1] for line in out.splitlines() if " bytes  " in line}
    assert listed == {name for name in tree(folder) if (folder / name).is_file()} - {"notes.txt"}
    assert "left out  notes.txt" in out
    assert "would go to user/dry; loaded where mezzotint is not installed: the same picture, to the bit" in out


def test_what_is_private_stays_private_and_a_name_in_use_is_left_alone(hub, publish, folder):
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/public")
    before = hub.files("user/public")
    code, out, err = publish(folder, "--hub_model_id", "user/public", "--private")
    assert (code, out) == (2, "") and "user/public must be private, as asked for: it is there, and public" in err
    api.create_repo("user/used")
    index = json.dumps({"_class_name": "StableDiffusionPipeline"}).encode()
    api.upload_file(repo_id="user/used", path_in_repo="model_index.json", path_or_fileobj=index)
    used = hub.files("user/used")
    code, out, err = publish(folder, "--hub_model_id", "user/used")
    assert (code, out) == (2, "") and "user/used holds a pipeline of another class (StableDiffusionPipeline)" in err
    assert (hub.files("user/public"), hub.files("user/used")) == (before, used) and err.count("\n") == 1
    assert publish(folder, "--hub_model_id", "user/private", "--private", "--revision", "next")[0] == 0
    assert api.model_info("user/private").private and hub.files("user/private").keys() == {".gitattributes"}
    assert "unet/config.json" in hub.files("user/private", "next")


def test_an_upload_that_arrives_changed_is_not_called_published(hub, publish, folder, monkeypatch):
    [put] = [x for x in hub_server.ENDPOINTS if x[0] == "PUT"]

    def tampered(server, call, ticket):
        found = put[3](server, call, ticket)
        repo, oid = server._tickets[ticket]
        repo.objects[oid] = repo.objects[oid][:-1] + bytes([repo.objects[oid][-1] ^ 1])
        return found

    monkeypatch.setattr(hub_server, "ENDPOINTS", [(*put[:3], tampered), *hub_server.ENDPOINTS])
    code, out, err = publish(folder, "--hub_model_id", "user/tampered")
    assert (code, out) == (3, "") and err.count("\n") == 1
    assert err.startswith(f"mezzotint: uploaded: {hub.url}/user/tampered/commit/")
    assert err.endswith(".safetensors there is not what went up\n")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run of digits, and `evaluate_first` on it with an evaluation that is made up."""
    folder, calls = trained(tmp_path / "run", license="mit"), []
    monkeypatch.setattr(evaluation, "evaluate", lambda args: (calls.append(args), EVALUATION)[1])

    def call(**given) -> str | None:
        asked = dict.fromkeys(PLACES) | {"dry_run": False} | given
        return publish_program.evaluate_first(folder, SimpleNamespace(**asked))

    return folder, call, calls


def test_a_run_that_was_not_evaluated_is_and_only_once(finished):
    folder, evaluate_first, calls = finished
    assert evaluate_first(dry_run=True) == "a dry run" and not calls
    assert evaluate_first() is None
    assert [(args.checkpoint, args.card, args.dataset_name) for args in calls] == [(str(folder), True, None)]
    assert "How good it is" in (folder / "README.md").read_text() and (folder / "evaluation.json").is_file()
    assert evaluate_first() is None and len(calls) == 1


def test_a_card_that_somebody_edited_is_not_written_anew_for_an_evaluation(finished, monkeypatch):
    folder, evaluate_first, calls = finished
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("## Limits", "## My limits"))
    assert evaluate_first().startswith("README.md was edited by hand") and not calls
    (folder / "README.md").write_text(text)

    def refuse(args):
        raise UserError("evaluate reads the set that the recipe names if you name it too")

    monkeypatch.setattr(evaluation, "evaluate", refuse)
    assert evaluate_first() == "evaluate reads the set that the recipe names if you name it too"
    with pytest.raises(UserError):  # that the user named
        evaluate_first(train_data_dir="pictures")
    assert (folder / "README.md").read_text() == text


@pytest.mark.parametrize("task", ["inpaint", "upscale", "segment", "layout"])
def test_the_tasks_are_published_and_loaded_back(hub, publish, tmp_path, task):
    folder = trained(tmp_path / task, task=task, license="mit")
    assert json.loads((folder / "metrics.json").read_text())["load_back"]["largest"] == 0
    code, out, err = publish(folder, "--hub_model_id", f"user/{task}")
    assert (code, err) == (0, "") and f"published: {hub.url}/user/{task}/commit/" in out
    assert "not evaluated, which the card says: " in out
    assert "loaded back where mezzotint is not installed: the same picture, to the bit" in out
    assert f'"Mezzotint{task.capitalize()}Pipeline"' in hub.files(f"user/{task}")["model_index.json"].decode()


def test_a_publication_without_a_connection_to_load_it_back_by_is_told_as_such(hub, publish, folder):
    hub.fault = lambda method, path: "cut" if "/resolve/" in path else None
    code, out, err = publish(folder, "--hub_model_id", "user/one-way")
    hub.fault = lambda *asked: None
    assert (code, out) == (3, "") and "but it cannot be loaded back" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith(f"mezzotint: uploaded: {hub.url}/user/one-way/commit/")
    assert "unet/config.json" in hub.files("user/one-way")


def test_a_publication_that_is_killed_leaves_the_old_or_the_new(hub, publish, folder, make_pipe, pytestconfig):
    """Killed at a request, before the Hub acts on it or when it has acted and not answered."""
    kills, rng = pytestconfig.getoption("--kills"), random.Random(pytestconfig.getoption("--faults-seed"))
    old = shutil.copytree(folder, folder.parent / "old")
    with (old / "unet" / "config.json").open("a") as file:
        file.write("\n")
    count = len(hub.requests)
    assert publish(old, "--hub_model_id", "user/counted", load_back=False)[0] == 0
    requests = len(hub.requests) - count
    before, outcomes = state(folder), set()
    for kill in range(kills):
        name, last, fault = f"user/killed-{kill}", rng.randrange(requests), rng.choice(["cut", "lose"])
        first = bool(rng.randrange(2))
        if not first:
            assert publish(old, "--hub_model_id", name, load_back=False)[0] == 0
        there = hub.files(name) if not first else {}
        start = len(hub.requests)

        hub.fault = lambda *asked, until=start + last, fault=fault: fault if len(hub.requests) >= until else None
        hub.after_fault = lambda: os.kill(publish.child, signal.SIGKILL)
        code = publish(folder, "--hub_model_id", name, load_back=False)[0]
        hub.fault, hub.after_fault = lambda *asked: None, lambda: None
        assert code in (-signal.SIGKILL, 0)
        assert state(folder) == before
        found = hub.files(name) if hub.commits(name) else {}
        whole = {x: (folder / x).read_bytes() for x in tree(folder) if (folder / x).is_file()}
        whole["README.md"] = whole["README.md"].replace(b'"./run"', f'"{name}"'.encode())
        new = {path: data for path, data in found.items() if path != ".gitattributes"} == whole
        assert new or found == there or (first and found.keys() == {".gitattributes"})
        outcomes.add(new)
        # and the same command brings it to its end
        assert publish(folder, "--hub_model_id", name, load_back=False)[0] == 0
        assert hub.files(name).keys() - {".gitattributes"} == whole.keys()
    assert kills < 20 or outcomes == {True, False}


def test_a_run_whose_upload_fails_is_finished_and_says_so(tmp_path, monkeypatch):
    def failed(*arguments, **options):
        raise ConnectionError("the upload to user/run failed: cut\noff")

    monkeypatch.setattr(hub_module, "push", failed)
    monkeypatch.setattr("mezzotint_training.publishing.checks.problems", lambda *arguments: [])
    result = run(output_dir=tmp_path / "my run", push_to_hub=True)
    assert result.code == 3 and (tmp_path / "my run" / "model_index.json").is_file()
    assert result.err.splitlines()[-1] == (
        f"mezzotint: the pipeline is finished in {tmp_path}/my run, but its upload failed (the upload to user/run "
        f"failed: cut off); `mezzotint publish '{tmp_path}/my run' --hub_model_id ...` uploads it"
    )


def test_what_a_run_leaves_to_be_published_names_no_place_of_the_machine(tmp_path):
    place, folder = pictures(tmp_path / "jane" / "pictures"), tmp_path / "jane" / "runs" / "mine"
    (place / "3.png").write_bytes(b"no picture")
    settings = {"recipe": ..., "train_data_dir": place, "on_bad_row": "skip", "cache_dir": tmp_path / "jane" / "cache"}
    settings |= {"validation_prompts": ["one"], "num_inference_steps": 2, "output_dir": folder}
    trained(**settings)
    files = hub_module.content(folder).files
    for name, path in files.items():
        assert b"jane" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), name
    assert json.loads(files["metrics.json"].read_text())["plan"]["data"]["dropped"] == ["picture in row 3"]
    recipe = yaml.safe_load(files["recipe.yaml"].read_text())
    assert [recipe[name] for name in ("train_data_dir", "cache_dir", "output_dir")] == [
        "./pictures",
        "./cache",
        "./mine",
    ]
    # nor does an upload by hand give them away, which goes by .gitignore
    ignored = (folder / ".gitignore").read_text().splitlines()
    published = {name.partition("/")[0] for name in files}
    for name in {path.name for path in folder.iterdir()} - published:
        assert any(fnmatchcase(f"/{name}", pattern) for pattern in ignored), name
    assert not any(fnmatchcase(f"/{name}", pattern) for name in published for pattern in ignored)
    # and the same command goes on
    trained(**settings, max_train_steps=4)
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 4


def serve() -> None:
    """Answer a `Publisher`."""
    from mezzotint_training import publish
    from mezzotint_training.engine.process import torch

    torch.set_num_threads(1)
    importlib.import_module("warm")
    strangers = importlib.import_module("strangers")
    strangers.forked().start()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                compared, argv = json.loads(line)
                if not compared:
                    strangers.load_back.as_a_stranger = lambda *asked: strangers.load_back.Verdict(0.0, 0.0)
                code = publish.main(argv)
            with os.fdopen(writer, "w") as file:
                json.dump([code, out.getvalue(), err.getvalue()], file)
            os._exit(0)
        os.close(writer)
        replies.write(json.dumps(child) + "\n")
        replies.flush()
        with os.fdopen(reader) as file:
            reply = file.read()
        status = os.waitpid(child, 0)[1]
        replies.write((reply or json.dumps([-os.WTERMSIG(status), "", ""])) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve()
