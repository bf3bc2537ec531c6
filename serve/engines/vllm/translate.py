"""Between vLLM's words and ours: sampling, tokens, reasons, errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serve.engines.base import HALF, FinishReason, Sampling, Token
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
        flat_logprobs=sampling.logprobs,  # a few long lists, where there was an object for each alternative
        skip_special_tokens=False,  # PaliGemma's <loc> tokens may be special, and are the answer
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        skip_clone=True,  # nobody else has it; a deep copy took 2 % of the replica's time
        output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
    )


def spread(sampling: Sampling) -> tuple[float, float]:
    """Return temperature and top_p as vLLM takes them, which refuses a top_p of 0: greedy is temperature 0 there."""
    return (0.0, 1.0) if sampling.top_p == 0 else (sampling.temperature, sampling.top_p)


class Speller:
    """A speller that gives one generation's tokens their texts, which joined are its text.

    vLLM names each token alone ("cat" where the text has " cat"), joins deltas while nobody reads, and holds text back
    that may yet become a stop text: then a token waits here until its name has come.
    """

    def __init__(self, sampling: Sampling, *, whole: bool = False) -> None:
        self.top = sampling.top_logprobs
        self.late = bool(sampling.stop) and sampling.logprobs and not whole
        self.waiting: list[Token] = []
        self.text = ""

    def tokens(self, spoken: Any) -> tuple[Token, ...]:
        """Return the tokens of one output whose text is there; with the last output, all that are left."""
        if not self.late:
            return tokens(spoken, self.top)
        self.waiting += named(spoken, self.top)
        self.text += spoken.text
        if spoken.finish_reason is not None:
            return spelt(self.waiting, self.text)
        spelled, at = [], 0
        for token in self.waiting:
            end = name_end(self.text, token.text, at)
            if end is None:
                break
            spelled.append(replace(token, text=self.text[at:end]))
            at = end
        self.waiting, self.text = self.waiting[len(spelled) :], self.text[at:]
        return tuple(spelled)


def tokens(spoken: Any, top: int) -> tuple[Token, ...]:
    """Return the tokens of one delta; their texts joined are the delta's text."""
    return spelt(named(spoken, top), spoken.text)


def named(spoken: Any, top: int) -> list[Token]:
    """Return an output's tokens with their names for texts, without the one that ended it: it is not spoken."""
    flat, spelled = spoken.logprobs, []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True) if flat else ():
        # first the token itself, then the likeliest, itself among them or not: where vLLM joins deltas it stands once
        ranked = {flat.ranks[i]: (flat.decoded_tokens[i] or "", flat.logprobs[i]) for i in range(start, end)}
        likeliest = tuple(ranked[rank] for rank in range(1, top + 1) if rank in ranked)
        spelled.append(Token(flat.decoded_tokens[start] or "", flat.logprobs[start], likeliest))
    by_token = spoken.finish_reason == "stop" and not isinstance(spoken.stop_reason, str)
    return spelled[:-1] if by_token else spelled


def spelt(tokens: Sequence[Token], text: str) -> tuple[Token, ...]:
    """Return the tokens with their parts of the text: each up to the end of its name, the last one the rest.

    A name that is not there has no text of its own: that of half a letter, or of what a stop text cut off.
    """
    spelled: list[Token] = []
    at = 0
    for token in tokens:
        end = name_end(text, token.text, at)
        spelled.append(replace(token, text=text[at : at if end is None else end]))
        at = at if end is None else end
    if spelled and at < len(text):
        spelled[-1] = replace(spelled[-1], text=spelled[-1].text + text[at:])
    return tuple(spelled)


def name_end(text: str, name: str, at: int) -> int | None:
    """Return where a token's name ends in the text from `at` on, blanks before it allowed; None where it is not."""
    if not name.strip(HALF):
        return at
    if name.isspace():
        return at + len(name) if text.startswith(name, at) else None
    start = text.find(name.strip(), at)
    return None if start < 0 else start + len(name.strip())


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
