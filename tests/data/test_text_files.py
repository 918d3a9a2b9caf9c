"""Text and pictures as people have them: encodings, tables of prompts, containers, and what is none of these."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rewarddance.data.faults import FaultyRows
from rewarddance.data.media import inspect_media, read_video
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.prompts import read_prompts
from rewarddance.data.records import read_records
from rewarddance.data.sources.messages import pair_or_score
from rewarddance.data.tables import open_table
from rewarddance.errors import InputError
from rewarddance.runtime.files import encoding_of, parse_json, read_text
from rewarddance.types import LONGEST_PROMPT, Prompt

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_prompts_of_any_encoding_and_line_end_are_the_same(tmp_path, encoding, ends):
    wanted = [Prompt("a green cross, grün"), Prompt("two circles")]
    (tmp_path / "P.TXT").write_bytes(ends.join(["a green cross, grün", "two circles", ""]).encode(encoding))
    assert read_prompts(tmp_path / "P.TXT") == wanted
    lines = [json.dumps({"prompt": prompt.text}, ensure_ascii=False) for prompt in wanted]
    (tmp_path / "p.jsonl").write_bytes(ends.join([*lines, ""]).encode(encoding))
    assert read_prompts(tmp_path / "p.jsonl") == wanted
    if encoding != "utf-32" and ends != "\r":  # a table is cut at line feeds
        assert [row.content["prompt"] for row in open_table(tmp_path / "p.jsonl").rows()] == [p.text for p in wanted]


def test_a_caption_beside_a_picture_has_no_byte_order_mark(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cross", encoding="utf-16")
    (row,) = open_table(tmp_path).rows()
    assert row.content == {"prompt": "a cross", "candidate": "a.png"}


PUBLISHED = {
    "parti.tsv": 'Prompt\tCategory\na "bond"\tAbstract\nan owl, reading\tAnimals\n',
    "drawbench.csv": 'Prompts,Category\n"a ""bond""",Abstract\n"an owl, reading",Animals\n',
    "list.json": '["a \\"bond\\"", "an owl, reading"]',
    "rows.json": '[\n {"id": 1, "prompt": "a \\"bond\\""},\n {"id": 2, "prompt": "an owl, reading"}\n]',
    "by_id.json": '{"00001": {"prompt": "a \\"bond\\""}, "00002": {"prompt": "an owl, reading"}}',
    "wrapped.json": '{"data": [{"caption": "a \\"bond\\""}, {"caption": "an owl, reading"}]}',
    "lines.json": '{"prompt": "a \\"bond\\""}\n{"prompt": "an owl, reading"}\n',
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_benchmarks_prompt_file_is_read_as_it_is_published(tmp_path, name):
    (tmp_path / name).write_text(PUBLISHED[name])
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == ['a "bond"', "an owl, reading"]


def test_prompts_in_parquet_carry_their_other_columns_and_negatives(tmp_path):
    table = pa.table({"prompt": ["a", "b"], "negative_prompt": ["blur", None], "seed": [1, 2]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [Prompt("a", "blur", {"seed": 1}), Prompt("b", "", {"seed": 2})]


def test_all_faulty_rows_of_a_prompt_file_are_named_at_once(tmp_path):
    path = tmp_path / "p.jsonl"
    bad = ['{"prompt": 5}', '{"prompt": "half \\ud83d"}', '{"prompt": "null \\u0000"}', '{"caption": ""}', "[[[["]
    path.write_text("\n".join(['{"prompt": "good"}', *bad]))
    with pytest.raises(FaultyRows) as caught:
        read_prompts(path)
    assert [fault.where for fault in caught.value.faults] == [
        f"line {n} of the prompt file {path}" for n in range(2, 7)
    ]
    assert all(f"line {n} " in caught.value.what for n in range(2, 7))
    left_out = []
    assert read_prompts(path, left_out) == [Prompt("good")] and len(left_out) == 5


def test_a_prompt_of_a_whole_file_is_refused_and_not_printed(tmp_path):
    with pytest.raises(InputError, match=r"3,000,000 characters") as caught:
        Prompt("a circle " * 333_333 + "ab\n")
    assert len(caught.value.what) < 300
    assert Prompt("a" * LONGEST_PROMPT).text


def test_what_a_terminal_would_act_on_is_shown_as_text():
    with pytest.raises(InputError) as caught:
        raise InputError("the file \x1b]0;owned\x07\u202efdp.exe\ud83d is none.")
    assert caught.value.what == "the file \\x1b]0;owned\\x07\\u202efdp.exe\\ud83d is none."


def test_json_that_is_nested_too_deep_is_refused_at_once():
    with pytest.raises(ValueError, match="deep"):
        parse_json('{"a":' * 50_000)
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * 300 + "]" * 300)
    assert parse_json(json.dumps(["[[{" * 1000])) == ["[[{" * 1000]


def test_an_encoding_is_told_by_its_mark_or_its_zeros():
    assert [encoding_of("a circle".encode(name)) for name in ("utf-8", "utf-16-le", "utf-16-be")] == [
        "utf-8",
        "utf-16-le",
        "utf-16-be",
    ]
    assert encoding_of(b"") == "utf-8"


@pytest.mark.parametrize("read", [read_prompts, open_table, PreferenceSet, read_text, read_records, inspect_media])
def test_a_pipe_that_never_ends_is_no_file(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    said: list[BaseException] = []

    def attempt() -> None:
        try:
            read(path)
        except (InputError, OSError) as error:
            said.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and "named pipe" in str(said[0])


# -- pictures and videos -----------------------------------------------------------------------------------------------


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(("kind", "name"), [("HEIF", "a.heic"), ("AVIF", "b.avif"), ("JPEG", "c.jfif"), ("PNG", "d")])
def test_a_folders_pictures_are_told_by_what_they_hold(tmp_path, kind, name):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    noise().save(tmp_path / name, kind)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    table = open_table(tmp_path)
    assert table.names == [name] and table.left_out == 1
    assert read_video(tmp_path / name).shape == (1, 3, 48, 64)


def video(path: Path, frames: int = 4, cover: bool = False) -> Path:
    import av

    with av.open(str(path), "w", format="matroska") as container:
        streams = [container.add_stream("mjpeg", rate=8)] if cover else []
        streams.append(container.add_stream("mpeg4", rate=8))
        for number, stream in enumerate(streams):
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
            if cover and number == 0:
                stream.disposition = av.stream.Disposition.attached_pic
            elif cover:
                stream.disposition = av.stream.Disposition.default
        for number, stream in enumerate(streams):
            for at in range(1 if cover and number == 0 else frames):
                container.mux(stream.encode(av.VideoFrame.from_image(noise(at))))
            container.mux(stream.encode())
    return path


def test_of_two_video_streams_the_one_that_a_player_shows_is_read(tmp_path):
    assert len(read_video(video(tmp_path / "v.mkv", cover=True))) == 4


def test_bytes_behind_the_end_of_a_video_are_no_part_of_it(tmp_path):
    import av

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(noise(at))))
        container.mux(stream.encode())
    whole = read_video(path)
    path.write_bytes(path.read_bytes() + b"\xde\xad\xbe\xef\x00\x01\x02\x03" * 9)
    assert (read_video(path) == whole).all()


@pytest.mark.parametrize(
    "content",
    [
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>",
    ],
)
def test_a_text_that_ffmpeg_would_follow_elsewhere_is_no_video(tmp_path, content):
    import socket

    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    opened = []
    real = socket.socket
    socket.socket = lambda *args, **options: opened.append(args) or real(*args, **options)
    try:
        with pytest.raises(InputError, match=r"clip\.mp4") as caught:
            read_video(path)
    finally:
        socket.socket = real
    assert not opened and caught.value.remedy


# -- answers in words --------------------------------------------------------------------------------------------------

ANSWERS = {
    "Candidate 2 wins. The same cat is in both.": 1.0,
    "The first picture is clearly better; their backgrounds are equal.": 0.0,
    "We prefer video B, although both tie the knot.": 1.0,
    "Not a tie: picture 1": 0.0,
    "Picture 1 is sharper. Overall, picture 2 is better.": 1.0,
    "Response A is worse than response B.": 1.0,
    "**[Image 2]**": 1.0,
    "Verdict: left": 0.0,
    "Picture 1 and picture 2 are equally good.": 0.5,
    "Neither is better.": 0.5,
    "It's a tie.": 0.5,
    "Both show the same dog.": None,
    "Picture 1 is not better.": None,
    "If it were sharper, picture 1 is better.": None,
    "Picture 1 is better. Picture 2 is better.": None,
    "Picture 1 has better colours, and picture 2 a better face.": None,
    "The two teams tied.": None,
    "I cannot say which one is better.": None,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_in_words_is_a_verdict_or_none_and_no_keyword(answer):
    asked = "<image><image>Caption: [a [tall] cat]\nThen say [A] or [B]."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    record = {"messages": turns, "images": ["a.png", "b.png"]}
    if ANSWERS[answer] is None:
        with pytest.raises(InputError, match="which one is better"):
            next(iter(pair_or_score(record)))
    else:
        (draft,) = pair_or_score(record)
        assert (draft.value, draft.prompt) == (ANSWERS[answer], "a [tall] cat")


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"a": 1, "a": 2}', "'a'"), ('[{"x": {"b": 1, "c": 2, "b": 1}}]', "'b'"), ('{"\\u0061": 1, "a": 1}', "'a'")],
)
def test_a_key_that_stands_twice_in_json_is_refused_by_name(text, key):
    with pytest.raises(ValueError, match=f"the key {key} stands twice"):
        parse_json(text)
    assert parse_json('{"a": {"a": 1}, "b": {"a": 1}}') == {"a": {"a": 1}, "b": {"a": 1}}


@pytest.mark.parametrize(("name", "separator"), [("p.tsv", "\t"), ("p.csv", ",")])
def test_a_column_of_prompts_that_stands_twice_is_refused_by_name(tmp_path, name, separator):
    (tmp_path / name).write_text(f"prompt{separator}id{separator}prompt\na{separator}1{separator}b\n")
    with pytest.raises(InputError, match=rf"line 1 of the prompt file .*{name}: names the column 'prompt' twice"):
        read_prompts(tmp_path / name)
    with pytest.raises(InputError, match="two columns named 'prompt'" if name == "p.csv" else "two columns named"):
        list(read_records(tmp_path / name))


def test_a_parquet_column_that_stands_twice_is_refused_by_name(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "p.parquet")
    for read in (read_prompts, open_table):
        with pytest.raises(InputError, match=r"p\.parquet cannot be read: its column 'prompt' stands twice"):
            read(tmp_path / "p.parquet")


def test_what_no_result_can_hold_beside_a_prompt_is_refused_by_its_row(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"], "more": [None, [{"x": b"bytes"}]]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"row 2 of the prompt file .*p\.parquet: holds beside the prompt"):
        read_prompts(tmp_path / "p.parquet")
