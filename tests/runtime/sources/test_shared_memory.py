"""The shared memory of frames, and packets of a process that ends."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from edgerpn.runtime.sources.process import CaptureProcess
from edgerpn.runtime.sources.shared_memory import RingReader, RingWriter
from edgerpn.runtime.sources.wire import unpack_release


def test_a_slot_returns_when_the_last_view_of_its_frame_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        writer = RingWriter(7, 2, 60)
        reader = RingReader(writer.fd, ours, 7, writer.num_slots, writer.slot_bytes)
        writer.image(1, (4, 5, 3))[...] = 9
        image = reader.image(7, 1, (4, 5, 3))
        assert image.shape == (4, 5, 3)
        assert (image == 9).all()
        assert not reader.is_full
        row = image[1]
        del image
        with pytest.raises(BlockingIOError):
            theirs.recv(100)
        del row
        assert unpack_release(theirs.recv(100)) == (7, 1)
        writer.close()


def test_a_consumer_that_keeps_its_frames_gets_copies_whose_slots_return() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        writer = RingWriter(7, 4, 60)
        reader = RingReader(writer.fd, ours, 7, writer.num_slots, writer.slot_bytes)
        for slot in range(4):
            writer.image(slot, (4, 5, 3))[...] = slot
        kept = [reader.lend(reader.image(7, slot, (4, 5, 3)), max_lent=2) for slot in range(4)]
        assert [unpack_release(theirs.recv(100)) for _ in range(2)] == [(7, 2), (7, 3)]
        assert [image.flags.writeable for image in kept] == [False] * 4
        # The process may write into the slots of the copies.
        writer.image(3, (4, 5, 3))[...] = 9
        assert [int(image[0, 0, 0]) for image in kept] == [0, 1, 2, 3]
        del kept[0]
        again = reader.lend(reader.image(7, 0, (4, 5, 3)), max_lent=2)
        assert again.base is not None
        older = RingReader(writer.fd, ours, 6, writer.num_slots, writer.slot_bytes).image(6, 0, (4, 5, 3))
        assert reader.lend(older, max_lent=0) is older
        del again, older
        writer.close()


def test_a_ring_refuses_frames_that_cannot_be() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        writer = RingWriter(7, 2, 60)
        reader = RingReader(writer.fd, ours, 7, writer.num_slots, writer.slot_bytes)
        good: dict[str, Any] = {"generation": 7, "slot": 1, "shape": (4, 5, 3)}
        shapes = [(4, 0, 3), (2**31, 5, 3), (4, 2**31, 3), (4, 5, 0), (4, 5, 2**31)]
        wrong: list[dict[str, Any]] = [{"generation": 6}, {"slot": 2}, *({"shape": shape} for shape in shapes)]
        for changes in wrong:
            with pytest.raises(ValueError, match="does not fit"):
                reader.image(**{**good, **changes})
        held = reader.image(**good)
        with pytest.raises(ValueError, match="does not fit"):
            reader.image(**good)
        other = reader.image(**{**good, "slot": 0})
        del held, other
        writer.close()


def test_the_last_packets_of_a_process_arrive_though_it_ended_with_packets_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    ours.send(b"a release that nobody reads")
    for packet in (b"the last frame", b"the end"):
        theirs.send(packet)
    # Linux answers the next read on our side with ECONNRESET, before it returns the two packets.
    theirs.close()
    process = object.__new__(CaptureProcess)
    process.control, process.is_over = ours, False
    assert [packet for packet, _ in process.receive()] == [b"the last frame", b"the end"]
    assert process.is_over
    ours.close()
