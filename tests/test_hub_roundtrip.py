"""What is saved, published or trained loads elsewhere and draws the same bits: pipelines of both tasks, with mezzotint
installed and without.

Nothing is loaded in the tests' own process: the functions at the end of the file run in two others, the owner's, where
mezzotint is installed, and a stranger's, where it cannot be imported. Both know the test Hub alone.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard

# Each file of a revised checkpoint's code has a global of its own that its functions read when they draw
REVISIONS = {
    "modular_mezzotint": "randn_tensor = lambda shape, **options: torch.ones(shape)",
    "pipeline_mezzotint": "randn_tensor = lambda shape, **options: torch.ones(shape)",
    "scheduling_mezzotint": "randn_tensor = lambda shape, **options: torch.ones(shape)",
    "unet_mezzotint": "dispatch_attention_fn = lambda query, *inputs, **options: query",
}
# Another version of each file that the package's classes share: one draws flat noise, one takes the queries for what
# attention finds, and one leaves a note beside what it saves
SHARED = {
    "pipelines/sampling_mezzotint.py": "randn_tensor = lambda shape, **options: torch.ones(shape)",
    "models/blocks_mezzotint.py": "dispatch_attention_fn = lambda query, *inputs, **options: query",
    "pipelines/checkpoint_mezzotint.py": """
def save_config(self, folder, before=MezzotintCheckpointMixin.save_config, **options):
    before(self, folder, **options)
    (Path(folder) / "note.txt").write_text("saved by another version")

MezzotintCheckpointMixin.save_config = save_config
""",
}
CARD = """---
library_name: diffusers
---
# Measured

```python
pipe = DiffusionPipeline.from_pretrained("runs/a", trust_remote_code=True)
```
"""
APART = re.compile(r"tokenizer_config\.json|modular_")
LEFTOVERS = (
    "checkpoint-10/weights.safetensors", ".checkpoint-20/state.json", "logs/logs/events.out", "metrics.jsonl"
)  # fmt: skip
TRAINING = """
    --recipe digits --unet '{block_out_channels: [16, 32], layers_per_block: 1}' --max_train_steps 2
    --max_train_samples 32 --train_batch_size 4 --checkpointing_steps 1 --logging_steps 1 --num_inference_steps 2
    --validation_prompts 'a handwritten seven' 'a handwritten two' --num_validation_images 2
    --report_to tensorboard --output_dir runs/tiny --push_to_hub --hub_model_id user/tiny
"""


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each check runs in a fork")


class Failure(Exception):
    """A function failed in the other process; its traceback."""


class Interpreter:
    """Calls functions of this file in another process: each in a fork of its own, which finds diffusers imported but no
    trace of an earlier call. Arguments and results travel as JSON, paths as text."""

    def __init__(self, life: str, environment: dict[str, str], folder: Path):
        command = [sys.executable, __file__, life]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=folder, **pipes)

    def __call__(self, function, *arguments, **options):
        call = [function.__name__, arguments, options]
        self.process.stdin.write(json.dumps(call, default=os.fspath) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in reply:
            raise Failure(reply["error"])
        return reply["value"]


class Saved(NamedTuple):
    """A saved pipeline and the digest of the picture that it must draw."""

    folder: Path
    picture: str


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server
    assert server.unknown == []


@pytest.fixture(scope="module")
def processes(hub, tmp_path_factory):
    """The owner's and the stranger's interpreter, started side by side."""
    root = tmp_path_factory.mktemp("processes")
    environment = {life: hub.environment(root / life) | {"OMP_NUM_THREADS": "1"} for life in ("owner", "stranger")}
    found = {life: Interpreter(life, environment[life], root) for life in environment}
    yield found | {"root": root}
    for life in environment:
        found[life].process.kill()
        found[life].process.communicate()


@pytest.fixture(scope="module")
def owner(processes):
    return processes["owner"]


@pytest.fixture(scope="module")
def stranger(processes):
    return processes["stranger"]


@pytest.fixture(params=["owner", "stranger"])
def life(request, processes):
    """One of the two interpreters after the other."""
    return processes[request.param]


@pytest.fixture(scope="module")
def both(owner, tmp_path_factory):
    """A checkpoint of each task, with the same components."""
    return create_both(owner, tmp_path_factory.mktemp("saved"), seed=0)


@pytest.fixture(scope="module")
def saved(both):
    """The checkpoint of text to image."""
    return both["text-to-image"]


@pytest.fixture(params=["text-to-image", "image-to-image"])
def either(request, both):
    """The checkpoint of one task after the other."""
    return both[request.param]


@pytest.fixture(scope="module")
def renewed(owner, tmp_path_factory):
    """A checkpoint of each task with other weights, saved by a package whose shared files are of another version."""
    root = tmp_path_factory.mktemp("renewed")
    package = shutil.copytree(Path(__file__).parents[1] / "src/mezzotint", root / "package/mezzotint")
    for name, text in SHARED.items():
        with (package / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{text}\n")
    return create_both(owner, root, seed=2, package=package.parent)


@pytest.fixture(scope="module")
def revised(owner, stranger, tmp_path_factory):
    """A checkpoint with other weights, and other code under the names that its content got when it was saved."""
    root = tmp_path_factory.mktemp("revised")
    edited = create_both(owner, root, seed=1)["text-to-image"]
    for path in edited.folder.rglob("*.py"):
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n\n{REVISIONS[path.stem.rpartition('_v')[0]]}\n")
    loaded = stranger(save_again, edited.folder, root / "b")
    assert loaded != edited.picture  # its own code draws it
    return Saved(root / "b", loaded)


@pytest.fixture(scope="module")
def published(hub, both, revised, renewed):
    """The names on the Hub of all of them."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    names = {revised: "user/revised"}
    names |= {both[task]: f"user/{task}" for task in both} | {renewed[task]: f"user/renewed-{task}" for task in both}
    for checkpoint, name in names.items():
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=checkpoint.folder)
    return names


def create_both(owner, folder: Path, **options) -> dict[str, Saved]:
    """A checkpoint of each task in folders of their names."""
    return {task: Saved(folder / task, picture) for task, picture in owner(create, folder, **options).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, less one to which transformers adds something when it saves a loaded tokenizer again, and
    the modular pipeline's, of which diffusers downloads none with a pipeline."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not APART.match(path.name)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def uploads(hub: HubServer, name: str) -> dict[str, bytes]:
    """The files of a repository, less the same, and the Hub's own."""
    files = hub.files(name).items()
    return {path: data for path, data in files if not APART.match(Path(path).name) and path != ".gitattributes"}


# ------------------------------------------------------------------------------------------------ saving and loading


def test_the_test_hub_serves_stock_pipelines_and_data_sets(hub, stranger, tmp_path):
    """With diffusers' and datasets' own classes as the witnesses."""
    import pyarrow.parquet

    api, table = HfApi(endpoint=hub.url, token=hub.token), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"number": [3, 1, 4]}), table)
    api.create_repo("user/numbers", repo_type="dataset")
    parquet = {"path_in_repo": "data/train.parquet", "path_or_fileobj": table.getvalue()}
    api.upload_file(repo_id="user/numbers", repo_type="dataset", **parquet)
    assert stranger(push_and_load_stock, tmp_path / "saved", "user/numbers") == [3, 1, 4]
    weights = "unet/diffusion_pytorch_model.safetensors"
    for name in ("user/pushed", "user/saved"):
        assert hub.files(name)[weights] == (tmp_path / "saved" / weights).read_bytes()
    assert api.model_info("user/saved").private and not api.model_info("user/pushed").private


def test_a_folder_and_a_repository_load_with_the_package_and_without(hub, owner, stranger, either, published):
    with pytest.raises(Failure, match="ModuleNotFoundError: No module named 'mezzotint'"):
        stranger(refusal, either.folder, library="mezzotint")
    sources = either.folder, published[either]
    assert owner(describe_each, *sources, life="stranger") == [[either.picture, *["diffusers_modules"] * 3]] * 2
    assert stranger(describe_each, *sources) == [[either.picture, *["diffusers_modules"] * 3]] * 2
    assert owner(describe_each, *sources) == [[either.picture, *["mezzotint"] * 3]] * 2
    for source in sources:
        assert "Pass `trust_remote_code=True` to allow loading remote code modules" in stranger(refusal, source)
    assert hub.unknown == []


def test_what_was_loaded_once_loads_without_the_hub(hub, life, either, published):
    found = life(describe, published[either])
    asked = len(hub.requests)
    assert life(describe, published[either], local_files_only=True) == found
    assert not [path for _, path in hub.requests[asked:] if "/resolve/" in path]
    assert life(describe_offline, published[either]) == [found, found]


def test_a_revision_has_its_own_weights_and_its_own_code(hub, life, either, renewed, tmp_path):
    """What a later upload replaced is there by its commit, and is saved again as it was."""
    repo, later, commits = f"user/history-{tmp_path.name}", renewed[either.folder.name], []
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(repo)
    for folder in (either.folder, later.folder):
        options = {"delete_patterns": ["*.py", "*/*.py"]}
        commits.append(api.upload_folder(repo_id=repo, folder_path=folder, **options).oid)
    first, second = life(describe_each, either.folder, later.folder)
    assert first[0] == either.picture != second[0]
    asked = [{}, {"revision": commits[0]}, {"revision": commits[0], "local_files_only": True}]
    assert life(describe_each, *([repo, options] for options in asked)) == [second, first, first]
    assert life(save_again, repo, tmp_path / "again", revision=commits[0]) == either.picture
    assert contents(tmp_path / "again") == contents(either.folder)


def test_one_task_is_made_of_the_other(life, both, published, tmp_path):
    """By `from_pipe`, both ways, of folders and of repositories, with the code of each task on its own."""
    text, image = both.values()
    for sources in ([text.folder, image.folder], [published[text], published[image]]):
        assert life(exchange, *sources, tmp_path) == [image.picture, text.picture]
        for task in both:
            assert contents(tmp_path / task) == contents(both[task].folder)


@pytest.mark.parametrize("way", ["as it is", "in place", "compiled", "from_pipe", "sharded"])
def test_what_was_loaded_is_saved_again(life, owner, stranger, saved, tmp_path, way):
    source = shutil.copytree(saved.folder, tmp_path / "source")
    again = source if way == "in place" else tmp_path / "again"
    assert life(save_again, source, again, way) == saved.picture
    assert owner(describe, again)[0] == stranger(describe, again)[0] == saved.picture
    files, original = contents(again), contents(saved.folder)
    assert not any(str(tmp_path) in path.read_text() for path in again.rglob("*.json"))
    if way == "sharded":
        assert len([path for path in files if path.startswith("unet/") and path.endswith(".safetensors")]) > 2
        weights = re.compile(r".*safetensors(\.index\.json)?")
        files, original = ({k: v for k, v in x.items() if not weights.fullmatch(k)} for x in (files, original))
    assert files == original


def test_a_folder_that_is_saved_over_holds_nothing_of_the_code_before(stranger, saved, revised, tmp_path):
    folder = shutil.copytree(saved.folder, tmp_path / "over")
    assert stranger(save_again, revised.folder, folder) == revised.picture
    assert contents(folder) == contents(revised.folder)


@pytest.mark.parametrize("way", ["as it is", "compiled"])
def test_what_came_from_the_hub_is_saved_again(life, either, published, tmp_path, way):
    assert life(save_again, published[either], tmp_path / "again", way) == either.picture
    assert contents(tmp_path / "again") == contents(either.folder)


def test_a_configuration_is_saved_alone(life, saved, tmp_path):
    life(save_configuration, saved.folder, tmp_path)
    assert contents(tmp_path)["model_index.json"] == contents(saved.folder)["model_index.json"]


def test_the_unet_loads_alone(owner, stranger, either, published):
    expected = stranger(weights, either.folder)
    for interpreter in (owner, stranger):
        assert interpreter(unet_weights, either.folder, published[either]) == [expected] * 2


def test_a_stock_scheduler_is_saved_and_loaded(life, owner, stranger, saved, tmp_path):
    source = shutil.copytree(saved.folder, tmp_path / "source")
    for target in (tmp_path / "again", source):
        picture = life(swap_scheduler, source, target)
        assert picture != saved.picture
        assert owner(describe, target) == [picture, "mezzotint", "mezzotint", "diffusers"]
        assert stranger(describe, target) == [picture, "diffusers_modules", "diffusers_modules", "diffusers"]


def test_a_fitted_schedule_goes_along(hub, owner, stranger, saved, tmp_path):
    """To a folder and to the Hub, and draws the same there: another picture than steps that were not fitted."""
    folder, again = shutil.copytree(saved.folder, tmp_path / "fitted"), tmp_path / "again"
    path = folder / "scheduler/scheduler_config.json"
    table = {"num_inference_steps": 2, "guidance_scale": 2.0, "taus": [900.5, 300.25], "sigmas": [20.0, 0.7]}
    table["coefficients"] = [[0.7, 0.6], [0.1, 0.9, 0.05]]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fitted_schedules": [table]}))
    picture = owner(two_steps, folder)
    assert picture != owner(two_steps, saved.folder)
    owner(save_again, folder, again)
    owner(upload, again, "user/fitted", "push_to_hub")
    for source in (folder, again, "user/fitted"):
        assert owner(two_steps, source) == stranger(two_steps, source) == picture


def test_a_variant_is_saved_and_loaded(hub, owner, stranger, either, tmp_path):
    folder, other = (shutil.copytree(either.folder, tmp_path / life) for life in ("owner", "stranger"))
    owner(save_half, either.folder, folder)
    stranger(save_half, either.folder, other)
    assert (folder / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert contents(folder) == contents(other)
    repo = f"user/variant-{tmp_path.name}"
    HfApi(endpoint=hub.url, token=hub.token).create_repo(repo)
    HfApi(endpoint=hub.url, token=hub.token).upload_folder(repo_id=repo, folder_path=folder)
    full, half = owner(weights, either.folder), owner(weights, either.folder, cast="float16")
    assert full != half
    found = owner(both_variants, folder, repo) + stranger(both_variants, folder, repo)
    assert found == [[full, half, found[0][2]]] * 4


def test_each_component_has_the_precision_asked_for(life, saved):
    parts = {"unet": "bfloat16", "default": "float32"}
    assert life(precisions, saved.folder, parts) == {"unet": "torch.bfloat16", "text_encoder": "torch.float32"}
    assert life(precisions, saved.folder, "bfloat16") == {"unet": "torch.bfloat16", "text_encoder": "torch.bfloat16"}
    assert life(weights, saved.folder, dtype=parts) == life(weights, saved.folder, cast="bfloat16")
    assert 0 < life(distance, saved.folder, parts) < 0.04


def test_the_text_encoder_can_be_left_out_or_brought(hub, life, saved, tmp_path):
    repo = f"user/optional-{tmp_path.name}"
    HfApi(endpoint=hub.url, token=hub.token).create_repo(repo)
    HfApi(endpoint=hub.url, token=hub.token).upload_folder(repo_id=repo, folder_path=saved.folder)
    for source in (repo, saved.folder):
        assert life(without_text, source, saved.folder, tmp_path / "without") == [saved.picture] * 2
        asked = [path for _, path in hub.requests if f"/{repo}/resolve" in path]
        assert not [path for path in asked if "/text_encoder/" in path]
        index = json.loads((tmp_path / "without/model_index.json").read_text())
        assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert life(with_other_text, saved.folder)


def test_adapters_are_saved_and_loaded(owner, stranger, either, tmp_path):
    picture = owner(create_adapters, either.folder, tmp_path)
    assert picture != either.picture
    assert owner(with_adapters, either.folder, tmp_path) == stranger(with_adapters, either.folder, tmp_path) == picture


@pytest.mark.parametrize("order", ["aba", "bab", "aab", "ABa", "Bab", "acda", "CDcA", "dcBD"])
def test_checkpoints_leave_each_other_alone(stranger, both, saved, revised, renewed, published, tmp_path, order):
    """In one process: other versions of a class's file (b) and of the files that classes share (c), other tasks (d)."""
    known = {"a": saved, "b": revised, "c": renewed["text-to-image"], "d": both["image-to-image"]}
    known |= {x.upper(): Saved(published[known[x]], known[x].picture) for x in "abcd"}
    pictures = stranger(alternate, [known[x].folder for x in order], tmp_path)
    assert pictures == [[known[x].picture for x in order[: i + 1]] for i in range(len(order))]
    for i, x in enumerate(order):
        assert contents(tmp_path / str(i)) == contents(known[x.lower()].folder)


def test_the_package_runs_no_code_of_a_checkpoint(hub, owner, stranger, saved, tmp_path):
    folder = shutil.copytree(saved.folder, tmp_path / "poisoned")
    for path in folder.rglob("*.py"):
        path.write_text('raise RuntimeError("poisoned")\n')
    HfApi(endpoint=hub.url, token=hub.token).create_repo("user/poisoned")
    HfApi(endpoint=hub.url, token=hub.token).upload_folder(repo_id="user/poisoned", folder_path=folder)
    for source in (folder, "user/poisoned"):
        assert owner(describe, source) == [saved.picture, *["mezzotint"] * 3]
        with pytest.raises(Failure, match="RuntimeError: poisoned"):
            stranger(describe, source)


def test_the_modular_pipeline_is_saved_along(stranger, both, saved, revised, tmp_path):
    """By the code of the checkpoint too. The file of the blocks stands for both tasks, of each checkpoint."""
    pictures = [checkpoint.picture for checkpoint in both.values()]
    stranger(save_again, saved.folder, tmp_path / "again")
    for folder in (both["image-to-image"].folder, tmp_path / "again"):
        assert stranger(by_blocks, folder) == pictures
        for path in folder.glob("modular_*"):
            assert path.read_bytes() == (saved.folder / path.name).read_bytes()
    assert stranger(by_blocks, revised.folder)[0] == revised.picture
    assert "Pass `trust_remote_code=True`" in stranger(
        refusal, saved.folder, library="diffusers", name="ModularPipeline"
    )


# -------------------------------------------------------------------------------------------------------- publishing


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained", "hub.push"])
def test_what_is_published_comes_back(hub, owner, stranger, both, saved, tmp_path, way):
    folder = shutil.copytree(saved.folder, tmp_path / "run")
    (folder / "README.md").write_text(CARD)
    for path in LEFTOVERS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("of the run alone")
    repo = f"user/by-{way}"
    address = owner(upload, folder, repo, way)
    assert address is None or address.startswith(f"{hub.url}/{repo}/commit/")
    assert stranger(describe, repo) == [saved.picture, *["diffusers_modules"] * 3]
    assert owner(describe, repo) == [saved.picture, *["mezzotint"] * 3]
    card = CARD.replace("runs/a", repo).encode()
    assert uploads(hub, repo) == contents(saved.folder) | {"README.md": card}
    assert stranger(by_blocks, repo) == [checkpoint.picture for checkpoint in both.values()]


def test_an_update_keeps_the_card(hub, life, saved, published):
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.upload_file(repo_id=published[saved], path_in_repo="README.md", path_or_fileobj=CARD.encode())
    files = uploads(hub, published[saved])
    life(upload, published[saved], published[saved], "push_to_hub")
    assert uploads(hub, published[saved]) == files | {"README.md": CARD.replace("runs/a", published[saved]).encode()}


def test_an_upload_takes_the_place_of_the_earlier_one(hub, owner, stranger, saved, revised, tmp_path):
    stranger(save_again, revised.folder, tmp_path / "earlier", "sharded")
    owner(upload, tmp_path / "earlier", "user/twice", "hub.push")
    assert stranger(describe, "user/twice")[0] == revised.picture
    owner(upload, saved.folder, "user/twice", "hub.push")
    assert stranger(describe, "user/twice")[0] == saved.picture
    assert uploads(hub, "user/twice") == contents(saved.folder)


def test_a_stranger_publishes(hub, owner, stranger, either):
    repo = f"user/stranger-{either.folder.name}"
    stranger(upload, either.folder, repo, "push_to_hub")
    for interpreter in (owner, stranger):
        assert interpreter(describe, repo)[0] == either.picture
    card = ModelCard(hub.files(repo)["README.md"].decode())
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", either.folder.name)


def test_the_publish_program_uploads_and_compares(hub, owner, stranger, saved, revised):
    words = ("--license", "mit", "--hub_model_id")
    code, out, err = owner(publish, saved.folder, *words, "user/program", "--prompt", "a red boot")
    assert code == 0 and "mezzotint: " not in err
    assert re.match(f"published: {hub.url}/user/program/commit/\\w+\n", out)
    assert "loaded back where mezzotint is not installed: the same picture, to the bit (" in out
    assert "license: mit" in hub.files("user/program")["README.md"].decode()
    assert stranger(describe, "user/program")[0] == saved.picture
    code, out, err = owner(publish, saved.folder, *words, "user/other", in_place_of=revised.folder)
    assert (code, out) == (3, "")
    assert re.fullmatch(f"mezzotint: uploaded: {hub.url}/user/other/commit/\\w+, but .* is not what went up\n", err)


@pytest.mark.parametrize(
    ("folder", "repo", "environment", "message"),
    [
        ("missing", "user/new", {}, "missing must hold a finished pipeline"),
        (".", "user/new", {}, "must hold a finished pipeline"),
        ("run", "other/name", {}, "other/name"),
        ("run", "a/b/c", {}, "a/b/c"),
        ("run", "user/new", {"HF_TOKEN": "hf_wrong"}, "a token that the Hub accepts"),
        ("run", "user/there", {"HF_TOKEN": ""}, "needs a token"),
        ("run", "user/new", {"HF_ENDPOINT": "http://127.0.0.1:1"}, "refused"),
    ],
)
def test_a_failed_publication_changes_nothing(hub, owner, saved, tmp_path, folder, repo, environment, message):
    HfApi(endpoint=hub.url, token=hub.token).create_repo("user/there", exist_ok=True)
    (shutil.copytree(saved.folder, tmp_path / "run") / "README.md").write_text(CARD)
    before, there = contents(tmp_path), hub.files("user/there")
    code, out, err = owner(publish, tmp_path / folder, "--hub_model_id", repo, environment=environment)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"mezzotint: .*{re.escape(message)}.*\n", err)
    assert (contents(tmp_path), hub.files("user/there")) == (before, there)
    assert not HfApi(endpoint=hub.url, token=hub.token).repo_exists("user/new")


# ---------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def run(processes, owner):
    """The folder of a finished training run that was published as user/tiny."""
    assert owner(train, *shlex.split(TRAINING)) == 0
    return processes["root"] / "runs/tiny"


def test_a_training_run_is_published(hub, owner, stranger, run):
    files = contents(run)
    private = {path for path in files if re.match(r"checkpoint-\d+/|logs/|metrics\.jsonl$|\.gitignore$", path)}
    names = {"checkpoint-1", "checkpoint-2", "logs", "metrics.jsonl", ".gitignore"}
    assert {path.partition("/")[0] for path in private} == names
    files["README.md"] = files["README.md"].replace(b'from_pretrained("./tiny"', b'from_pretrained("user/tiny"')
    assert uploads(hub, "user/tiny") == {path: data for path, data in files.items() if path not in private}
    assert stranger(describe, "user/tiny")[0] == owner(describe, run)[0]


def test_the_card_says_what_is_true_and_its_example_runs(hub, stranger, run, tmp_path):
    uploaded = hub.files("user/tiny")
    card = ModelCard(uploaded["README.md"].decode())
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("diffusers", "text-to-image", "apache-2.0")
    assert "mezzotint" in data["tags"]
    links = [path for path in re.findall(r"\]\(([^)]+)\)", card.text) if "://" not in path]
    links += [example["output"]["url"] for example in data["widget"]]
    assert "samples/step-000002.png" in links
    assert set(links) <= uploaded.keys()
    assert str(run.parent.parent) not in card.content

    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    assert stranger(run_example, tmp_path, "example.py", "picture.png") == ["PNG", [8, 8]]


# --------------------------------------------------------------------------------------- what runs in other processes


def push_and_load_stock(folder, numbers):
    """A stock pipeline is pushed in both ways, and is the same when it is loaded back; the numbers of a data set."""
    import torch
    from datasets import load_dataset
    from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    unet = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
    pipe = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))
    pipe.push_to_hub("user/pushed", commit_message="Push")
    pipe.save_pretrained(folder, push_to_hub=True, repo_id="user/saved", private=True)
    for name in ("user/pushed", "user/saved"):
        loaded = DiffusionPipeline.from_pretrained(name)
        weights, expected = loaded.unet.state_dict(), unet.state_dict()
        assert type(loaded) is DDPMPipeline and weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    return load_dataset(numbers, split="train")["number"][:]


def make(seed: int):
    """A small pipeline with a random weight wherever a fresh one has zero."""
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    from mezzotint import MezzotintPipeline, MezzotintScheduler, MezzotintUNetModel

    torch.manual_seed(seed)
    shape = {"block_out_channels": (16, 32), "layers_per_block": 1, "transformer_layers_per_block": (0, 1)}
    scale = {"sample_mean": (-0.5, 0.0, 0.5), "sample_std": (0.5, 0.4, 0.3)}
    text = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    unet = MezzotintUNetModel(sample_size=8, cross_attention_dim=16, attention_head_dim=16, **shape, **scale).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    text_encoder = T5EncoderModel(T5Config(vocab_size=384, **text)).eval()
    return MezzotintPipeline(unet, MezzotintScheduler(), text_encoder, ByT5Tokenizer(model_max_length=32))


def load(source: str, dtype=None, life=None, **options):
    """Load as the owner does, or as a stranger: by default as this process is."""
    import torch

    if isinstance(dtype, dict):
        options["dtype"] = {part: getattr(torch, name) for part, name in dtype.items()}
    elif dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    from diffusers import DiffusionPipeline

    if (life or sys.argv[1]) == "owner":
        import mezzotint

        _, name = DiffusionPipeline.load_config(source, **options)["_class_name"]
        return getattr(mezzotint, name).from_pretrained(source, **options)
    return DiffusionPipeline.from_pretrained(source, trust_remote_code=True, **options)


def pixels(pipe, **call):
    """A picture to which every component and both kinds of noise contribute."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    call = call or {"prompt": "a red boot"}
    call |= {"num_inference_steps": 3, "guidance_scale": 2.0, "eta": 1.0, "output_type": "np"}
    if pipe.pipeline_tag == "image-to-image":
        call |= {"image": torch.linspace(0, 1, 3 * 8 * 8).reshape(1, 3, 8, 8), "num_inference_steps": 4}
    found = pipe(**call, generator=torch.Generator().manual_seed(0))
    images = found.images  # a pipeline's output, or a modular one's state
    if not images.std() > 0.05:
        raise ValueError("an empty picture")
    return images


def draw(pipe, **call) -> str:
    return hashlib.sha256(pixels(pipe, **call).tobytes()).hexdigest()


def create(folder, seed, package=None):
    """Save a pipeline of each task, with the same components, by the version of mezzotint that is in `package`; the
    picture of each by its task."""
    if package is not None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mezzotint"]:
            del sys.modules[name]
        sys.path.insert(0, package)
    import mezzotint

    if package is not None and not mezzotint.__file__.startswith(package):
        raise ValueError(f"another package: {mezzotint.__file__}")
    text, pictures = make(seed), {}
    for pipe in (text, mezzotint.MezzotintImg2ImgPipeline.from_pipe(text)):
        pipe.save_pretrained(f"{folder}/{pipe.pipeline_tag}")
        pictures[pipe.pipeline_tag] = draw(pipe)
        if pictures[pipe.pipeline_tag] == draw(pipe, prompt="a blue hat"):
            raise ValueError("the prompt changes nothing")
    return pictures


def describe(source, **options):
    """The picture that a checkpoint draws, and where the code of pipeline, U-Net and scheduler came from."""
    pipe = load(source, **options)
    return [draw(pipe), *(type(part).__module__.partition(".")[0] for part in (pipe, pipe.unet, pipe.scheduler))]


def describe_each(*sources, **options):
    """The same of several, each of which may be a list of source and options."""
    calls = [source if isinstance(source, list) else [source, {}] for source in sources]
    return [describe(source, **options, **own) for source, own in calls]


def describe_offline(repo):
    """The same of what is in the cache where HF_HUB_OFFLINE=1, which is read when huggingface_hub is imported, and
    where nothing answers. A stranger loads it as a folder: about a repository's code diffusers asks the Hub, whatever
    it is told."""
    from huggingface_hub import snapshot_download

    source = snapshot_download(repo) if sys.argv[1] == "stranger" else repo
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        told = describe(source)
    with mock.patch("socket.create_connection", side_effect=ConnectionRefusedError):
        return [told, describe(source)]


def two_steps(source, life=None):
    """The picture of two deterministic steps."""
    import torch

    pipe = load(source, life=life)
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    return hashlib.sha256(pipe("a red boot", **call).images.tobytes()).hexdigest()


def by_blocks(source):
    """The pictures of text to image and of image to image that the modular pipeline of a checkpoint draws."""
    from diffusers import ModularPipeline

    pipe = ModularPipeline.from_pretrained(source, trust_remote_code=True)
    pipe.load_components(trust_remote_code=True)
    pictures = []
    for task in ("text-to-image", "image-to-image"):
        pipe.pipeline_tag = task
        pictures.append(draw(pipe))
    return pictures


def refusal(source, library="diffusers", name="DiffusionPipeline"):
    """Why a checkpoint does not load without trust, and that none of its code ran."""
    pipeline = getattr(__import__(library), name)
    try:
        pipeline.from_pretrained(source)
    except ValueError as error:
        return str(error) if not any("_v" in name for name in sys.modules if "diffusers_modules" in name) else "it ran"


def save_again(source, target, way="as it is", **options):
    import torch

    pipe = load(source, **options)
    if way == "from_pipe":
        unet = pipe.unet
        pipe = type(pipe).from_pipe(pipe)
        if pipe.unet is not unet:
            raise ValueError("another U-Net")
    picture = draw(pipe)
    if way == "compiled":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.save_pretrained(target, max_shard_size="100KB" if way == "sharded" else None)
    return picture


def exchange(text, image, target):
    """The pictures of two pipelines, each by the other's class, which are saved in folders of their tasks."""
    pipes, pictures = [load(text), load(image)], []
    for pipe, other in (pipes, reversed(pipes)):
        made = type(other).from_pipe(pipe)
        if type(made) is not type(other) or made.unet is not pipe.unet or made.text_encoder is not pipe.text_encoder:
            raise ValueError("another class, or other components")
        made.save_pretrained(f"{target}/{made.pipeline_tag}")
        pictures.append(draw(made))
    return pictures


def save_configuration(source, target):
    load(source).save_config(target)


def swap_scheduler(source, target):
    from diffusers import DPMSolverMultistepScheduler

    pipe = load(source)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(target)
    return draw(pipe)


def save_half(source, target):
    load(source, dtype="float16").save_pretrained(target, variant="fp16")


def weights(source, cast="float32", **options):
    """A digest of the U-Net's weights, in a precision if need be; from 16 bits to 32 nothing is lost."""
    import torch

    return digest(load(source, **options).unet.to(getattr(torch, cast)))


def unet_weights(*sources):
    from diffusers import AutoModel
    from huggingface_hub import snapshot_download

    folders = [source if os.path.isdir(source) else snapshot_download(source) for source in sources]
    return [digest(AutoModel.from_pretrained(f"{folder}/unet", trust_remote_code=True)) for folder in folders]


def digest(model) -> str:
    state = model.float().state_dict()
    return hashlib.sha256(b"".join(key.encode() + state[key].numpy().tobytes() for key in sorted(state))).hexdigest()


def both_variants(*sources):
    half = {"variant": "fp16", "dtype": "float16"}
    return [[weights(source), weights(source, **half), draw(load(source, **half))] for source in sources]


def precisions(source, dtype):
    pipe = load(source, dtype=dtype)
    pixels(pipe)
    return {name: str(getattr(pipe, name).dtype) for name in ("unet", "text_encoder")}


def distance(source, dtype):
    return float(abs(pixels(load(source, dtype=dtype)) - pixels(load(source))).max())


def without_text(source, whole, target):
    """The pictures of a pipeline loaded without text encoder, and of that saved and loaded, from given embeddings."""
    import torch

    with torch.no_grad():
        embeds = load(whole).encode_prompt("a red boot")
    names = "prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask"
    call = dict(zip(names, embeds, strict=True))
    pipe = load(source, text_encoder=None, tokenizer=None)
    pipe.save_pretrained(target)
    return [draw(pipe, **call), draw(load(target), **call)]


def with_other_text(source):
    """Whether a text encoder passed to `from_pretrained` is the one in use."""
    from transformers import T5Config, T5EncoderModel

    mine = T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)).eval()
    pipe = load(source, text_encoder=mine)
    return pipe.text_encoder is mine and draw(pipe) != draw(load(source))


def create_adapters(source, target):
    """Save random DoRA adapters of both models."""
    import torch
    from peft import LoraConfig, get_peft_model_state_dict

    pipe, arguments = load(source), {}
    torch.manual_seed(0)
    for name, layers in {"unet": ["to_q", "conv1"], "text_encoder": ["q", "o"]}.items():
        model = getattr(pipe, name)
        model.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=layers, use_dora=True), "default")
        for key, parameter in model.named_parameters():
            if "lora" in key:
                parameter.data += 0.3 * torch.rand_like(parameter)
        arguments[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        arguments[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    pipe.save_lora_weights(target, **arguments)
    return draw(pipe)


def with_adapters(source, folder):
    pipe = load(source)
    pipe.load_lora_weights(folder)
    return draw(pipe)


def alternate(sources, target):
    """Load one after the other, draw with all of them after each, and save all in the end."""
    pipes, pictures = [], []
    for source in sources:
        pipes.append(load(source))
        pictures.append([draw(pipe) for pipe in pipes])
    for i, pipe in enumerate(pipes):
        pipe.save_pretrained(f"{target}/{i}")
    return pictures


def upload(source, repo, way):
    if way == "hub.push":
        from mezzotint import hub

        return hub.push(source, repo)
    if way == "save_pretrained":
        return load(source).save_pretrained(source, push_to_hub=True, repo_id=repo)
    return load(source).push_to_hub(repo)


def publish(*argv, in_place_of=None, environment=()):
    """What the program returns and prints; with `in_place_of` that folder is uploaded in place of the right one."""
    from huggingface_hub import constants
    from strangers import forked

    from mezzotint import hub
    from mezzotint_training import publish

    os.environ.update(environment)
    push = hub.push
    with (
        forked(),
        mock.patch.object(hub, "push", lambda folder, *args, **options: push(in_place_of or folder, *args, **options)),
        mock.patch.object(constants, "ENDPOINT", os.environ["HF_ENDPOINT"]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = publish.main(list(argv))
    return code, out.getvalue(), err.getvalue()


def train(*argv):
    from strangers import forked

    from mezzotint_training import train

    with forked():
        return train.main(list(argv))


def run_example(folder, script, output):
    from PIL import Image

    os.chdir(folder)
    runpy.run_path(script, run_name="__main__")
    with Image.open(output) as picture:
        return picture.format, picture.size


class Absent:
    """A finder that comes before all others and knows that mezzotint is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("mezzotint", "mezzotint_training"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def serve(life: str) -> None:
    """Answer an `Interpreter`."""
    if life == "stranger":
        sys.meta_path.insert(0, Absent)
    else:
        import mezzotint  # noqa: F401
    import diffusers
    import transformers

    for library, names in {
        diffusers: ("DiffusionPipeline", "AutoModel", "DPMSolverMultistepScheduler"),
        transformers: ("T5EncoderModel", "ByT5Tokenizer"),
    }.items():
        for name in names:
            getattr(library, name)  # both import a module when it is asked for
    importlib.import_module("torch._dynamo")
    importlib.import_module("warm")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed goes where errors go
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            try:
                reply = {"value": globals()[name](*arguments, **options)}
            except BaseException:
                reply = {"error": traceback.format_exc()}
            if life == "stranger" and any(module.partition(".")[0] == "mezzotint" for module in sys.modules):
                reply = {"error": "mezzotint was imported"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            replies.write(json.dumps({"error": f"{name} ended with wait status {status}"}) + "\n")
            replies.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
