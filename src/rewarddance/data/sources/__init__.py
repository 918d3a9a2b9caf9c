"""The public preference sets and the exports of annotation tools that `rewarddance data import` knows.

A new one is one file, and one name here.
"""

from __future__ import annotations

import difflib

from rewarddance.data.sources.argilla import ARGILLA
from rewarddance.data.sources.drafts import Source
from rewarddance.data.sources.edits import EDITREWARD, EDITSCORE_BENCH
from rewarddance.data.sources.genai_arena import GENAI_ARENA
from rewarddance.data.sources.genai_bench import GENAI_BENCH
from rewarddance.data.sources.hpd import HPDV2, HPDV3
from rewarddance.data.sources.imagereward import IMAGEREWARDDB
from rewarddance.data.sources.label_studio import LABEL_STUDIO
from rewarddance.data.sources.messages import MESSAGES
from rewarddance.data.sources.mmrb2 import MMRB2
from rewarddance.data.sources.omnireward import OMNIREWARD
from rewarddance.data.sources.pickapic import PICKAPIC_V1, PICKAPIC_V2
from rewarddance.data.sources.rapidata import RAPIDATA
from rewarddance.data.sources.videogen import VIDEOGEN
from rewarddance.errors import InputError

_ALL = (HPDV3, HPDV2, IMAGEREWARDDB, PICKAPIC_V1, PICKAPIC_V2)
_ALL += (VIDEOGEN, RAPIDATA, GENAI_BENCH, OMNIREWARD, MMRB2, MESSAGES)
_ALL += (LABEL_STUDIO, ARGILLA, GENAI_ARENA)
_ALL += (EDITREWARD, EDITSCORE_BENCH)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


def find_source(name: str) -> Source:
    """The set of this name. Raises InputError with the nearest name, or all of them."""
    key = name.casefold().replace("_", "-")
    if key in SOURCES:
        return SOURCES[key]
    near = difflib.get_close_matches(key, SOURCES, n=1)
    raise InputError(
        f"there is no public set named {name!r}.",
        f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(SOURCES)}.",
    )


def refusal(source: str) -> str:
    """Why no reward may be trained on rows of this source (`mmrb2/dreambench`), or ""."""
    public = SOURCES.get(source.partition("/")[0].strip().casefold())
    return public.evaluation_only if public else ""
