"""Independent pieces of work on the CPU's cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # at once, each in memory of its own


@contextmanager
def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Iterator[tuple[Item, Result]]]:
    """Each item with its result, in the order of the items; several are worked on at once.

    Decompositions are long sequences of small products, which leave most cores idle where all of
    them share each product. Within the context torch's threads are shared out among as many items.
    Items are asked for in the calling thread, not long before their turn. Gradients are off.

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
    pool = ThreadPoolExecutor(workers)

    def results() -> Iterator[tuple[Item, Result]]:
        begun: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            begun.append((item, pool.submit(copy_context().run, work, item)))
            if len(begun) == 2 * workers:  # while the first is waited for, others go on
                first, future = begun.popleft()
                yield first, future.result()
        for item, future in begun:
            yield item, future.result()

    torch.set_num_threads(threads // workers)
    try:
        yield results()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)
