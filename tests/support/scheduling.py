"""Which process of `./dev test` takes which tests: whole files, in the order of their names."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

WAITS = ("tests/runtime/", "tests/benchmarks/test_streams_benchmark.py")
"""Files whose tests mostly wait, for real cameras, servers, browsers and processes."""


class FileScheduling(LoadScopeScheduling):
    """Gives each process one file after the other, so that what the tests of a file share is made once.

    The first process takes the files whose tests wait, and the others those whose tests compute. Tests that wait thus
    meet each other only when nothing else is left, and no process is idle before the last file.
    """

    def _split_scope(self, nodeid: str) -> str:
        # The files of this folder share exports, each of which takes seconds.
        return "tests/export" if nodeid.startswith("tests/export/") else nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        is_first = node is self.nodes[0]
        preferred = next((name for name in self.workqueue if name.startswith(WAITS) == is_first), None)
        if preferred is not None:
            self.workqueue.move_to_end(preferred, last=False)
        super()._assign_work_unit(node)
