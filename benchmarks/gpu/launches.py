"""Counts what a piece of work launches on a GPU: the nodes of its CUDA graph. Needs no profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any


def count_launches(stream: int, enqueue: Callable[[], object]) -> dict[str, int] | str:
    """Records the work without running it; returns the number of its nodes by kind, or why it cannot be recorded.

    Args:
        stream: The stream that `enqueue` uses, in a context that is current; the work has run on it before.
        enqueue: Starts the work.
    """
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError:
        return "not counted: cuda-bindings is not installed"
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    try:
        (status,) = driver.cuStreamBeginCapture(stream, mode)
    except RuntimeError as error:  # the package's own, without a driver
        return f"not counted: {error}"
    if status != driver.CUresult.CUDA_SUCCESS:
        return f"cuStreamBeginCapture: {status.name}"
    refusal = ""
    try:
        enqueue()
    except Exception as error:  # noqa: BLE001 - any package's; the capture must be ended, and the words reported
        refusal = f"{type(error).__name__}: {error}"
    status, graph = driver.cuStreamEndCapture(stream)
    if refusal or status != driver.CUresult.CUDA_SUCCESS:
        return refusal or f"cuStreamEndCapture: {status.name}"
    kinds = _kinds(driver, graph)
    driver.cuGraphDestroy(graph)
    return dict(sorted(kinds.items()))


def _kinds(driver: Any, graph: Any) -> Counter[str]:
    _, _, number = driver.cuGraphGetNodes(graph, 0)
    _, nodes, _ = driver.cuGraphGetNodes(graph, number)
    kinds: Counter[str] = Counter()
    for node in nodes[:number]:
        _, kind = driver.cuGraphNodeGetType(node)
        if kind == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_GRAPH:
            kinds += _kinds(driver, driver.cuGraphChildGraphNodeGetGraph(node)[1])
        else:
            kinds[kind.name.removeprefix("CU_GRAPH_NODE_TYPE_").lower()] += 1
    return kinds
