import types

import pytest

from serve.engines.base import Generation, Sampling
from serve.engines.vllm.translate import TokenAligner, bad_request, temperature_and_top_p, tokens


def delta(text: str, names: list[str], finish: str | None = None, stop: str | None = None) -> types.SimpleNamespace:
    """Return an output of vLLM: token i, the likeliest, is names[i] alone and has the log-probability -i."""
    starts = range(0, 3 * len(names), 3)
    flat = types.SimpleNamespace(
        start_indices=list(starts),
        end_indices=[start + 3 for start in starts],
        ranks=[1, 1, 2] * len(names),
        decoded_tokens=[token for name in names for token in (name, name, "?")],
        logprobs=[logprob for i in range(len(names)) for logprob in (-float(i), -float(i), -9.0)],
    )
    return types.SimpleNamespace(text=text, logprobs=flat, finish_reason=finish, stop_reason=stop)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (" cat", ["cat"], [" cat"]),
        ("a red  dog", ["a", "red", "dog"], ["a", " red", "  dog"]),
        ("<loc0001><loc0002> cat", ["<loc0001>", "<loc0002>", "cat"], ["<loc0001>", "<loc0002>", " cat"]),
        ("na\u00efve", ["na", "\ufffd", "\ufffd", "ve"], ["na", "", "", "\u00efve"]),  # a letter in two byte tokens
        ("", ["\ufffd"], [""]),  # vLLM waits for the rest of a letter
    ],
)
def test_the_tokens_of_a_delta_make_up_its_text(text: str, names: list[str], expected: list[str]) -> None:
    aligned = tokens(delta(text, names), top=0)
    assert [token.text for token in aligned] == expected
    assert "".join(expected) == text
    assert [token.logprob for token in aligned] == [-float(i) for i in range(len(names))]


def test_end_of_sequence_token_is_left_out() -> None:
    assert [token.text for token in tokens(delta("cat", ["cat", "</s>"], "stop"), top=0)] == ["cat"]
    assert len(tokens(delta("cat", ["cat", "s"], "stop", stop="s"), top=0)) == 2  # a stop text is no special token


def test_alternatives_are_ranked_and_counted() -> None:
    (token,) = tokens(delta("cat", ["cat"]), top=1)
    assert token.top == (("cat", 0.0),)
    (token,) = tokens(delta("cat", ["cat"]), top=2)
    assert token.top == (("cat", 0.0), ("?", -9.0))


@pytest.mark.parametrize("top", [1, 2, 3])
def test_a_token_keeps_its_rank_where_deltas_are_joined(top: int) -> None:
    """vLLM then lists a token that is among the likeliest only once, before them."""
    joined = types.SimpleNamespace(
        start_indices=[0, 3],
        end_indices=[3, 7],
        ranks=[2, 1, 3, 7, 1, 2, 3],
        decoded_tokens=["b", "a", "c", "g", "a", "b", "c"],
        logprobs=[-2.0, -1.0, -3.0, -7.0, -1.0, -2.0, -3.0],
    )
    aligned = tokens(types.SimpleNamespace(text="bg", logprobs=joined, finish_reason=None, stop_reason=None), top)
    assert [token.text for token in aligned] == ["b", "g"]
    assert [token.top for token in aligned] == [(("a", -1.0), ("b", -2.0), ("c", -3.0))[:top]] * 2


def test_confidence_covers_the_tokens_of_a_part_of_the_text() -> None:
    generation = Generation("a red dog", tokens(delta("a red dog", ["a", "red", "dog"]), top=0))
    assert generation.confidence(2, 5) == pytest.approx(2.718281828**-1)


def test_top_p_of_zero_is_greedy() -> None:
    assert temperature_and_top_p(Sampling(temperature=0.9, top_p=0.0)) == (0.0, 1.0)
    assert temperature_and_top_p(Sampling(temperature=0.9, top_p=0.4)) == (0.9, 0.4)
    assert temperature_and_top_p(Sampling(temperature=0.0, top_p=1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "message",
    [
        "The provided JSON schema contains features not supported by xgrammar.",
        "Invalid JSON grammar specification.",
        "Failed to transform json schema into a grammar: [12:01:02] json_schema_converter.cc:77: {'type': 'secret'}",
    ],
)
def test_refused_schema_is_an_error_about_the_response_format(message: str) -> None:
    error = bad_request(ValueError(message), 256)
    assert (error.param, error.code) == ("response_format", "invalid_schema")
    assert error.message == "This JSON schema cannot be followed."


@pytest.mark.parametrize(
    ("names", "texts", "stop_reason", "expected"),
    [
        # held back by the length of a stop text, flushed at the end
        (["a", " red", " cat", "</s>"], ["", "a r", "ed", " cat"], None, ["a", " red", " cat"]),
        (["a", "red", "cat", "</s>"], ["", "", "", "a red cat"], None, ["a", " red", " cat"]),
        (["<loc0001>", "<loc0002>", " cat"], ["", "<loc0001><l", "oc0002> c"], "at", ["<loc0001>", "<loc0002>", " c"]),
        (
            ["x", "", "\u00e9", "\n", "y", "</s>"],
            ["", "", "x", "\u00e9", "\n", "y"],
            None,
            ["x", "", "\u00e9", "\n", "y"],
        ),
        (["one", " two", " three"], ["one", "", ""], " two", ["one", "", ""]),  # two have no text: they were cut off
        (["odd", " end", "</s>"], ["0dd", "", " end"], None, ["", "0dd end"]),  # a name that is not in the text
    ],
)
def test_tokens_wait_for_text_that_is_held_back(
    names: list[str], texts: list[str], stop_reason: str | None, expected: list[str]
) -> None:
    aligner = TokenAligner(Sampling(stop=("stop",)))
    texts_of_tokens = []
    for at, (name, text) in enumerate(zip(names, texts, strict=True)):
        last = at == len(names) - 1
        aligned = aligner.tokens(delta(text, [name], "stop" if last else None, stop_reason if last else None))
        texts_of_tokens += [token.text for token in aligned]
    assert texts_of_tokens == expected
    assert "".join(texts_of_tokens) == "".join(texts)


def test_any_end_token_is_left_out() -> None:
    assert [token.text for token in tokens(delta("a red", ["a", " red", "</s>"], "stop"), top=0)] == ["a", " red"]
    ended = delta("a", ["a", "end"], "stop")
    ended.stop_reason = 7  # another end token, of the checkpoint's generation_config
    assert [token.text for token in tokens(ended, top=0)] == ["a"]


def test_without_log_probabilities_nothing_waits() -> None:
    aligner = TokenAligner(Sampling(stop=("stop",), logprobs=False))
    for _ in range(3):
        assert aligner.tokens(types.SimpleNamespace(text="a", token_ids=[1], logprobs=None, finish_reason=None)) == ()
    assert aligner.text == ""
