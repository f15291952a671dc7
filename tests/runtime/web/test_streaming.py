"""Endless answers end whenever the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from edgerpn.runtime.web.streaming import EndlessResponse


async def answer_until_gone(turns: int) -> int:
    """Sends to a client that goes `turns` loop turns before it takes the third part; returns the parts taken."""
    gone, taken = asyncio.Event(), 0

    async def parts() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"part"

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal taken
        taken += message.get("body") == b"part"
        if taken == 3:
            gone.set()
            for _ in range(turns):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.001)

    response = EndlessResponse(
        parts,
        content_type="text/plain",
        closing=asyncio.Event(),
        abort=lambda _: None,
        is_head=False,
    )
    await asyncio.wait_for(response({"type": "http", "state": {}}, receive, send), 10)
    return taken


@pytest.mark.parametrize("turns", range(10))
def test_a_client_that_goes_while_it_takes_a_part_ends_the_answer(turns: int) -> None:
    assert asyncio.run(answer_until_gone(turns)) < 10
