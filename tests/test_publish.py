from mezzotint_training.publishing import checks
"""The publish program: nothing is uploaded before it would be taken and has drawn a picture, the folder is only read,
from mezzotint_training.publishing import checks
and a publication that is killed leaves the repository as it was or as it should be.
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
    pytest -n 0 tests/test_publish.py --kills 40
from mezzotint_training.publishing import checks
"""
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
import contextlib
from mezzotint_training.publishing import checks
import io
from mezzotint_training.publishing import checks
import json
from mezzotint_training.publishing import checks
import os
from mezzotint_training.publishing import checks
import random
from mezzotint_training.publishing import checks
import shutil
from mezzotint_training.publishing import checks
import signal
from mezzotint_training.publishing import checks
import subprocess
from mezzotint_training.publishing import checks
import sys
from mezzotint_training.publishing import checks
from fnmatch import fnmatchcase
from mezzotint_training.publishing import checks
from pathlib import Path
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
import pytest
from mezzotint_training.publishing import checks
import torch
from mezzotint_training.publishing import checks
import yaml
from mezzotint_training.publishing import checks
from hub_server import HubServer
from mezzotint_training.publishing import checks
from safetensors.torch import load_file, save_file
from mezzotint_training.publishing import checks
from tiny_run import pictures, run, trained, tree
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
from mezzotint import hub as hub_module
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each publication runs in a fork")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
class Publisher:
from mezzotint_training.publishing import checks
    """Runs `mezzotint publish` in forks of a process that has everything imported and knows the test Hub alone."""
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
    def __init__(self, environment: dict[str, str]):
from mezzotint_training.publishing import checks
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
from mezzotint_training.publishing import checks
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
from mezzotint_training.publishing import checks
        self.child = 0
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
    def __call__(self, *argv) -> tuple[int, str, str]:
from mezzotint_training.publishing import checks
        """What it returns, or minus the signal that killed it, and what it prints."""
from mezzotint_training.publishing import checks
        self.process.stdin.write(json.dumps([str(x) for x in argv]) + "\n")
from mezzotint_training.publishing import checks
        self.process.stdin.flush()
from mezzotint_training.publishing import checks
        self.child = json.loads(self.process.stdout.readline())
from mezzotint_training.publishing import checks
        return tuple(json.loads(self.process.stdout.readline()))
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
@pytest.fixture(scope="module")
from mezzotint_training.publishing import checks
def hub():
from mezzotint_training.publishing import checks
    with HubServer() as server:
from mezzotint_training.publishing import checks
        yield server
from mezzotint_training.publishing import checks
    assert server.unknown == []
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
@pytest.fixture(scope="module")
from mezzotint_training.publishing import checks
def publish(hub, tmp_path_factory):
from mezzotint_training.publishing import checks
    found = Publisher(hub.environment(tmp_path_factory.mktemp("home")) | {"OMP_NUM_THREADS": "1"})
from mezzotint_training.publishing import checks
    yield found
from mezzotint_training.publishing import checks
    found.process.kill()
from mezzotint_training.publishing import checks
    found.process.communicate()
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
@pytest.fixture
from mezzotint_training.publishing import checks
def folder(make_pipe, tmp_path, monkeypatch):
from mezzotint_training.publishing import checks
    """A finished pipeline with a card and a recipe."""
from mezzotint_training.publishing import checks
    monkeypatch.chdir(tmp_path)
from mezzotint_training.publishing import checks
    make_pipe().save_pretrained(tmp_path / "run")
from mezzotint_training.publishing import checks
    card = '---\nlicense: mit\n---\npipe = from_pretrained("./run", trust_remote_code=True)\n'
from mezzotint_training.publishing import checks
    (tmp_path / "run" / "README.md").write_text(card)
from mezzotint_training.publishing import checks
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 0\nan_old_setting: 1\n")
from mezzotint_training.publishing import checks
    return tmp_path / "run"
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def state(folder: Path) -> dict:
from mezzotint_training.publishing import checks
    """All that could change in a folder: its files, and the time of each change in it."""
from mezzotint_training.publishing import checks
    return tree(folder) | {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def test_a_folder_that_may_only_be_read_is_published(hub, publish, folder):
from mezzotint_training.publishing import checks
    before = state(folder)
from mezzotint_training.publishing import checks
    code, out, err = publish(folder, "--hub_model_id", "user/read-only")
from mezzotint_training.publishing import checks
    assert (code, err) == (0, "") and out.startswith(f"published: {hub.url}/user/read-only/commit/")
from mezzotint_training.publishing import checks
    assert state(folder) == before
from mezzotint_training.publishing import checks
    card = hub.files("user/read-only")["README.md"].decode()
from mezzotint_training.publishing import checks
    assert 'from_pretrained("user/read-only", trust_remote_code=True)' in card
from mezzotint_training.publishing import checks
    names = {name for name in tree(folder) if (folder / name).is_file()}
from mezzotint_training.publishing import checks
    assert hub.files("user/read-only").keys() - {".gitattributes"} == names
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def spoil_weights(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def spoil_index(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "model_index.json").write_text("[]")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def pickle_weights(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def link_weights(folder: Path) -> None:
from mezzotint_training.publishing import checks
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
from mezzotint_training.publishing import checks
    path.rename(folder / "weights")
from mezzotint_training.publishing import checks
    path.symlink_to(folder / "weights")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def spoil_numbers(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (path,) = (folder / "text_encoder").glob("*.safetensors")
from mezzotint_training.publishing import checks
    tensors = {name: x.fill_(torch.nan) for name, x in load_file(path).items()}
from mezzotint_training.publishing import checks
    save_file(tensors, path, metadata={"format": "pt"})
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def lose_tokenizer(folder: Path) -> None:
from mezzotint_training.publishing import checks
    index = json.loads((folder / "model_index.json").read_text())
from mezzotint_training.publishing import checks
    del index["tokenizer"]
from mezzotint_training.publishing import checks
    (folder / "model_index.json").write_text(json.dumps(index))
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def nest_recipe(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "recipe.yaml").write_text("seed: " + "[" * 5000 + "]" * 5000)
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def whole_card(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "README.md").write_text("---\nlicense: none of these\n---\n")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def empty_card(folder: Path) -> None:
from mezzotint_training.publishing import checks
    (folder / "README.md").write_text("")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
@pytest.mark.parametrize(
from mezzotint_training.publishing import checks
    "spoil, words",
from mezzotint_training.publishing import checks
    [
from mezzotint_training.publishing import checks
        (spoil_weights, "run cannot be loaded: "),
from mezzotint_training.publishing import checks
        (pickle_weights, "run cannot be loaded: "),
from mezzotint_training.publishing import checks
        (spoil_index, "run must hold a finished pipeline: its model_index.json is not a pipeline's"),
from mezzotint_training.publishing import checks
        (link_weights, "diffusion_pytorch_model.safetensors must be a plain file, and no link, to be published"),
from mezzotint_training.publishing import checks
        (spoil_numbers, "weights must be finite numbers: "),
from mezzotint_training.publishing import checks
        (lose_tokenizer, "this pipeline has no tokenizer"),
from mezzotint_training.publishing import checks
        (nest_recipe, "recipe.yaml must be YAML: "),
from mezzotint_training.publishing import checks
        (whole_card, "the Hub does not take the card: "),
from mezzotint_training.publishing import checks
        (empty_card, "README.md must begin with metadata between two lines of ---: got none"),
from mezzotint_training.publishing import checks
    ],
from mezzotint_training.publishing import checks
)
from mezzotint_training.publishing import checks
def test_what_cannot_be_published_is_found_before_anything_is_uploaded(hub, publish, folder, spoil, words):
from mezzotint_training.publishing import checks
    spoil(folder)
from mezzotint_training.publishing import checks
    before, asked = state(folder), len(hub.requests)
from mezzotint_training.publishing import checks
    code, out, err = publish(folder, "--hub_model_id", "user/spoilt")
from mezzotint_training.publishing import checks
    assert (code, out) == (2, "") and err.startswith("mezzotint: ") and words in err and err.count("\n") == 1
from mezzotint_training.publishing import checks
    assert {path for _, path in hub.requests[asked:]} <= {"/api/whoami-v2", "/api/validate-yaml"}
from mezzotint_training.publishing import checks
    assert state(folder) == before
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
@pytest.mark.parametrize(
from mezzotint_training.publishing import checks
    "recipe, argv, words",
from mezzotint_training.publishing import checks
    [
from mezzotint_training.publishing import checks
        (None, [], "--pretrained_model_name_or_path must say what the adapters are of: "),
from mezzotint_training.publishing import checks
        ("pretrained_model_name_or_path: ./gone\n", [], "run says ./gone"),
from mezzotint_training.publishing import checks
        ("pretrained_model_name_or_path: [1]\n", [], "run says [1]"),
from mezzotint_training.publishing import checks
        ("seed: [1", [], "recipe.yaml cannot be read as YAML"),
from mezzotint_training.publishing import checks
        ("- 1", [], "recipe.yaml must hold"),
from mezzotint_training.publishing import checks
        (None, ["--pretrained_model_name_or_path", "./gone"], "pretrained_model_name_or_path ./gone cannot be loaded"),
from mezzotint_training.publishing import checks
    ],
from mezzotint_training.publishing import checks
)
from mezzotint_training.publishing import checks
def test_adapters_say_what_they_are_of(publish, tmp_path, recipe, argv, words):
from mezzotint_training.publishing import checks
    (tmp_path / "run").mkdir()
from mezzotint_training.publishing import checks
    (tmp_path / "run" / hub_module.ADAPTERS).write_bytes(b"")
from mezzotint_training.publishing import checks
    if recipe is not None:
from mezzotint_training.publishing import checks
        (tmp_path / "run" / "recipe.yaml").write_text(recipe)
from mezzotint_training.publishing import checks
    code, out, err = publish(tmp_path / "run", "--hub_model_id", "user/adapters", *argv)
from mezzotint_training.publishing import checks
    assert (code, out) == (2, "") and err.startswith("mezzotint: ") and words in err and err.count("\n") == 1
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def test_a_publication_without_a_connection_to_load_it_back_by_is_told_as_such(hub, publish, folder):
from mezzotint_training.publishing import checks
    hub.fault = lambda method, path: "cut" if "/resolve/" in path else None
from mezzotint_training.publishing import checks
    code, out, err = publish(folder, "--hub_model_id", "user/one-way")
from mezzotint_training.publishing import checks
    hub.fault = lambda *asked: None
from mezzotint_training.publishing import checks
    assert (code, out) == (3, "") and "but it cannot be loaded back: " in err.splitlines()[-1]
from mezzotint_training.publishing import checks
    assert err.splitlines()[-1].startswith(f"mezzotint: published: {hub.url}/user/one-way/commit/")
from mezzotint_training.publishing import checks
    assert "unet/config.json" in hub.files("user/one-way")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def test_a_publication_that_is_killed_leaves_the_old_or_the_new(hub, publish, folder, make_pipe, pytestconfig):
from mezzotint_training.publishing import checks
    """Killed at a request, before the Hub acts on it or when it has acted and not answered."""
from mezzotint_training.publishing import checks
    kills, rng = pytestconfig.getoption("--kills"), random.Random(pytestconfig.getoption("--faults-seed"))
from mezzotint_training.publishing import checks
    old = shutil.copytree(folder, folder.parent / "old")
from mezzotint_training.publishing import checks
    with (old / "unet" / "config.json").open("a") as file:
from mezzotint_training.publishing import checks
        file.write("\n")
from mezzotint_training.publishing import checks
    count = len(hub.requests)
from mezzotint_training.publishing import checks
    assert publish(old, "--hub_model_id", "user/counted")[0] == 0
from mezzotint_training.publishing import checks
    requests = len(hub.requests) - count
from mezzotint_training.publishing import checks
    before, outcomes = state(folder), set()
from mezzotint_training.publishing import checks
    for kill in range(kills):
from mezzotint_training.publishing import checks
        name, last, fault = f"user/killed-{kill}", rng.randrange(requests), rng.choice(["cut", "lose"])
from mezzotint_training.publishing import checks
        first = bool(rng.randrange(2))
from mezzotint_training.publishing import checks
        if not first:
from mezzotint_training.publishing import checks
            assert publish(old, "--hub_model_id", name)[0] == 0
from mezzotint_training.publishing import checks
        there = hub.files(name) if not first else {}
from mezzotint_training.publishing import checks
        start = len(hub.requests)
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
        hub.fault = lambda *asked, until=start + last, fault=fault: fault if len(hub.requests) >= until else None
from mezzotint_training.publishing import checks
        hub.after_fault = lambda: os.kill(publish.child, signal.SIGKILL)
from mezzotint_training.publishing import checks
        code = publish(folder, "--hub_model_id", name)[0]
from mezzotint_training.publishing import checks
        hub.fault, hub.after_fault = lambda *asked: None, lambda: None
from mezzotint_training.publishing import checks
        assert code in (-signal.SIGKILL, 0)
from mezzotint_training.publishing import checks
        assert state(folder) == before
from mezzotint_training.publishing import checks
        found = hub.files(name) if hub.commits(name) else {}
from mezzotint_training.publishing import checks
        whole = {x: (folder / x).read_bytes() for x in tree(folder) if (folder / x).is_file()}
from mezzotint_training.publishing import checks
        whole["README.md"] = whole["README.md"].replace(b'"./run"', f'"{name}"'.encode())
from mezzotint_training.publishing import checks
        new = {path: data for path, data in found.items() if path != ".gitattributes"} == whole
from mezzotint_training.publishing import checks
        assert new or found == there or (first and found.keys() == {".gitattributes"})
from mezzotint_training.publishing import checks
        outcomes.add(new)
from mezzotint_training.publishing import checks
        # and the same command brings it to its end
from mezzotint_training.publishing import checks
        assert publish(folder, "--hub_model_id", name)[0] == 0
from mezzotint_training.publishing import checks
        assert hub.files(name).keys() - {".gitattributes"} == whole.keys()
from mezzotint_training.publishing import checks
    assert kills < 20 or outcomes == {True, False}
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def test_a_run_whose_upload_fails_is_finished_and_says_so(tmp_path, monkeypatch):
from mezzotint_training.publishing import checks
    def failed(*arguments, **options):
from mezzotint_training.publishing import checks
        raise ConnectionError("the upload to user/run failed: cut\noff")
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
    monkeypatch.setattr(hub_module, "push", failed)
from mezzotint_training.publishing import checks
    monkeypatch.setattr(checks, "problems", lambda *arguments: [])
from mezzotint_training.publishing import checks
    result = run(output_dir=tmp_path / "my run", push_to_hub=True)
from mezzotint_training.publishing import checks
    assert result.code == 3 and (tmp_path / "my run" / "model_index.json").is_file()
from mezzotint_training.publishing import checks
    assert result.err.splitlines()[-1] == (
from mezzotint_training.publishing import checks
        f"mezzotint: the pipeline is finished in {tmp_path}/my run, but its upload failed (the upload to user/run "
from mezzotint_training.publishing import checks
        f"failed: cut off); `mezzotint publish '{tmp_path}/my run' --hub_model_id ...` uploads it"
from mezzotint_training.publishing import checks
    )
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def test_what_a_run_leaves_to_be_published_names_no_place_of_the_machine(tmp_path):
from mezzotint_training.publishing import checks
    place, folder = pictures(tmp_path / "jane" / "pictures"), tmp_path / "jane" / "runs" / "mine"
from mezzotint_training.publishing import checks
    (place / "3.png").write_bytes(b"no picture")
from mezzotint_training.publishing import checks
    settings = {"recipe": ..., "train_data_dir": place, "on_bad_row": "skip", "cache_dir": tmp_path / "jane" / "cache"}
from mezzotint_training.publishing import checks
    settings |= {"validation_prompts": ["one"], "num_inference_steps": 2, "output_dir": folder}
from mezzotint_training.publishing import checks
    trained(**settings)
from mezzotint_training.publishing import checks
    files = hub_module.content(folder).files
from mezzotint_training.publishing import checks
    for name, path in files.items():
from mezzotint_training.publishing import checks
        assert b"jane" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), name
from mezzotint_training.publishing import checks
    assert json.loads(files["metrics.json"].read_text())["plan"]["data"]["dropped"] == ["picture in row 3"]
from mezzotint_training.publishing import checks
    recipe = yaml.safe_load(files["recipe.yaml"].read_text())
from mezzotint_training.publishing import checks
    assert [recipe[name] for name in ("train_data_dir", "cache_dir", "output_dir")] == [
from mezzotint_training.publishing import checks
        "./pictures",
from mezzotint_training.publishing import checks
        "./cache",
from mezzotint_training.publishing import checks
        "./mine",
from mezzotint_training.publishing import checks
    ]
from mezzotint_training.publishing import checks
    # nor does an upload by hand give them away, which goes by .gitignore
from mezzotint_training.publishing import checks
    ignored = (folder / ".gitignore").read_text().splitlines()
from mezzotint_training.publishing import checks
    published = {name.partition("/")[0] for name in files}
from mezzotint_training.publishing import checks
    for name in {path.name for path in folder.iterdir()} - published:
from mezzotint_training.publishing import checks
        assert any(fnmatchcase(f"/{name}", pattern) for pattern in ignored), name
from mezzotint_training.publishing import checks
    assert not any(fnmatchcase(f"/{name}", pattern) for name in published for pattern in ignored)
from mezzotint_training.publishing import checks
    # and the same command goes on
from mezzotint_training.publishing import checks
    trained(**settings, max_train_steps=4)
from mezzotint_training.publishing import checks
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 4
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
def serve() -> None:
from mezzotint_training.publishing import checks
    """Answer a `Publisher`."""
from mezzotint_training.publishing import checks
    from mezzotint_training import publish
from mezzotint_training.publishing import checks
    from mezzotint_training.engine.process import torch
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
    torch.set_num_threads(1)
from mezzotint_training.publishing import checks
    replies = os.fdopen(os.dup(1), "w")
from mezzotint_training.publishing import checks
    for line in sys.stdin:
from mezzotint_training.publishing import checks
        reader, writer = os.pipe()
from mezzotint_training.publishing import checks
        child = os.fork()
from mezzotint_training.publishing import checks
        if child == 0:
from mezzotint_training.publishing import checks
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
from mezzotint_training.publishing import checks
                code = publish.main(json.loads(line))
from mezzotint_training.publishing import checks
            with os.fdopen(writer, "w") as file:
from mezzotint_training.publishing import checks
                json.dump([code, out.getvalue(), err.getvalue()], file)
from mezzotint_training.publishing import checks
            os._exit(0)
from mezzotint_training.publishing import checks
        os.close(writer)
from mezzotint_training.publishing import checks
        replies.write(json.dumps(child) + "\n")
from mezzotint_training.publishing import checks
        replies.flush()
from mezzotint_training.publishing import checks
        with os.fdopen(reader) as file:
from mezzotint_training.publishing import checks
            reply = file.read()
from mezzotint_training.publishing import checks
        status = os.waitpid(child, 0)[1]
from mezzotint_training.publishing import checks
        replies.write((reply or json.dumps([-os.WTERMSIG(status), "", ""])) + "\n")
from mezzotint_training.publishing import checks
        replies.flush()
from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks

from mezzotint_training.publishing import checks
if __name__ == "__main__":
from mezzotint_training.publishing import checks
    serve()
