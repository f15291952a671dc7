"""A page, an API and metrics of a run of streams: `edgerpn run MODEL SOURCE... --http 127.0.0.1:8080`.

Its own thread serves it, and another one draws and encodes pictures; both do nothing that nobody asks for. This package
knows nothing of `edgerpn.runtime.run`: what it shows and steers is a `Streams` of `streams_protocol`.
Needs the extra `web` (Starlette, uvicorn, prometheus_client).
"""

from __future__ import annotations

from edgerpn.runtime.web.http_config import HttpConfig
from edgerpn.runtime.web.open_page import open_page
from edgerpn.runtime.web.streams_protocol import PageInfo, Streams

__all__ = ["HttpConfig", "PageInfo", "Streams", "open_page"]
