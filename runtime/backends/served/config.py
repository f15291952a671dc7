"""Settings of a server that runs the model; see `edgerpn.runtime.backends.served.backend`."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgerpn.errors import check_setting
from edgerpn.settings import PATH


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """A server that runs the model; read once, at the start."""

    timeout_s: float = 5.0
    """Seconds for one request, from the connection to the last byte of the answer."""
    outage_s: float = 60.0
    """Seconds for which a request is repeated while the server does not answer or has not loaded the model; then the
    run ends with an error. 0: it is not repeated."""
    backoff_first_s: float = 0.2
    """Seconds before the first repetition; they double each time, with jitter."""
    backoff_max_s: float = 5.0
    """Seconds between two repetitions at most."""
    num_in_flight: int = 2
    """Requests at the same time, unless a source is live."""
    token_env: str = ""
    """Environment variable with the value of the header Authorization, such as "Bearer 123"; empty: none."""
    token_file: str = field(default="", metadata=PATH)
    """File with that value; empty: none."""
    ca_file: str = field(default="", metadata=PATH)
    """File with the certificates to trust, for TLS; empty: the system's."""
    cert_file: str = field(default="", metadata=PATH)
    """File with the certificate of this client, for TLS; empty: none."""
    key_file: str = field(default="", metadata=PATH)
    """File with the key of `cert_file`."""

    def __post_init__(self) -> None:
        for name, most_s in (("timeout_s", 600), ("backoff_first_s", 60), ("backoff_max_s", 600)):
            value = getattr(self, name)
            check_setting(0 < value <= most_s, name, f"above 0 s, to {most_s} s", value)
        check_setting(0 <= self.outage_s <= 86_400, "outage_s", "0 to 86400 s", self.outage_s)
        check_setting(1 <= self.num_in_flight <= 64, "num_in_flight", "1 to 64", self.num_in_flight)
        check_setting(not (self.token_env and self.token_file), "token_env", "one of token_env and token_file", "both")
        check_setting(bool(self.cert_file) == bool(self.key_file), "cert_file", "cert_file and key_file", "one of them")


def is_served(model: object) -> bool:
    """Returns whether the text of a model is the address of a server, and not a file or a name."""
    return isinstance(model, str) and "://" in model
