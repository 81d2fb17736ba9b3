# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A cache for what is computed once and read often: tensors by key, on disk, with the ones used last in memory. What
they are is decided by whoever uses it (`text.py`, `latents.py`).

A shard on disk is a safetensors file that is written aside, synced and renamed, and named by the hash of its keys: one
that is there is whole, whoever wrote it, and a killed build goes on from the shards that it finished. A key's hash says
which shard it is in, so that no index of the keys need be in memory.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mezzotint_training.config.errors import UserError
from mezzotint_training.engine.files import sync
from mezzotint_training.engine.progress import progress_bar

# Version of the file layout; changing it invalidates every cache
FORMAT = 1
# Keys in a shard, at most on average
SHARD = 512
# Seconds between looks for the shards of other processes, and without a new one until they are made here
POLL, PATIENCE = 0.2, 120.0
# Seconds after which a file that was never renamed is a dead process's
STALE = 3600.0
# What reading a file raises whose contents changed: numbers that don't fit, impossible shapes, a broken header
DAMAGE = (SafetensorError, OSError, ValueError, IndexError, RuntimeError, OverflowError)


class Recent:
    """The tensors used last, `limit` bytes of them in all.

    Args:
        limit: bytes of tensors and keys that are kept.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, key: str) -> torch.Tensor | None:
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor under a new key, and let go of those not used for longest."""
        self.kept[key] = tensor
        self.size += tensor.nbytes + len(key)
        while self.size > self.limit:
            key, tensor = self.kept.popitem(last=False)
            self.size -= tensor.nbytes + len(key)


class Cache:
    """Tensors by key in one folder, computed by `build` and read by `read`.

    Args:
        folder: of the shards; its name must change with whatever the tensors depend on besides their keys. Several runs
            may share it, at the same time too.
        what: the word for it in messages.
    """

    def __init__(self, folder: Path, what: str):
        self.folder, self.what = folder, what
        self.names: list[str] = []

    def build(
        self,
        keys: Iterable[bytes],
        compute: Callable[[list[bytes]], list[torch.Tensor]],
        rank: int = 0,
        world: int = 1,
        progress: bool = True,
    ) -> None:
        """Compute what is missing; afterwards the tensors of all keys are there, whichever process computed them.

        Shards are dealt out to processes, which look for each other's files and wait for nothing else: no collective
        operation can time out. Where no new file comes for `PATIENCE` seconds (a folder that machines don't share, a
        process that is gone), a process makes the missing ones itself.

        Args:
            keys: all of them, in any order; the same in all processes.
            compute: tensors for keys, one each, on the CPU, all of the same type and number of axes. A tensor must
                depend on its own key alone.
            rank, world: this process and how many there are.
            progress: whether to show a bar, on a terminal.

        Raises:
            UserError: for a folder that cannot be written to, or has no room left. Whole shards stay.
        """
        named = {_digest(key): key for key in keys}
        shards: list[list[bytes]] = [[] for _ in range(1 << ((len(named) - 1) // SHARD).bit_length())]
        self.names = [""] * len(shards)
        for digest in sorted(named):
            shards[self._place(digest)].append(digest)
        self.names = [f"{_digest(b''.join(shard)).hex()}.safetensors" for shard in shards]

        def make(number: int) -> None:
            tensors = compute([named[digest] for digest in shards[number]])
            self._write(self.folder / self.names[number], shards[number], tensors)

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(".*.safetensors.*"):
                with contextlib.suppress(FileNotFoundError):  # another process does the same
                    if path.stat().st_mtime < time.time() - STALE:
                        path.unlink()
            mine = [number for number in range(rank, len(shards), world) if shards[number]]
            for number in progress_bar(mine, f"making the {self.what}", len(mine), progress):
                if not self._whole(self.folder / self.names[number]):
                    make(number)

            missing = {name: number for number, name in enumerate(self.names) if shards[number]}
            last, waited = time.monotonic(), False
            while True:
                for name in missing.keys() & os.listdir(self.folder):
                    del missing[name]
                    last = time.monotonic()
                if not missing:
                    break
                if time.monotonic() - last < PATIENCE:
                    time.sleep(POLL)
                    continue
                if not waited:
                    print(f"{self.what}: {len(missing)} files of other processes don't come; making them here")
                    waited = True
                name = sorted(missing)[rank % len(missing)]
                make(missing.pop(name))
        except OSError as error:
            raise UserError(f"cache_dir must be a folder to write to, with room: {error}") from None

    def read(self, keys: Iterable[bytes]) -> dict[bytes, torch.Tensor]:
        """The tensors of those keys that are there and whole. Only these tensors are read, from mapped files."""
        wanted: dict[str, list[bytes]] = {}
        for key in keys if self.names else ():
            wanted.setdefault(self.names[self._place(_digest(key))], []).append(key)
        found = {}
        for name, some in wanted.items():
            path = self.folder / name
            try:
                with safe_open(path, "pt") as file:
                    digests = self._checked(file, path)
                    shapes, checks = file.get_tensor("shapes"), file.get_tensor("crc32")
                    ends = [0, *shapes.prod(1).cumsum(0).tolist()]
                    values = file.get_slice("values")
                    for key in some:
                        number, rest = divmod(digests.find(_digest(key)), 16)
                        if rest:  # not found
                            continue
                        # a copy: what is handed out must not keep the file mapped
                        tensor = values[ends[number] : ends[number + 1]].clone().reshape(shapes[number].tolist())
                        if _crc32(tensor) != checks[number]:
                            raise ValueError("its values are not what was written")
                        found[key] = tensor
            except FileNotFoundError:
                pass
            except DAMAGE as error:
                self._remove(path, error)
        return found

    def _place(self, digest: bytes) -> int:
        """The number of the shard of a key: the first bits of its digest. There are a power of two of them, which grows
        rarely, so that most shards of a changed set are still those of the old one."""
        return int.from_bytes(digest[:8], "big") * len(self.names) >> 64

    def _whole(self, path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:  # which compares the file's length with the one that its header says
                return bool(self._checked(file, path))
        except FileNotFoundError:
            return False
        except DAMAGE as error:
            self._remove(path, error)
            return False

    def _checked(self, file, path: Path) -> bytes:
        """The digests of a shard's keys, whose hash is its name."""
        digests = file.get_tensor("keys").numpy().tobytes()
        if _digest(digests).hex() != path.stem:
            raise ValueError("its keys are not what was written")
        return digests

    def _remove(self, path: Path, error: Exception) -> None:
        print(f"{self.what}: {path} is damaged ({error}); computing its contents anew")
        with contextlib.suppress(OSError):
            path.unlink()

    def _write(self, path: Path, digests: list[bytes], tensors: list[torch.Tensor]) -> None:
        contents = {
            "keys": torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, 16),
            "shapes": torch.tensor([tensor.shape for tensor in tensors]),
            "crc32": torch.tensor([_crc32(tensor) for tensor in tensors]),
            "values": torch.cat([tensor.flatten() for tensor in tensors]),
        }
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with aside.open("xb") as file:
                file.write(save(contents))
            sync(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync(self.folder)


def fingerprint(settings: dict[str, Any], network: torch.nn.Module) -> "hashlib._Hash":
    """A hash of the settings, the format of the files, and the weights of the network that computes tensors."""
    text = json.dumps(settings | {"format": FORMAT}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def _crc32(tensor: torch.Tensor) -> int:
    shape = repr(tuple(tensor.shape)).encode()  # whose check is not 0, as a file of zeros would have it
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), zlib.crc32(shape))
