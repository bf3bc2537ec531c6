"""Translate between vLLM and our types: sampling parameters, tokens, finish reasons, errors."""

from typing import Any

from serve.engines.base import FinishReason, Sampling, Token
from serve.engines.plugins.few_messages import PACE
from serve.engines.token_texts import align, token_end
from serve.errors import BadRequest, ModelError

WHOLE_TOKENS = 32
"""Tokens from one output to the next of a reply that is not streamed. Its first token comes at once, so that its time
is known; the outputs that follow have its text so far, should it be cut."""
PACE_S = 0.03
"""The least seconds from one piece of a streamed reply to the next, where tokens come faster."""
FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}


def sampling_params(sampling: Sampling, *, whole: bool = False, clean: bool = False) -> Any:
    """Convert Sampling to vLLM's SamplingParams.

    whole: one output for the first token and for each WHOLE_TOKENS; else one for what comes in PACE_S, or, with
    alternatives of tokens, which take long to read, for each token.
    clean: leave special tokens out of the text, unless the prompt asks for them.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = sampling.json_schema
    temperature, top_p = temperature_and_top_p(sampling)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=None if sampling.seed is None else sampling.seed % 2**63,  # any integer is a seed; torch takes 64 bits
        stop=list(sampling.stop),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        ignore_eos=sampling.ignore_eos,
        thinking_token_budget=sampling.thinking_token_budget,
        logprobs=sampling.top_logprobs if sampling.logprobs else None,
        flat_logprobs=sampling.logprobs,  # a few long lists in place of an object for each alternative
        # PaliGemma's <loc> tokens may be special, and are the answer
        skip_special_tokens=clean and not sampling.special_tokens,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        skip_clone=True,  # it is not shared; a deep copy took 2 % of the replica's time
        output_kind=RequestOutputKind.DELTA,
        stream_interval=WHOLE_TOKENS if whole else None,
        extra_args=None if whole or (sampling.logprobs and sampling.top_logprobs) else {PACE: PACE_S},
    )


def temperature_and_top_p(sampling: Sampling) -> tuple[float, float]:
    """Return temperature and top_p for vLLM, which refuses a top_p of 0: greedy sampling is temperature 0 there."""
    return (0.0, 1.0) if sampling.top_p == 0 else (sampling.temperature, sampling.top_p)


class TokenAligner:
    """An aligner of one generation's tokens with its text: the texts of the tokens joined are the generation's text.

    vLLM decodes each token alone ("cat" where the text has " cat"), merges outputs that are not consumed in time, and
    holds back text that may become a stop text. Tokens whose text is held back wait here.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.top = sampling.top_logprobs
        self.text_is_late = bool(sampling.stop) and sampling.logprobs
        self.waiting: list[Token] = []
        self.text = ""

    def tokens(self, output: Any) -> tuple[Token, ...]:
        """Return the tokens whose text has arrived with this output; at the last output all that are left."""
        if not self.text_is_late:
            return tokens(output, self.top)
        self.waiting += decoded_alone(output, self.top)
        self.text += output.text
        if output.finish_reason is not None:
            return align(self.waiting, self.text)
        aligned, at = [], 0
        for token in self.waiting:
            end = token_end(self.text, token.text, at)
            if end is None:
                break
            aligned.append(token._replace(text=self.text[at:end]))
            at = end
        self.waiting, self.text = self.waiting[len(aligned) :], self.text[at:]
        return tuple(aligned)


def tokens(output: Any, top: int) -> tuple[Token, ...]:
    """Return the tokens of one output of vLLM; their texts joined are the output's text."""
    return align(decoded_alone(output, top), output.text)


def decoded_alone(output: Any, top: int) -> list[Token]:
    """Return an output's tokens, each with its text as decoded alone, without the end-of-sequence token."""
    flat, decoded = output.logprobs, []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True) if flat else ():
        # the token itself, then the likeliest; where vLLM merges outputs, a token among these is listed only once
        ranks = range(start, end) if top else ()
        ranked = {flat.ranks[i]: (flat.decoded_tokens[i] or "", flat.logprobs[i]) for i in ranks}
        likeliest = tuple(ranked[rank] for rank in range(1, top + 1) if rank in ranked)
        decoded.append(Token(flat.decoded_tokens[start] or "", flat.logprobs[start], likeliest))
    by_token = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
    return decoded[:-1] if by_token else decoded


def engine_died() -> ModelError:
    """Return the error for an engine whose processes have ended."""
    return ModelError("The model's engine died; it has to be started again.", code="engine_dead")


def context_exceeded(context: int, prompt_tokens: int | None = None) -> BadRequest:
    """Return the error for a prompt that leaves no room for a reply. Both numbers are tokens."""
    have = "" if prompt_tokens is None else f", and the prompt with its image has {prompt_tokens}"
    return BadRequest(
        f"The model reads at most {context - 1} tokens{have}.", param="question", code="context_length_exceeded"
    )


def bad_request(error: Exception, context: int) -> BadRequest:
    """Convert vLLM's error about a request to ours."""
    message = str(error.args[0] if error.args else error)
    if "context length" in message or "max_model_len" in message:
        return context_exceeded(context)
    if "grammar" in message:  # xgrammar's messages name its features, or quote its source and the schema
        return BadRequest("This JSON schema cannot be followed.", param="response_format", code="invalid_schema")
    return BadRequest(message, param=getattr(error, "parameter", None))
