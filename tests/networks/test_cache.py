"""Tensors by key on disk: what is read against what was computed, file for file against a build left in peace."""

import contextlib
import hashlib
import math
import os
import resource
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import server
from safetensors.torch import load_file, save_file

from mezzotint_training.config.errors import UserError
from mezzotint_training.networks import cache
from mezzotint_training.networks.cache import Cache, Recent


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 8)


def keys(count: int, start: int = 0) -> list[bytes]:
    return [f"key {i}".encode() for i in range(start, start + count)]


def tensor(key: bytes, dtype=torch.float32, shape=(3,)) -> torch.Tensor:
    """A key's own random numbers, of its own length."""
    seed = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    return torch.randn(1 + seed % 9, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def built(folder: Path, of: list[bytes], *args, **options) -> tuple[Cache, list[bytes]]:
    """A cache of `of` in `folder`, and the keys whose tensors had to be computed for it."""
    computed = []

    def compute(some):
        computed.extend(some)
        return [tensor(key, **options) for key in some]

    result = Cache(folder, "cache of numbers")
    result.build(of, compute, *args)
    return result, computed


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with its content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_slowly(folder: str) -> None:
    """What another process does, see below."""
    cache.SHARD = 8

    def compute(some):
        time.sleep(0.01)
        return [tensor(key) for key in some]

    Cache(Path(folder), "").build(keys(500), compute)


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype, shape", [(torch.float32, (3,)), (torch.bfloat16, (2, 5)), (torch.float16, ())])
def test_what_is_read_is_what_was_computed(tmp_path, dtype, shape):
    numbers, computed = built(tmp_path / "new" / "folder", [*keys(100), *keys(50)], dtype=dtype, shape=shape)
    assert sorted(computed) == sorted(keys(100))
    for some in (keys(100), keys(3, 40)[::-1], []):
        found = numbers.read(some)
        assert found.keys() == set(some)
        for key in some:
            expected = tensor(key, dtype, shape)
            assert found[key].dtype == dtype and torch.equal(found[key], expected)
            assert found[key].untyped_storage().nbytes() == expected.nbytes  # it keeps no file mapped
    assert numbers.read([*keys(1), b"not there"]).keys() == set(keys(1))
    assert Cache(tmp_path, "").read([b"not there"]) == {}


def test_a_shard_holds_its_own_keys_in_order_and_anyone_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        built(tmp_path, keys(500))
    finally:
        os.umask(before)
    contents = [load_file(path) for path in files(tmp_path)]
    rows = [bytes(row.tolist()) for shard in contents for row in shard["keys"]]
    assert sorted(rows) == sorted(hashlib.blake2b(key, digest_size=16).digest() for key in keys(500))
    assert len(files(tmp_path)) == 64 and max(len(shard["keys"]) for shard in contents) < 3 * 8
    for shard in contents:
        assert [bytes(r.tolist()) for r in shard["keys"]] == sorted(bytes(r.tolist()) for r in shard["keys"])
        assert sum(math.prod(shape) for shape in shard["shapes"].tolist()) == len(shard["values"])
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o644}


# ------------------------------------------------------------------------------------------------------------ building


def test_what_is_there_stays_whatever_the_order(tmp_path):
    built(tmp_path, keys(100))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)}
    numbers, computed = built(tmp_path, keys(100)[::-1])
    assert computed == [] and len(numbers.read(keys(100))) == 100
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)} == before


def test_a_key_more_costs_one_shard_and_another_runs_files_stay(tmp_path):
    first, _ = built(tmp_path, keys(100))
    numbers, computed = built(tmp_path, keys(101))
    assert b"key 100" in computed and len(computed) < 3 * 8
    assert len(numbers.read(keys(101))) == 101 and len(first.read(keys(100))) == 100


def test_an_interrupted_build_ends_as_one_that_was_not(tmp_path):
    built(tmp_path / "whole", keys(100))
    for interrupted_at in (1, 5, 16):
        folder, calls = tmp_path / str(interrupted_at), []

        def compute(some, calls=calls, stop=interrupted_at):
            calls.append(some)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return [tensor(key) for key in some]

        with pytest.raises(KeyboardInterrupt):
            Cache(folder, "").build(keys(100), compute)
        assert len(files(folder)) == interrupted_at - 1
        _, computed = built(folder, keys(100))
        assert sorted(computed) == sorted(set(keys(100)) - {key for some in calls[:-1] for key in some})
        assert tree(folder) == tree(tmp_path / "whole")


@pytest.mark.parametrize("length", [0, 5, 60, 300, -1])
def test_a_torn_shard_is_made_anew_with_a_word(tmp_path, capsys, length):
    built(tmp_path, keys(100))
    before, path = tree(tmp_path), files(tmp_path)[3]
    torn = load_file(path)["keys"]
    path.write_bytes(path.read_bytes()[:length])
    numbers, computed = built(tmp_path, keys(100))
    assert len(computed) == len(torn) and tree(tmp_path) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"cache of numbers: {path} is damaged (") and line.endswith("computing its contents anew")
    assert len(numbers.read(keys(100))) == 100


def test_a_changed_byte_anywhere_is_noticed_when_it_is_read(tmp_path, capsys):
    numbers, _ = built(tmp_path, keys(40))
    path, before = files(tmp_path)[3], tree(tmp_path)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :])
        found = {key: value for key in keys(40) for value in numbers.read([key]).values()}
        assert all(torch.equal(value, tensor(key)) for key, value in found.items())
        assert len(found) < 40 and f"{path} is damaged" in capsys.readouterr().out and not path.exists(), position
    _, computed = built(tmp_path, keys(40))
    assert 0 < len(computed) < 3 * 8 and tree(tmp_path) == before


@pytest.mark.parametrize("parts", [["keys"], ["shapes"], ["crc32"], ["values"], ["shapes", "crc32", "values"]])
def test_a_part_that_is_zero_is_noticed(tmp_path, parts):
    numbers, _ = built(tmp_path, keys(40))
    path = files(tmp_path)[3]
    contents = load_file(path)
    save_file(contents | {part: torch.zeros_like(contents[part]) for part in parts}, path)
    found = numbers.read(keys(40))
    assert len(found) == 40 - len(contents["keys"]) and not path.exists()
    assert all(torch.equal(value, tensor(key)) for key, value in found.items())


def test_files_that_dead_processes_left_are_removed_and_those_of_living_ones_are_not(tmp_path):
    built(tmp_path, keys(20))
    name = files(tmp_path)[0].name
    old, new = tmp_path / f".{name}.1", tmp_path / f".{name}.2"
    for path in (old, new):
        path.write_bytes(b"half a sha")
    os.utime(old, (0, 0))
    built(tmp_path, keys(20))
    assert not old.exists() and new.exists()


# ----------------------------------------------------------------------------------------------------------- processes


def test_processes_share_the_work_and_all_have_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "POLL", 0.001)
    results = {}
    threads = [
        threading.Thread(target=lambda r=rank: results.update({r: built(tmp_path / "three", keys(100), r, 3)}))
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for _, computed in results.values() for key in computed) == sorted(keys(100))
    assert all(len(computed) > 15 for _, computed in results.values())
    assert all(len(numbers.read(keys(100))) == 100 for numbers, _ in results.values())
    built(tmp_path / "one", keys(100))
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_two_runs_that_make_the_same_files_at_once_do_not_disturb_each_other(tmp_path):
    process = server().Process(target=build_slowly, args=(str(tmp_path / "two"),))
    process.start()
    while not files(tmp_path / "two"):
        assert process.is_alive()
        time.sleep(0.001)
    build_slowly(str(tmp_path / "two"))
    process.join()
    assert process.exitcode == 0
    built(tmp_path / "one", keys(500))
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_a_process_waits_for_the_others(tmp_path, monkeypatch):
    others = []

    def sleep(seconds):  # meanwhile the other one does its part
        monkeypatch.undo()
        monkeypatch.setattr(cache, "SHARD", 8)
        others.extend(built(tmp_path, keys(100), 1, 2)[1])

    monkeypatch.setattr(cache.time, "sleep", sleep)
    numbers, computed = built(tmp_path, keys(100), 0, 2)
    assert others and sorted(computed + others) == sorted(keys(100))
    assert len(numbers.read(keys(100))) == 100


def test_a_process_whose_others_are_gone_makes_their_part_with_one_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "PATIENCE", 0.0)
    numbers, computed = built(tmp_path / "two", keys(100), 1, 2)
    assert sorted(computed) == sorted(keys(100)) and len(numbers.read(keys(100))) == 100
    assert capsys.readouterr().out == "cache of numbers: 8 files of other processes don't come; making them here\n"
    built(tmp_path / "one", keys(100))
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


# -------------------------------------------------------------------------------------------------------- bad luck


def test_a_full_disk_stops_it_in_one_line_and_whole_shards_stay(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))  # a longer file fails to be written, in its middle
    try:
        with pytest.raises(UserError, match="cache_dir must be a folder to write to, with room: .*") as error:
            built(tmp_path, keys(20), shape=(30,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    whole = files(tmp_path)
    assert sorted(tmp_path.iterdir()) == whole  # nothing half written
    _, computed = built(tmp_path, keys(20), shape=(30,))
    assert len(computed) == 20 - sum(len(load_file(path)["keys"]) for path in whole) > 0


def test_a_folder_that_cannot_be_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"cache_dir must be a folder to write to, .*{tmp_path}/file"):
        built(tmp_path / "file" / "text-1", keys(20))
    assert (tmp_path / "file").read_text() == "mine"


# -------------------------------------------------------------------------------------------------------------- memory


def test_the_tensors_used_last_are_kept():
    recent = Recent(limit=3 * (8 + 1))
    for key in "abc":
        recent.put(key, torch.tensor([float(ord(key))] * 2))
    assert recent.get("a").tolist() == [97.0, 97.0] and recent.size == 27
    recent.put("d", torch.zeros(2))
    assert recent.get("b") is None and [*recent.kept] == ["c", "a", "d"]
    recent.put("e", torch.zeros(4))  # as long as two
    assert [*recent.kept] == ["d", "e"] and recent.size == 9 + 17
    recent.put("long", torch.zeros(99))
    assert not recent.kept and recent.size == 0


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    numbers, _ = built(tmp_path, keys(500))
    opened = []
    stock = cache.safe_open

    @contextlib.contextmanager
    def counting(path, framework):
        opened.append(path)
        with stock(path, framework) as file:
            yield file

    monkeypatch.setattr(cache, "safe_open", counting)
    numbers.read(keys(3))
    assert 1 <= len(opened) <= 3
    opened.clear()
    numbers.read(keys(500))
    assert len(opened) == len(set(opened)) == len(files(tmp_path))
