"""Collaborative Reasoner: two reasoners talk about a problem until they hold the same answer.

After every turn of a reasoner, an extractor reads from it which answer the reasoner holds, and a matcher compares that
with what the other one held last. Ni et al. 2025, "Collaborative Reasoner: Self-Improving Social Agents with Synthetic
Conversations", describe the task and its metrics.
"""

from __future__ import annotations

from matrix.agents.role import Role
from matrix.agents.state import State, Turn
from matrix.agents.tools import Tools
from matrix.data.rows import Entry, Response, Score

UNKNOWN = Score([0.0], [None])
"""Of a conversation in which nobody has stated an answer."""


class Reasoner(Role):
    """One of the two that talk. The problem and how to talk about it stand in its prompt.

    Args:
        partner: The role that it talks with.
        opening: What the one that begins is asked, in the partner's place.
        remember: Tokens of the conversation that it is sent; older turns are left out. None: all of it.
    """

    def __init__(
        self, *, partner: str, opening: str = "How would you solve it? You begin.", remember: int | None = None
    ) -> None:
        self._partner, self._opening, self._remember = partner, opening, remember

    async def act(self, state: State, tools: Tools) -> Response:
        """Answer the partner."""
        turns = recent(state.turns_of(tools.role, self._partner), self._remember)
        said = [("assistant" if turn.agent == tools.role else "user", turn.text) for turn in turns]
        # Chat templates want the user to begin.
        if not said or said[0][0] == "assistant":
            said.insert(0, ("user", self._opening))
        messages = [{"role": role, "content": text} for role, text in said]
        return await tools.llm([{"role": "system", "content": tools.prompt()}, *messages])


class Extractor(Role):
    """Has a model say which answer the turn before states, and a scorer read it.

    Its prompt gets that turn as `reply`. A reply that states none, or one that can't be read, is no error: the reasoner
    holds what it held before.

    Args:
        scorer: Label in `agents.scorers`; it brings equal answers into the same form.
        undecided: The word with which the model says that the reply states none.
        choices: Column with the options of a multiple choice; a letter beyond them is none. None: it isn't one.
    """

    def __init__(self, *, scorer: str = "correct", undecided: str = "UNDECIDED", choices: str | None = None) -> None:
        self._scorer, self._undecided, self._choices = scorer, undecided.casefold(), choices

    async def act(self, state: State, tools: Tools) -> Turn:
        """Read the turn before."""
        spoke = state.history[-1]
        response = await tools.llm([{"role": "user", "content": tools.prompt(reply=spoke.text)}])
        text = response.text[0]
        score = UNKNOWN
        if text.strip() and self._undecided not in text.casefold():
            score = await tools.score(self._scorer, text)
        answer = score.answers[0]
        if answer is not None and self._choices and answer not in "ABCDEFGHIJ"[: len(state.task[self._choices])]:
            answer = None
        right = score.values[0] if answer is not None else 0.0
        return Turn(text=text, data={"speaker": spoke.agent, "answer": answer, "right": right})


class Matcher(Role):
    """Ends the conversation with `agreement` once both hold the same answer, and keeps its figures; asks no model.

    Figures are those of the paper: `agreement` and `agreement_correctness` (0 or 1), `total_turns` of the two,
    `t_len` and `s_len` (tokens of a turn of the teacher and of the student, in the mean) and `conv_len` (of all turns).
    The score is that of the answer which both hold, or else of the one stated last.

    Args:
        teacher: The reasoner that begins.
        student: The other.
        extractor: The role whose turns say what they hold.
        scorer: Label of the score.
    """

    def __init__(
        self,
        *,
        teacher: str = "teacher",
        student: str = "student",
        extractor: str = "answer_extractor",
        scorer: str = "correct",
    ) -> None:
        self._teacher, self._student = teacher, student
        self._extractor, self._scorer = extractor, scorer

    async def act(self, state: State, tools: Tools) -> Turn:  # noqa: ARG002 - as `Role` has it
        """Compare what the two hold."""
        stated = [
            turn.data for turn in state.turns_of(self._extractor) if turn.data and turn.data["answer"] is not None
        ]
        held = {one["speaker"]: one["answer"] for one in stated}
        last = stated[-1] if stated else None
        agreed = len(held) == 2 and len(set(held.values())) == 1
        state.scores[self._scorer] = Score([last["right"]], [last["answer"]]) if last else UNKNOWN
        lengths = {name: [tokens(turn) for turn in state.turns_of(name)] for name in (self._teacher, self._student)}
        state.metrics.update(
            agreement=float(agreed),
            agreement_correctness=float(agreed and last is not None and last["right"] == 1),
            total_turns=float(sum(map(len, lengths.values()))),
            t_len=_mean(lengths[self._teacher]),
            s_len=_mean(lengths[self._student]),
            conv_len=float(sum(map(sum, lengths.values()))),
        )
        text = ", ".join(f"{name}: {held.get(name, 'undecided')}" for name in lengths)
        return Turn(text=text, data={"held": held, "agreement": agreed}, end="agreement" if agreed else None)


def recent(turns: list[Entry], limit: int | None) -> list[Entry]:
    """The last turns that fit into so many tokens, and the very last one even if it doesn't."""
    if limit is None:
        return turns
    kept: list[Entry] = []
    for turn in reversed(turns):
        limit -= tokens(turn)
        if limit < 0 and kept:
            break
        kept.append(turn)
    return kept[::-1]


def tokens(turn: Entry) -> int:
    """Tokens of a turn as servers counted them, or a guess by its length where they didn't."""
    counted = sum(call.usage.get("completion_tokens") or 0 for call in turn.calls)
    return counted or -(-len(turn.text) // 4)


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
