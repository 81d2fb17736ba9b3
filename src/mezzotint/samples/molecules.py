# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Molecules that were drawn, strings in SELFIES or SMILES: as structures, and as files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from mezzotint.samples import as_bytes

ENDINGS = (".smi", ".txt")  # SMILES, or strings as they are drawn
SIDE = 160  # pixels of a picture of a molecule


def measured(pipe: Any) -> str:
    """The length and the notation of a pipeline's molecules, in words."""
    return f"{pipe.default_size[0]} tokens of {pipe.notation.upper()}"


def chemistry() -> tuple[Any, Any]:
    """The libraries that read and draw molecules: RDKit and selfies.

    Raises:
        ImportError: where they are not installed, in one line.
    """
    try:
        import selfies
        from rdkit import Chem
    except ImportError:
        raise ImportError("molecules need rdkit and selfies; pip install 'mezzotint[molecules]' brings them") from None
    return Chem, selfies


def smiles_of(drawn: str, notation: str) -> str | None:
    """The canonical SMILES of a string, by which molecules are compared; `None` for what is no molecule."""
    Chem, selfies = chemistry()
    from rdkit import rdBase

    try:
        smiles = selfies.decoder(drawn) if notation == "selfies" else drawn
    except selfies.DecoderError:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles) if smiles else None
        return Chem.MolToSmiles(molecule) if molecule is not None and molecule.GetNumAtoms() else None


def show(drawn: str, about: Mapping[str, Any], size: tuple[int, ...]) -> Image.Image:
    """A molecule as a picture: its structure, or where there is none, or nothing that could draw one, its string."""
    try:
        smiles = smiles_of(drawn, about["notation"])
        if smiles is not None:
            from rdkit.Chem.Draw import MolToImage  # which needs libraries of the system

            return MolToImage(chemistry()[0].MolFromSmiles(smiles), size=(SIDE, SIDE)).convert("RGB")
    except ImportError:
        pass
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    lines = [drawn[start : start + 24] for start in range(0, len(drawn), 24)] or ["(nothing)"]
    ImageDraw.Draw(picture).multiline_text((6, 6), "\n".join(lines), fill="black")
    return picture


def states(pipe: Any, data: torch.Tensor) -> np.ndarray:
    """Decoded samples (molecules, channels, positions) as bytes (molecules, channels, positions, 1): analog bits, those
    of a token above each other."""
    return as_bytes(data[:, None])


def encoded(drawn: str, ending: str, about: Mapping[str, Any]) -> bytes:
    """A molecule as a line of a file of one of `ENDINGS`; SELFIES become SMILES in a `.smi`."""
    if ending == ".smi" and about["notation"] == "selfies":
        drawn = chemistry()[1].decoder(drawn)
    return f"{drawn}\n".encode()
