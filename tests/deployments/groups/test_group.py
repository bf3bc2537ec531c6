"""The models of a group take turns: real members, scheduler and policy, with simulated engines and clock.

Every test also asserts, in simulated_group.Engine, that no more engines are loaded than the memory holds, that none is
asked in its sleep, and that none sleeps while it answers.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_clock import run_simulated
from simulated_group import Answer, Group, grouped

from deployments.args import GroupArgs
from deployments.groups.member import START_S, SWITCH_S
from deployments.groups.policy import GATHER_S, IDLE_S, LOST_S, MemberReport, TurnPolicy, longest_wait_s
from serve.errors import ModelError

ANSWER_S, WAKE_S, SLEEP_S = 0.2, 1.0, 0.2


def bound_s(args: GroupArgs, models: int, *, answer_s: float = ANSWER_S, batch: bool = False) -> float:
    """Return the longest that a request may wait for its model's turn."""
    return longest_wait_s(args, models, answer_s + SLEEP_S + WAKE_S, WAKE_S, batch=batch)


async def now_and_then(group: Group, name: str, pauses: Callable[[], float], until: float) -> list[Answer]:
    answers = []
    while group.now() < until:
        await asyncio.sleep(pauses())
        answers.append(await group.ask(name, ANSWER_S))
    return answers


async def constantly(group: Group, name: str, until: float) -> list[Answer]:
    """Ask again once it is answered, after a client's pause of some milliseconds."""
    answers = []
    while group.now() < until:
        answers.append(await group.ask(name, ANSWER_S))
        await asyncio.sleep(0.005)
    return answers


@pytest.mark.slow
def test_hot_model_keeps_its_throughput_beside_seven_with_few_requests() -> None:
    async def run() -> None:
        args = {"max_wait_s": 20, "min_awake_s": 2, "switches_per_minute": 30}
        async with grouped(8, 3, **args) as group:
            await group.ask("a")
            alone = await constantly(group, "a", group.now() + 300)
            drawn = random.Random(24)
            end = group.now() + 300
            others = [now_and_then(group, name, lambda: drawn.expovariate(1 / 20), end) for name in "bcdefgh"]
            hot, *rest = await asyncio.gather(constantly(group, "a", end), *others)
            cold = [answer for answers in rest for answer in answers]
            assert len(cold) > 60 and not any(answer.error for answer in [*hot, *cold])
            assert len(hot) >= 0.9 * len(alone)
            assert max(answer.waited_s for answer in cold) < bound_s(group.args, 8)
            assert 10 < group.most_wakes_a_minute() <= 30

    run_simulated(run())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_traffic_is_answered_within_the_bounds(data: st.DataObject) -> None:
    """Draw any requests: every one is answered, in bounded time, by a bounded number of switches."""
    awake, models = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 6))
    args = {
        "min_awake_s": data.draw(st.sampled_from([0, 3])),
        "max_wait_s": data.draw(st.sampled_from([0, 10])),
        "switches_per_minute": data.draw(st.sampled_from([3, 20, 60])),
        "max_running": data.draw(st.sampled_from([1, 64])),
    }
    names = [chr(ord("a") + at) for at in range(models)]
    requests = data.draw(
        st.lists(
            st.tuples(st.floats(0, 90), st.sampled_from(names), st.sampled_from([0.1, 2.0]), st.booleans()),
            min_size=1,
            max_size=40,
        )
    )
    without_scheduler = data.draw(st.none() | st.floats(0, 90))

    async def run() -> None:
        async with grouped(models, awake, **args) as group:

            async def ask(at: float, name: str, seconds: float, batch: bool) -> Answer:
                await asyncio.sleep(at)
                return await group.ask(name, seconds, "batch" if batch else "interactive")

            async def restart() -> None:
                if without_scheduler is not None:
                    await asyncio.sleep(without_scheduler)
                    group.kill_scheduler()
                    await asyncio.sleep(2)
                    group.restart_scheduler()

            _, *answers = await asyncio.gather(restart(), *(ask(*request) for request in requests))
            late_s = 0.0 if without_scheduler is None else 2 + GATHER_S + 60  # it forgets when it woke whom
            for answer, (_, _, _, batch) in zip(answers, requests, strict=True):
                # the requests of a model whose engine takes one at a time wait for each other too
                queue_s = sum(seconds for _, name, seconds, _ in requests if name == answer.model)
                turns = 1 if group.args.max_running > 1 else 1 + queue_s / 3
                longest = turns * bound_s(group.args, models, answer_s=2.0, batch=batch) + queue_s + late_s
                assert not answer.error and answer.waited_s < longest, (answer, longest)
            if without_scheduler is None:
                assert group.most_wakes_a_minute() <= group.args.switches_per_minute
            assert all(seconds >= group.args.min_awake_s for seconds in group.awake_times[models - awake :])

    run_simulated(run())


def test_idle_models_sleep_before_busy_ones() -> None:
    async def run(group: Group) -> None:
        working = asyncio.create_task(group.ask("a", 15))
        answer = await group.ask("d")
        assert answer.waited_s < 10 and answer.notices[-2].startswith("d is asleep: b finishes")
        assert group.engines["a"].state == "ready" and not (await working).error

    in_group(run, 4, 2, min_awake_s=2, start="ab")


def test_busy_model_finishes_its_requests_and_gives_way_once_the_wait_is_over() -> None:
    async def run(group: Group) -> None:
        asking = asyncio.create_task(constantly(group, "a", group.now() + 40))
        answer = await group.ask("b")
        assert 10 < answer.waited_s < 14
        answers = await asking
        assert not any(each.error for each in answers)
        longest = max(each.waited_s for each in answers)
        assert longest > 1  # a's own next request waited until b was idle

    in_group(run, 2, 1, max_wait_s=10, min_awake_s=1, start="a")


def test_batch_requests_of_a_model_are_answered_in_one_turn() -> None:
    """Twenty batch requests to each of three models, mixed, beside one place: one waking for each model is enough."""

    async def run(group: Group) -> None:
        group.wakes.clear()
        order = [name for _ in range(20) for name in "abc"]
        answers = await asyncio.gather(*(group.ask(name, 0.5, "batch") for name in order))
        assert not any(answer.error for answer in answers) and len(group.wakes) <= 3

    in_group(run, 3, 1, max_running=2, min_awake_s=1)


def test_interactive_request_takes_the_place_of_batch_work() -> None:
    async def run(group: Group) -> None:
        work = asyncio.gather(*(group.ask("a", 1, "batch") for _ in range(30)))
        await asyncio.sleep(1)
        answer = await group.ask("b")
        assert answer.waited_s < 6
        assert not any(each.error for each in await work)

    in_group(run, 2, 1, max_running=1, min_awake_s=1, start="a")


def test_request_that_leaves_its_queue_wakes_no_model() -> None:
    async def run(group: Group) -> None:
        working = asyncio.create_task(group.ask("a", 8))
        waiting = asyncio.create_task(group.ask("b"))
        await asyncio.sleep(3)
        waiting.cancel()
        await working
        await asyncio.sleep(30)
        assert not group.wakes and group.engines["b"].state == "asleep"
        assert group.members["b"].report().interactive_s is None

    in_group(run, 2, 1, start="a")


def test_notices_name_the_models_that_come_first() -> None:
    async def run(group: Group) -> None:
        working = asyncio.create_task(group.ask("a", 6))
        first, second = await asyncio.gather(group.ask("b"), group.ask("c"))
        await working
        assert first.notices[1] == "b is asleep: it waits for the place of a"
        assert "c is asleep: it waits for the place of a, after b" in second.notices
        assert "b is asleep: a finishes and goes to sleep for it" in first.notices
        assert second.notices[-1] == "c is being woken"
        again = await group.ask("b")
        assert again.notices[-1] == "b is being woken; that took 1.0 s the last time"

    in_group(run, 3, 1, min_awake_s=1, max_wait_s=3, start="a")


def test_place_of_a_dead_process_is_free_once_its_engine_has_ended() -> None:
    async def run(group: Group) -> None:
        group.kill("a")
        answer = await group.ask("b")
        assert LOST_S <= answer.waited_s < LOST_S + 2
        group.add("a")  # Serve's next process: it has to be started, and b is idle by then
        await group.members["a"].started.wait()
        assert not (await group.ask("a")).error

    in_group(run, 2, 1, start="a")


def test_new_scheduler_leaves_awake_models_awake() -> None:
    async def run(group: Group) -> None:
        group.kill_scheduler()
        assert (await group.ask("a")).waited_s == 0  # without a scheduler an awake model answers
        waiting = asyncio.create_task(group.ask("b"))
        await asyncio.sleep(3)
        group.restart_scheduler()
        assert (await waiting).waited_s < 3 + GATHER_S + 5
        assert group.engines["a"].state == "asleep"

    in_group(run, 2, 1, start="a")


def test_model_that_cannot_be_woken_is_broken_and_others_go_on_once_its_process_ended() -> None:
    async def run(group: Group) -> None:
        group.engines["b"].fault = ModelError("no memory", code="engine_dead")
        assert (await group.ask("b")).error == "b is being started again: no memory"
        broken = group.members["b"].broken
        assert broken is not None and broken.message == "no memory"
        group.engines["b"].fault = None
        group.kill("b")
        assert not (await group.ask("c")).error

    in_group(run, 3, 1, start="a")


@pytest.mark.parametrize(
    ("hanging", "message"),
    [
        ("b", "b is being started again: its engine has not woken within 300 s."),
        ("a", "a is being started again: its engine has not fallen asleep within 300 s."),
        (None, "b is being started again: its engine has not woken: RuntimeError."),
    ],
)
def test_switch_that_never_ends_is_given_up_and_others_go_on(hanging: str | None, message: str) -> None:
    """Wake b, for which a goes to sleep."""

    async def run(group: Group) -> None:
        if hanging is None:
            group.engines["b"].fault = RuntimeError("a fault of the engine's library")
        else:
            group.engines[hanging].hangs = True
        stuck = hanging or "b"
        waiting = asyncio.create_task(group.ask("b"))
        while group.members[stuck].broken is None:
            await asyncio.sleep(1)
            assert group.now() < SWITCH_S + 60
        assert (await group.ask(stuck)).error == message
        group.kill(stuck)  # as Serve does, by its health
        assert (await waiting).error == ("" if hanging == "a" else message)
        assert not (await group.ask("c")).error

    in_group(run, 3, 1, start="a")


def test_model_that_cannot_be_started_takes_no_place_and_is_tried_again() -> None:
    async def run() -> None:
        group = Group(["a", "b", "c"], GroupArgs(awake=1))
        engine = group.engines["a"]
        engine.failure = "no such file."
        await group.started()
        assert (engine.state, engine.step) == ("failed", "no such file. It is tried again after 60 s.")
        assert (await group.ask("a")).error == "a cannot answer: no such file."
        assert not (await group.ask("b")).error and not (await group.ask("c")).error
        await asyncio.sleep(70)
        assert (await group.ask("a")).error and not (await group.ask("b")).error
        engine.failure = None
        await asyncio.sleep(70)
        assert not (await group.ask("a")).error and not (await group.ask("c")).error
        group.stop()

    run_simulated(run())


@pytest.mark.slow
def test_first_start_that_stands_still_is_given_up_and_others_go_on() -> None:
    async def run() -> None:
        group = Group(["a", "b"], GroupArgs(awake=1))
        group.engines["a"].hangs = True
        while group.members["a"].phase != "waking":
            await asyncio.sleep(1)
        await asyncio.sleep(START_S - 10)
        group.members["a"].progressed()
        await asyncio.sleep(START_S - 10)
        assert group.members["a"].broken is None
        await asyncio.sleep(20)
        assert (await group.ask("a")).error == "a is being started again: its start made no progress for 900 s."
        group.kill("a")  # as Serve does, by its health
        assert not (await group.ask("b")).error
        group.stop()

    run_simulated(run())


def test_batch_request_is_due_later_than_an_interactive_one_but_is_answered() -> None:
    async def run(group: Group) -> None:
        asking = asyncio.create_task(constantly(group, "a", group.now() + 30))
        answer = await group.ask("b", kind="batch")
        assert 10 <= answer.waited_s < 13
        await asking

    in_group(run, 2, 1, max_wait_s=2, min_awake_s=1, start="a")


def test_models_are_woken_no_more_often_than_allowed() -> None:
    async def run(group: Group) -> None:
        answers = [await group.ask(name) for name in "bababa"]
        assert group.most_wakes_a_minute() == 3
        notices = [notice for answer in answers for notice in answer.notices]
        assert "a is asleep: its group has changed its models 3 times in a minute" in notices

    in_group(run, 2, 1, max_wait_s=0, min_awake_s=0, switches_per_minute=3, start="a")


def asleep(order: int) -> MemberReport:
    """Return the report of a sleeping member with a waiting request."""
    return MemberReport("asleep", order, interactive_s=1.0)


def test_report_that_crosses_an_order_to_wake_frees_no_place() -> None:
    policy = TurnPolicy(GroupArgs(awake=1), ["a", "b"], 0.0)
    policy.join("1", "a", asleep(order=7), 0.0)
    policy.join("2", "b", asleep(order=0), 0.0)
    assert "1" in policy.decide(0.1) and policy.places["1"].order[:2] == (8, True)
    policy.report("1", asleep(order=7), 0.2)
    policy.decide(0.3)
    assert policy.places["1"].holds and not policy.places["2"].order.awake
    policy.report("1", asleep(order=8), 0.4)  # it has woken and sleeps again
    assert not policy.places["1"].holds


def test_new_scheduler_wakes_no_model_before_the_others_have_reported() -> None:
    policy = TurnPolicy(GroupArgs(awake=1), ["a", "b"], 0.0)
    policy.join("1", "a", asleep(order=0), 0.0)
    policy.decide(GATHER_S - 0.1)
    assert not policy.places["1"].order.awake
    policy.decide(GATHER_S)  # b's process may be dead
    assert policy.places["1"].order.awake


@pytest.mark.slow
@pytest.mark.parametrize(("awake", "seconds"), [(1, 20), (3, 8)])
def test_every_model_is_started_once_though_few_fit(awake: int, seconds: float) -> None:
    async def run(group: Group) -> None:
        states = [engine.state for engine in group.engines.values()]
        assert states.count("ready") == awake and states.count("asleep") == 6 - awake
        assert group.now() < seconds and not group.wakes

    in_group(run, 6, awake, min_awake_s=60)


def in_group(
    run: Callable[[Group], Awaitable[None]], count: int, awake: int, *, start: str = "", **args: float
) -> None:
    """Run a test in a group. start: the models that are awake when it begins."""

    async def main() -> None:
        async with grouped(count, awake, **args) as group:
            for name in start:
                await group.ask(name)
            if start:
                await asyncio.sleep(args.get("min_awake_s", 5) + IDLE_S)
            group.wakes.clear()
            await run(group)

    run_simulated(main())
