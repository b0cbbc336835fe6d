from __future__ import annotations

import time

import pytest

from matrix.agents.teams.language import guess_language
from tests.agents.teams.test_team_configs import rows


def test_the_documents_of_the_sample() -> None:
    for row in rows("web_sample"):
        language, sure = guess_language(row["text"])
        assert (language, sure > 0.7) == (row["language"], True), row["id"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", None),
        ("12 + 34 = 46, 2026!", None),
        ("Xyzzy plugh foobar quux corge grault garply waldo fred wibble wobble flob", None),
        ("The cat sat on the mat.", "en"),
        ("def f(x): return x  # this is the sum of the two numbers that are given to it", "en"),
        ("한국어는 한국에서 사용되는 언어입니다.", "ko"),
        ("اللغة العربية هي لغة سامية", "ar"),
        ("η ελληνική γλώσσα είναι ινδοευρωπαϊκή", "el"),
        ("Bu bir deneme metni ve çok kısa, ama daha sonra her şey için ne gibi", "tr"),  # noqa: RUF001
        ("To jest krótki tekst, który nie jest po angielsku, ale może być dla tego testu", "pl"),
    ],
)
def test_texts(text: str, language: str | None) -> None:
    assert guess_language(text)[0] == language


def test_a_page_of_names_in_latin_letters_is_in_no_language() -> None:
    assert guess_language("Anna Berg, Carla Dorn, Emil Fink, Gerd Hahn, Ida Jung " * 50) == (None, 0.0)


def test_a_long_text_takes_no_longer_than_its_beginning() -> None:
    start = time.process_time()
    assert guess_language("the end of it " * 2_000_000)[0] == "en"
    assert time.process_time() - start < 0.5
