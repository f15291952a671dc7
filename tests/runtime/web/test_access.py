"""Access to the page: hosts, origins, tokens and cookies; and its settings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgerpn.errors import ConfigError, SinkError
from edgerpn.runtime.run.http_config import parse_listen
from edgerpn.runtime.web import HttpConfig
from edgerpn.runtime.web.access import COOKIE, COOKIE_S, AccessRules

TOKEN = "a-token-of-enough-characters"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080), True),
        ("8080", ("127.0.0.1", 8080), True),
        ("localhost:0", ("localhost", 0), True),
        ("[::1]:80", ("::1", 80), True),
        ("127.8.9.1:80", ("127.8.9.1", 80), True),
        ("0.0.0.0:80", ("0.0.0.0", 80), False),
        ("[::]:80", ("::", 80), False),
        ("cam-1.local:80", ("cam-1.local", 80), False),
    ],
)
def test_where_it_listens(text: str, address: tuple[str, int], is_loopback: bool) -> None:
    config = HttpConfig(listen=text)
    assert (config.address, config.is_loopback) == (address, is_loopback)


@pytest.mark.parametrize("text", [":80", "host", "host:", "host:x", "host:65536", "::1:80", "[x]:80", "a b:80", "-1"])
def test_texts_other_than_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="listen: expected HOST:PORT"):
        parse_listen(text)


@pytest.mark.parametrize(
    "values",
    [
        {"max_fps": 0.0}, {"max_fps": 61.0}, {"max_width_px": 10}, {"jpeg_quality": 0}, {"top": 0}, {"max_streams": 0},
        {"max_streams": 151},
        {"hung_s": 0.0}, {"hosts": ("a:80",)}, {"hosts": ("<b>",)}, {"token_env": "A", "token_file": "b"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))}: expected"):
        HttpConfig(**values)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "cam.local:0"])
def test_others_than_this_machine_need_a_token(listen: str, token_file: str) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        AccessRules(HttpConfig(listen=listen))
    assert AccessRules(HttpConfig(listen=listen, token_file=token_file)).needs_token


def test_a_short_or_missing_token_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_TOKEN", "hunter2")
    with pytest.raises(ConfigError, match="PAGE_TOKEN: expected a token of 16") as caught:
        AccessRules(HttpConfig(listen="127.0.0.1:0", token_env="PAGE_TOKEN"))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SinkError, match="cannot be read"):
        AccessRules(HttpConfig(listen="127.0.0.1:0", token_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("host", "of_loopback", "of_all"),
    [
        ("127.0.0.1:8080", True, True),
        ("localhost", True, True),
        ("LOCALHOST:1", True, True),
        ("[::1]:8080", True, True),
        ("192.168.1.5:8080", False, True),
        ("door.example.org", True, True),
        ("evil.example.org", False, False),
        ("evil.example.org:8080", False, False),
        ("localhost.evil.org", False, False),
        ("localhost@evil.org", False, False),
        ("evil.org/localhost", False, False),
        ("", False, False),
        ("[::1", False, False),
        ("localhost:x", False, False),
    ],
)
def test_hosts_that_are_ours(host: str, of_loopback: bool, of_all: bool, token_file: str) -> None:
    names = {"hosts": ("door.example.org",), "token_file": token_file}
    assert AccessRules(HttpConfig(listen="127.0.0.1:0", **names)).knows_host(host) == of_loopback  # type: ignore[arg-type]
    assert AccessRules(HttpConfig(listen="0.0.0.0:0", **names)).knows_host(host) == of_all  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({}, True),
        ({"origin": "http://localhost:8080"}, True),
        ({"origin": "https://localhost:8080"}, True),
        ({"origin": "http://localhost:8081"}, False),
        ({"origin": "http://evil.org"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "file://localhost:8080"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:8080"}, False),
    ],
)
def test_origins_that_are_ours(headers: dict[str, str], is_ours: bool) -> None:
    access = AccessRules(HttpConfig(listen="127.0.0.1:0"))
    assert access.is_same_origin({"host": "localhost:8080", **headers}) == is_ours


def test_the_token_or_a_cookie_made_of_it_lets_in_and_nothing_else(
    token_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = AccessRules(HttpConfig(listen="127.0.0.1:0", token_file=token_file))
    assert access.is_allowed({"authorization": f"Bearer {TOKEN}"}, {})
    assert access.is_allowed({"authorization": f"bearer  {TOKEN} "}, {})
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", "Bearer \udcff", "Bearer é"):
        assert not access.is_allowed({"authorization": wrong}, {})
    session = access.new_session()
    assert TOKEN not in session
    assert access.is_allowed({}, {COOKIE: session})
    # Cookies stay valid after a restart with the same token, and not with another one.
    assert AccessRules(HttpConfig(listen="127.0.0.1:0", token_file=token_file)).is_allowed({}, {COOKIE: session})
    end, _, mac = session.partition(".")
    for forged in (
        "",
        ".",
        end,
        f"{int(end) + 1}.{mac}",
        f"{end}.{mac[:-1]}0{'' if mac[-1] != '0' else '1'}",
        f"x.{mac}",
        f"{end}.é",
        f"{end}.\udcff",
    ):
        assert not access.is_allowed({}, {COOKIE: forged})
    Path(token_file).write_text("another token of enough characters")
    assert not AccessRules(HttpConfig(listen="127.0.0.1:0", token_file=token_file)).is_allowed({}, {COOKIE: session})
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + COOKIE_S + 1)
    assert not access.is_allowed({}, {COOKIE: session})


def test_without_a_token_everybody_on_this_machine_is_let_in() -> None:
    access = AccessRules(HttpConfig(listen="127.0.0.1:0"))
    assert access.is_allowed({}, {})
    assert not access.is_token("")
