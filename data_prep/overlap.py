"""Work in a thread beside the caller's: what is read next, and what is written of before. For calls that leave Python alone meanwhile."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int = 1) -> Generator[Item, None, None]:
    """The items, of which so many are made before they are asked for. Errors come where their item would have."""
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(count)
    over = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not over.is_set():
            try:
                made.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            good, item = made.get()
            if good:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        over.set()
        thread.join()


class Behind:
    """Does calls one after another in a thread, at most two behind. A context manager; errors come from a later call or from its end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "behind")
        self._waiting: list[Future] = []

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            while self._waiting:
                self._waiting.pop(0).result()

    def do(self, call: Callable[..., Any], *given: Any) -> None:
        """Have this called when all before it have been."""
        while len(self._waiting) > 1:
            self._waiting.pop(0).result()
        self._waiting.append(self._thread.submit(call, *given))
