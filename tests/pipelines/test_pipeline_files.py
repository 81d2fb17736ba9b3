"""What a saved pipeline may hold, both ways: what loads, in the package's life and in a stranger's, and what goes along
when it is saved again."""

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipeline_mezzotint import close, draw, load_as_shipped, load_installed, tiny_bert, tiny_clip
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from mezzotint import MezzotintPipeline

WEIGHTS = "model.safetensors"
LIVES = pytest.mark.parametrize("load", [load_installed, load_as_shipped])


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch, tmp_path):
    """A cache of modules for each test, and no way out: whoever asks for a connection fails the test."""
    asked = []
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or 1 / 0)
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    yield
    assert asked == []


@pytest.fixture
def folder(save_pipe, tmp_path) -> Path:
    """A saved pipeline, as if published: with a card and the rest beside its components."""
    save_pipe(tmp_path / "a")
    for name in ("README.md", "LICENSE", "recipe.yaml", "metrics.json"):
        (tmp_path / "a" / name).write_text(f"the {name} of a")
    (tmp_path / "a/samples").mkdir()
    (tmp_path / "a/samples/step-000002.png").write_bytes(b"a picture of a")
    return tmp_path / "a"


def refused(load, folder, *words: str) -> None:
    """It doesn't load, and one line says why."""
    with pytest.raises((ValueError, OSError)) as error:
        load(folder)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ------------------------------------------------------------------------------------------------------------ weights


@LIVES
@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched", "renamed"])
def test_text_encoder_with_other_weights_than_its_own_is_refused(folder, load, kind):
    path = folder / "text_encoder" / WEIGHTS
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("SelfAttention.q.weight"))
    if kind in ("missing", "renamed"):
        tensor = weights.pop(name)
    if kind == "renamed":
        weights["q.weight"] = tensor
    if kind == "unexpected":
        weights["another.weight"] = torch.zeros(2)
    if kind == "mismatched":
        weights[name] = torch.zeros(3, 5)
    save_file(weights, path, metadata={"format": "pt"})
    said = "another.weight" if kind == "unexpected" else name
    refused(load, folder, "text_encoder must be those of its config: 1 ", said, kind.replace("renamed", "missing"))


SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 384}
T5 = {"vocab_size": 384, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
ENCODERS = {
    "T5": lambda: T5EncoderModel(T5Config(**T5)),
    "UMT5": lambda: UMT5EncoderModel(UMT5Config(**T5)),
    "BERT": lambda: BertModel(BertConfig(**SIZE)),
    "ALBERT": lambda: AlbertModel(AlbertConfig(**SIZE, embedding_size=8)),  # one layer's weights for all
    "XLM-R": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZE)),
    "CLIP": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**SIZE, projection_dim=8)),
}


def test_code_of_a_component_that_is_nobodys_is_refused_in_one_line(folder):
    index = json.loads((folder / "model_index.json").read_text())
    for component, entry, words in [
        ("unet", [index["unet"][0], "../secret"], "model_index.json must give unet as a class of mezzotint: got '../s"),
        ("text_encoder", ["evil", "Evil"], "The directory .*text_encoder contains custom code in evil.py .*=True"),
    ]:
        (folder / "text_encoder/evil.py").write_text("raise SystemExit")
        (folder / "model_index.json").write_text(json.dumps(index | {component: entry}))
        with pytest.raises(ValueError, match=words) as error:
            load_installed(folder)
        assert "\n" not in str(error.value)


@LIVES
@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders_of_all_kinds_load(make_pipe, tmp_path, load, name):
    pipe = make_pipe()
    torch.manual_seed(0)
    pipe.text_encoder = ENCODERS[name]().eval()
    pipe.save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert type(loaded.text_encoder) is type(pipe.text_encoder)
    expected, found = pipe.text_encoder.state_dict(), loaded.text_encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    # many are published without the pooler of their class, which nobody asks
    path = tmp_path / "a/text_encoder" / WEIGHTS
    weights = {key: value for key, value in load_file(path).items() if "pooler" not in key}
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(draw(load(tmp_path / "a")), draw(pipe))


@LIVES
@pytest.mark.parametrize("make", [tiny_clip, tiny_bert])
def test_text_encoder_that_was_changed_and_is_handed_over_is_taken(make_pipe, tmp_path, make, load):
    """Whatever its weights: only those that are read from the checkpoint are accounted for."""
    (tmp_path / "files").mkdir()
    text_encoder, tokenizer, _ = make(tmp_path / "files")
    make_pipe(text_encoder=text_encoder, tokenizer=tokenizer).save_pretrained(tmp_path / "a")
    mine = load_installed(tmp_path / "a").text_encoder
    mine.resize_token_embeddings(40)
    assert load(tmp_path / "a", text_encoder=mine).text_encoder is mine


@LIVES
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("damage", ["empty", "halved", "garbage", "gone"])
def test_damaged_weights_are_refused_in_one_line(folder, load, component, damage):
    (path,) = (folder / component).glob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "halved": data[: len(data) // 2]}.get(damage, b"\xff" * 999))
    if damage == "gone":
        path.unlink()
    refused(load, folder)


@LIVES
def test_weights_that_are_pickled_are_not_read(folder, load):
    """The very weights, but in a file that could hold more than weights."""
    path = folder / "text_encoder" / WEIGHTS
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    refused(load, folder, "model.safetensors")


# ------------------------------------------------------------------------------------------------- what is to be loaded


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "must hold a JSON object: got []"),
        ("null", "must hold a JSON object: got None"),
        ('"user/pipeline"', "must hold a JSON object: got 'user/pipeline'"),
        ("{}", "must be the index of a MezzotintPipeline: got _class_name None"),
        ('{"_class_name": []}', "must be the index of a MezzotintPipeline: got _class_name []"),
        ('{"_class_name": "StableDiffusionPipeline"}', "got _class_name 'StableDiffusionPipeline'"),
        ('{"_class_name": {"a": 1}}', "got _class_name {'a': 1}"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "must hold a JSON object: Expecting property name"),
        ("\udcff", "must hold a JSON object: 'utf-8' codec can't decode"),
    ],
)
def test_index_that_is_none_is_refused(folder, text, said):
    (folder / "model_index.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    refused(load_installed, folder, "model_index.json", said)


@LIVES
@pytest.mark.parametrize(
    "name, entry, said",
    [
        (
            "text_encoder",
            ["transformers", "AutoModel"],
            "text_encoder as a PreTrainedModel: got transformers.Auto",
        ),
        ("text_encoder", ["transformers", "T5TokenizerFast"], "text_encoder as a PreTrainedModel"),
        ("text_encoder", ["transformers", "pipeline"], "transformers must have the class"),
        ("text_encoder", ["transformers", "no such"], "transformers must have the class"),
        (
            "tokenizer",
            ["transformers", "AutoTokenizer"],
            "tokenizer as a PreTrainedTokenizerBase: got ",
        ),
        ("unet", ["diffusers", "DiffusionPipeline"], "unet as a ModelMixin: got diffusers.DiffusionPipeline"),
        ("unet", ["diffusers", "AutoModel"], "unet as a ModelMixin: got diffusers.AutoModel"),
        ("unet", ["stable_diffusion", "StableDiffusionPipeline"], "unet as a ModelMixin"),
        ("scheduler", ["diffusers", "UNet2DModel"], "scheduler as a SchedulerMixin: got diffusers.UNet2DModel"),
        ("scheduler", 5, "scheduler as [library, class]: got 5"),
        ("text_encoder", None, "text_encoder as [library, class]: got None"),
        ("tokenizer", [], "tokenizer as [library, class]: got []"),
        ("unet", ["diffusers", {}], "unet as [library, class]: got ['diffusers', {}]"),
    ],
    ids=str,
)
def test_component_of_another_kind_is_refused_before_any_is_loaded(folder, load, name, entry, said, monkeypatch):
    change(folder / "model_index.json", **{name: entry})
    monkeypatch.setattr("torch.nn.Module.__init__", lambda *_, **__: 1 / 0)
    refused(load, folder, said)


@LIVES
@pytest.mark.parametrize(
    "folders", [["text_encoder"], ["tokenizer"], ["text_encoder", "tokenizer", "scheduler", "unet"]]
)
def test_code_that_transformers_would_ask_to_run_is_neither_asked_for_nor_run(folder, load, tmp_path, folders):
    expected = draw(load(folder))
    evil = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: pass\n"
    auto = {x: "evil.Evil" for x in ("AutoConfig", "AutoModel", "AutoModelForTextEncoding")}
    for name in folders:
        (folder / name / "evil.py").write_text(evil)
        for path in (folder / name).glob("*config.json"):
            change(path, auto_map=auto | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
        if name == "tokenizer":
            (folder / name / "config.json").write_text(json.dumps({"auto_map": auto, "model_type": "evil"}))
    assert torch.equal(draw(load(folder)), expected)
    change(
        folder / "model_index.json",
        text_encoder=["transformers", "AutoModel"],
        tokenizer=["transformers", "AutoTokenizer"],
    )
    refused(load, folder, "must give t")
    assert not (tmp_path / "ran").exists()


@LIVES
@pytest.mark.parametrize("file", ["text_encoder/config.json", "text_encoder/odd", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_a_pipe_is_not_waited_for_and_a_lost_link_not_passed_over(folder, load, file, kind):
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file) if kind == "pipe" else (folder / file).symlink_to(Path(file).name)
    refused(load, folder, "is no plain file")


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_code_takes_the_place_of_a_pipe_or_a_link(folder, tmp_path, kind):
    (code,), other = folder.glob("pipeline_*.py"), tmp_path / "another's"
    other.write_text("as it was")
    content = code.read_bytes()
    code.unlink()
    os.mkfifo(code) if kind == "pipe" else code.symlink_to(other)
    load_installed(folder).save_config(folder)
    assert code.is_file() and not code.is_symlink() and code.read_bytes() == content
    assert other.read_text() == "as it was"


@LIVES
def test_an_encoder_of_layers_without_end_is_refused(folder, load):
    change(folder / "text_encoder/config.json", num_layers=10**12)
    refused(load, folder, "num_layers must be at most 10,000: got 1000000000000")


@LIVES
def test_a_tokenizer_without_its_settings_is_not_another_one(folder, load):
    (folder / "tokenizer/tokenizer_config.json").unlink()
    refused(load, folder, "tokenizer_config.json is missing")
    shutil.copy(folder / "text_encoder/config.json", folder / "tokenizer/tokenizer_config.json")
    refused(load, folder, "tokenizer_config.json must hold a tokenizer's settings: got a model's")


@pytest.mark.parametrize(
    ("source", "given", "words"),
    [
        (None, {}, "pretrained_model_name_or_path must be a folder or a name on the Hub: got None"),
        (3, {}, "pretrained_model_name_or_path must be a folder or a name on the Hub: got 3"),
        ("run", {"classifier": 3}, "classifier must be a ModelMixin: got 3"),
        ("run", {"scheduler": torch.nn.Linear(1, 1)}, "scheduler must be a SchedulerMixin: got Linear("),
        ("run", {"unet": 3}, "unet must be a ModelMixin: got 3"),
        ("run", {"text_encoder": torch.nn.Linear(1, 1)}, "text_encoder must be a PreTrainedModel: got Linear("),
    ],
)
def test_what_is_given_in_place_of_a_component_must_be_one(source, given, words):
    with pytest.raises(ValueError) as error:
        MezzotintPipeline.from_pretrained(source, **given)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_a_pipeline_made_of_what_is_no_network_is_refused(make_pipe):
    parts = make_pipe().components
    with pytest.raises(ValueError, match="classifier must be a torch.nn.Module: got 3"):
        MezzotintPipeline(**parts | {"classifier": 3})


def test_a_pipeline_without_its_tokenizer_says_so(make_pipe):
    pipe = make_pipe()
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="this pipeline has no tokenizer: pass prompt_embeds"):
        pipe("a red boot")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt_embeds": np.ones((1, 4, 16))}, r"prompt_embeds must have shape \(prompts, tokens, 16\): got array"),
        (
            {"prompt_embeds": torch.ones(1, 4, 16), "prompt_attention_mask": np.ones((1, 4))},
            "prompt_attention_mask goes with prompt_embeds",
        ),
    ],
)
def test_embeds_are_tensors(make_pipe, given, words):
    with pytest.raises(ValueError, match=words):
        make_pipe()(**given, num_inference_steps=1)


@pytest.mark.parametrize("latents", [3, torch.ones(1, 1, 8, 9)])
def test_latents_of_a_callback_must_have_their_shape(make_pipe, latents):
    with pytest.raises(ValueError, match="latents of a callback must have shape"):
        make_pipe()("a red boot", num_inference_steps=2, callback_on_step_end=lambda *_: {"latents": latents})
    with pytest.raises(ValueError, match="a callback must return tensors by name: got 3"):
        make_pipe()("a red boot", num_inference_steps=2, callback_on_step_end=lambda *_: 3)


def test_a_folder_without_a_name_is_refused_before_anything_is_written(make_pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("", 3):
        with pytest.raises(ValueError, match="save_directory must be a folder"):
            make_pipe().save_pretrained(place)
    assert list(tmp_path.iterdir()) == []


@LIVES
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("text", ['"user/somebody"', "[]", "null", "[" * 100_000, "{"])
def test_configuration_that_is_none_is_refused_and_nothing_is_fetched(folder, load, file, text):
    (folder / file).write_text(text)
    refused(load, folder, str(folder / file).removesuffix("/config.json") if text != "{" else "")


@LIVES
def test_stock_component_with_a_name_for_a_configuration_fetches_nothing(folder, load):
    from diffusers import DPMSolverMultistepScheduler

    pipe = load_installed(folder)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    (folder / "scheduler/scheduler_config.json").write_text('"user/scheduler"')
    refused(load, folder, "scheduler_config.json must hold a JSON object: got 'user/scheduler'")


@LIVES
@pytest.mark.parametrize("gone", [[], ["config.json"], ["config.json", "model.safetensors"]])
def test_adapter_beside_the_text_encoder_fetches_no_base_model(folder, load, gone):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "user/base", "task_type": None}
    (folder / "text_encoder/adapter_config.json").write_text(json.dumps(adapter))
    for name in gone:
        (folder / "text_encoder" / name).unlink()
    refused(load, folder)


@LIVES
@pytest.mark.parametrize(
    "file, values",
    [
        ("unet/config.json", {"block_out_channels": [10**9, 32]}),
        ("unet/config.json", {"block_out_channels": "wide"}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"sample_std": [0.0]}),
        ("unet/config.json", {"sample_std": [float("nan")]}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -1}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("text_encoder/config.json", {"d_model": "wide"}),
        ("text_encoder/config.json", {"num_layers": -1}),
        ("text_encoder/config.json", {"vocab_size": 10**15}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": {}, "added_tokens_decoder": 5}),
    ],
)
def test_nonsense_in_a_configuration_is_refused_in_one_line(folder, load, file, values):
    change(folder / file, **values)
    refused(load, folder)


# ------------------------------------------------------------------------------------------------------- what is saved


def saved(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


OTHERS = {"README.md", "LICENSE", "recipe.yaml", "metrics.json", "samples/step-000002.png"}
WAYS = pytest.mark.parametrize("way", ["save_pretrained", "save_config", "push_to_hub", "save_config, pushed"])


@pytest.fixture
def save(monkeypatch):
    """`save(pipe, folder, way)`; what would be uploaded comes to the folder."""
    module = "mezzotint.pipelines.checkpoint_mezzotint"
    monkeypatch.setattr(f"{module}.create_repo", lambda name, **_: type("Repo", (), {"repo_id": name}))
    monkeypatch.setattr(f"{module}.file_exists", lambda *_, **__: False)

    def save(pipe, folder: Path, way: str) -> None:
        def upload(_, source, *args, **options):
            shutil.copytree(source, folder)

        monkeypatch.setattr(MezzotintPipeline, "_upload_folder", upload)
        if way == "push_to_hub":
            pipe.push_to_hub("user/a")
        elif way == "save_config, pushed":
            (folder.parent / "w").mkdir()
            (folder.parent / "w/.env").write_text("a secret")
            pipe.save_config(folder.parent / "w", push_to_hub=True, repo_id="user/a")
        else:
            getattr(pipe, way)(folder)

    return save


@WAYS
def test_what_stands_beside_the_components_goes_along(folder, save, tmp_path, way):
    (folder / ".env").write_text("a secret")
    (folder / "samples/notes.txt").write_text("of nobody's business")
    (folder / "samples/.ipynb_checkpoints").mkdir()
    (folder / "samples/.ipynb_checkpoints/step-000002.png").touch()
    save(load_installed(folder), tmp_path / "b", way)
    components = {"unet", "scheduler", "text_encoder", "tokenizer"}
    rest = {path for path in saved(tmp_path / "b") if path.split("/")[0] not in components}
    rest = {path for path in rest if not path.endswith(".py")}
    assert rest == OTHERS | {"model_index.json", "modular_config.json", "modular_model_index.json"}
    for name in OTHERS:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


@WAYS
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "loop", "fifo"])
def test_links_and_what_is_no_file_stay_behind(folder, save, tmp_path, caplog, kind, way):
    """And end nothing: a token and a folder of keys that links lead to are given to nobody."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "id.png").write_text("a key")
    (folder / "LICENSE").unlink()
    if kind == "file":
        (folder / "LICENSE").symlink_to(secret / "id.png")
        (folder / "samples/id.png").symlink_to(secret / "id.png")
        (folder / "samples/id").symlink_to(secret)
    elif kind == "folder":
        shutil.rmtree(folder / "samples")
        (folder / "samples").symlink_to(secret)
        (folder / "LICENSE").symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(folder / "LICENSE")
        os.mkfifo(folder / "samples/id.png")
    else:
        for name in ("LICENSE", "samples/id.png"):
            (folder / name).symlink_to("nowhere" if kind == "dangling" else Path(name).name)
    save(load_installed(folder), tmp_path / "b", way)
    others = OTHERS - {"LICENSE"} - ({"samples/step-000002.png"} if kind == "folder" else set())
    found = saved(tmp_path / "b")
    assert others == found & OTHERS
    assert not {path for path in found if "id" in Path(path).stem.split("_") or "LICENSE" in path}
    if kind in ("file", "folder"):
        assert "is a link, or in a folder that is one, and is not saved along" in caplog.text


@pytest.mark.parametrize("target", ["samples", "samples/b", "unet/b", "b"])
def test_a_pipeline_can_be_saved_within_its_own_folder(folder, target):
    before = saved(folder)
    pipe = load_installed(folder)
    for _ in range(2):
        pipe.save_pretrained(folder / target)
    added = {path.removeprefix(f"{target}/") for path in saved(folder) - before}
    assert added == before
    close(draw(load_installed(folder / target)), draw(pipe))


def test_the_working_folder_gives_a_pipeline_made_in_python_nothing(folder, make_pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    make_pipe().save_pretrained(tmp_path / "b")
    assert not saved(tmp_path / "b") & OTHERS


def test_a_pipeline_is_followed_by_its_own_files_wherever_the_process_goes(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "elsewhere/a")
    (tmp_path / "elsewhere/a/README.md").write_text("another card")
    monkeypatch.chdir(folder.parent)
    pipe = load_installed("a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    pipe.save_pretrained("b")
    assert (tmp_path / "elsewhere/b/README.md").read_text() == "the README.md of a"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_all_files_have_the_mode_that_the_umask_leaves(make_pipe, make_unet, tmp_path, umask, mode):
    pipe, before = make_pipe(), os.umask(umask)
    try:
        pipe.save_pretrained(tmp_path / "a")
        make_unet().save_pretrained(tmp_path / "unet")
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(found.values()) == {mode} and len(found) > 8


def test_nothing_is_pickled(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path, safe_serialization=False)
    assert not {path for path in saved(tmp_path) if Path(path).suffix in (".bin", ".pt", ".pkl")}
