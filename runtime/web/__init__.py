"""A page, an API and metrics of a run of streams: `edgerpn run MODEL SOURCE... --http 127.0.0.1:8080`.

Its own thread serves it, and another one draws and encodes pictures; both do nothing that nobody asks for. This package
knows nothing of `edgerpn.runtime.streams`: what it shows and steers is a `Streams` of `edgerpn.runtime.web.contract`.
Needs the extra `web` (Starlette, uvicorn, prometheus_client).
"""

from __future__ import annotations

from edgerpn.runtime.web.config import HttpConfig
from edgerpn.runtime.web.contract import PageInfo, Streams
from edgerpn.runtime.web.opening import open_page

__all__ = ["HttpConfig", "PageInfo", "Streams", "open_page"]
