"""OpenAI's chat format into Gemini's and back: pure functions on what google-genai takes and gives.

https://ai.google.dev/api/generate-content says what the fields mean.
"""

from __future__ import annotations

import base64
import math
import mimetypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import shapes
from matrix.serving.gateways.shapes import Chunks

if TYPE_CHECKING:
    from google.genai import types

API = "the Gemini API"

_NO_COUNTERPART = shapes.VLLM_FIELDS | {"logit_bias"}

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
    shapes.refuse_fields(body, _NO_COUNTERPART, API)
    config: Json = {theirs: body[ours] for ours, theirs in _PASSED_ON.items() if body.get(ours) is not None}
    if (limit := body.get("max_completion_tokens") or body.get("max_tokens")) is not None:
        config["max_output_tokens"] = limit
    if (top_k := body.get("top_k")) and top_k > 0:
        config["top_k"] = top_k
    if (seed := body.get("seed")) is not None:
        # A signed number of 32 bits in their API.
        config["seed"] = seed & 0x7FFFFFFF
    if stop := body.get("stop"):
        config["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if (n := body.get("n") or 1) > 1:
        config["candidate_count"] = n
    if body.get("logprobs"):
        config["response_logprobs"] = True
        if body.get("top_logprobs"):
            config["logprobs"] = body["top_logprobs"]
    contents, system = _contents(body["messages"])
    if system:
        config["system_instruction"] = system
    return contents, config | _response_format(body) | _tools(body) | _thinking(body, model, thinking_budget)


def _contents(messages: list[Json]) -> tuple[list[Json], str]:
    """The turns, and the text of all system messages."""
    contents: list[Json] = []
    system = []
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    for message in messages:
        role, content = message["role"], message.get("content")
        if role in {"system", "developer"}:
            system.append(shapes.text_of(content))
        elif role == "tool":
            part = _function_response(message, names)
            # The results of parallel calls have to stand in one turn.
            if contents and "function_response" in contents[-1]["parts"][-1]:
                contents[-1]["parts"].append(part)
            else:
                contents.append({"role": "user", "parts": [part]})
        elif role == "assistant":
            text = shapes.text_of(content)
            calls = [_function_call(call) for call in message.get("tool_calls") or ()]
            contents.append({"role": "model", "parts": [*([{"text": text}] if text or not calls else []), *calls]})
        elif role == "user":
            contents.append({"role": "user", "parts": [_part(part) for part in shapes.parts_of(content)]})
        else:
            raise shapes.refused(f"messages of role {role!r} are unknown")
    return contents, "\n\n".join(system)


def _part(part: Json) -> Json:
    """A part of a user's message."""
    kind = part.get("type")
    if kind == "text":
        return {"text": part["text"]}
    if kind == "image_url":
        url = part["image_url"]["url"]
        if data := shapes.data_url(url):
            return {"inline_data": {"mime_type": data[0], "data": data[1]}}
        return {"file_data": {"file_uri": url, "mime_type": mimetypes.guess_type(url)[0]}}
    if kind == "input_audio":
        audio = part["input_audio"]
        return {"inline_data": {"mime_type": f"audio/{audio['format']}", "data": base64.b64decode(audio["data"])}}
    raise shapes.refused(f"{API} has nothing for content of type {kind!r}")


def _function_call(call: Json) -> Json:
    """A tool call of an earlier answer, with the signature of the thoughts before it if the client kept it.

    https://ai.google.dev/gemini-api/docs/thought-signatures: Gemini 3 refuses calls without theirs.
    """
    function = {"id": call["id"], "name": call["function"]["name"], "args": shapes.arguments_of(call)}
    part: Json = {"function_call": function}
    signature = ((call.get("extra_content") or {}).get("google") or {}).get("thought_signature")
    if signature:
        part["thought_signature"] = base64.b64decode(signature)
    return part


def _function_response(message: Json, names: dict[str, str]) -> Json:
    call_id = message.get("tool_call_id")
    if call_id not in names:
        raise shapes.refused(f"no message before has a tool call {call_id!r}")
    said = shapes.tool_result(shapes.text_of(message.get("content")))
    return {"function_response": {"id": call_id, "name": names[call_id], "response": said}}


def _response_format(body: Json) -> Json:
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        return {"response_mime_type": "application/json", "response_json_schema": wanted["json_schema"]["schema"]}
    return {"response_mime_type": "application/json"} if wanted["type"] == "json_object" else {}


def _tools(body: Json) -> Json:
    if not body.get("tools"):
        return {}
    declared = []
    for tool in body["tools"]:
        if tool.get("type") != "function":
            raise shapes.refused(f"tools of type {tool.get('type')!r} are unknown")
        function = tool["function"]
        declaration = {"name": function["name"], "description": function.get("description")}
        if function.get("parameters"):
            declaration["parameters_json_schema"] = function["parameters"]
        declared.append(declaration)
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
        raise shapes.refused(f"tool_choice={choice!r}: none, auto, required or a function are known")
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
        raise shapes.refused(f"reasoning_effort={effort!r}: one of {', '.join(known)}")
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
        choices.append(
            shapes.choice(
                place if candidate.index is None else candidate.index,
                text=text,
                reasoning=thoughts,
                calls=calls,
                finish=_finish(candidate, called=bool(calls)) or "stop",
                logprobs=_logprobs(candidate.logprobs_result),
            )
        )
    if not choices:
        raise ApiError(502, f"{API} gave no candidate")
    return shapes.completion(model, choices, usage(response.usage_metadata))


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
                chunks.append(self._chunks.delta(delta, index=index, finish=finish, logprobs=logprobs))
            if finish:
                self._finished.add(index)
        return chunks

    def end(self) -> list[Json]:
        """The chunk with the usage, after the last response.

        Raises:
            ApiError: 502: the stream broke off before the answer's end.
        """
        if not self._calls or self._calls.keys() - self._finished:
            raise ApiError(502, f"{API} broke off its stream before the end of the answer")
        return [self._chunks.usage(counted)] if (counted := usage(self._usage)) else []


def usage(counted: types.GenerateContentResponseUsageMetadata | None) -> Json | None:
    """The `usage`; thoughts count as tokens of the answer."""
    if counted is None:
        return None
    prompt = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    said = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
    return shapes.usage_of(
        prompt, said, cached=counted.cached_content_token_count, reasoning=counted.thoughts_token_count
    )


def _said(candidate: types.Candidate) -> tuple[str, str, list[Json]]:
    """Text, thoughts and tool calls of a candidate."""
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for part in (candidate.content and candidate.content.parts) or ():
        if part.text is not None:
            (thoughts if part.thought else text).append(part.text)
        if part.function_call is not None:
            call = shapes.tool_call(part.function_call.id, part.function_call.name or "", part.function_call.args or {})
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
