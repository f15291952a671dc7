"""What connections need to be trusted: passwords and tokens, which are never shown, and certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from edgerpn.errors import SinkError
from edgerpn.runtime.redaction import redact_url
from edgerpn.runtime.sinks.sink_queue import check_setting


def check_url(name: str, url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of an address.

    Raises:
        ValueError: It is none of these schemes or has no host; the message holds no password.
    """
    expected = f"{' or '.join(f'{scheme}://' for scheme in schemes)} and a host"
    shown = redact_url(url) if "://" in url else "something else"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Of a careless password: its characters must be percent-encoded. Python's own message would show it.
        raise ValueError(f"{name}: expected {expected}, got {shown!r}, which is no URL") from None
    check_setting(is_good, name, expected, shown)
    return parts


def read_secret(*, env: str, file: str, purpose: str) -> str | None:
    """The secret in an environment variable or a file, without white space around it; None: neither is named.

    Args:
        env: Name of the variable; empty: none.
        file: Path of the file; empty: none.
        purpose: What it is for, for the error.

    Raises:
        SinkError: The variable is not set, or the file cannot be read; the message does not hold the secret.
    """
    if env:
        text = os.environ.get(env)
        if text is None:
            raise SinkError(f"{purpose}: the environment variable {env} is not set")
    elif file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SinkError(f"{purpose}: {file} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}") from None
    else:
        return None
    text = text.strip()
    if not text or any(ord(character) < 32 for character in text):
        raise SinkError(f"{purpose}: {env or file} is empty, or holds more than one line")
    return text


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Python's default settings of TLS: certificates and host names are checked.

    Args:
        ca_file: Certificates to trust; empty: the system's.

    Raises:
        SinkError: The file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise SinkError(f"{ca_file}: certificates cannot be read: {error}") from error
