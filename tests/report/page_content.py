"""What the tests read out of a page: its words, its tags, its drawings, and whether it needs anything but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser


def words(html: str) -> str:
    """What a reader sees, spaces joined; entities as they are written."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def drawings(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)


class Tags(HTMLParser):
    """All tags with their attributes. Asserts that each that was opened is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.all if name == tag]

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.all for name, value in attributes.items() if name in names]


def assert_self_contained(html: str) -> None:
    """No script, no address outside the page, and every link inside it leads to an id that is there once."""
    tags = Tags(html)
    assert not re.search(r"https?://|@import|//cdn", html)
    assert not tags.of("script") and not tags.of("link") and not tags.of("iframe")
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", html))
    assert all(address.startswith("data:") for address in tags.values("src"))
    ids = tags.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in tags.values("href", "xlink:href")} <= set(ids)


def assert_follows_dark_mode(drawing: str) -> None:
    """All its colours are the page's variables."""
    assert set(re.findall(r"(?:fill|stroke): ?(#\w+)", drawing)) == set()
    assert "var(--" in drawing and "<style" not in drawing
