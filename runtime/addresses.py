"""The host, port and credentials of a URL: finds what is wrong before anything connects."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from edgerpn.runtime.redaction import HIDDEN, redact_url

MAX_PORT = 65535
_USUAL_PORTS = ("80", "443", "554", "8000", "8080", "8554")
_BRACKETED = re.compile(r"\[(?P<host>[^\[\]]*)\](?::(?P<port>.*))?", re.DOTALL)
# Behind the password; "feed@30fps" and "room@2" are paths.
_HOST_START = re.compile(r"[A-Za-z]|\d+(?:\.\d+){3}|\[")
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
    is_cut = not at and not fault and _is_cut_password(host_port, rest)
    if not at and "@" in rest and (fault or is_cut):
        # The credentials reach beyond the first "/", "?" or "#", which ends them for every reader of URLs.
        advice = _to_encode(scheme, {character for character in rest.partition("@")[0] if character in "/?#"})
        return f"{advice}; if they end before it, write the @ as %40" if is_cut else advice
    unsafe = {character for character in credentials if character in "@[]"}
    return _to_encode(scheme, unsafe) if unsafe else fault or _look_alike_fault(url)


def show_faulty(url: str) -> str:
    """Returns a faulty URL without credentials: text in the place of a port may be a password without its host."""
    scheme, mark, rest = url.partition("://")
    host, colon, after = rest.partition(":")
    if "@" in rest or not colon or host.startswith("[") or re.match(r"\d*(?:[/?#]|$)", after):
        return redact_url(url)
    return redact_url(f"{scheme}{mark}{host}{colon}{HIDDEN}")


def _is_cut_password(host_port: str, rest: str) -> bool:
    """Returns whether `user:12/34@host` looks like a password that is cut, and not like a port and a path with an @.

    Both are valid URLs. The first part of a password that consists of digits reads as a port.
    """
    name, colon, port = host_port.partition(":")
    if not colon or port in _USUAL_PORTS:
        return False
    before, _, after = rest[len(host_port) :].rpartition("@")
    # Hosts of cameras are mostly addresses, or names with a dot; keys and values belong to a path or a query.
    is_host = "." in name or name in ("", "localhost") or name.startswith("[")
    return not is_host and "=" not in before and _HOST_START.match(after) is not None


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


def _look_alike_fault(url: str) -> str:
    try:
        urlsplit(url)
    except ValueError:
        # Python refuses these (NFKC); other readers of URLs disagree about the host.
        return (
            "the host, the user name or the password holds a character that stands for / ? # @ or :; percent-encode it"
        )
    return ""


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
