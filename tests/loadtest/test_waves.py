"""How many users there are as a run goes on."""

import pytest

from loadtest.waves import WAVES


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("steps", [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1]),
        ("spike", [0.2, 0.2, 0.2, 0.2, 1, 1, 0.2, 0.2, 0.2, 0.2]),
        ("soak", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_each_tenth_of_a_run(name: str, shares: list[float]) -> None:
    assert [WAVES[name](at / 10 + 0.05) for at in range(10)] == pytest.approx(shares)
