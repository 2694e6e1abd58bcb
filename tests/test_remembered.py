from __future__ import annotations

from llmweir.remembered import Remembered


def test_one_entry_too_many_pushes_out_the_oldest() -> None:
    remembered: Remembered[str, int] = Remembered(2)
    for number, name in enumerate("abc"):
        remembered[name] = number
    assert dict(remembered) == {"b": 1, "c": 2}


def test_an_entry_that_is_written_again_pushes_out_none() -> None:
    remembered: Remembered[str, int] = Remembered(2)
    for number, name in enumerate("abab"):
        remembered[name] = number
    assert dict(remembered) == {"a": 2, "b": 3}
