"""Which addresses are judges, and how one is loaded: a protocol is one file and one line here."""

from __future__ import annotations

import re
from typing import Any

from rewarddance.errors import InputError, shown
from rewarddance.reward.remote.chat import ChatReward
from rewarddance.reward.remote.decisions import DecisionsReward
from rewarddance.reward.remote.served import ServedReward
from rewarddance.reward.remote.systemone import SystemOneReward

PROTOCOLS = {kind.scheme: kind for kind in (ChatReward, DecisionsReward, SystemOneReward)}
_ADDRESS = re.compile(r"(?:(?P<protocol>[a-z0-9]+)\+)?(?P<address>https?://.*)", re.DOTALL)


def is_address(name: str) -> bool:
    """Whether a judge's name is the address of a server."""
    return _ADDRESS.fullmatch(name) is not None


def load_remote(name: str, **options: Any) -> Any:
    """The judge at an address: `http(s)://` of `rewarddance serve`, `decisions+`, `systemone+` or `chat+http(s)://`.

    Raises InputError for a protocol or an option that there is not, and where the server does not answer.
    """
    match = _ADDRESS.fullmatch(name)
    assert match is not None
    protocol = match["protocol"]
    if protocol is None:
        return ServedReward(match["address"], **options)
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{known}+http" for known in PROTOCOLS)
        raise InputError(f"{shown(name)} is of no protocol that is spoken here.", f"Say http, {known}, or with https.")
    return PROTOCOLS[protocol](match["address"], **options)
