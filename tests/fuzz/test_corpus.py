"""Replays the kept inputs, tries some new ones, and times a long one of every awkward shape."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.shapes import SHAPES, fill
from tests.fuzz.targets import CORPUS, TARGETS, Target

_MOST_SECONDS: Final = 8.0
"""300 KB take well under a second where time is linear, and a minute or more where it is not."""
_SLOW_TARGETS: Final = frozenset({"connection"})
"""Each of its inputs is a server of its own: fewer are made."""


def kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_holds_what_its_target_claims(name: str) -> None:
    inputs = kept(name)
    assert inputs, "a target without a corpus"
    for data in inputs:
        TARGETS[name](data)


def test_every_folder_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in Path(CORPUS).rglob("*") if path.is_file()) < 400_000


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs_hold_what_their_target_claims(name: str) -> None:
    target, seeds = TARGETS[name], kept(name)

    @settings(max_examples=20 if name in _SLOW_TARGETS else 80)
    @given(data=st.one_of(st.binary(max_size=200), st.builds(_twisted, st.sampled_from(seeds), _edits)))
    def tries(data: bytes) -> None:
        target(data)

    tries()


_edits = st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 8), st.binary(max_size=12)), min_size=1, max_size=6)


def _twisted(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace some bytes of a kept input, at each place so many by others."""
    for at, length, piece in edits:
        start = at % (len(seed) + 1)
        seed = seed[:start] + piece + seed[start + length :]
    return seed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(set(TARGETS) - _SLOW_TARGETS))
def test_a_long_input_of_any_shape_takes_linear_time(name: str, shape: str) -> None:
    target: Target = TARGETS[name]
    data = fill(name, shape)
    started = time.process_time()
    target(data)
    assert time.process_time() - started < _MOST_SECONDS
