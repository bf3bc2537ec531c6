"""A replica that fails whatever it is asked is left alone for a while."""

from deployments.breaker import FAILURES, REST_S, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert not breaker.open
        breaker.failed()
    return breaker, clock


def test_it_opens_after_failures_in_a_row_and_rests() -> None:
    breaker, clock = opened()
    assert breaker.open
    clock.now += REST_S - 0.1
    assert breaker.open
    clock.now += 0.2
    assert not breaker.open


def test_one_request_tries_it_and_an_answer_closes_it() -> None:
    breaker, clock = opened()
    clock.now += REST_S + 1
    breaker.asked()
    assert breaker.open  # for all others
    breaker.answered()
    assert not breaker.open


def test_a_failed_trial_opens_it_again() -> None:
    breaker, clock = opened()
    clock.now += REST_S + 1
    breaker.asked()
    breaker.failed()
    assert breaker.open


def test_failures_with_answers_between_them_are_no_reason() -> None:
    breaker = Breaker()
    for _ in range(3 * FAILURES):
        breaker.failed()
        breaker.answered()
    assert not breaker.open
