"""The circuit breaker of a replica that fails every request."""

from deployments.routing.pool import FAILURES, REST_S, Breaker


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


def test_breaker_opens_after_failures_in_a_row_and_closes_after_its_rest() -> None:
    breaker, clock = opened()
    assert breaker.open
    clock.now += REST_S - 0.1
    assert breaker.open
    clock.now += 0.2
    assert not breaker.open


def test_rested_breaker_allows_a_trial_and_closes_when_that_succeeds() -> None:
    breaker, clock = opened()
    clock.now += REST_S + 1
    breaker.started()
    assert breaker.open  # for all others
    breaker.succeeded()
    assert not breaker.open


def test_failed_trial_opens_the_breaker_again() -> None:
    breaker, clock = opened()
    clock.now += REST_S + 1
    breaker.started()
    breaker.failed()
    assert breaker.open


def test_failures_between_answers_leave_the_breaker_closed() -> None:
    breaker = Breaker()
    for _ in range(3 * FAILURES):
        breaker.failed()
        breaker.succeeded()
    assert not breaker.open
