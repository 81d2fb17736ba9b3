# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Reads YAML as settings are written in it: numbers, texts, truth values, lists and mappings, and nothing by which a
small file could become large or slow. Whoever wrote the file, reading it takes little time and memory and runs
nothing. Numbers are decimal: 010, 0x10 and 1:30, which are 8, 16 and 90 in YAML 1.1, are texts."""

import re
from typing import Any

import yaml

# Far beyond any settings: characters of a file, entries in it, lists in lists, digits of a number
LENGTH, ENTRIES, DEPTH, DIGITS = 2**18, 10_000, 32, 1000


def load(text: str) -> Any:
    """The value that a document holds, `None` for an empty one.

    Raises:
        yaml.YAMLError: for text that is not YAML, or not plain data: aliases, tags, keys that come twice or are not
            text, more than `LENGTH`, `ENTRIES`, `DEPTH` or `DIGITS`.
    """
    if len(text) > LENGTH:
        raise yaml.YAMLError(f"settings must be at most {LENGTH:,} characters: got {len(text):,}")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError) as error:  # of a number
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    # A date is a text here
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":bool"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.endswith((":null", ":bool", ":int", ":float", ":str", ":seq", ":map"))
    }

    def __init__(self, stream):
        super().__init__(stream)
        self.depth = self.entries = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not possible here", problem_mark=mark)
        self.depth, self.entries = self.depth + 1, self.entries + 1
        for what, got, most in (("lists in lists", self.depth, DEPTH), ("entries", self.entries, ENTRIES)):
            if got > most:
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem=f"{what} must be at most {most:,}", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag.endswith((":int", ":float")) and len(node.value) > DIGITS:
            mark = node.start_mark
            raise yaml.MarkedYAMLError(problem=f"numbers must have at most {DIGITS:,} digits", problem_mark=mark)
        return node

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                twice = isinstance(key, yaml.ScalarNode)
                problem = f"the key {key.value[:100]!r} comes twice" if twice else "keys must be names"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+][0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"),
    list("-+.0123456789"),
)
