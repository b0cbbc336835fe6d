"""Debate: several debaters answer at the same time, see one another's answers, and answer again until they agree.

Du et al. 2023 (arXiv:2305.14325). The judge opens each round; an edge with a `join` has the debaters speak at the same
time and brings their answers back to it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

from matrix.agents.role import Role
from matrix.agents.state import State, Turn
from matrix.agents.tools import Tools
from matrix.data.rows import Entry, Score

_VERDICT = re.compile(r"verdict[\s:*]{1,10}(?P<verdict>[^\n]*)", re.IGNORECASE)
_GO_ON = re.compile(r"\W*(continue|go on|undecided|no consensus)\b", re.IGNORECASE)


class Debater(Role):
    """Answers the question; from the second round on with the others' answers of the round before at hand.

    Args:
        scorer: Label in `agents.scorers`; it reads the answer, and brings equal ones into the same form.
        follow_up: What it is asked in later rounds, before the others' answers.
        quote: Characters of each answer of another that it is sent, the last ones. None: all.
    """

    def __init__(
        self,
        *,
        scorer: str = "correct",
        follow_up: str = "Others answered as follows. Check where they differ from you, and answer again.",
        quote: int | None = None,
    ) -> None:
        self._scorer, self._follow_up, self._quote = scorer, follow_up, quote

    async def act(self, state: State, tools: Tools) -> Turn:
        """Answer, or answer again."""
        mine = state.last_of(tools.role)
        number = 1 if mine is None else _round(mine) + 1
        messages = [{"role": "user", "content": tools.prompt()}]
        if mine is not None:
            others = [turn for turn in answers(state.history, number - 1) if turn.agent != tools.role]
            quoted = [f"{turn.agent}:\n{turn.text[-self._quote :] if self._quote else turn.text}" for turn in others]
            messages.append({"role": "assistant", "content": mine.text})
            messages.append({"role": "user", "content": "\n\n".join([self._follow_up, *quoted])})
        # Debaters with the same prompt and the same seed would all say the same.
        own = random.Random(f"{state.seed} {tools.role} {number}").getrandbits(31)  # noqa: S311 - nothing secret
        response = await tools.llm(messages, seed=own)
        score = await tools.score(self._scorer, response.text[0])
        data = {"round": number, "answer": score.answers[0], "right": score.values[0]}
        return Turn(text=response.text[0], data=data)


class Majority(Role):
    """Ends the debate with `consensus` once enough of the debaters agree, or with `no_consensus` after the last round.

    The answer is the one that most hold. Figures: `rounds`, `agreement` (share of the debaters that hold the answer),
    and `first_round_correct`: whether the majority was right before anybody had seen the others.

    Args:
        rounds: Rounds at most.
        share: Of the debaters that have to agree.
        scorer: Label of the score.
    """

    def __init__(self, *, rounds: int = 3, share: float = 1.0, scorer: str = "correct") -> None:
        self._rounds, self._share, self._scorer = rounds, share, scorer

    async def act(self, state: State, tools: Tools) -> Turn:
        """Open a round, or end the debate."""
        number = max(map(_round, state.history), default=0)
        if number == 0:
            return Turn(text="Round 1", data={"opens": 1})
        turns = answers(state.history, number)
        winner, held = majority(turns)
        reason, verdict, settled = await self._verdict(turns, winner, held / len(turns), tools)
        state.scores[self._scorer] = verdict
        share = [_answer(turn) for turn in turns].count(verdict.answers[0]) / len(turns) if verdict.answers[0] else 0.0
        state.metrics.update(rounds=float(number), agreement=share)
        if number == 1:
            state.metrics["first_round_correct"] = winner.values[0]
        said = {"round": number, "answer": verdict.answers[0], "agreement": share}
        if settled or number >= self._rounds:
            return Turn(text=reason, data={"closes": said}, end="consensus" if settled else "no_consensus")
        return Turn(text=reason, data={"closes": said, "opens": number + 1})

    async def _verdict(
        self,
        turns: list[Entry],  # noqa: ARG002 - for those that look at them
        winner: Score,
        share: float,
        tools: Tools,  # noqa: ARG002
    ) -> tuple[str, Score, bool]:
        """What it says of a round, the score of the answer, and whether that settles it."""
        answer = winner.answers[0]
        said = "nobody has an answer" if answer is None else f"{share:.0%} hold {answer}"
        return said, winner, answer is not None and share >= self._share


class Judge(Majority):
    """A model that reads the answers and says whether one of them stands, with a last line such as `Verdict: 42`.

    Its prompt gets the round's answers as `answers`. If it says to go on, or nothing that can be read, there is another
    round; after the last one the majority counts.
    """

    async def _verdict(
        self,
        turns: list[Entry],
        winner: Score,
        share: float,  # noqa: ARG002
        tools: Tools,
    ) -> tuple[str, Score, bool]:
        said = [{"agent": turn.agent, "text": turn.text, "answer": _answer(turn)} for turn in turns]
        text = (await tools.llm([{"role": "user", "content": tools.prompt(answers=said)}])).text[0]
        verdict = read_verdict(text)
        score = await tools.score(self._scorer, verdict) if verdict else None
        if score is None or score.answers[0] is None:
            return text, winner, False
        return text, score, True


def answers(history: list[Entry], number: int) -> list[Entry]:
    """The debaters' turns of a round, by their names: they end in any order, and a replay has to see the same one."""
    return sorted((turn for turn in history if _round(turn) == number), key=lambda turn: turn.agent)


def majority(turns: list[Entry]) -> tuple[Score, int]:
    """The answer that most of the turns have, as a score, and how many have it; of equally many the first."""
    held = [turn for turn in turns if _answer(turn) is not None]
    if not held:
        return Score([0.0], [None]), 0
    answer, count = Counter(map(_answer, held)).most_common(1)[0]
    right: float = next(turn.data["right"] for turn in held if turn.data and _answer(turn) == answer)
    return Score([right], [answer]), count


def read_verdict(text: str) -> str | None:
    """What stands after the last `Verdict:`; None if the debate should go on, or nothing stands there."""
    found = list(_VERDICT.finditer(text))
    said = found[-1]["verdict"].strip() if found else ""
    return None if not said or _GO_ON.match(said) else said


def _round(turn: Entry) -> int:
    """The round of a debater's turn; 0 for others."""
    return int((turn.data or {}).get("round", 0))


def _answer(turn: Entry) -> Any:
    return (turn.data or {}).get("answer")
