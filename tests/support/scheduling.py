"""Which process of `./dev test` takes which tests: whole files, in the order of their names.

A scheduler of our own, by pytest-xdist's protocol of schedulers: to change one of its own would override private
methods, which the next version may not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from xdist.scheduler import Scheduling
from xdist.workermanage import WorkerController, parse_tx_spec_config

WAITS = ("tests/runtime/", "tests/benchmarks/test_streams_benchmark.py")
"""Files whose tests mostly wait, for real cameras, servers, browsers and processes."""


def unit_of(test: str) -> str:
    """Returns what one process takes as a whole: a file, or the folder whose files share exports of seconds each."""
    return "tests/export" if test.startswith("tests/export/") else test.partition("::")[0]


class FileScheduling(Scheduling):
    """Gives each process one file after the other, so that what the tests of a file share is made once.

    The first process takes the files whose tests wait, and the others those whose tests compute. Tests that wait thus
    meet each other only when nothing else is left, and no process is idle before the last file.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        """Read by pytest-rerunfailures after a crash."""
        self._num_processes = len(parse_tx_spec_config(config))
        self._collected: dict[WorkerController, list[str]] = {}
        self._tests: list[str] = []
        """The tests in their order; a number below is a place in it. Empty before `schedule`."""
        self._left: dict[str, list[int]] = {}
        """The numbers of the tests of each file that no process has."""
        self._given: dict[WorkerController, list[int]] = {}
        """The tests that each process has and has not finished, in its order."""

    @property
    def nodes(self) -> list[WorkerController]:
        return list(self._given)

    @property
    def collection_is_completed(self) -> bool:
        return len(self._collected) >= self._num_processes

    @property
    def tests_finished(self) -> bool:
        # A process holds its last test back until it is told to end.
        return self.collection_is_completed and not self._left and all(len(given) < 2 for given in self._given.values())

    @property
    def has_pending(self) -> bool:
        return bool(self._left) or any(self._given.values())

    def add_node(self, node: WorkerController) -> None:
        self._given[node] = []

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        self._collected[node] = list(collection)

    def schedule(self) -> None:
        """Gives each process its first tests; called again for a process that replaces a crashed one."""
        first, *others = self._collected.values()
        if any(other != first for other in others):
            raise pytest.UsageError("the processes of pytest-xdist found different tests; see --collect-only")
        if not self._tests:
            self._tests = first
            self._put_back(range(len(first)))
        self._give()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        self._given[node].remove(item_index)
        self._give()

    def remove_node(self, node: WorkerController) -> str | None:
        """Returns the test at which the process crashed, if it did; others take what it left."""
        given = self._given.pop(node)
        self._put_back(given[1:])
        self._give()
        return self._tests[given[0]] if given else None

    def _put_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._left.setdefault(unit_of(self._tests[number]), []).append(number)

    def _give(self) -> None:
        """Gives a file to each process that has hardly any test left, or lets it end when there is none."""
        for place, (node, given) in enumerate(self._given.items()):
            if node.shutting_down:
                continue
            # A process runs a test only when it knows the next one, so it needs a file before it is idle.
            while self._left and len(given) <= 2:
                preferred = (unit for unit in self._left if unit.startswith(WAITS) == (place == 0))
                numbers = self._left.pop(next(preferred, next(iter(self._left))))
                given += numbers
                node.send_runtest_some(numbers)
            if not self._left:
                node.shutdown()
