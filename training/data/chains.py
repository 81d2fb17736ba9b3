# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The embedded set of molecules: chains of carbon that are made here, with captions. Small enough for the tests of all
that molecules go through; no claim is made of a model of it."""

import datasets

GROUPS = {"alkane": "", "alcohol": "O", "amine": "N", "chloride": "Cl", "thiol": "S"}
LENGTHS = range(3, 10)  # atoms of carbon in the chain


def chains() -> datasets.DatasetDict:
    """Alkanes, alcohols, amines, chlorides and thiols of 3 to 9 carbons in a chain, some with a methyl group on it,
    captioned "an alcohol", "a branched alcohol", ... in SMILES and SELFIES, with the number of atoms but hydrogen.
    Every fifth is the test split."""
    rows = []
    for length in LENGTHS:
        for branch in range(1, length // 2 + 1):  # at the first carbon it only makes the chain longer
            for name, atom in GROUPS.items():
                before, after = ["C"] * branch, ["C"] * (length - branch)
                branched = branch > 1
                smiles = "".join([*before, "(C)" if branched else "", *after, atom])
                selfies = [f"[{one}]" for one in [*after, *([atom] if atom else [])]]
                selfies = [
                    *(f"[{one}]" for one in before),
                    *(["[Branch1]", "[C]", "[C]"] if branched else []),
                    *selfies,
                ]
                article = "a branched" if branched else "an" if name[0] == "a" else "a"
                rows.append(
                    {
                        "smiles": smiles,
                        "selfies": "".join(selfies),
                        "text": f"{article} {name}",
                        "heavy_atoms": length + branched + bool(atom),
                    }
                )
    parts = {
        "train": [row for number, row in enumerate(rows) if number % 5 != 4 - number // 5 % 5],
        "test": [row for number, row in enumerate(rows) if number % 5 == 4 - number // 5 % 5],
    }
    return datasets.DatasetDict({split: datasets.Dataset.from_list(some) for split, some in parts.items()})
