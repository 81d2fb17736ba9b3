"""What a run must find to go on: its own data, wherever they are, and a state that a run wrote."""

import copy
import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from test_stops import assert_same, at_call
from tiny_run import LONG, TINY, pictures, run, trained, tree

from mezzotint_training import train
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import rows, source
from mezzotint_training.engine import checkpoint
from mezzotint_training.engine.resume import STATE, check_state

NEW = {"recipe": ..., "max_train_samples": ...}
CAPTIONS = [f"picture {i}" for i in range(40)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Of 40 pictures in a folder, of which none are held out."""
    folder = tmp_path_factory.mktemp("whole")
    pictures(folder / "set", count=40)
    return trained(folder / "run", **settings(folder / "set"))


def settings(data, **more) -> dict:
    return LONG | NEW | {"train_data_dir": data, "num_validation_samples": 0} | more


# ------------------------------------------------------------------------------------------------------------ its data


def another_picture(folder):
    Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(folder / "39.png")


def another_caption(folder):
    lines = (folder / "metadata.jsonl").read_text().replace("picture 39", "picture 40")
    (folder / "metadata.jsonl").write_text(lines)


def one_less(folder):
    (folder / "39.png").unlink()
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines[:-1]))


CHANGES = {"other pictures": another_picture, "other captions": another_caption, "rows were 40, now 39": one_less}


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_other_data(whole, tmp_path, what, branch):
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(whole.parent / "set", tmp_path / "set")
    CHANGES[what](tmp_path / "set")
    before, more = tree(tmp_path), {"output_dir": tmp_path / "run"}
    if branch:
        more = {"output_dir": tmp_path / "branch", "resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"}
    result = run(**settings(tmp_path / "set", **more))
    assert result.code == 2
    assert result.err.splitlines()[-1] == (
        f"mezzotint: {more.get('resume_from_checkpoint', tmp_path / 'run')} holds a run on other data ({what}): a run "
        "goes on with the data that it began with; pretrained_model_name_or_path goes on from its finished pipeline "
        "with others, in another output_dir"
    )
    assert tree(tmp_path) == before


def test_a_run_does_not_go_on_with_other_attributes(tmp_path):
    folder, rows = pictures(tmp_path / "set", count=40), []
    for i, line in enumerate((folder / "metadata.jsonl").read_text().splitlines()):
        rows.append(json.loads(line) | {"kind": "abcd"[i % 4], "age": i % 7})

    def write():
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write()
    more = {"label_column": "kind", "attribute_columns": ["age"], "output_dir": tmp_path / "run"}
    trained(**settings(folder, **more))
    for name, value in (("kind", "b"), ("age", 99)):
        before, rows[0] = rows[0], rows[0] | {name: value}
        write()
        result = run(**settings(folder, **more))
        assert result.code == 2 and " holds a run on other data (other attributes): " in result.err
        rows[0] = before
    write()
    assert run(**settings(folder, **more)).code == 0


@pytest.mark.parametrize("how", ["fine-tuned", "adapters", "text"])
def test_a_run_does_not_go_on_with_another_network_in_its_place(whole, tmp_path, how):
    """Nothing of a frozen text encoder, or of what is below adapters, is in a checkpoint of the run."""
    shutil.copytree(whole, tmp_path / "base")
    own = {"text_encoder": ..., "max_text_length": ...}
    base = own | {"pretrained_model_name_or_path": tmp_path / "base", "unet": ...}
    more: dict = {
        "fine-tuned": base, "adapters": base | {"adapter": "lora"},
        "text": own | {"text_encoder_name_or_path": tmp_path / "base"},
    }[how] | {"output_dir": tmp_path / "run"}  # fmt: skip
    data = whole.parent / "set"
    trained(**settings(data, **more))
    part = tmp_path / "base" / ("unet" if how == "adapters" else "text_encoder")
    (file,) = part.glob("*.safetensors")
    weights = load_file(file)
    name = min(weights)
    save_file(weights | {name: weights[name] + 1}, file, {"format": "pt"})
    result = run(**settings(data, **more))
    assert result.code == 2 and f" holds a run on other data (other {part.name.replace('_', ' ')}): " in result.err
    save_file(weights, file, {"format": "pt"})
    assert run(**settings(data, **more)).code == 0


def test_a_plan_of_a_run_that_has_begun_is_that_of_the_run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    data = whole.parent / "set"
    result = run(**settings(data, output_dir=tmp_path / "run", plan=True))
    assert result.code == 0 and "40 of 40 rows" in result.out, result.err
    # and what a message advises is no other run
    result = run(**settings(data, output_dir=tmp_path / "run", on_bad_row="skip"))
    assert result.code == 0 and "holds another run" not in result.err


@pytest.mark.parametrize("streaming", [False, True])
def test_data_that_were_moved_are_the_same(whole, tmp_path, monkeypatch, streaming):
    shutil.copytree(whole.parent / "set", tmp_path / "set")
    more = {"streaming": True, "shuffle_buffer_size": 12} if streaming else {}
    if streaming:
        whole = trained(tmp_path / "whole", **settings(tmp_path / "set", **more))
    with monkeypatch.context() as patch:
        at_call(patch, [9], stop)
        with pytest.raises(Stopped):
            run(**settings(tmp_path / "set", output_dir=tmp_path / "run", **more))
    (tmp_path / "set").rename(tmp_path / "moved")
    (tmp_path / "moved" / "metadata.jsonl").touch()
    result = run(**settings(tmp_path / "moved", output_dir=tmp_path / "run", **more))
    assert result.code == 0 and "going on from step 4\n" in result.out, result.err
    assert_same(tmp_path / "run", whole, 6)


class Stopped(BaseException):
    pass


def stop(loss):
    raise Stopped


def test_a_stream_of_other_data_is_refused(tmp_path):
    more = {"streaming": True, "shuffle_buffer_size": 12, "max_train_steps": 2, "output_dir": tmp_path / "run"}
    for name, value in (("set", 0), ("other", 9)):
        folder = pictures(tmp_path / name, count=40)
        Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(folder / "0.png")
    trained(**settings(tmp_path / "set", **more))
    result = run(**settings(tmp_path / "other", **more))
    assert result.code == 2 and " holds a run on other data (other pictures): " in result.err


def test_a_checkpoint_of_before_goes_on_where_its_data_were(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    unsealed(tmp_path / "run" / "checkpoint-4", data=...)
    shutil.copytree(whole.parent / "set", tmp_path / "set")
    result = run(**settings(tmp_path / "set", output_dir=tmp_path / "run"))
    assert result.code == 2 and "holds another run (train_data_dir was " in result.err
    result = run(**settings(whole.parent / "set", output_dir=tmp_path / "run"))
    assert result.code == 0 and "it is not known if they are the same\n" in result.out
    assert_same(tmp_path / "run", whole, 6)


def test_a_run_of_before_goes_on_whose_only_caption_column_was_a_text(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "state.json").read_text())
    of_before = state["config"] | {"caption_column": "text"}
    del of_before["caption_weights"]
    unsealed(tmp_path / "run" / "checkpoint-4", config=of_before)
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(
        recipe.replace("caption_column:\n- text\n", "caption_column: text\n").replace("caption_weights: null\n", "")
    )
    for changed, line in (
        ({"caption_column": ["text", "{text}."]}, "(caption_column was ['text'], now ['text', '{text}.'])"),
        ({"caption_weights": "2"}, "(caption_weights was None, now [2.0])"),
    ):
        result = run(**settings(whole.parent / "set", output_dir=tmp_path / "run", **changed))
        assert result.code == 2 and line in result.err
    assert run(**settings(whole.parent / "set", output_dir=tmp_path / "run")).code == 0
    assert_same(tmp_path / "run", whole, 6)


def fingerprint(columns: dict, held: dict | None = None) -> dict:
    config = TrainConfig(dataset_name="digits")
    features = datasets.Features({"image": datasets.Image(decode=False), "text": columns.pop("feature")})
    sets = [None if x is None else datasets.Dataset.from_dict(x, features=features) for x in (columns, held)]
    return source.fingerprint(source.Rows(*sets), config)


def test_a_fingerprint_is_of_what_is_in_the_data_and_not_of_how_they_are_kept(tmp_path):
    pictures(tmp_path / "set", count=40)
    files = [tmp_path / "set" / f"{i}.png" for i in range(40)]
    paths = [{"bytes": None, "path": str(path)} for path in files]
    contents = [{"bytes": path.read_bytes(), "path": "somewhere.png"} for path in files]
    text, large = datasets.Value("string"), datasets.Value("large_string")
    same = [fingerprint({"image": x, "text": CAPTIONS, "feature": f}) for x in (paths, contents) for f in (text, large)]
    assert all(one == same[0] for one in same) and same[0]["rows"] == 40

    lists = datasets.List(text)
    several = [[x, "a"] if i % 2 else [x] for i, x in enumerate(CAPTIONS)]
    shifted = [[*several[0], "a"], several[1][:1], *several[2:]]
    swapped = [*CAPTIONS[:-2], CAPTIONS[-1], CAPTIONS[-2]]
    joined = [CAPTIONS[0] + CAPTIONS[1][:1], CAPTIONS[1][1:], *CAPTIONS[2:]]
    others = [
        fingerprint({"image": contents, "text": x, "feature": lists if isinstance(x[0], list) else text})
        for x in (CAPTIONS, several, shifted, swapped, joined)
    ]
    assert len({one["captions"] for one in others}) == 5 and len({one["pictures"] for one in others}) == 1
    held = {"image": contents[:9], "text": CAPTIONS[:9]}
    more = fingerprint({"image": contents, "text": CAPTIONS, "feature": text}, held)
    assert more["captions"] != same[0]["captions"] and more["pictures"] != same[0]["pictures"]


def test_of_a_large_set_a_part_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("mezzotint_training.data.source.FINGERPRINTED_BYTES", 1_000)
    bytes_of = "mezzotint_training.data.source.bytes_of"
    monkeypatch.setattr(bytes_of, lambda cell: (read.append(cell["path"]), (tmp_path / cell["path"]).read_bytes())[1])
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 100)
    paths = [{"bytes": None, "path": str(i)} for i in range(40)]
    columns = {"image": paths, "text": CAPTIONS, "feature": datasets.Value("string")}
    first = fingerprint(columns.copy())
    assert len(read) == 10 and max(map(int, read)) > 29 and min(map(int, read)) < 10
    (tmp_path / read[0]).write_bytes(b"other")
    assert fingerprint(columns.copy())["pictures"] != first["pictures"]


def test_the_digits_are_the_same_bytes_whatever_writes_them():
    cell = rows.digits()["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]
    picture = np.frombuffer(cell["bytes"], np.uint8)[-64:].reshape(8, 8)[::-1]  # a BMP's rows begin at the bottom
    assert cell["bytes"][:2] == b"BM" and len(cell["bytes"]) == 14 + 40 + 4 * 256 + 64
    assert np.array_equal(picture, np.asarray(rows.digits()["train"][0]["image"]))


# ----------------------------------------------------------------------------------------------------------- its state


def unsealed(folder, **values) -> None:
    """Write the state as a version would that gave it no digest of its own, with other values."""
    state = json.loads((folder / "state.json").read_text())
    del state[checkpoint.OWN_DIGEST]
    for name, value in values.items():
        if value is ...:
            del state[name]
        else:
            state[name] = value
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("value", ["5", [], None, True, {}, ...])
@pytest.mark.parametrize("name", STATE)
def test_a_state_that_no_run_wrote_is_told_apart(whole, name, value):
    state = json.loads((whole / "checkpoint-6" / "state.json").read_text())
    check_state(state)
    kinds = STATE[name] if isinstance(STATE[name], tuple) else (STATE[name],)
    changed = copy.copy(state)
    changed[name] = value
    if value is ...:
        del changed[name]
    if type(value) in kinds or name == "data" and value is ...:
        check_state(changed)
        return
    with pytest.raises((ValueError, KeyError)):
        check_state(changed)


@pytest.mark.parametrize("values", [{"seconds": "1"}, {"step": 10**9}, {"losses": {}}, {"config": ...}, {"seal": 1}])
def test_of_such_a_state_the_checkpoint_before_is_taken(whole, tmp_path, values):
    shutil.copytree(whole, tmp_path / "run")
    if "seal" in values:  # any change to a state of today
        path = tmp_path / "run" / "checkpoint-6" / "state.json"
        path.write_text(path.read_text().replace('"skipped_steps": 0', '"skipped_steps": 1'))
    else:
        unsealed(tmp_path / "run" / "checkpoint-6", **values)
    result = run(**settings(whole.parent / "set", output_dir=tmp_path / "run"))
    assert result.code == 0 and "going on from step 4\n" in result.out, result.err
    assert "checkpoint-6 is damaged: state.json is not what was written; trying the one before" in result.out
    assert_same(tmp_path / "run", whole, 6)


@pytest.mark.parametrize("values", [{"optimizer": {"x.y": 1}}, {"lr_scheduler": {"last_epoch": "2"}}, {"ema": []}])
def test_what_cannot_be_restored_of_a_state_of_before_is_said_in_one_line(whole, tmp_path, values):
    shutil.copytree(whole, tmp_path / "run")
    unsealed(tmp_path / "run" / "checkpoint-6", **values)
    before = tree(tmp_path)
    result = run(**settings(whole.parent / "set", output_dir=tmp_path / "run"))
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert result.err.startswith("mezzotint: the checkpoint to resume from ")
    assert tree(tmp_path) == before


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_plan_leaves_the_callers_settings_as_they_are(tmp_path):
    config = TrainConfig(**{k: v for k, v in TINY.items() if k != "recipe"}, dataset_name="digits", plan=True)
    config.output_dir = str(tmp_path / "run")
    before = copy.deepcopy(vars(config))
    train.train(config)
    assert vars(config) == before and config.on_bad_row == "stop" and not (tmp_path / "run").exists()
