"""Which fields a request may have, endpoint by endpoint: data, and the reasons as data.

One table per kind of object: a name and its rule (``fields.Rule``). To let a field through, drop it
or refuse it, its row here is all there is to change; ``check`` marks those whose value is looked at
by the module of the same name as the endpoint. The tables of the audio forms hold the names of
multipart fields, without the brackets of lists.

Source of all of them: OpenAI's API reference and the types of openai-python 3.54.0; what costs
money or gives something away: OPENAI_FACTS, "Parameters that cost money or leak".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from freeapi.policy.fields import Rule

_PASS: Final = Rule("pass")
_CHECK: Final = Rule("check")
_IDENTIFIES: Final = Rule("drop", "nothing about the caller leaves")
#: Hints make cache writes dearer, and say which requests belong together.
_CACHE: Final = Rule("drop", "the prompt cache is shared by all callers")
_STATE: Final = Rule("refuse", "this instance keeps no state between requests")
_AUDIO: Final = Rule("refuse", "the cost of audio does not follow from its size")
_SECOND_MODEL: Final = Rule("refuse", "it calls a second model, which has no limit or price here")
_ACCOUNT: Final = Rule("refuse", "it belongs to the instance's own account")
_HOSTED: Final = Rule("refuse", "it is for tools that the upstream runs, which are billed apart")
_ANIMATION: Final = Rule("refuse", "the cost of animations does not follow from their number")
_VOICES: Final = Rule("refuse", "samples of voices cost beyond the file, and say who is speaking")

_PRIVATE: Final[Mapping[str, Rule]] = {
    "user": _IDENTIFIES,
    "safety_identifier": _IDENTIFIES,
    "metadata": _IDENTIFIES,
    "prompt_cache_key": _CACHE,
    "prompt_cache_options": _CACHE,
    "prompt_cache_retention": _CACHE,
}
_STATEFUL: Final[Mapping[str, Rule]] = {
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "prompt": Rule("refuse", "stored prompts belong to the instance's own account"),
}

# --- Chat completions -----------------------------------------------------------------------------

CHAT_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "messages": _CHECK,
    "stream": _CHECK,
    "stream_options": _CHECK,
    "max_tokens": _CHECK,
    "max_completion_tokens": _CHECK,
    "n": _CHECK,
    "tools": _CHECK,
    "functions": _CHECK,
    "store": _CHECK,
    "service_tier": _CHECK,
    "modalities": _CHECK,
    "frequency_penalty": _PASS,
    "function_call": _PASS,
    "logit_bias": _PASS,
    "logprobs": _PASS,
    "parallel_tool_calls": _PASS,
    "presence_penalty": _PASS,
    "reasoning_effort": _PASS,  # hidden reasoning counts against the output ceiling
    "response_format": _PASS,
    "seed": _PASS,
    "stop": _PASS,
    "temperature": _PASS,
    "tool_choice": _PASS,
    "top_logprobs": _PASS,
    "top_p": _PASS,
    "verbosity": _PASS,
    **_PRIVATE,
    "audio": _AUDIO,
    "moderation": _SECOND_MODEL,
    "prediction": Rule("refuse", "predicted tokens that are rejected are billed all the same"),
    "web_search_options": Rule("refuse", "web search is billed outside of tokens"),
    # Fields of the Responses API that some send here.
    **_STATEFUL,
    "background": _STATE,
}

MESSAGE_FIELDS: Final[Mapping[str, Rule]] = {
    "role": _CHECK,
    "content": _CHECK,
    "name": _PASS,
    "refusal": _PASS,
    "tool_calls": _PASS,
    "tool_call_id": _PASS,
    "function_call": _PASS,
    "reasoning_content": _PASS,  # llama.cpp's and others' field for earlier reasoning; text
    "audio": _AUDIO,
}

PART_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "text": _PASS,
    "refusal": _PASS,
    "prompt_cache_breakpoint": _CACHE,
}

IMAGE_PART_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "image_url": _CHECK,
    "prompt_cache_breakpoint": _CACHE,
}

#: What ``image_url`` of a part holds, in chat and in moderations.
IMAGE_URL_FIELDS: Final[Mapping[str, Rule]] = {"url": _CHECK, "detail": _PASS}

TOOL_FIELDS: Final[Mapping[str, Rule]] = {"type": _CHECK, "function": _PASS, "custom": _PASS}

STREAM_OPTION_FIELDS: Final[Mapping[str, Rule]] = {
    "include_usage": _CHECK,
    "include_obfuscation": _PASS,
}

# --- Completions, embeddings, moderations ---------------------------------------------------------

COMPLETION_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "prompt": _CHECK,
    "stream": _CHECK,
    "stream_options": _CHECK,
    "max_tokens": _CHECK,
    "n": _CHECK,
    "best_of": _CHECK,
    "echo": _PASS,
    "frequency_penalty": _PASS,
    "logit_bias": _PASS,
    "logprobs": _PASS,
    "presence_penalty": _PASS,
    "seed": _PASS,
    "stop": _PASS,
    "suffix": _PASS,
    "temperature": _PASS,
    "top_p": _PASS,
    **_PRIVATE,
}

EMBEDDING_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "input": _CHECK,
    "dimensions": _PASS,
    "encoding_format": _PASS,
    **_PRIVATE,
}

MODERATION_FIELDS: Final[Mapping[str, Rule]] = {"model": _CHECK, "input": _CHECK, **_PRIVATE}

# --- Responses ------------------------------------------------------------------------------------

RESPONSE_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "input": _CHECK,
    "instructions": _CHECK,
    "stream": _CHECK,
    "stream_options": _CHECK,
    "max_output_tokens": _CHECK,
    "store": _CHECK,
    "background": _CHECK,
    "include": _CHECK,
    "tools": _CHECK,
    "tool_choice": _CHECK,
    "reasoning": _CHECK,
    "service_tier": _CHECK,
    "max_tool_calls": _PASS,  # counts the calls of hosted tools only, of which there are none
    "parallel_tool_calls": _PASS,
    "temperature": _PASS,
    "text": _PASS,
    "top_logprobs": _PASS,
    "top_p": _PASS,
    "truncation": _PASS,
    **_PRIVATE,
    **_STATEFUL,
    "background_options": _STATE,
    "context_management": Rule("refuse", "compaction is work beyond the output ceiling"),
    "access_programs": _ACCOUNT,
    "image": Rule("refuse", "it changes what an image costs"),
    "moderation": _SECOND_MODEL,
}

REASONING_FIELDS: Final[Mapping[str, Rule]] = {
    "effort": _PASS,  # as in chat, what it makes longer counts against the output ceiling
    "summary": _PASS,
    "generate_summary": _PASS,
    "context": _PASS,
    "mode": _CHECK,
}

RESPONSE_STREAM_OPTION_FIELDS: Final[Mapping[str, Rule]] = {"include_obfuscation": _PASS}

RESPONSE_TOOL_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "name": _PASS,
    "description": _PASS,
    "parameters": _PASS,
    "strict": _PASS,
    "format": _PASS,
    "output_schema": _PASS,
    "async": _PASS,
    "allowed_callers": _HOSTED,
    "defer_loading": _HOSTED,
}

TOOL_CHOICE_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "name": _PASS,
    "mode": _PASS,
    "tools": _CHECK,
}

MESSAGE_ITEM_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "role": _CHECK,
    "content": _CHECK,
    "id": _PASS,
    "status": _PASS,
    "phase": _PASS,
}

#: A call of a function or of a custom tool, as an earlier response had it.
CALL_ITEM_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "id": _PASS,
    "call_id": _PASS,
    "name": _PASS,
    "namespace": _PASS,
    "arguments": _PASS,
    "input": _PASS,
    "status": _PASS,
    "caller": _PASS,
    "async": _PASS,
}

#: What such a call came to.
OUTPUT_ITEM_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "output": _CHECK,
    "id": _PASS,
    "call_id": _PASS,
    "name": _PASS,
    "namespace": _PASS,
    "status": _PASS,
    "caller": _PASS,
}

REASONING_ITEM_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "encrypted_content": _CHECK,
    "id": _PASS,
    "summary": _PASS,
    "content": _PASS,
    "status": _PASS,
}

RESPONSE_PART_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "text": _PASS,
    "refusal": _PASS,
    "logprobs": _PASS,
    "annotations": _CHECK,
    "prompt_cache_breakpoint": _CACHE,
}

RESPONSE_IMAGE_FIELDS: Final[Mapping[str, Rule]] = {
    "type": _CHECK,
    "image_url": _CHECK,
    "detail": _PASS,
    "file_id": _ACCOUNT,
    "prompt_cache_breakpoint": _CACHE,
}

# --- Images and audio -----------------------------------------------------------------------------

IMAGE_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "prompt": _CHECK,
    "n": _CHECK,
    "stream": _CHECK,
    "output_format": _CHECK,
    "partial_images": _CHECK,
    "output_compression": _CHECK,
    "background": _CHECK,
    "complexity": _CHECK,
    "moderation": _CHECK,  # how strict the filter is; no second model as in chat
    "quality": _CHECK,
    "response_format": _CHECK,
    "size": _CHECK,
    "style": _CHECK,
    **_PRIVATE,
    "svg": _SECOND_MODEL,
    "frame_count": _ANIMATION,
    "frame_duration_ms": _ANIMATION,
}

SPEECH_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "input": _CHECK,
    "voice": _CHECK,
    "stream_format": _CHECK,
    "instructions": _CHECK,
    "response_format": _CHECK,
    "speed": _CHECK,
    **_PRIVATE,
}

TRANSLATION_FIELDS: Final[Mapping[str, Rule]] = {
    "model": _CHECK,
    "prompt": _PASS,
    "response_format": _PASS,
    "temperature": _PASS,
    **_PRIVATE,
}

TRANSCRIPTION_FIELDS: Final[Mapping[str, Rule]] = {
    **TRANSLATION_FIELDS,
    "stream": _CHECK,
    "language": _PASS,
    "languages": _PASS,
    "keywords": _PASS,
    "include": _PASS,
    "timestamp_granularities": _PASS,
    "chunking_strategy": _PASS,
    "known_speaker_names": _VOICES,
    "known_speaker_references": _VOICES,
}
