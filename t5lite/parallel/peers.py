"""The other processes of a job: if one dies or stops responding, all others end with one line.

JAX itself aborts them with a stack trace, and only where its own connection breaks. Process 0 has
a connection to each of the others, from the roll call. Both sides send an empty line every few
seconds, and "end" when they have finished; process 0 sends "lost NAME" before it ends because of
another process.
"""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax

from t5lite.core.ending import end_process
from t5lite.core.run_directory import UNAVAILABLE_EXIT

# A process that sends nothing for this long has stopped. Long, because threads of Python wait while
# a library holds the interpreter.
SILENCE_SECONDS = 100.0
BEAT_SECONDS = 2.0
# In which a process may still end by itself, with its own error, after another one has ended.
END_GRACE_SECONDS = 5.0
FINISHED = b"end"
LOST_PEER = b"lost "


@contextlib.contextmanager
def lost_peers_named() -> Iterator[None]:
    """Keeps an error of a collective until the process that caused it is known.

    If another process has died, this one ends with a line that names it. Otherwise the error is
    raised. Every command of several processes computes in this context, which may also decorate a
    function.
    """
    try:
        yield
    except (RuntimeError, ValueError):
        # JAX raises either, depending on the collective.
        if jax.process_count() > 1:
            time.sleep(END_GRACE_SECONDS + 2 * BEAT_SECONDS)
        raise


def watch_peers(links: Mapping[int, socket.socket], names: Mapping[int, str]) -> None:
    """Ends this process if one of its peers does, from now on.

    Args:
        links: to each peer, by its index.
        names: of the peers, for messages.
    """
    threading.Thread(target=_watch, args=(links, names), name="peers", daemon=True).start()
    atexit.register(_leave, links)


def _leave(links: Mapping[int, socket.socket]) -> None:
    """Called when this process ends by itself."""
    if hasattr(sys, "last_value"):
        # An error has been printed. The others must notice, and JAX would wait for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    for link in links.values():
        _send(link, FINISHED)


def _watch(links: Mapping[int, socket.socket], names: Mapping[int, str]) -> None:
    heard = dict.fromkeys(links, time.monotonic())
    unread = dict.fromkeys(links, b"")
    beat = 0.0
    with selectors.DefaultSelector() as selector:
        for index, link in links.items():
            selector.register(link, selectors.EVENT_READ, index)
        while heard:
            for key, _ in selector.select(BEAT_SECONDS):
                index = key.data
                received = _receive(links[index])
                *lines, unread[index] = (unread[index] + received).split(b"\n")
                heard[index] = time.monotonic()
                if FINISHED in lines:
                    selector.unregister(links[index])
                    del heard[index]
                elif lost := [line for line in lines if line.startswith(LOST_PEER)]:
                    _end(lost[0].removeprefix(LOST_PEER).decode(), links, index)
                elif not received:
                    _end(f"{names[index]} has ended before the others", links, index)
            now = time.monotonic()
            if now - beat >= BEAT_SECONDS:
                beat = now
                for index in heard:
                    _send(links[index], b"")
            for index, latest in heard.items():
                if now - latest > SILENCE_SECONDS:
                    silence = f"has not responded for {now - latest:.0f} seconds"
                    _end(f"{names[index]} {silence}", links, index)


def _end(reason: str, links: Mapping[int, socket.socket], source: int) -> NoReturn:
    """Ends this process, and its peers by a message, except `source`."""
    for index, link in links.items():
        if index != source:
            _send(link, LOST_PEER + reason.encode())
    time.sleep(END_GRACE_SECONDS)
    end_process(
        "unavailable",
        f"{reason}; read its log, and restart to resume",
        UNAVAILABLE_EXIT,
    )


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(4096)
    except OSError:
        return b""


def _send(link: socket.socket, line: bytes) -> None:
    # A peer that has ended is noticed where its link is read.
    with contextlib.suppress(OSError):
        link.send(line + b"\n", socket.MSG_DONTWAIT)


def lasting_address(address: tuple[str, int]) -> str:
    """Returns an address of this host that forwards to `address`, and outlives it.

    NOTE: JAX aborts a process at once if its connection to process 0 closes, with no way to prevent
    it, so JAX gets a connection that never closes.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    # Kept open.
    ends: list[socket.socket] = []

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            ends.append(near)
            with contextlib.suppress(OSError):
                far = socket.create_connection(address)
                ends.append(far)
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    threading.Thread(target=accept, name="forward", daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copies bytes until either end closes."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
