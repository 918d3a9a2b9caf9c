"""Sockets that servers listen at."""

from __future__ import annotations

import asyncio
import socket

from rewarddance.runtime.listening import listen


def test_replies_in_two_parts_do_not_wait_for_a_receipt():
    """Nagle's algorithm is off on what is accepted: with it the second part of a reply comes 40 ms later."""
    accepted: list[int] = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            plain = transport.get_extra_info("socket")
            accepted.append(plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def connect() -> None:
        listening = listen("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Connection, sock=listening)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        await reader.read()
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(connect(), 20))
    assert accepted == [1]
