"""Streamed data: an epoch is every row once, over all processes; a reading that is taken up again anywhere goes on bit
for bit; and no more rows are held, or read again, than a window."""

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import digits, pictures

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data import rows, streaming
from mezzotint_training.data.dataset import CaptionedSamples, make_item
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.data.streaming import CaptionedStream, Stream, load_stream

COUNT = 22  # rows of every made set: no multiple of a window, a batch or the number of processes
NOISE = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
SMALL = {"streaming": True, "shuffle_buffer_size": 5, "proportion_empty_prompts": 0.0}
FEATURES = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(rows, "digits", digits)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(folder: Path, files: list[bytes | None] | None = None, captions=None, parts: int = 2) -> TrainConfig:
    """A folder of parquet files with three rows to a group, captioned 0, 1, ..."""
    folder.mkdir()
    files = files if files is not None else [encoded(x) for x in NOISE]
    rows = {
        "image": [file if file is None else {"bytes": file, "path": None} for file in files],
        "text": captions or [str(i) for i in range(len(files))],
    }
    whole = datasets.Dataset.from_dict(rows, features=FEATURES)
    for part in range(parts):
        whole.shard(parts, part).to_parquet(folder / f"{part}.parquet", batch_size=3)
    return TrainConfig(train_data_dir=str(folder), **SMALL)


def tars(folder: Path) -> TrainConfig:
    folder.mkdir()
    for part, numbers in enumerate(np.array_split(np.arange(COUNT), 3)):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i in numbers.tolist():
                for ending, content in ("png", encoded(NOISE[i])), ("txt", str(i).encode()), ("json", b'{"a": 1}'):
                    member = tarfile.TarInfo(f"{i:04}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return TrainConfig(train_data_dir=str(folder), **SMALL, image_column="png", caption_column="txt")


def folder_of_pictures(folder: Path) -> TrainConfig:
    pictures(folder, COUNT, captions=[str(i) for i in range(COUNT)])  # the pixels are those of NOISE
    return TrainConfig(train_data_dir=str(folder), **SMALL)


SOURCES = {"parquet": parquet, "tars": tars, "pictures": folder_of_pictures}


def settings(config: TrainConfig, **changes) -> TrainConfig:
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def stream(config: TrainConfig, rank: int = 0, world: int = 1, channels: int = 3) -> CaptionedStream:
    return CaptionedStream(load_stream(config), config, channels, (8, 8), rank, world)


def first(images: CaptionedStream, count: int, batch_size: int = 1) -> list[dict]:
    batches = images.batches(batch_size)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def captions(batches: list[dict]) -> list[str]:
    return [caption for batch in batches for caption in batch["captions"]]


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys() and x["captions"] == y["captions"] and x["bad"] == y["bad"]
        assert all(torch.equal(x[name], y[name]) for name in x if isinstance(x[name], torch.Tensor))


# ------------------------------------------------------------------------------------------------------------ an epoch


@pytest.mark.parametrize("kind", SOURCES)
def test_an_epoch_is_every_row_once_with_its_own_picture(kind, tmp_path):
    images = stream(settings(SOURCES[kind](tmp_path / "set")))
    batches = first(images, 3 * COUNT)
    epochs = [captions(batches[i * COUNT : (i + 1) * COUNT]) for i in range(3)]
    for epoch in epochs:
        assert sorted(map(int, epoch)) == list(range(COUNT))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and sorted(epochs[0], key=int) not in epochs
    for batch in batches[:COUNT]:
        expected = torch.from_numpy(NOISE[int(batch["captions"][0])]).permute(2, 0, 1) / 127.5 - 1
        assert batch["sample"].shape == (1, 3, 8, 8) and torch.equal(batch["sample"][0], expected)
        assert batch["bad"] == []


def test_the_digits_are_streamed_too():
    config = settings(TrainConfig(dataset_name="digits", **SMALL), shuffle_buffer_size=100)
    batches = first(stream(config, channels=1), 1498 // 14, batch_size=14)
    label = {text: int(row["label"]) for row in digits()["train"].select(range(60)) for text in row["text"]}
    assert Counter(label[x] for x in captions(batches)) == Counter(digits()["train"]["label"])
    spread = torch.cat([batch["sample"] for batch in batches])
    pixels = np.stack([np.asarray(x) for x in digits()["train"]["image"]]) / 127.5 - 1
    assert spread.mean().item() == pytest.approx(pixels.mean(), abs=1e-6)  # none of them twice


def test_files_come_in_another_order_and_rows_stay_in_their_window(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FEW_FILES", 0)  # whole files
    config = settings(parquet(tmp_path / "set", parts=11), shuffle_buffer_size=2)  # two rows to a file
    orders = []
    for epoch in np.split(np.array(captions(first(stream(config), 8 * COUNT)), dtype=int), 8):
        files = epoch.reshape(11, 2) // 2
        assert (files[:, 0] == files[:, 1]).all() and sorted(files[:, 0]) == list(range(11))
        orders.append(tuple(files[:, 0]))
    assert len(set(orders)) == 8
    other = captions(first(stream(settings(config, seed=1)), COUNT))
    assert tuple(np.array(other, dtype=int)[::2] // 2) not in orders
    rows = np.array(captions(first(stream(settings(config, seed=0)), 8 * COUNT)), dtype=int)
    turned = (rows.reshape(8, 11, 2) @ [1, -1] > 0).sum(1)  # in each epoch, of 11 windows of two rows
    assert 20 < turned.sum() < 68 and ((turned > 0) & (turned < 11)).all()  # half, give or take 5 standard deviations


def test_few_parquet_files_are_shuffled_by_row_group(tmp_path):
    order = captions(first(stream(settings(parquet(tmp_path / "set"), shuffle_buffer_size=1)), COUNT))
    groups = [key for key, _ in itertools.groupby(int(x) % 11 // 3 + 4 * (int(x) // 11) for x in order)]
    assert sorted(groups) == list(range(8)) and groups != sorted(groups)


def test_the_first_rows_are_the_same_for_any_number_of_processes(tmp_path):
    config = settings(tars(tmp_path / "set"), max_train_samples=9)
    for world in (1, 2, 3):
        shares = [captions(first(stream(config, rank, world), 9 // world)) for rank in range(world)]
        assert set(sum(shares, [])) <= {str(i) for i in range(9)} and len(set(sum(shares, []))) == 9 // world * world


# ------------------------------------------------------------------------------------------------------- a run's state


@pytest.mark.parametrize("kind", [*SOURCES, "take"])
@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2), (2, 3)])
def test_a_stream_goes_on_bit_for_bit_from_every_batch(kind, rank, world, tmp_path):
    config = settings(SOURCES.get(kind, parquet)(tmp_path / "set"), max_train_samples=17 if kind == "take" else None)
    whole, states, seen = stream(config, rank, world), [], []
    states.append(json.dumps(whole.state_dict()))
    for batch in itertools.islice(whole.batches(2), COUNT // world + 3):  # two epochs and a little
        seen.append(batch)
        states.append(json.dumps(whole.state_dict()))
    again = stream(config, rank, world)
    for i in range(len(seen) - 1):
        assert again.load_state_dict(json.loads(states[i])) is None
        assert_same(first(again, 2, batch_size=2), seen[i : i + 2])
    assert again.load_state_dict(json.loads(states[COUNT // 3])) is None
    assert_same(first(again, len(seen) - COUNT // 3, batch_size=2), seen[COUNT // 3 :])


def test_a_state_is_that_of_the_last_batch_handed_out_not_of_the_one_made_ahead(tmp_path):
    images = stream(settings(parquet(tmp_path / "set")))
    batches = images.batches(4)
    next(batches)
    state = images.state_dict()
    assert (state["epoch"], state["window"], state["offset"]) == (0, 1, 4)
    next(batches)
    assert (images.state_dict()["window"], images.state_dict()["offset"]) == (2, 3) and state["offset"] == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads, tmp_path):
    files = [encoded(x) for x in NOISE]
    files[3], files[17] = b"words", None
    config = settings(parquet(tmp_path / "set", files), on_bad_row="skip")
    alone = first(stream(config), 12, batch_size=4)
    assert all(len(batch["captions"]) == len(batch["sample"]) == 4 for batch in alone)
    assert_same(first(stream(settings(config, dataloader_num_workers=threads)), 12, batch_size=4), alone)


def test_how_rows_are_dealt_out_to_batches_changes_nothing(tmp_path):
    config = settings(parquet(tmp_path / "set"))
    a, b = first(stream(config), 12, batch_size=4), first(stream(config), 6, batch_size=8)
    for name in ("sample", "noise", "uniform"):
        assert torch.equal(torch.cat([x[name] for x in a]), torch.cat([x[name] for x in b]))
    assert captions(a) == captions(b)


def test_with_another_number_of_processes_it_goes_on_at_the_next_epoch(tmp_path):
    config = settings(parquet(tmp_path / "set"))
    two = stream(config, 1, 2)
    first(two, 7, batch_size=2)  # a little into epoch 1
    assert two.state_dict()["epoch"] == 1
    one = stream(config)
    message = one.load_state_dict(json.loads(json.dumps(two.state_dict())))
    assert message == (
        "the stream was split over 2 processes, now over 1: going on at the start of epoch 2, without the rest of "
        "epoch 1"
    )
    assert_same(first(one, COUNT), first(stream(config), 3 * COUNT)[2 * COUNT :])


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_part_the_set_among_them(kind, world, tmp_path):
    config = settings(SOURCES[kind](tmp_path / "set"), shuffle_buffer_size=3)
    shares = []
    for rank in range(world):
        images, share = stream(config, rank, world), []
        for batch in images.batches(1):
            if images.state_dict()["epoch"] > 0:
                break
            share += batch["captions"]
        shares.append(share)
    assert sorted(map(int, sum(shares, []))) == list(range(COUNT))
    assert max(map(len, shares)) - min(map(len, shares)) <= (1 if kind != "parquet" else 3)


def test_many_files_are_dealt_out_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FEW_FILES", 0)
    config = settings(parquet(tmp_path / "set", parts=11))
    monkeypatch.setattr(streaming, "FILES_PER_RANK", 5)
    shares = [first(stream(config, rank, 2), n) for rank, n in ((0, 12), (1, 10))]
    files = [Counter(int(x) // 2 for x in captions(share)) for share in shares]
    assert set(files[0].values()) == set(files[1].values()) == {2}  # a file's two rows are in one process
    assert len(files[0]) == 6 and len(files[1]) == 5 and not files[0].keys() & files[1].keys()
    # and the shorter share goes on by itself
    short = stream(config, 1, 2)
    first(short, 11)
    assert short.state_dict()["epoch"] == 1


def test_what_happens_to_a_row_is_keyed_by_its_number_in_the_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FEW_FILES", 0)  # one file, of which each process gets every other row
    config = settings(parquet(tmp_path / "set", parts=1))
    pixels, zero, one = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    for world in (1, 2):
        for epoch in range(2):
            keyed = [make_item(config, epoch, i, pixels, [(1.0, [""])], zero, one)["noise"] for i in range(COUNT)]
            found = []
            for rank in range(world):
                share = first(stream(config, rank, world), 2 * COUNT // world)
                found += [batch["noise"][0] for batch in share[epoch * COUNT // world : (epoch + 1) * COUNT // world]]
            assert sorted(x[0, 0, 0].item() for x in found) == sorted(x[0, 0, 0].item() for x in keyed)


def test_more_processes_than_rows_are_refused(tmp_path):
    config = settings(parquet(tmp_path / "set", [encoded(NOISE[0])], parts=1))
    with pytest.raises(UserError, match="^the set must have a row for every process: got none for process 2$"):
        first(stream(config, 2, 3), 1)


# -------------------------------------------------------------------------------------------------------------- memory


NOTHING = datasets.Dataset.from_dict({"image": [], "text": []}, features=FEATURES)


class Counted:
    """A stream of ten files of ten rows, and how many rows of it were read."""

    def __init__(self):
        self.read = 0

        def rows(files):
            for file in files:
                for i in range(10):
                    self.read += 1
                    yield {"image": {"bytes": encoded(NOISE[0]), "path": None}, "text": f"{file}-{i}"}

        self.rows = datasets.IterableDataset.from_generator(
            rows, features=FEATURES, gen_kwargs={"files": list(range(10))}
        ).decode(False)

    def stream(self, size: int) -> CaptionedStream:
        config = settings(TrainConfig(dataset_name="digits", **SMALL), shuffle_buffer_size=size)
        return CaptionedStream(Stream(self.rows, NOTHING, None), config, 3, (8, 8))


class Row(tuple):
    """A row that counts how many of its kind there are."""

    alive = 0

    def __new__(cls, values):
        cls.alive += 1
        return super().__new__(cls, values)

    def __del__(self):
        type(self).alive -= 1


@pytest.mark.parametrize("size", [1, 7, 64])
def test_no_more_rows_are_held_than_a_window_and_the_batch_made_ahead(size, monkeypatch):
    read = CaptionedStream._read
    monkeypatch.setattr(CaptionedStream, "_read", lambda *where: map(Row, read(*where)))
    counted = Counted()
    images = counted.stream(size)
    assert counted.read == 0
    ahead, alive = [], []
    for handed, _ in enumerate(itertools.islice(images.batches(1), 99), start=1):
        ahead.append(counted.read - handed)
        alive.append(Row.alive)
    assert max(ahead) <= size + 2 and min(ahead[: 98 - size]) >= size - 1
    assert max(alive) <= size + 3 and min(alive[: 98 - size]) >= size - 1


def test_going_on_reads_the_window_again_and_not_the_epoch():
    whole = Counted().stream(7)
    seen = first(whole, 90)
    counted = Counted()
    again = counted.stream(7)
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert captions(first(again, 5)) == captions(first(Counted().stream(7), 95)[90:]) and len(seen) == 90
    # the rest of the file in which the window begins, that window, the one after it, and what was asked for
    assert counted.read <= 10 + 7 + 7 + 5 + 2


# ------------------------------------------------------------------------------------------------------- what is known


def test_head_and_statistics_are_those_of_the_rows_and_the_same_in_every_process(tmp_path):
    config = settings(parquet(tmp_path / "set"), shuffle_buffer_size=12)
    assert load_stream(config).head["text"][:] == [str(i) for i in range(12)]
    x = NOISE[:12].reshape(-1, 3) / 127.5 - 1
    for rank in range(2):
        mean, std = stream(config, rank, 2).statistics()
        np.testing.assert_allclose(mean, x.mean(0), atol=1e-4)
        np.testing.assert_allclose(std, x.std(0), atol=1e-4)
    kept, _ = held_out(config, load_splits(settings(config, streaming=False)))
    whole = CaptionedSamples(kept, config, 3, (8, 8))
    assert stream(settings(config, streaming=True, shuffle_buffer_size=100)).statistics() == whole.statistics()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("world", [1, 2])
def test_held_out_rows_never_come(kind, world, tmp_path):
    config = settings(SOURCES[kind](tmp_path / "set"))
    made = load_stream(config)
    made = made._replace(held_out=made.head.select([0, 3, 4]))
    found, states = [], []
    for rank in range(world):
        images = CaptionedStream(made, config, 3, (8, 8), rank, world)
        for batch in images.batches(1):
            if images.state_dict()["epoch"] > 0:
                break
            states.append(json.dumps(images.state_dict()))
            found += batch["captions"]
    assert sorted(map(int, found)) == [i for i in range(COUNT) if i not in (0, 3, 4)]
    whole = first(stream(config, world - 1, world), COUNT)
    for i in range(1, len(states) // world):
        images.load_state_dict(json.loads(states[-1 - i]))
        again = first(images, i)
        assert captions(again) == found[-i:]
        for batch in again:  # keyed as they are where nothing is held out
            (same,) = [x for x in whole if x["captions"] == batch["captions"]][:1]
            assert torch.equal(batch["noise"], same["noise"])


def test_rows_for_the_held_out_loss_are_chosen_from_the_head():
    config = settings(TrainConfig(dataset_name="digits", **SMALL), shuffle_buffer_size=200, num_validation_samples=100)
    made = load_stream(config)
    whole = digits()["train"].select(range(200))
    rows, held = held_out(config, datasets.DatasetDict(train=whole))
    assert len(made.held_out) == 10 and len(made.head) == 190
    assert made.held_out["text"][:] == held["text"][:] and made.head["text"][:] == rows["text"][:]


def test_a_split_for_validation_is_read_at_its_head(monkeypatch):
    splits = {"train": digits()["train"].select(range(40)), "validation": digits()["test"]}
    monkeypatch.setattr(rows, "digits", lambda: datasets.DatasetDict(splits))
    config = settings(TrainConfig(dataset_name="digits", **SMALL), num_validation_samples=20, shuffle_buffer_size=30)
    made = load_stream(config)
    assert len(made.head) == 30 and len(made.held_out) == 20
    _, held = held_out(config, datasets.DatasetDict(splits | {"validation": digits()["test"].select(range(30))}))
    assert made.held_out["text"][:] == held["text"][:]
    message = refused(dataset_name="digits", validation_split="tset")
    assert message == "validation_split 'tset' is not there: got 'train', 'validation'"
    config = TrainConfig(dataset_name="digits", dataset_split="validation", max_train_samples=20, **SMALL)
    made = load_stream(config)
    assert len(made.head) == 5 and made.held_out is None and len(list(made.rows)) == 20


def test_samples_are_normalised(tmp_path):
    images = stream(settings(parquet(tmp_path / "set")))
    plain = first(images, 3, batch_size=4)
    images = stream(images.config)
    images.mean, images.std = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1), torch.tensor([2.0, 3, 4]).reshape(3, 1, 1)
    for a, b in zip(plain, first(images, 3, batch_size=4), strict=True):
        assert torch.equal((a["sample"] - images.mean) / images.std, b["sample"])


# ------------------------------------------------------------------------------------------------------------ bad rows


def test_a_bad_row_gives_way_to_the_next_and_is_named(tmp_path):
    files = [encoded(x) for x in NOISE]
    files[3], files[8] = b"words", None
    texts = [str(i) for i in range(COUNT)]
    texts[5] = None
    config = settings(parquet(tmp_path / "set", files, texts), on_bad_row="skip")
    good, images = COUNT - 3, stream(config)
    batches = first(images, 2 * good)
    for epoch in range(2):
        part = batches[epoch * good : (epoch + 1) * good]
        assert sorted(map(int, captions(part))) == [i for i in range(COUNT) if i not in (3, 5, 8)]
    bad = [message for batch in batches for message in batch["bad"]]
    assert len(bad) == 6 or (len(bad) == 5 and not batches[-1]["bad"])  # bad rows after the last good one
    assert sum("captioned '3'" in x and x.startswith("picture in row ") for x in bad) == 2
    assert sum("captioned '8') cannot be read: there is none" in x for x in bad) >= 1
    assert sum(x.startswith("caption in row ") and x.endswith("must be text: got None") for x in bad) >= 1
    # the others are as they would be without it
    whole = {
        b["captions"][0]: b for b in first(stream(settings(parquet(tmp_path / "good"), shuffle_buffer_size=5)), COUNT)
    }
    for batch in batches[:good]:
        assert torch.equal(batch["noise"], whole[batch["captions"][0]]["noise"])


def test_a_bad_row_stops_the_run_with_its_name(tmp_path):
    config = settings(tars(tmp_path / "set"))
    with tarfile.open(tmp_path / "set" / "9.tar", "w") as tar:
        for name, content in (("x.png", b"words"), ("x.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError) as error:
        first(stream(config), COUNT + 1)
    line = str(error.value)
    assert line.startswith("picture in row ") and f" of epoch 0 ({tmp_path}/set/9.tar: x.png) cannot be read: " in line
    assert line.endswith("; --on_bad_row skip goes on without it") and "\n" not in line


def test_a_set_without_a_good_picture_is_refused(tmp_path):
    config = settings(parquet(tmp_path / "set", [b"words"] * 4), on_bad_row="skip")
    with pytest.raises(
        UserError, match="^no picture of an epoch could be read; the first: picture in row . of epoch 0"
    ):
        first(stream(config), 1)


def test_a_file_that_is_damaged_is_said_in_one_line(tmp_path):
    config = settings(parquet(tmp_path / "set"))
    file = tmp_path / "set" / "1.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    with pytest.raises(UserError, match=r"^the set cannot be read from row \d+ of epoch 0 on: [^\n]+$"):
        first(stream(config), COUNT)
    with pytest.raises(UserError, match=r"^the set cannot be read from row 11 on: [^\n]+$"):
        stream(settings(config, shuffle_buffer_size=COUNT)).statistics()


def test_a_tar_that_is_cut_short_ends_in_a_bad_row(tmp_path):
    config = settings(tars(tmp_path / "set"))
    file = tmp_path / "set" / "2.tar"
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(
        UserError, match=r"/2.tar: 0015.png\) must be text: got None; --on_bad_row skip goes on without"
    ):
        first(stream(config), COUNT)


def test_files_elsewhere_are_fetched(tmp_path):
    rows = []
    for i in range(4):
        with fsspec.open(f"memory://streamed/{i}.png", "wb") as file:
            file.write(encoded(NOISE[i]))
        rows.append({"image": {"path": f"memory://streamed/{i}.png", "bytes": None}, "text": str(i)})
    rows.append({"image": {"path": "memory://streamed/none.png", "bytes": None}, "text": "4"})
    config = settings(TrainConfig(dataset_name="digits", **SMALL), on_bad_row="skip")
    remote = datasets.IterableDataset.from_generator(lambda: iter(rows), features=FEATURES).decode(False)
    batches = first(CaptionedStream(Stream(remote, NOTHING, None), config, 3, (8, 8)), 8)
    for batch in batches:
        expected = torch.from_numpy(NOISE[int(batch["captions"][0])]).permute(2, 0, 1) / 127.5 - 1
        assert torch.equal(batch["sample"][0], expected)
    assert any("memory://streamed/none.png) cannot be read: " in x for batch in batches for x in batch["bad"])


# ------------------------------------------------------------------------------------------------------------- sources


def refused(**changes) -> str:
    with pytest.raises(UserError) as error:
        load_stream(TrainConfig(streaming=True, **changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(train_data_dir=str(tmp_path / "none")).startswith("train_data_dir must be a folder: ")
    assert refused(train_data_dir=str(tmp_path / "empty")).startswith("train_data_dir must hold parquet files, tars")
    (tmp_path / "empty" / "train.parquet").write_bytes(b"words")
    assert refused(train_data_dir=str(tmp_path / "empty")).startswith(f"cannot load {tmp_path / 'empty'}: ")
    message = refused(dataset_name="digits", dataset_split="trian")
    assert message == "dataset_split 'trian' is not there: got 'train', 'test'"
    assert refused(dataset_name="digits", max_train_samples=0) == "max_train_samples must be at least 1: got 0"


def test_columns_that_are_not_there_or_are_something_else(tmp_path):
    tars(tmp_path / "tars")
    folder, columns = str(tmp_path / "tars"), "got columns 'png', 'txt', 'json', '__key__', '__url__'"
    assert refused(train_data_dir=folder) == f"image_column 'image' is not there: {columns}"
    message = refused(train_data_dir=folder, image_column="png")
    assert message.startswith(f"caption_column 'text' is not there: {columns}")
    message = refused(train_data_dir=folder, image_column="txt", caption_column="png")
    assert message == "image_column 'txt' must hold pictures: got Value('string')"
    message = refused(train_data_dir=folder, image_column="png", caption_column="json")
    assert message.startswith("caption_column 'json' must hold text or lists of text: got ")


def test_a_set_on_the_hub_is_asked_for_by_name_and_comes_undecoded(monkeypatch):
    asked = []

    def load(*names, **options):
        asked.append((names, options))
        rows = [{"image": {"bytes": encoded(x), "path": None}, "text": str(i)} for i, x in enumerate(NOISE)]
        whole = datasets.Dataset.from_list(rows, features=FEATURES).to_iterable_dataset(num_shards=4)
        return {"train": whole.decode(num_threads=2)}  # as load_dataset gives one from the Hub

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = TrainConfig(dataset_name="user/set", dataset_config_name="small", **SMALL)
    rows = load_stream(config).rows
    assert asked == [(("user/set", "small"), {"streaming": True})]
    assert next(iter(rows))["image"] == {"bytes": encoded(NOISE[0]), "path": None}
    images = stream(config)
    assert sorted(map(int, captions(first(images, COUNT)))) == list(range(COUNT))
