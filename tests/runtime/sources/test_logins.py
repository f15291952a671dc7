"""Passwords with any character: percent-encoded they open a camera in every client, and no text shows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import cv2
import pytest

from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.child import open_reader
from edgerpn.runtime.sources.http_pictures import explain
from edgerpn.runtime.sources.pipelines import pipeline_of
from edgerpn.runtime.sources.process import CaptureProcess, _secrets

Make = Callable[..., Any]

PASSWORDS = (
    *("p@ssw", "pa/ss", "pa?ss", "pa#ss", "pa:ss", "pa%ss", "pa ss", "it's", 'say"x"', "k\xe4se\u20ac", "a&b=c;d"),
    *("$HOME`x`", "back\\slash", "[x]{y}", "a|b<c>", "%41%"),
)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_percent_encoded_password_opens_a_camera_and_stays_hidden(password: str, make_mjpeg: Make) -> None:
    camera = make_mjpeg(login=f"viewer:{password}", size_wh=(320, 240))
    encoded = quote(password, safe="")
    config = CaptureConfig(source=camera.url.replace("//", f"//viewer:{encoded}@"), decoder="ffmpeg")
    reader = open_reader(config, cv2)
    assert reader.grab()
    reader.close()
    # A stream, and no refusal.
    assert explain(config).reason == "codec"
    process = object.__new__(CaptureProcess)
    process._secrets = _secrets(config.source)
    line = f"Opening '{config.source}': login {password} ({encoded}) failed, {pipeline_of(config, is_hardware=True)}"
    shown = [repr(config), config.label, config.spec.shown, process.clean(line)]
    wrong = CaptureConfig(source=config.source.replace("viewer", "nobody"))
    shown += [repr(explain(wrong)), repr(wrong)]
    assert not [text for text in shown if password in text or encoded in text]
    assert explain(wrong).reason == "unauthorised"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")
@pytest.mark.parametrize("password", ["it's", 'say"x" \\', "k\xe4se#/?"])
def test_the_program_ffmpeg_takes_it_from_its_list(password: str, make_mjpeg: Make) -> None:
    camera = make_mjpeg(login=f"viewer:{password}", size_wh=(320, 240))
    source = camera.url.replace("//", f"//viewer:{quote(password, safe='')}@")
    reader = open_reader(CaptureConfig(source=source, decoder="ffmpeg-process"), cv2)
    assert reader.grab()
    reader.close()
