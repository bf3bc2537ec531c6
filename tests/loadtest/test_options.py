"""The command line of a load test, without locust."""

from argparse import ArgumentParser, Namespace

import pytest

from loadtest import options
from loadtest.slo import Wrong


def parsed(*words: str, run_time: int = 60) -> Namespace:
    parser = ArgumentParser()
    options.add(parser)
    return Namespace(**vars(parser.parse_args(words)), num_users=6, run_time=run_time, worker=False)


def test_everybody_comes_where_nothing_is_said() -> None:
    options.check(parsed())
    assert options.weights(parsed()) == {"chat": 1, "task": 1, "fan-out": 1}


def test_who_is_not_named_stays_away() -> None:
    assert options.weights(parsed("--mix", "fan-out=3, chat=1")) == {"chat": 1, "task": 0, "fan-out": 3}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--slo fast", "'fast' is no SLO"),
        ("--mix robots=1", "not of the form chat=1,task=1,fan-out=1"),
        ("--mix chat=-1", "not of the form"),
        ("--mix chat", "not of the form"),
        ("--mix chat=0", "asks for nobody"),
        ("--streamed 50", "not between 0 and 1"),
    ],
)
def test_what_cannot_be_meant(words: str, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        options.check(parsed(*words.split()))


def test_a_shape_needs_an_end() -> None:
    options.check(parsed("--shape", "spike"))
    with pytest.raises(Wrong, match="needs a --run-time"):
        options.check(parsed("--shape", "spike", run_time=0))


def test_the_load_in_words() -> None:
    said = options.sentence(parsed("--pace", "2", "--repeat", "9", "--shape", "soak"), "http://a")
    assert said == (
        "http://a: 6 users (chat=1,task=1,fan-out=1, 50% streamed) in the shape soak; each asks 2 times a second; "
        "9 pictures in turn, 224 x 224 pixels."
    )
