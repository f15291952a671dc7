"""Work of several threads, with the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def in_order(
    pool: Executor, function: Callable[[Item], Value], items: Iterable[Item], *, ahead: int
) -> Iterator[Value]:
    """Yields function(item) for each of `items`, in order, computed by `pool`.

    Args:
        pool: Its threads compute.
        function: Its error is raised in place of the value.
        items: May be endless; taken in the caller's thread.
        ahead: Values that are computed or wait, at most, beside the one to yield next.
    """
    waiting: deque[Future[Value]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
