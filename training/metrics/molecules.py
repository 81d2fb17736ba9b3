# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What drawn molecules are worth: how many are molecules, different ones and new ones, how far they are from real ones,
and whether they have what was asked for. The measures are those of MOSES (<https://huggingface.co/papers/1811.12823>,
section 4), on canonical SMILES."""

from collections.abc import Collection, Sequence

import torch

from mezzotint.samples.molecules import chemistry, smiles_of
from mezzotint_training.metrics.distances import frechet_distance, gaussian
from mezzotint_training.metrics.intervals import Figure, average, enough, share


def canonical(drawn: Sequence[str], notation: str) -> list[str | None]:
    """The canonical SMILES of each drawn string, `None` for what is no molecule."""
    return [smiles_of(one, notation) for one in drawn]


def shares(drawn: Sequence[str | None], known: Collection[str]) -> dict[str, Figure]:
    """Shares with their 95 % intervals: `valid` of all that is drawn, `unique` of those that are valid, and `novel` of
    the different ones among these; 1 - `novel` is the copy rate.

    Args:
        drawn: what `canonical` returns.
        known: canonical SMILES of what was trained on.
    """
    valid = [one for one in drawn if one is not None]
    different, known = set(valid), set(known)
    found = {"valid": share(len(valid), len(drawn))}
    if valid:
        found["unique"] = share(len(different), len(valid))
        found["novel"] = share(len(different - known), len(different))
    return found


def chemnet_features(smiles: Sequence[str], batch_size: int = 128) -> torch.Tensor:
    """What ChemNet (<https://arxiv.org/abs/1803.09518>) sees in molecules, (N, 512): its last layer but one, by the
    network that the package `fcd` carries.

    Raises:
        ImportError: where that is not installed, in one line.
    """
    try:
        from fcd import load_ref_model
        from fcd.utils import SmilesDataset
    except ImportError:
        raise ImportError("the Fréchet ChemNet distance needs fcd; pip install fcd brings it") from None
    loader = torch.utils.data.DataLoader(SmilesDataset(list(smiles)), batch_size=batch_size)
    with torch.no_grad():
        network = load_ref_model()
        return torch.cat([network(batch.transpose(1, 2).float()) for batch in loader]).double()


def chemnet_distance(drawn: torch.Tensor, real: torch.Tensor) -> float:
    """The Fréchet ChemNet distance of two sets of features. It falls with the size of the sets: compare those of
    equally large ones alone.

    Args:
        drawn (`torch.Tensor` of shape `(N, 512)`), real (`torch.Tensor` of shape `(M, 512)`): of `chemnet_features`.
    """
    enough(2, drawn, real)
    return float(frechet_distance(gaussian(drawn), gaussian(real)))


def logp(smiles: Sequence[str]) -> torch.Tensor:
    """Crippen's estimate of the logarithm of each molecule's partition coefficient, (N,)."""
    Chem, _ = chemistry()
    from rdkit.Chem.Crippen import MolLogP

    return torch.tensor([MolLogP(Chem.MolFromSmiles(one)) for one in smiles], dtype=torch.float64)


def logp_error(drawn: Sequence[str | None], asked: Sequence[float]) -> Figure:
    """How far the logP of valid molecules is, on average, from the one that was asked for."""
    pairs = [(one, value) for one, value in zip(drawn, asked, strict=True) if one is not None]
    smiles, values = zip(*pairs, strict=True)
    return average((logp(smiles) - torch.tensor(values, dtype=torch.float64)).abs())
