"""A socket that a server of ours listens at, and which hosts are this very machine."""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

from rewarddance.errors import InputError, shown

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InputError where the address cannot be had.

    It says that it is TCP's: asyncio sends what is written at once on such connections only, and on others the second
    part of a reply waits 40 ms for the receipt of the first.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except (TypeError, ValueError) as error:  # a name that no resolver takes
        listening.close()
        raise InputError(f"{shown(host)} is no address to listen at.", "Give one such as 127.0.0.1.") from error
    except OSError as error:
        listening.close()
        what = f"the server cannot listen at {host}, port {port}: {error.strerror or error}."
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(what, "Give an address of this machine: --host 127.0.0.1, or 0.0.0.0 for all.") from error
        raise InputError(what, "Choose another --port, or end what has it.") from error
    return listening


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_same_origin(origin: str, host: str) -> bool:
    """Does the page that a browser names as a request's Origin come from the host that is asked?"""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def host_name(header: str) -> str | None:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
