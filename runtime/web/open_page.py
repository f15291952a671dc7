"""Starting the page, or saying in one line why it cannot start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.errors import require
from edgerpn.runtime.web.http_config import HttpConfig

if TYPE_CHECKING:
    from edgerpn.runtime.web.server import WebServer


def open_page(config: HttpConfig) -> WebServer | None:
    """Starts the server of a run, before there is a model and before any camera is opened.

    Args:
        config: An empty `listen` means that no page is wanted.

    Returns:
        The server, to be closed by the caller; None: none is wanted.

    Raises:
        MissingDependencyError: Starlette, uvicorn or prometheus_client is not installed.
        ConfigError: Others could reach the page, and there is no good token.
        SinkError: The port is taken, or the address is not of this machine, or the token cannot be read.
    """
    if not config.listen:
        return None
    for module in ("starlette", "uvicorn", "prometheus_client"):
        require(module, extra="web", purpose="the web page (--http)")
    from edgerpn.runtime.web.server import WebServer

    return WebServer(config)
