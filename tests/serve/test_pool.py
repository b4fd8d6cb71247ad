"""Workers die, hang, are replaced and reloaded; what was asked of them is answered or refused, never lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from petalite.errors import PetaliteError
from petalite.serve import pool as pool_module
from petalite.serve.pool import Pool
from petalite.serve.refusal import Refusal
from petalite.serve.wire import Orders

GOOD = {"a": ["/copy/1/a", "runs/a"]}
BETTER = {"a": ["/copy/2/a", "runs/better"]}
BAD = {"a": ["/copy/3/a", "runs/bad"]}


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petalite.serve.process._MODULE", "tests.serve.stub_worker")


def orders(**changes: Any) -> Orders:
    settings = {"max_batch": 2, "max_wait_s": 0.0, "max_pixels": 10, "threads": 1}
    return Orders(models={}, device="cpu", attention="auto", compute="auto", engine="auto", **{**settings, **changes})


def with_pool(use: Callable[[Pool], Awaitable[None]], workers: int = 2) -> None:
    async def run() -> None:
        pool = Pool(orders(), workers)
        try:
            await pool.start(GOOD)
            await use(pool)
        finally:
            await pool.close()

    asyncio.run(run())


async def ask(pool: Pool, body: bytes = b"hello", seconds: float = 10.0) -> dict[str, Any]:
    answer, _ = await pool.ask({"kind": "predict", "model": "a"}, body, time.monotonic() + seconds)
    value: dict[str, Any] = json.loads(answer.body)
    return value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_requests_are_spread_and_come_back_whole() -> None:
    async def use(pool: Pool) -> None:
        assert pool.models["a"]["checkpoint"] == "runs/a"
        answers = await asyncio.gather(*(ask(pool, b"wait 0.05") for _ in range(8)))
        assert {answer["pid"] for answer in answers} == set(pool.pids)
        big = b"x" * 3_000_000
        assert (await ask(pool, big))["bytes"] == len(big)

    with_pool(use)


def test_a_worker_that_dies_costs_what_it_held_and_is_replaced() -> None:
    async def use(pool: Pool) -> None:
        before = set(pool.pids)
        # a window of 4 each: the one that dies takes at most 4, what waits is answered by the other
        results = await asyncio.gather(
            ask(pool, b"die"), *(ask(pool, b"wait 0.05") for _ in range(15)), return_exceptions=True
        )
        lost = [result for result in results if isinstance(result, Refusal)]
        assert isinstance(results[0], Refusal)
        assert 1 <= len(lost) <= 4
        assert {(refusal.status, refusal.error_type) for refusal in lost} == {(503, "worker_lost")}
        await until(lambda: pool.ready == 2)
        assert pool.restarts == 1
        assert len(before & set(pool.pids)) == 1
        assert (await ask(pool))["head"]["model"] == "a"

    with_pool(use)


def test_requests_wait_for_the_replacement_of_the_only_worker() -> None:
    async def use(pool: Pool) -> None:
        with pytest.raises(Refusal, match="the worker that held this request ended"):
            await ask(pool, b"die")
        assert pool.ready == 0
        assert (await ask(pool))["bytes"] == 5

    with_pool(use, workers=1)


def test_a_deadline_is_kept_while_waiting_and_while_computing() -> None:
    async def use(pool: Pool) -> None:
        slow = [asyncio.ensure_future(ask(pool, b"wait 0.5")) for _ in range(4)]
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(Refusal) as waiting:  # no room in the only worker
            await ask(pool, seconds=0.1)
        assert (waiting.value.status, waiting.value.error_type) == (503, "deadline")
        assert time.monotonic() - started < 0.4
        await asyncio.gather(*slow)
        with pytest.raises(Refusal, match="the deadline passed"):
            await ask(pool, b"wait 0.4", seconds=0.1)
        assert (await ask(pool))["bytes"] == 5

    with_pool(use, workers=1)


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HUNG_S", 0.1)

    async def use(pool: Pool) -> None:
        (before,) = pool.pids
        with pytest.raises(Refusal, match="the deadline passed"):
            await ask(pool, b"hang", seconds=0.1)
        await until(lambda: pool.ready == 1 and pool.pids != [before])

    with_pool(use, workers=1)


def test_a_reload_under_load_loses_nothing() -> None:
    async def use(pool: Pool) -> None:
        before = set(pool.pids)
        answers: list[dict[str, Any]] = []

        async def client() -> None:
            while pool.models["a"]["checkpoint"] == "runs/a":
                answers.append(await ask(pool, b"wait 0.01"))

        clients = [asyncio.ensure_future(client()) for _ in range(12)]
        await asyncio.sleep(0.05)
        await pool.reload(BETTER)
        await asyncio.gather(*clients)
        assert len(answers) > 12
        assert not before & set(pool.pids)
        assert pool.ready == 2
        assert (await ask(pool))["pid"] in pool.pids

    with_pool(use)


def test_a_refused_reload_changes_nothing() -> None:
    async def use(pool: Pool) -> None:
        before = pool.pids
        with pytest.raises(PetaliteError, match="the checkpoint is damaged"):
            await pool.reload(BAD)
        assert (pool.pids, pool.models["a"]["checkpoint"]) == (before, "runs/a")
        assert (await ask(pool))["pid"] in before

    with_pool(use)


def test_closing_answers_what_was_asked() -> None:
    async def run() -> None:
        pool = Pool(orders(), 1)
        await pool.start(GOOD)
        asked = asyncio.ensure_future(ask(pool, b"wait 0.3"))
        await asyncio.sleep(0.05)
        await pool.close()
        assert (await asked)["bytes"] == len(b"wait 0.3")

    asyncio.run(run())


def test_a_checkpoint_that_is_refused_at_the_start_is_an_error() -> None:
    async def run() -> None:
        pool = Pool(orders(), 2)
        with pytest.raises(PetaliteError, match="the checkpoint is damaged"):
            await pool.start(BAD)
        await pool.close()

    asyncio.run(run())


def test_a_worker_that_is_killed_while_it_loads_is_an_error_with_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petalite.serve.process._MODULE", "tests.serve.dying_worker")

    async def run() -> None:
        pool = Pool(orders(), 1)
        with pytest.raises(PetaliteError, match="a worker was ended by SIGKILL while it was loading"):
            await pool.start(GOOD)
        await pool.close()

    asyncio.run(run())
