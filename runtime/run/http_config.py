"""Settings of the web page: its address, its users, and the cost of its pictures."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from edgerpn.errors import check_setting
from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP
from edgerpn.settings import PATH

MAX_TOP = 1000
"""Maximum number of boxes drawn."""
MAX_CONNECTIONS = 200
"""Maximum number of open connections; the cameras of the run need file descriptors too."""
MAX_STREAMS = 150
"""Maximum number of open streams, which leaves connections for requests."""

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.\-]*[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpConfig:
    """The web page and API of a run; read once, at the start."""

    listen: str = ""
    """HOST:PORT or PORT (of 127.0.0.1); port 0: any free one; empty: no page. An address beyond 127.0.0.1, ::1 and
    localhost needs a token."""
    token_env: str = ""
    """Environment variable with the token of all requests; empty: no token."""
    token_file: str = field(default="", metadata=PATH)
    """File with the token; empty: no token."""
    hosts: tuple[str, ...] = ()
    """Host names of the page, in addition to addresses, localhost and this machine's name."""
    control: bool = False
    """Whether clients may add and remove sources by HTTP: they can then make this machine open cameras and URLs (never
    files or GStreamer pipelines)."""
    max_fps: float = 10.0
    """Maximum annotated pictures per second of each source."""
    max_width_px: int = 960
    """Maximum width of an annotated picture, pixels; wider frames are scaled down."""
    jpeg_quality: int = 80
    """Quality of the pictures, 1 to 100."""
    top: int = DEFAULT_TOP
    """Maximum number of boxes drawn, until a user moves the slider."""
    nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better drawn box, of its class where the model has classes, above which a box is not drawn, until a
    user moves the slider; 1: all are drawn."""
    max_streams: int = 64
    """Maximum number of open streams of pictures and records, 1 to 150."""
    hung_s: float = 10.0
    """Seconds of one batch in the model after which /healthz reports a hang."""

    def __post_init__(self) -> None:
        if self.listen:
            parse_listen(self.listen)
        check_setting(not (self.token_env and self.token_file), "token_env", "one of token_env and token_file", "both")
        wrong = [name for name in self.hosts if not _HOST_NAME.fullmatch(name)]
        check_setting(not wrong, "hosts", "names without a port, such as cameras.example.org", wrong)
        check_setting(0 < self.max_fps <= 60, "max_fps", "above 0, to 60", self.max_fps)
        check_setting(64 <= self.max_width_px <= 7680, "max_width_px", "64 to 7680", self.max_width_px)
        check_setting(1 <= self.jpeg_quality <= 100, "jpeg_quality", "1 to 100", self.jpeg_quality)
        check_setting(1 <= self.top <= MAX_TOP, "top", f"1 to {MAX_TOP}", self.top)
        check_setting(0 < self.nms_iou <= 1, "nms_iou", "above 0, to 1", self.nms_iou)
        check_setting(1 <= self.max_streams <= MAX_STREAMS, "max_streams", f"1 to {MAX_STREAMS}", self.max_streams)
        check_setting(0 < self.hung_s <= 3600, "hung_s", "above 0 s, to 3600 s", self.hung_s)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; `listen` must not be empty."""
        return parse_listen(self.listen)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.address[0])


def parse_listen(text: str) -> tuple[str, int]:
    """Reads host and port of "HOST:PORT", "[IPv6]:PORT" or "PORT".

    Raises:
        ValueError: The text has another form.
    """
    host, colon, port = text.rpartition(":")
    host = host if colon else "127.0.0.1"
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    is_host = (":" in bare and _is_address(bare)) if is_bracketed else bool(_HOST_NAME.fullmatch(bare))
    check_setting(is_port and is_host, "listen", "HOST:PORT such as 127.0.0.1:8080, or PORT", text)
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Returns whether the name or address of a host is a loopback one."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
