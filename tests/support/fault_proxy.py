"""A TCP proxy between a player and a camera that imitates faults of networks.

All faults can change while it runs. They act on the camera's data; the player's data passes unchanged.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress

_CHUNK_BYTES = 4096
_POLL_S = 0.05


class FaultProxy:
    """Listens on 127.0.0.1 and connects to `target_port` there."""

    def __init__(self, target_port: int, *, seed: int = 1) -> None:
        self.target_port = target_port
        self.is_frozen = False
        """Nothing passes, and no connection closes."""
        self.loss = 0.0
        """Share of lost RTP packets (RTSP over TCP only)."""
        self.bytes_per_s = 0
        """Speed limit; 0: none."""
        self.corruption = 0.0
        """Share of RTP packets with changed bytes."""
        self.clock_jump_s = 0.0
        """Seconds to add to the camera's time stamps."""
        self.num_accepted = 0
        self._random = random.Random(seed)
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self.port = 0
        self.listen()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        self.refuse()
        self.cut()

    def listen(self) -> None:
        """Accepts connections (again), on the earlier port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuses new connections; existing ones continue."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would not wake the accepting thread.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def cut(self) -> None:
        """Resets all connections."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                player, _ = listener.accept()
            except OSError:
                return
            self.num_accepted += 1
            try:
                camera = socket.create_connection(("127.0.0.1", self.target_port), timeout=2)
            except OSError:
                player.close()
                continue
            # A small buffer, so that a slow network slows the camera as soon as the player.
            camera.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            with self._lock:
                self._connections += [player, camera]
            for source, sink, has_faults in ((player, camera, False), (camera, player, True)):
                source.settimeout(_POLL_S)
                threading.Thread(target=self._forward, args=(source, sink, has_faults), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, has_faults: bool) -> None:
        splitter = PacketSplitter()
        try:
            while not self._is_closed:
                if has_faults and self.is_frozen:
                    time.sleep(_POLL_S)
                    continue
                try:
                    data = source.recv(_CHUNK_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                for packet, is_rtp in splitter.split(data) if has_faults else [(data, False)]:
                    self._send(sink, packet, is_rtp, has_faults)
        except OSError:
            pass
        for connection in (source, sink):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _send(self, sink: socket.socket, packet: bytes, is_rtp: bool, has_faults: bool) -> None:
        if is_rtp and self._random.random() < self.loss:
            return
        if is_rtp and self._random.random() < self.corruption:
            damaged = bytearray(packet)
            # After the headers of the packet: the picture is damaged, not the connection.
            for _ in range(max(1, len(damaged) // 50)):
                damaged[self._random.randrange(min(20, len(damaged) - 1), len(damaged))] = self._random.randrange(256)
            packet = bytes(damaged)
        if is_rtp and self.clock_jump_s:
            stamp = int.from_bytes(packet[8:12], "big") + round(self.clock_jump_s * 90_000)
            packet = packet[:8] + (stamp % 2**32).to_bytes(4, "big") + packet[12:]
        sink.settimeout(None)
        sink.sendall(packet)
        if has_faults and self.bytes_per_s:
            time.sleep(len(packet) / self.bytes_per_s)


class PacketSplitter:
    """Splits an RTSP server's data over TCP into RTP packets and the rest."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Returns whole packets, each with whether it is RTP (not RTCP, not an answer)."""
        self._rest += data
        found = []
        while self._rest:
            if self._rest[0] != ord("$"):
                dollar = self._rest.find(b"$")
                end = len(self._rest) if dollar < 0 else dollar
                found.append((self._rest[:end], False))
                self._rest = self._rest[end:]
                continue
            if len(self._rest) < 4:
                break
            channel, length = self._rest[1], int.from_bytes(self._rest[2:4], "big")
            if len(self._rest) < 4 + length:
                break
            found.append((self._rest[: 4 + length], channel % 2 == 0))
            self._rest = self._rest[4 + length :]
        return found
