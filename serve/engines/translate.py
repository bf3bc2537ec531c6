"""Between vLLM's words and ours: sampling, tokens, reasons, errors."""

from typing import Any

from serve.engines.base import FinishReason, Sampling, Token
from serve.errors import BadRequest, ModelError

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}


def sampling_params(sampling: Sampling, *, whole: bool = False) -> Any:
    """Our Sampling as vLLM's. whole: one output at the end, in place of one for each step."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = sampling.json_schema
    temperature, top_p = spread(sampling)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=None if sampling.seed is None else sampling.seed % 2**63,  # any integer is a seed; torch takes 64 bits
        stop=list(sampling.stop),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.top_logprobs if sampling.logprobs else None,
        skip_special_tokens=False,  # PaliGemma's <loc> tokens may be special, and are the answer
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
    )


def spread(sampling: Sampling) -> tuple[float, float]:
    """Return temperature and top_p as vLLM takes them, which refuses a top_p of 0: greedy is temperature 0 there."""
    return (0.0, 1.0) if sampling.top_p == 0 else (sampling.temperature, sampling.top_p)


def tokens(spoken: Any, top: int) -> tuple[Token, ...]:
    """The tokens of one delta; their texts joined are the delta's text.

    vLLM names each token alone ("cat" where the text has " cat"), and joins deltas while nobody reads. One token gets
    the whole delta; of several, each gets the text up to the end of its name, the last one the rest.
    """
    found: list[Token] = []
    at = 0
    for i, (token, alternatives) in enumerate(zip(spoken.token_ids, spoken.logprobs or (), strict=False)):
        own = alternatives[token]
        if i == len(spoken.token_ids) - 1:
            end = len(spoken.text)
        else:
            name = (own.decoded_token or "").strip()
            start = spoken.text.find(name, at)
            end = start + len(name) if start >= 0 else at
        ranked = sorted(alternatives.values(), key=lambda choice: -choice.logprob)[:top]
        likeliest = tuple((choice.decoded_token or "", choice.logprob) for choice in ranked)
        found.append(Token(spoken.text[at:end], own.logprob, likeliest))
        at = end
    if spoken.finish_reason == "stop" and spoken.stop_reason is None and found and not found[-1].text:
        found.pop()  # the end-of-sequence token: counted, not spoken
    return tuple(found)


def dead() -> ModelError:
    """The engine's processes are gone."""
    return ModelError("The model's engine died; it has to be started again.", code="engine_dead")


def too_long(context: int, prompt_tokens: int | None = None) -> BadRequest:
    """The prompt leaves no room for a reply; both counts are of tokens."""
    have = "" if prompt_tokens is None else f", and the prompt with its image has {prompt_tokens}"
    return BadRequest(
        f"The model reads at most {context - 1} tokens{have}.", param="question", code="context_length_exceeded"
    )


def refused(error: Exception, context: int) -> BadRequest:
    """What vLLM says against a request, as ours."""
    words = str(error.args[0] if error.args else error)
    if "context length" in words or "max_model_len" in words:
        return too_long(context)
    if "into a grammar" in words:  # xgrammar's own words follow: a line of its source, and the schema once more
        return BadRequest("This JSON schema cannot be followed.", param="response_format", code="invalid_schema")
    return BadRequest(words, param=getattr(error, "parameter", None))
