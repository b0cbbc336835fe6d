"""OpenAI's chat format into Gemini's and back: pure functions on what google-genai takes and gives.

https://ai.google.dev/api/generate-content says what the fields mean.
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import answers, requests
from matrix.serving.gateways.answers import Chunks
from matrix.serving.gateways.requests import Image
from matrix.serving.gateways.unsupported import VLLM_FIELDS, refuse_fields

if TYPE_CHECKING:
    from google.genai import types

API = "the Gemini API"

_NO_COUNTERPART = VLLM_FIELDS | {"logit_bias"}

_PASSED_ON = {
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "safety_settings": "safety_settings",
    "cached_content": "cached_content",
    "service_tier": "service_tier",
}
"""Fields of a body that are called alike, Gemini's own included."""

_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""What Gemini 2.5 gets for `reasoning_effort`, as in Google's own OpenAI endpoint: https://ai.google.dev/gemini-api/docs/openai."""

_LEVELS = {"none": "MINIMAL", "minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH"}
"""What later models get, which take a level instead of a budget and can't do without thinking."""

_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED = {
    "BLOCKLIST",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "IMAGE_SAFETY",
    "MODEL_ARMOR",
    "PROHIBITED_CONTENT",
    "RECITATION",
    "SAFETY",
    "SPII",
}


def request(body: Json, model: str, thinking_budget: int | None) -> tuple[list[Json], Json]:
    """Contents and config of `generate_content` for a chat completion request.

    Args:
        body: The request.
        model: Name of the model; says whether thinking goes by budgets or by levels.
        thinking_budget: What holds where the request doesn't say; None: the model's default.

    Raises:
        ApiError: 400: something has no counterpart.
    """
    refuse_fields(body, _NO_COUNTERPART, API)
    config: Json = {theirs: body[ours] for ours, theirs in _PASSED_ON.items() if body.get(ours) is not None}
    if (limit := requests.max_tokens_of(body)) is not None:
        config["max_output_tokens"] = limit
    if (top_k := body.get("top_k")) and top_k > 0:
        config["top_k"] = top_k
    if (seed := body.get("seed")) is not None:
        # A signed number of 32 bits in their API.
        config["seed"] = seed & 0x7FFFFFFF
    if stops := requests.stops_of(body):
        config["stop_sequences"] = stops
    if (n := body.get("n") or 1) > 1:
        config["candidate_count"] = n
    if body.get("logprobs"):
        config["response_logprobs"] = True
        if body.get("top_logprobs"):
            config["logprobs"] = body["top_logprobs"]
    system, messages = requests.split_system(body["messages"])
    if system:
        config["system_instruction"] = system
    return _contents(messages), config | _response_format(body) | _tools(body) | _thinking(body, model, thinking_budget)


def _contents(messages: list[Json]) -> list[Json]:
    """The turns."""
    contents: list[Json] = []
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            part = _function_response(message, names)
            # The results of parallel calls have to stand in one turn.
            if contents and "function_response" in contents[-1]["parts"][-1]:
                contents[-1]["parts"].append(part)
            else:
                contents.append({"role": "user", "parts": [part]})
        elif role == "assistant":
            text = requests.text_of(content)
            calls = [_function_call(call) for call in message.get("tool_calls") or ()]
            contents.append({"role": "model", "parts": [*([{"text": text}] if text or not calls else []), *calls]})
        elif role == "user":
            contents.append({"role": "user", "parts": [_part(part) for part in requests.parts_of(content)]})
        else:
            raise ApiError(400, f"There are no messages of role {role!r}.")
    return contents


def _part(part: str | Image) -> Json:
    """A part of a user's message."""
    if isinstance(part, str):
        return {"text": part}
    if part.data:
        return {"inline_data": {"mime_type": part.media_type, "data": part.data}}
    return {"file_data": {"file_uri": part.url, "mime_type": mimetypes.guess_type(part.url)[0]}}


def _function_call(call: Json) -> Json:
    """A tool call of an earlier answer, with the signature of the thoughts before it if the client kept it.

    https://ai.google.dev/gemini-api/docs/thought-signatures: Gemini 3 refuses calls without theirs.
    """
    function = {"id": call["id"], "name": call["function"]["name"], "args": requests.arguments_of(call)}
    part: Json = {"function_call": function}
    signature = ((call.get("extra_content") or {}).get("google") or {}).get("thought_signature")
    if signature:
        part["thought_signature"] = base64.b64decode(signature)
    return part


def _function_response(message: Json, names: dict[str, str]) -> Json:
    call_id = message.get("tool_call_id")
    if call_id not in names:
        raise ApiError(400, f"No message before has a tool call {call_id!r}.")
    text = requests.text_of(message.get("content"))
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    # An object is wanted; what else a tool says goes by the name that they give it.
    response = said if isinstance(said, dict) else {"output": text}
    return {"function_response": {"id": call_id, "name": names[call_id], "response": response}}


def _response_format(body: Json) -> Json:
    wanted = requests.schema_of(body)
    if wanted is None:
        return {}
    schema = {} if wanted.schema is None else {"response_json_schema": wanted.schema}
    return {"response_mime_type": "application/json", **schema}


def _tools(body: Json) -> Json:
    tools = requests.tools_of(body)
    if not tools:
        return {}
    declared = [
        {"name": tool.name, "description": tool.description, "parameters_json_schema": tool.parameters}
        for tool in tools
    ]
    config: Json = {
        "tools": [{"function_declarations": declared}],
        "automatic_function_calling": {"disable": True},
    }
    if (choice := body.get("tool_choice")) is not None:
        config["tool_config"] = {"function_calling_config": _calling(choice)}
    return config


def _calling(choice: str | Json) -> Json:
    """The function calling mode for a `tool_choice`."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"mode": "ANY", "allowed_function_names": [choice["function"]["name"]]}
    modes = {"none": "NONE", "auto": "AUTO", "required": "ANY"}
    if not isinstance(choice, str) or choice not in modes:
        raise ApiError(400, f"tool_choice={choice!r}: should be none, auto, required or a function.")
    return {"mode": modes[choice]}


def _thinking(body: Json, model: str, default: int | None) -> Json:
    """What a request says of thinking (a budget, or an effort), or what the engine has; thoughts are to be shown."""
    effort = body.get("reasoning_effort")
    budget = body.get("thinking_budget", None if effort else default)
    if budget is not None:
        return {"thinking_config": {"thinking_budget": budget, "include_thoughts": budget != 0}}
    if effort is None:
        return {}
    by_budget = "gemini-2" in model
    known: Mapping[str, int | str] = _BUDGETS if by_budget else _LEVELS
    if effort not in known:
        raise ApiError(400, f"reasoning_effort={effort!r}: should be one of {', '.join(known)}.")
    name = "thinking_budget" if by_budget else "thinking_level"
    return {"thinking_config": {name: known[effort], "include_thoughts": effort != "none"}}


def answer(response: types.GenerateContentResponse, model: str) -> Json:
    """The `chat.completion` for a whole response.

    Raises:
        ApiError: 400: the prompt was blocked. 502: there is no answer.
    """
    _check(response)
    choices = []
    for place, candidate in enumerate(response.candidates or ()):
        text, thoughts, calls = _said(candidate)
        index = place if candidate.index is None else candidate.index
        finish = _finish(candidate, called=bool(calls)) or "stop"
        choice = answers.choice(index, finish, text=text or None, reasoning=thoughts, tool_calls=calls)
        choices.append({**choice, "logprobs": _logprobs(candidate.logprobs_result)})
    if not choices:
        raise ApiError(502, f"{API} gave no candidate.")
    return answers.completion(model, choices, usage(response.usage_metadata), response.response_id)


class GeminiStream:
    """Turns the responses of one stream into chunks.

    Args:
        model: What chunks say.
    """

    def __init__(self, model: str) -> None:
        self._chunks = Chunks(model)
        self._usage: types.GenerateContentResponseUsageMetadata | None = None
        self._calls: dict[int, int] = {}
        self._finished: set[int] = set()

    def feed(self, response: types.GenerateContentResponse) -> list[Json]:
        """The chunks for one response.

        Raises:
            ApiError: 400: the prompt was blocked. 502: the answer ended in a way that is none.
        """
        _check(response)
        self._usage = response.usage_metadata or self._usage
        chunks = []
        for candidate in response.candidates or ():
            index = candidate.index or 0
            text, thoughts, calls = _said(candidate)
            delta: Json = {}
            if index not in self._calls:
                self._calls[index] = 0
                delta = {"role": "assistant", "content": ""}
            if text:
                delta["content"] = text
            if thoughts:
                delta["reasoning_content"] = thoughts
            if calls:
                first = self._calls[index]
                delta["tool_calls"] = [{"index": first + place, **call} for place, call in enumerate(calls)]
                self._calls[index] += len(calls)
            finish = _finish(candidate, called=self._calls[index] > 0)
            logprobs = _logprobs(candidate.logprobs_result)
            if delta or finish or logprobs:
                chunk = self._chunks.delta(index, finish, **delta)
                chunk["choices"][0]["logprobs"] = logprobs
                chunks.append(chunk)
            if finish:
                self._finished.add(index)
        return chunks

    def end(self) -> list[Json]:
        """The chunk with the usage, after the last response.

        Raises:
            ApiError: 502: the stream broke off before the answer's end.
        """
        if not self._calls or self._calls.keys() - self._finished:
            raise ApiError(502, f"{API} broke off its stream before the end of the answer.")
        return [self._chunks.usage(usage(self._usage))]


def usage(counted: types.GenerateContentResponseUsageMetadata | None) -> Json:
    """The `usage`; thoughts count as tokens of the answer."""
    if counted is None:
        return answers.usage(0, 0)
    prompt = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    said = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
    cached, thoughts = counted.cached_content_token_count, counted.thoughts_token_count
    return answers.usage(prompt, said, cached=cached, reasoning=thoughts)


def _said(candidate: types.Candidate) -> tuple[str, str, list[Json]]:
    """Text, thoughts and tool calls of a candidate."""
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for part in (candidate.content and candidate.content.parts) or ():
        if part.text is not None:
            (thoughts if part.thought else text).append(part.text)
        if part.function_call is not None:
            asked = part.function_call
            call = answers.tool_call(asked.name or "", json.dumps(asked.args or {}, ensure_ascii=False), asked.id)
            if part.thought_signature:
                signature = base64.b64encode(part.thought_signature).decode()
                call["extra_content"] = {"google": {"thought_signature": signature}}
            calls.append(call)
    return "".join(text), "".join(thoughts), calls


def _check(response: types.GenerateContentResponse) -> None:
    """Refuse a response that says that the prompt was."""
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        why = f": {feedback.block_reason_message}" if feedback.block_reason_message else ""
        raise ApiError(400, f"{API} blocked the prompt, {feedback.block_reason.value}{why}", kind="content_filter")


def _finish(candidate: types.Candidate, *, called: bool) -> str | None:
    """The finish reason; None while the answer goes on."""
    if candidate.finish_reason is None:
        return None
    reason = candidate.finish_reason.value
    if reason in _FILTERED:
        return "content_filter"
    if reason not in _FINISH:
        # MALFORMED_FUNCTION_CALL, OTHER, ...: the model failed, which another try may not.
        raise ApiError(502, f"{API} ended the answer with {reason}: {candidate.finish_message or 'no message'}")
    return "tool_calls" if called and reason == "STOP" else _FINISH[reason]


def _logprobs(result: types.LogprobsResult | None) -> Json | None:
    """OpenAI's `logprobs`. Gemini gives tokens as text, and minus infinity for what it didn't count."""
    if result is None or not result.chosen_candidates:
        return None
    tops = result.top_candidates or []
    content = []
    for place, chosen in enumerate(result.chosen_candidates):
        others = (tops[place].candidates or []) if place < len(tops) else []
        content.append({**_token(chosen), "top_logprobs": [_token(other) for other in others]})
    return {"content": content, "refusal": None}


def _token(candidate: types.LogprobsResultCandidate) -> Json:
    token = candidate.token or ""
    logprob = -9999.0 if candidate.log_probability is None else candidate.log_probability
    # -9999 is OpenAI's own value for what is not among the likeliest; JSON has no infinity.
    return {"token": token, "logprob": logprob if math.isfinite(logprob) else -9999.0, "bytes": list(token.encode())}
