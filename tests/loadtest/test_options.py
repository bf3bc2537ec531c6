"""Tests the load test's options and shapes, without locust."""

from argparse import ArgumentParser, Namespace

import pytest

from loadtest import options
from loadtest.slo import Invalid


def parsed(*arguments: str, run_time: int = 60) -> Namespace:
    parser = ArgumentParser()
    options.add(parser)
    return Namespace(**vars(parser.parse_args(arguments)), num_users=6, run_time=run_time, worker=False)


def test_default_mix_has_all_kinds_of_users() -> None:
    options.check(parsed())
    assert options.weights(parsed()) == {"chat": 1, "task": 1, "fan-out": 1}


def test_kind_left_out_of_the_mix_has_no_users() -> None:
    assert options.weights(parsed("--mix", "fan-out=3, chat=1")) == {"chat": 1, "task": 0, "fan-out": 3}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--slo fast", "'fast' is no SLO"),
        ("--mix robots=1", "not of the form chat=1,task=1,fan-out=1"),
        ("--mix chat=-1", "not of the form"),
        ("--mix chat", "not of the form"),
        ("--mix chat=0", "asks for nobody"),
        ("--streamed 50", "not between 0 and 1"),
        ("--tokens -3", "--tokens -3 is less than 0"),
        ("--repeat -1", "--repeat -1 is less than 0"),
        ("--pace -0.5", "--pace -0.5 is less than 0"),
        ("--pace nan", "--pace nan is less than 0, or no number"),
    ],
)
def test_invalid_option_is_refused_in_a_sentence(line: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        options.check(parsed(*line.split()))


def test_load_without_users_is_refused() -> None:
    options.check(Namespace(**{**vars(parsed()), "num_users": None}))  # locust's own default is one
    with pytest.raises(Invalid, match="one user at least"):
        options.check(Namespace(**{**vars(parsed()), "num_users": 0}))


def test_shape_without_run_time_is_refused() -> None:
    options.check(parsed("--shape", "spike"))
    with pytest.raises(Invalid, match="needs a --run-time"):
        options.check(parsed("--shape", "spike", run_time=0))


def test_sentence_describes_the_load() -> None:
    sentence = options.sentence(parsed("--pace", "2", "--repeat", "9", "--shape", "soak"), "http://a")
    assert sentence == (
        "http://a: 6 users (chat=1,task=1,fan-out=1, 50% streamed) in the shape soak; each asks 2 times a second; "
        "9 pictures in turn, 224 x 224 pixels."
    )


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("steps", [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1]),
        ("spike", [0.2, 0.2, 0.2, 0.2, 1, 1, 0.2, 0.2, 0.2, 0.2]),
        ("soak", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_shape_has_its_share_of_users_in_each_tenth_of_a_run(name: str, shares: list[float]) -> None:
    assert [options.SHAPES[name](at / 10 + 0.05) for at in range(10)] == pytest.approx(shares)
