"""Addresses, secrets and certificates of network endpoints; no message shows a secret."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from edgerpn.errors import EdgeRpnError, SinkError, check_setting
from edgerpn.runtime.addresses import find_fault
from edgerpn.runtime.redaction import redact_url


def check_url(name: str, url: str, schemes: tuple[str, ...]) -> SplitResult:
    """Splits an address into its parts.

    Raises:
        ValueError: Wrong scheme, or no host; the message holds no password.
    """
    expected = f"{' or '.join(f'{scheme}://' for scheme in schemes)} and a host"
    shown = redact_url(url) if "://" in url else "something else"
    parts: SplitResult | None = None
    is_good = True
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Caused by a password that is not percent-encoded, which Python's own message would show.
        parts = None
    why = find_fault(url) if is_good else ""
    if parts is None or why:
        raise ValueError(f"{name}: expected {expected}, got {shown!r}, which is not a URL: {why}")
    check_setting(is_good, name, expected, shown)
    return parts


def read_secret(*, env: str, file: str, purpose: str, error: type[EdgeRpnError] = SinkError) -> str | None:
    """Reads a secret from an environment variable or a file and strips white space; None: neither is named.

    Args:
        env: Name of the variable; empty: none.
        file: Path of the file; empty: none.
        purpose: Use of the secret, for error messages.
        error: The error that is raised.

    Raises:
        error: The variable is not set, or the file cannot be read, or the secret is empty or several lines.
    """
    if env:
        text = os.environ.get(env)
        if text is None:
            raise error(f"{purpose}: the environment variable {env} is not set")
    elif file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            raise error(f"{purpose}: {file} cannot be read: {getattr(fault, 'strerror', 'not UTF-8')}") from None
    else:
        return None
    text = text.strip()
    if not text or any(ord(character) < 32 for character in text):
        raise error(f"{purpose}: {env or file} is empty, or holds more than one line")
    return text


def tls_context(ca_file: str, *, error: type[EdgeRpnError] = SinkError) -> ssl.SSLContext:
    """Python's default settings of TLS, which check certificates and host names.

    Args:
        ca_file: Certificates to trust; empty: the system's.
        error: The error that is raised.

    Raises:
        error: The file cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as fault:
        raise error(f"{ca_file}: certificates cannot be read: {fault}") from fault
