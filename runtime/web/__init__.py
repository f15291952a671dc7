"""Web page, API and metrics of a run: `edgerpn run MODEL SOURCE... --http 127.0.0.1:8080`.

One thread serves them, and another draws and encodes pictures; both are idle while no client asks. The package
shows and controls an `edgerpn.runtime.run.service.RemoteStreams`.
Needs the extra `web` (Starlette, uvicorn, prometheus_client).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.errors import require
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.run.service import PageInfo

if TYPE_CHECKING:
    from edgerpn.runtime.web.server import WebServer

__all__ = ["HttpConfig", "PageInfo", "open_page"]


def open_page(config: HttpConfig) -> WebServer | None:
    """Starts the server of a run, before there is a model and before any camera is opened.

    Args:
        config: An empty `listen` means no page.

    Returns:
        The server, which the caller closes; None: no page.

    Raises:
        MissingDependencyError: Starlette, uvicorn or prometheus_client is not installed.
        ConfigError: Other machines could reach the page, and there is no valid token.
        SinkError: The port is in use, the address is not of this machine, or the token cannot be read.
    """
    if not config.listen:
        return None
    for module in ("starlette", "uvicorn", "prometheus_client"):
        require(module, extra="web", purpose="the web page (--http)")
    from edgerpn.runtime.web.server import WebServer

    return WebServer(config)
