"""Which language a text is in, by its script and its commonest words: cheap, and good enough to sort web pages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import islice

_LOOK_AT = 1000
"""Words, or letters, that are looked at: more change nothing."""

_WORDS = {
    "en": "the of and to in is that it for was with as on be are this by from or an have not which you at but they we",
    "de": "der die und das ist nicht ein eine mit den von zu im auf für sich dem des es auch als wird an sind aus",
    "fr": "le la les et des est une que dans qui pour pas du sur au avec il sont par plus ce cette nous vous ne se ou",
    "es": "el la los las y que es en una por para con del se no su al como más pero este esta son lo un cuando hay",
    "it": "il di che la è per un una non sono con del della le nel si da anche più ma come alla gli questo dei lo ha",
    "pt": "o que de e do da em um para é com não uma os no se na por mais as dos como mas foi ao das são tem você",
    "nl": "de het een van en in is dat op te zijn voor met niet aan er die ook als bij maar om wordt door naar deze",
    "pl": "w i na z nie się to jest do że o jak po co od za dla tak przez ale oraz które są być był może tego",
    "sv": "och att det i en som på är av för med till den har inte om ett men var sig så kan från eller vi de när",
    "tr": "ve bir bu da de için ile olarak çok daha olan gibi ne kadar sonra her var değil ama en olduğu ya mi",
}
_STOP_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}

# By the first word of a letter's name in Unicode.
_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "GREEK": "el",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
_WORD = re.compile(r"[^\W\d_]+")


def guess_language(text: str) -> tuple[str | None, float]:
    """Guess a text's language.

    Returns:
        Its code, and how sure that is, 0 to 1: the share of letters in the language's script, or by how much its
        commonest words outnumber those of others. None for a text without words, or with words of no language.
    """
    letters = Counter(map(_script, islice((letter for letter in text if letter.isalpha()), _LOOK_AT)))
    total = letters.total()
    if not total:
        return None, 0.0
    # A Japanese text has many Chinese characters, and no Chinese text has kana.
    if letters["ja"] > total / 20:
        letters["ja"] += letters.pop("zh", 0)
    script, count = letters.most_common(1)[0]
    return _by_words(text) if script == "latin" else (script or None, count / total)


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return "latin" if name == "LATIN" else _SCRIPTS.get(name, "")


def _by_words(text: str) -> tuple[str | None, float]:
    words = Counter(found[0].casefold() for found in islice(_WORD.finditer(text), _LOOK_AT))
    common = {name: sum(words[word] for word in listed) for name, listed in _STOP_WORDS.items()}
    first, second = sorted(common, key=lambda name: -common[name])[:2]
    # About every third word of a text is so common. With far fewer it is a list of names, or in another language.
    if common[first] < max(1, words.total() / 20):
        return None, 0.0
    return first, 1 - common[second] / (2 * common[first])
