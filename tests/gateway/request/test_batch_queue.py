"""The queue between what generates and what writes."""

import asyncio

import pytest

from gateway.request.batch_queue import BatchQueue
from services.runtime.errors import Unavailable


async def test_takes_what_has_piled_up():
    feed: BatchQueue[int] = BatchQueue(8)
    for number in range(3):
        await feed.put(number)
    assert await feed.take() == [0, 1, 2]
    await feed.put(3)
    feed.close()
    assert await feed.take() == [3]
    assert await feed.take() == []
    assert await feed.take() == []


async def test_the_error_comes_after_the_items():
    feed: BatchQueue[int] = BatchQueue(8)
    await feed.put(1)
    feed.close(Unavailable("gone"))
    feed.check()
    assert await feed.take() == [1]
    with pytest.raises(Unavailable):
        feed.check()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await feed.take()


async def test_only_the_first_close_counts():
    feed: BatchQueue[int] = BatchQueue(8)
    feed.close()
    feed.close(Unavailable("late"))
    assert await feed.take() == []


async def test_put_waits_for_room():
    feed: BatchQueue[int] = BatchQueue(2)
    await feed.put(0)
    await feed.put(1)
    waiting = asyncio.create_task(feed.put(2))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert await feed.take() == [0, 1]
    await waiting
    assert await feed.take() == [2]


async def test_several_producers_keep_to_the_bound():
    feed: BatchQueue[int] = BatchQueue(2)
    producers = [asyncio.create_task(feed.put(number)) for number in range(20)]
    seen: list[int] = []
    while len(seen) < 20:
        await asyncio.sleep(0)
        batch = await feed.take()
        assert len(batch) <= 2
        seen += batch
    await asyncio.gather(*producers)
    assert sorted(seen) == list(range(20))


async def test_wait():
    feed: BatchQueue[int] = BatchQueue(2)
    assert not await feed.wait(0.01)
    await feed.put(1)
    assert await feed.wait(0.01)
    assert await feed.take() == [1]
    assert not await feed.wait(0.01)
    feed.close()
    assert await feed.wait(0.01)
