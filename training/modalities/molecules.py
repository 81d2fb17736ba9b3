# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One molecule: from the cell of a dataset, a string in SELFIES or SMILES, to the analog bits of its tokens, and back.
What is wrong with one is found here.

Analog bits (<https://huggingface.co/papers/2208.04202>, section 2) are the numbers of tokens in base 2, diffused as if
they were pixels. Here a token has a code word of 16 bits in their place, as far from the others as can be, in a small
vocabulary 6 bits or more: noise that turns a bit or two turns no token into another one.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from mezzotint.pipelines.conditions_mezzotint import class_bits, classes_to_bits
from mezzotint.samples.molecules import chemistry, smiles_of
from mezzotint_training.modalities.contents import whole

EXTENSIONS = (".csv", ".jsonl")
CODES = 2**16
CHANNELS = (class_bits(CODES),)
STEP = 8  # positions, of which the length of a sample is a multiple: a network can halve it three times

SELFIES = re.compile(r"\[[^\[\]]+\]|\.")
ATOM = r"\[\d*(?:[A-Z][a-z]?|[bcnops]|se|as|te|\*)(?:@[@A-Z\d]*)?(?:H\d?)?(?:\++\d*|-+\d*)?(?::\d+)?\]"
SMILES = re.compile(rf"{ATOM}|Br|Cl|[BCNOPSFIbcnops*]|%\d\d|\d|[-=#$:/\\.()]")
TOKENS = {"selfies": SELFIES, "smiles": SMILES}


class Header(NamedTuple):
    """What a string says of a molecule."""

    tokens: tuple[str, ...]
    notation: str
    channels: int = CHANNELS[0]

    @property
    def measures(self) -> dict[str, float]:
        """What is told of a set as ranges."""
        return {"tokens": len(self.tokens)}

    def findings(self, size: tuple[int, ...]) -> list[str]:
        """What is odd with it for molecules of a size."""
        return []


def holds(feature: Any) -> bool:
    """Whether a column of this type may hold molecules."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def undecoded(feature: Any) -> Any:
    """The type of a column of molecules, which are strings as they are.

    Raises:
        ImportError: where nothing is installed that could read them, in one line.
    """
    chemistry()
    return feature


def settle(
    config: Any,
    first: Header,
    headers: Callable[[], Iterable[Header]],
    size: tuple[int, ...] | None,
    about: Mapping[str, Any] | None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The number of tokens to train at, and the `notation` with its `vocabulary`, the code word of each token, and the
    `frequencies` of these, as shares of all positions: the saved model's, or those of the set. The number is rounded up
    to a multiple of 8.

    Args:
        config: the run's settings.
        first: of the first molecule that can be read.
        headers: of all molecules that can be read.
        size: that a saved model is trained at, if there is one.
        about: what it knows of all samples.
    """
    length, known = config.molecule_length_in_tokens, {k: v for k, v in (about or {}).items() if k != "name"}
    if known and size and length is None:
        return size, known
    if not known or length is None:
        found = list(headers())
        kinds = Counter(header.notation for header in found)
        # A string of atoms in brackets is SMILES and SELFIES at once
        notation = max(kinds, key=lambda kind: kinds[kind])
        # The lengths and the tokens of what can be trained on
        usable = [header.tokens for header in found if len(header.tokens) <= (length or np.inf)]
        length = length or max(map(len, usable))
        if not known:
            counts = Counter(token for tokens in usable for token in tokens)
            words = code_words(counts)
            counts[""] = len(usable) * -(-length // STEP) * STEP - counts.total()
            every = counts.total() + len(words)  # one more of each, so that none is impossible
            frequencies = {token: round((counts[token] + 1) / every, 9) for token in words}
            known = {"notation": notation, "vocabulary": words, "frequencies": frequencies}
    return (-(-length // STEP) * STEP,), known


def code_words(counts: Mapping[str, int]) -> dict[str, int]:
    """A number of 16 bits for each token, and for `""`, which strings are filled up with: the more frequent a token,
    the sooner it gets its word, always the first one of those that are farthest, by the bits in which they differ, from
    all given away before. So 0 is of `""`, and 65535 of the most frequent token."""
    words, distance, found = np.arange(CODES, dtype=np.uint32), np.full(CODES, 99), {}
    for token in ["", *sorted(counts, key=lambda token: (-counts[token], token))][:CODES]:
        found[token] = word = int(distance.argmax())
        distance = np.minimum(distance, np.bitwise_count(words ^ np.uint32(word)))
        distance[word] = -1
    return found


def header(cell: str | None, about: Mapping[str, Any] | None = None) -> Header:
    """The tokens of a cell's molecule.

    Raises:
        ValueError: for a string that is in neither notation, or not in the one of `about`, in one line.
    """
    if not isinstance(cell, str) or not cell:
        raise ValueError("there is none")
    asked = (about or {}).get("notation")
    for notation in [asked] if asked else TOKENS:
        tokens = tuple(TOKENS[notation].findall(cell))
        if "".join(tokens) == cell:
            return Header(tokens, notation)
    raise ValueError(f"it must be a molecule in {asked or 'SELFIES or SMILES'}: got {cell[:60]!r}")


def read(
    cell: str | None, channels: int, size: tuple[int, ...], about: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """The molecule of a cell as the bits of its tokens' code words, bytes 0 or 255 of shape (channels, positions),
    filled up with those of `""`. Where `about` knows no vocabulary nothing but the first bits is told.

    Raises:
        ValueError: for a string that is no molecule, is longer, or has a token that the vocabulary doesn't, in one
            line.
    """
    found = header(cell, about)
    check(cell, found)
    vocabulary = (about or {}).get("vocabulary")
    codes = torch.zeros(1, 1, *size, dtype=torch.long)
    if vocabulary is not None:
        if len(found.tokens) > size[0] > 1:  # a size of 1 asks only whether it can be read
            raise ValueError(f"it must have no more tokens than fit, {size[0]}: got {len(found.tokens)}")
        if unknown := [token for token in found.tokens if token not in vocabulary]:
            raise ValueError(f"its tokens must be among the {len(vocabulary) - 1} of the model: got {unknown[0]!r}")
        codes[..., : len(found.tokens)] = torch.tensor([vocabulary[token] for token in found.tokens])[: size[0]]
    return whole(classes_to_bits(codes, CODES)[0])


def check(cell: Any, found: Header) -> None:
    """See that a string is a molecule.

    Raises:
        ValueError: for one that isn't: SELFIES with a symbol that there isn't, or SMILES that RDKit cannot read.
    """
    if found.notation == "selfies":
        if not any([_is_atom(token) for token in found.tokens]):  # all are looked at
            raise ValueError(f"it must be a molecule: got {cell[:60]!r}, without atoms")
    elif smiles_of(cell, "smiles") is None:
        raise ValueError(f"it must be a molecule that RDKit can read: got {cell[:60]!r}")


@functools.cache
def _is_atom(token: str) -> bool:
    """Whether a symbol of SELFIES makes an atom by itself.

    Raises:
        ValueError: for one that is none of SELFIES.
    """
    selfies = chemistry()[1]
    try:
        return token != "." and bool(selfies.decoder(token))
    except selfies.DecoderError:
        raise ValueError(f"its symbols must be those of SELFIES: got {token!r}") from None
