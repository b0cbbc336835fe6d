"""NaturalReasoning: questions that need reasoning, with their answers, out of web documents.

A document goes through two filters, of its language and of its kind, then gets a mark, and what is left gives a
question and an answer. Where it leaves is its termination, so that the run's summary counts them all. Yuan et al. 2025
(arXiv:2502.13124) describe the data set that was made so.

What a model says and can't be read has a termination of its own, since it says nothing about the document. A request
that fails for good makes an error row, and is never a reject.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matrix.agents.role import Role
from matrix.agents.state import State, Turn
from matrix.agents.teams.extraction import read_fields
from matrix.agents.teams.language import guess_language
from matrix.agents.tools import Tools
from matrix.data.columns import find
from matrix.errors import DataError

_YES_OR_NO = re.compile(r"(?<![\w'])(yes|no)(?![\w'])", re.IGNORECASE)
_OUT_OF_TEN = re.compile(r"(?<![\d.])(\d{1,2}(?:\.\d+)?)\s?(?:/|out of)\s?10(?!\d)", re.IGNORECASE)
_STATED_SCORE = re.compile(
    r"(?:score|rating|mark)\b[^\d\n]{0,20}(?<![\d.-])(\d{1,2}(?:\.\d+)?)(?![\d/])", re.IGNORECASE
)
_NUMBER = re.compile(r"(?<![\d.\w-])(\d{1,2}(?:\.\d+)?)(?![\d%\w])")
_NOTHING = frozenset({"", "none", "null", "n/a", "na", "no question", "no answer", "not applicable", "empty"})


class LanguageFilter(Role):
    """Lets documents of some languages through; the others end as `filter_by_language`. Asks no model.

    Args:
        languages: Codes of those that pass.
        text: Column, or key path, of the text.
        given: Key path of a probability that the data set itself has, such as
            `language_id_whole_page_fasttext.en`; the text is looked at where a row lacks it. None: it has none.
        threshold: What that has to reach.
    """

    def __init__(
        self,
        *,
        languages: Sequence[str] = ("en",),
        text: str = "text",
        given: str | None = None,
        threshold: float = 0.8,
    ) -> None:
        self._languages, self._text, self._given, self._threshold = languages, text, given, threshold

    async def act(self, state: State, tools: Tools) -> Turn:
        """Look at the document's language."""
        probability = find(state.task, self._given) if self._given else None
        if probability is not None:
            passes, text = float(probability) >= self._threshold, f"{self._given}: {probability}"
        else:
            document = find(state.task, self._text)
            if not isinstance(document, str):
                raise DataError(f"the row has no text at {self._text!r}: agents.roles.{tools.role}.options.text")
            language, sure = guess_language(document)
            passes, text = language in self._languages, f"{language or 'no language'} ({sure:.0%} sure)"
        return Turn(text=text, end=None if passes else "filter_by_language")


class Classifier(Role):
    """A model that says yes or no: `filter_by_classifier` for no, `unclear_classifier` for neither."""

    async def act(self, state: State, tools: Tools) -> Turn:  # noqa: ARG002
        """Ask about the document."""
        response = await tools.llm([{"role": "user", "content": tools.prompt()}])
        passes = read_yes_or_no(response.text[0])
        ends = {True: None, False: "filter_by_classifier", None: "unclear_classifier"}
        return Turn(text=response.text[0], data={"passes": passes}, end=ends[passes])


class Scorer(Role):
    """A model that marks from 1 to 10: `filter_by_score` below the threshold, `unclear_score` without a mark.

    Args:
        threshold: The lowest mark that passes.
    """

    def __init__(self, *, threshold: float = 6) -> None:
        self._threshold = threshold

    async def act(self, state: State, tools: Tools) -> Turn:
        """Mark the document."""
        response = await tools.llm([{"role": "user", "content": tools.prompt()}])
        score = read_score(response.text[0])
        if score is None:
            return Turn(text=response.text[0], end="unclear_score")
        state.metrics["score"] = score
        end = "filter_by_score" if score < self._threshold else None
        return Turn(text=response.text[0], data={"score": score}, end=end)


class QuestionExtractor(Role):
    """A model that gives a question and its answer: `extracted`, with both in the turn's `data`.

    It ends as `unparsed` if what the model says has neither JSON nor tags with a question, as `no_question` or
    `no_answer` if it says that there is none.
    """

    async def act(self, state: State, tools: Tools) -> Turn:  # noqa: ARG002
        """Ask for the question."""
        response = await tools.llm([{"role": "user", "content": tools.prompt()}])
        text = response.text[0]
        found = read_question(text)
        if found is None:
            return Turn(text=text, end="unparsed")
        if not found.question or not found.answer:
            return Turn(text=text, end="no_answer" if found.question else "no_question")
        return Turn(text=text, data={"question": found.question, "answer": found.answer}, end="extracted")


@dataclass(frozen=True, slots=True)
class Question:
    """What a model found in a document; empty where it says that there is none."""

    question: str
    answer: str


def read_yes_or_no(text: str) -> bool | None:
    """The first yes or no of a reply (`Yes.`, `**No**, since ...`); None if neither is in it."""
    found = _YES_OR_NO.search(text)
    return found[1].casefold() == "yes" if found else None


def read_score(text: str) -> float | None:
    """The mark in a reply, 1 to 10: the last `N/10`, else after the last `score:`, else the first number, if any."""
    for stated in (_OUT_OF_TEN, _STATED_SCORE):
        fits = [mark for mark in map(float, stated.findall(text)) if 1 <= mark <= 10]
        if fits:
            return fits[-1]
    first = _NUMBER.search(text)
    return float(first[1]) if first and 1 <= float(first[1]) <= 10 else None


def read_question(text: str) -> Question | None:
    """The question and the answer of a reply; None if it has no question in a form that can be read."""
    found = read_fields(text, ("question", "answer"))
    if found is None:
        return None
    question, answer = (_or_nothing(found.get(name, "")) for name in ("question", "answer"))
    return Question(question, answer)


def _or_nothing(text: str) -> str:
    return "" if text.strip(" .*").casefold() in _NOTHING else text
