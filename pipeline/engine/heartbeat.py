"""Detection of a lost cluster: Ray's native code then ends the driver with status 1 and without a message."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

_EVERY_S = 3.0
_TIMEOUT_S = 10.0
_MISSES = 2


@contextmanager
def watched(addresses: Mapping[str, tuple[str, int]], out: TextIO) -> Iterator[None]:
    """Check regularly during the block that each address answers, and report once on `out` each one that does not.

    Args:
        addresses: host and port by the name used in the message.
    """
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(addresses, out, ended), daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        listener.join()


def _listen(addresses: Mapping[str, tuple[str, int]], out: TextIO, ended: threading.Event) -> None:
    misses = dict.fromkeys(addresses, 0)
    while not ended.wait(_EVERY_S):
        for name, address in addresses.items():
            misses[name] = 0 if _answers(address) else misses[name] + 1
            if misses[name] == _MISSES and not ended.is_set():
                print(
                    f"\n{name} at {address[0]}:{address[1]} does not answer. Unless it answers again, the job ends with status 1."
                    " Committed shards are kept; run the same command again to resume.",
                    file=out,
                    flush=True,
                )


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True
