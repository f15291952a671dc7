"""The host, port and credentials of a URL: finds what is wrong before anything connects."""

from __future__ import annotations

import re
from urllib.parse import quote

from edgerpn.runtime.redaction import HIDDEN, redact_url

MAX_PORT = 65535
_BRACKETED = re.compile(r"\[(?P<host>[^\[\]]*)\](?::(?P<port>.*))?", re.DOTALL)
# A host may have non-ASCII letters, but none of these.
_NO_HOST = re.compile(r"[\s\x00-\x1f\x7f\"'<>\\^`{|}\[\]]")


def find_fault(url: str, *, needs_host: bool = True, needs_port: bool = False) -> str:
    """Describes the first fault in the address of a URL; empty without a fault.

    Args:
        url: A text with "://".
        needs_host: Whether the host may not be empty; streams that this machine listens for have none.
        needs_port: Whether the scheme has no port of its own.

    Returns:
        A sentence without credentials, and without any part of a text that may be one.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, host_port = authority.rpartition("@")
    fault = _host_fault(host_port, needs_host=needs_host, needs_port=needs_port)
    if not at and fault and "@" in rest:
        # The credentials reach beyond the first "/", "?" or "#", which ends them for every reader of URLs.
        return _to_encode(scheme, {character for character in rest.partition("@")[0] if character in "/?#"})
    unsafe = {character for character in credentials if character in "@[]"}
    return _to_encode(scheme, unsafe) if unsafe else fault


def show_faulty(url: str) -> str:
    """Returns a faulty URL without credentials: text in the place of a port may be a password without its host."""
    scheme, mark, rest = url.partition("://")
    host, colon, after = rest.partition(":")
    if "@" in rest or not colon or host.startswith("[") or re.match(r"\d*(?:[/?#]|$)", after):
        return redact_url(url)
    return redact_url(f"{scheme}{mark}{host}{colon}{HIDDEN}")


def _to_encode(scheme: str, characters: set[str]) -> str:
    pairs = [f"{character} as {quote(character, safe='')}" for character in sorted(characters)]
    return (
        f"the user name or the password holds a character that ends it in a URL: write {', '.join(pairs)} "
        f"(percent-encoding), as in {scheme}://USER:pass{quote(min(characters), safe='')}word@HOST/"
    )


def _host_fault(text: str, *, needs_host: bool, needs_port: bool) -> str:
    if text.startswith("["):
        found = _BRACKETED.fullmatch(text)
        if found is None or not _is_ipv6(found["host"]):
            return "expected an IPv6 address in brackets, such as [::1] or [fe80::1%eth0]"
        return _port_fault(found["port"] or "", needs_port=needs_port)
    host, _, port = text.partition(":")
    if ":" in port and _is_ipv6(text):
        return f"an IPv6 address needs brackets: [{text}]"
    if not host and needs_host:
        return "expected a host behind ://, got none"
    if _NO_HOST.search(host):
        return "the name of the host holds a space, a quote or another character that no host has"
    numbers = host.split(".")
    if len(numbers) == 4 and all(number.isdecimal() for number in numbers) and max(map(int, numbers)) > 255:
        return f"{host} is not an IPv4 address: each number is 0 to 255"
    return _port_fault(port, needs_port=needs_port)


def _port_fault(port: str, *, needs_port: bool) -> str:
    if not port:
        return "expected a port behind the host, such as :1234" if needs_port else ""
    is_good = port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= MAX_PORT
    return "" if is_good else f"expected a port from 1 to {MAX_PORT} behind the host"


def _is_ipv6(text: str) -> bool:
    # Imported late: it takes milliseconds, and most addresses are names.
    import ipaddress

    try:
        ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return False
    return True
