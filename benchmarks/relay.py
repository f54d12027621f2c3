"""A TCP relay that can be slowed while it runs: what a distant, congested or throttled link does to a connection.

    python benchmarks/relay.py 127.0.0.1:9001 127.0.0.1:8001

Every line on standard input is a delay in milliseconds that from then on holds back each piece of data, in both directions and
in order; 0 is no delay. It ends with its input. (`netem` would do it in the kernel, but not every kernel has it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time

PIECE_BYTES = 1 << 16


class Relay:
    """Forwards every connection to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.delay_s = 0.0
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it."""
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()  # nobody there: the caller must see it as it is
            return
        await asyncio.gather(self._forward(reader, to_writer), self._forward(to_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.ensure_future(self._send(held, writer))
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                held.put_nowait((time.monotonic() + self.delay_s, piece))
        held.put_nowait((0.0, b""))
        await sending

    @staticmethod
    async def _send(held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, piece = await held.get()
                if not piece:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                writer.write(piece)
                await writer.drain()
        writer.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _obey(relay: Relay, end: threading.Event) -> None:
    for line in sys.stdin:
        relay.delay_s = float(line) / 1000
    end.set()


async def _main(listen: tuple[str, int], target: tuple[str, int]) -> None:
    relay, end = Relay(target), threading.Event()
    server = await asyncio.start_server(relay.serve, *listen)
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=_obey, args=(relay, end), daemon=True).start()
    await asyncio.to_thread(end.wait)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(_address(sys.argv[1]), _address(sys.argv[2])))
