"""Independent pieces of work on the CPU's cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # at once, each in memory of its own


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the order of the items; several are worked on at once.

    Decompositions are long sequences of small products, which leave most cores idle where all of
    them share each product. Here torch's threads are shared out among as many items, and are as
    they were once the iterator ends. Items are asked for in the calling thread, not long before
    their turn. Gradients are off.

    Raises
    ------
    Exception
        What the function or the items raise; what has not begun by then is dropped.
    """

    def work(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    threads = torch.get_num_threads()
    workers = min(threads, MOST)
    if workers == 1:
        for item in items:
            yield item, work(item)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    torch.set_num_threads(threads // workers)
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)
