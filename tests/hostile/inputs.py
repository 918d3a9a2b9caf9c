"""The table: hostile inputs by kind, each with the exit codes it may end in and the item that its message must name.

An input is bytes for a file, or a function that makes something at a path (a pipe, a link, a folder). It is put before
the commands that read its kind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bad_media import bad_media, picture
from safetensors.torch import load_file, save_file

from rewarddance.runtime.checkpoint import BUNDLED

JUDGE, CLIP, GENERATOR = "shapeworld-judge-small", "shapeworld-clip", "shapeworld-generator"
Content = bytes | Callable[[Path], Any]
REFUSED = frozenset({2})


class Case(NamedTuple):
    """One run of a command. words: its arguments. codes: how it may end. named: what its message must hold."""

    kind: str
    name: str
    words: list[str]
    codes: frozenset[int]
    named: str


def put(path: Path, content: Content) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


# -- what is no file of rows at all ------------------------------------------------------------------------------------

NO_FILE: dict[str, Content] = {
    "missing": lambda path: None,
    "empty": b"",
    "blank": b"\n \r\n\t\n",
    "a mark alone": b"\xef\xbb\xbf",
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a device that is empty": lambda path: path.symlink_to("/dev/null"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path),
}
BAD_TEXT: dict[str, bytes] = {
    "not utf-8": b'{"prompt": "\xff\xfe\xfa"}\n',
    "half of utf-16": "\ufeffa circle".encode("utf-16-le")[:-1],
    "latin-1": '{"prompt": "grün"}'.encode("latin-1"),
    "binary": bytes(range(256)) * 8,
    "a picture": picture("png"),
    "zeros": bytes(5000),
    "a web page": b"<!doctype html><html><body>404</body></html>",
    "an lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "cut json": b'{"prompt": "a circ',
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 20_000,
    "a list": b"[1, 2, 3]",
    "a number": b"17",
    "a text": b'"a circle"',
    "null": b"null",
    "true": b"true",
    "single quotes": b"{'prompt': 'a'}",
    "a comment": b'// prompts\n{"prompt": "a"}',
    "nan": b"NaN",
    "digits": b"9" * 6000,
    "no prompt": b'{"text_": "a"}',
    "prompt is null": b'{"prompt": null}',
    "prompt is a number": b'{"prompt": 3}',
    "prompt is a list": b'{"prompt": ["a"]}',
    "prompt is an object": b'{"prompt": {"en": "a"}}',
    "prompt is blank": b'{"prompt": "  "}',
    "prompt is half a character": b'{"prompt": "a \\ud83d"}',
    "prompt holds a null": b'{"prompt": "a \\u0000"}',
    "prompt is a film script": json.dumps({"prompt": "a circle " * 340_000}).encode(),
    "prompt holds a turn": b'{"prompt": "a <|im_end|> b"}',
    "prompt holds a picture": b'{"prompt": "a <IMG_CONTEXT> b"}',
    "an image that is gone": b'{"prompt": "a", "image": "gone.png"}',
    "an image that is a number": b'{"prompt": "a", "image": 5}',
    "an image that is no path": b'{"prompt": "a", "image": "a\\u0000b"}',
    "a negative that is a list": b'{"prompt": "a", "negative_prompt": []}',
}


def prompt_cases(folder: Path) -> Iterator[Case]:
    judge = ["--judge", JUDGE, "--kind", "pointwise"]
    for name, content in {**NO_FILE, **BAD_TEXT}.items():
        file = put(folder / f"{name}.jsonl", content)
        search = ["search", str(file), "--generator", GENERATOR, "--num-inference-steps", "1", "--budget", "samples=1"]
        search += [*judge, "--output", str(folder / f"found {name}")]
        yield Case("prompts", name, search, REFUSED, file.name)
        recipe = folder / f"{name}.yaml"
        content_ = {"generator": GENERATOR, "num_inference_steps": 2, "judge": JUDGE, "prompts": str(file)}
        content_ |= {"output": str(folder / f"run {name}"), "judge_options": {"kind": "pointwise"}, "algorithm": "nft"}
        recipe.write_text(json.dumps(content_ | {"nft": {"steps": 1, "probe_prompts": 1}}))
        yield Case("prompts", name, ["align", str(recipe)], REFUSED, file.name)
        good = put(folder / "good.jsonl", lines(*PAIRS))
        if not {"turn", "picture"} & set(name.split()):  # plain text to whoever has no judge
            words = ["data", "check", str(good), "--benchmark", str(file), "--no-decode"]
            yield Case("prompts", name, words, REFUSED, file.name)
    tables: dict[str, bytes] = {
        "ragged.csv": b"prompt,id\na,1\nb\n",
        "head.csv": b"prompt,id\n",
        "other.csv": b"id,words\n1,a\n",
        "null.csv": b"prompt\na\0b\n",
        "twice.csv": b"prompt,prompt\na,b\n",
        "twice.tsv": b"prompt\tid\tid\na\t1\t2\n",
        "twice.json": b'[{"prompt": "a", "prompt": "b"}]',
        "twice.jsonl": b'{"prompt": "a", "id": 1, "id": 2}\n',
        "ragged.tsv": b"prompt\tid\na\n",
        "cut.parquet": b"PAR1" + bytes(40),
        "empty.parquet": b"",
        "numbers.json": b"[1, 2]",
        "cut.json": b'[{"prompt": "a"}, {"pro',
        "empty.json": b"[]",
        "deep.json": b"[" * 3000 + b"]" * 3000,
        "words.md": b"# prompts\n- a\n",
        "blank.txt": b" \n\t\n",
        "binary.txt": b"\x80\x81\x82\n",
        "long.txt": b"a" * 3_000_000,
        "null.txt": b"a \0 b\n",
    }
    for name, content in tables.items():
        file = put(folder / name, content)
        words = ["search", str(file), "--generator", GENERATOR, "--num-inference-steps", "1", "--budget", "samples=1"]
        yield Case("prompts", name, [*words, *judge, "--output", str(folder / f"o {name}")], REFUSED, name)
        words = ["data", "check", str(folder / "good.jsonl"), "--no-decode", "--benchmark", str(file)]
        yield Case("prompts", name, words, REFUSED, name)


# -- rows with pictures ------------------------------------------------------------------------------------------------

PAIRS = [{"prompt": f"a circle {n}", "media_a": "a.png", "media_b": "b.png", "label": "ab"[n % 2]} for n in range(4)]
SCORED = {"prompt": "a circle", "candidate": "a.png", "reference": "b.png"}
PATHS: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "a list of numbers": [1],
    "an object": {},
    "empty": "",
    "gone": "gone.png",
    "a folder without pictures": "nothing",
    "the row's own file": "self",
    "an address": "https://example.org/a.png",
    "a null in it": "a\0.png",
    "half a character": "a\ud83d.png",
    "very long": "x" * 5000,
    "below a file": "a.png/b.png",
    "a pipe": "pipe",
    "a device": "/dev/zero",
    "text": "text.png",
    "a session": "session.mp4",
    "a playlist": "playlist.mp4",
    "cut": "cut.png",
}


def surroundings(folder: Path) -> None:
    """Pictures that rows may name, good and bad ones."""
    for name, size in (("a.png", 32), ("b.png", 24)):
        put(folder / name, picture("png", size=size))
    (folder / "nothing").mkdir()
    os.mkfifo(folder / "pipe")
    put(folder / "text.png", b"a red circle")
    put(
        folder / "session.mp4",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    )
    put(folder / "playlist.mp4", b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n")
    put(folder / "cut.png", picture("png")[:20])


def row_cases(folder: Path) -> Iterator[Case]:
    surroundings(folder)
    bad = {name: content for name, content in BAD_TEXT.items() if not name.startswith(("an image", "a negative"))}
    rows: dict[str, bytes] = {f"row: {name}": content.replace(b"\n", b" ") for name, content in bad.items()}
    for key in ("candidate", "reference"):
        rows |= {f"{key}: {name}": json.dumps(SCORED | {key: path}).encode() for name, path in PATHS.items()}
    rows["two kinds"] = json.dumps(SCORED | {"candidates": ["a.png"]}).encode()
    rows["an answer's key"] = json.dumps(SCORED | {"margin": 1}).encode()
    del rows["reference: null"]
    for number, (name, row) in enumerate(rows.items()):
        file = put(folder / f"rows {number}.jsonl", lines(SCORED, row, SCORED))
        if name == "row: a comment":
            continue
        words = ["score", str(file), "--judge", JUDGE, "--output", str(folder / f"out {number}.jsonl")]
        yield Case("rows", name, words, REFUSED, f"line 2 of {file}")
        yield Case("rows", f"{name}, skipped", [*words, "--skip-faulty"], frozenset({1}), "1 of 3 rows failed")
    for name, content in NO_FILE.items():
        if name == "a folder":
            continue
        file = put(folder / f"{name}.jsonl", content)
        words = ["score", str(file), "--judge", JUDGE, "--output", str(folder / f"{name} out.jsonl")]
        yield Case("rows", name, words, REFUSED, file.name)
        yield Case("rows", name, ["gsb", str(file)], REFUSED, file.name)


def preference_cases(folder: Path) -> Iterator[Case]:
    surroundings(folder)
    good = PAIRS[0]
    rows: dict[str, bytes] = {}
    for name, content in BAD_TEXT.items():
        if not name.startswith(
            ("an image", "a negative", "a comment", "prompt holds a turn", "prompt holds a picture")
        ):
            rows[f"row: {name}"] = content.replace(b"\n", b" ")
    for key in ("media_a", "image"):
        rows |= {f"{key}: {name}": json.dumps(good | {key: path}).encode() for name, path in PATHS.items()}
    del rows["image: null"]
    for key, values in {"label": ["c", 1, [], "A"], "share": [2, -1, "most", True, [0.5]], "fps": [0, -1, "x"]}.items():
        rows |= {f"{key} is {value!r}": json.dumps(good | {key: value}).encode() for value in values}
    rows["share is nan"] = json.dumps(good).encode().replace(b'"label": "a"', b'"share": NaN')
    rows["a score too"] = json.dumps(good | {"media": "a.png", "score": 1}).encode()
    for number, (name, row) in enumerate(rows.items()):
        file = put(folder / f"pairs {number}.jsonl", lines(good, row, *PAIRS[1:]))
        yield Case("pairs", name, ["data", "check", str(file)], frozenset({1}), "1 rows are broken")
        if name == "row: prompt is blank":
            continue
        words = ["evaluate", JUDGE, "--tests", f"id={file}", "--output", str(folder / f"exam {number}")]
        yield Case("pairs", name, words, REFUSED, f"line 2 of the preferences file {file}")
        if number % 4 == 0:
            recipe = folder / f"{number}.yaml"
            judge = {"base": JUDGE, "instruction": "t2i-brief"}
            recipe.write_text(
                json.dumps({"preferences": str(file), "output": str(folder / f"r{number}"), "judge": judge})
            )
            yield Case("pairs", name, ["train", str(recipe)], REFUSED, f"line 2 of the preferences file {file}")
    for name, content in NO_FILE.items():
        file = put(folder / f"{name}.jsonl", content)
        yield Case("pairs", name, ["data", "check", str(file)], REFUSED, file.name)
        yield Case("pairs", name, ["data", "weigh", str(file), "--output", str(folder / "w.jsonl")], REFUSED, file.name)
        words = ["evaluate", JUDGE, "--tests", f"id={file}", "--output", str(folder / f"e {name}")]
        yield Case("pairs", name, words, REFUSED, file.name)


def media_cases(folder: Path) -> Iterator[Case]:
    put(folder / "b.png", picture("png"))
    for number, (name, content) in enumerate(bad_media()):
        file = put(folder / f"m{number}{Path(name).suffix or '.png'}", content)
        rows = put(folder / f"m{number}.jsonl", lines(SCORED | {"candidate": file.name}))
        words = ["score", str(rows), "--judge", JUDGE, "--output", str(folder / f"o{number}.jsonl"), "--skip-faulty"]
        yield Case("media", name, words, REFUSED, "1 of 1 rows failed")
        pairs = put(folder / f"p{number}.jsonl", lines(PAIRS[0] | {"media_a": file.name}))
        yield Case("media", name, ["data", "check", str(pairs)], frozenset({1}), file.name)


# -- recipes -----------------------------------------------------------------------------------------------------------

RECIPES: dict[str, Content] = {
    **{name: content for name, content in NO_FILE.items() if name not in ("empty", "blank", "a mark alone")},
    "not utf-8": b"seed: \xff\xfe\xfa",
    "binary": bytes(range(256)),
    "a list": b"- seed\n- 0\n",
    "a word": b"seed\n",
    "an empty list": b"[]\n",
    "an empty text": b"''\n",
    "an empty output": b"output: ''\n",
    "another command's": b"generator: g\nprompts: p\nbudget: samples=1\nseeds: [0]\npreferences: {pairs: 2}\n",
    "a number that no tensor holds": b"judge: {learning_rate: 1.0e+300}\nrefl: {learning_rate: 1.0e+300}\n",
    "a million processes": b"judge: {workers: 1000000}\npreferences: {pairs: 1000000000}\n",
    "a number": b"3",
    "tabs": b"\tseed: 0\n",
    "unbalanced": b"judge: {base: x\n",
    "twice": b"seed: 0\nseed: 1\n",
    "twice below": b"judge: {base: a, base: b}\n",
    "python": b"seed: !!python/object/apply:os.system ['true']\n",
    "a tag": b"seed: !secret x\n",
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    + b"".join(f"{chr(99 + n)}: &{chr(99 + n)} [{','.join([f'*{chr(98 + n)}'] * 10)}]\n".encode() for n in range(9)),
    "itself": b"seed: &a {b: *a}\n",
    "no anchor": b"seed: *a\n",
    "nested": b"seed: " + b"{a: " * 3000,
    "a key that is none": b"sede: 0\n",
    "a key of null": b"null: 0\n",
    "a key of a list": b"? [a]\n: 0\n",
    "keys of many kinds": b"1: 2\ntrue: 3\n",
    "a seed of words": b"seed: many\n",
    "a seed below zero": b"seed: -1\n",
    "an endless seed": b"seed: .inf\n",
    "a seed that is none": b"seed: .nan\n",
    "a seed of a date": b"seed: 2024-01-01\n",
    "a date that is none": b"seed: 2024-13-45\n",
    "a huge seed": b"seed: " + b"9" * 5000 + b"\n",
    "a judge of a list": b"judge: [a]\n",
    "null": b"judge: null\nseed: null\n",
    "large": b"# " + b"x" * (5 << 20),
    "a null in a text": b'seed: "a\\0b"\n',
    "colours": b'"\\e[31mseed": 0\n',
}
OVERRIDES = (
    *("seed", "=", "=1", "seed=", "seed=[", "seed=many", "seed=-1", "seed=.nan", "seed=.inf", "seed.deep=1"),
    *("sede=1", "judge=[]", "judge=3", "seed={a: &a [*a]}", "seed='x", "..=1", "a.b.c=1", "\x1b[31m=1", "seed=true"),
)


def recipe_cases(folder: Path) -> Iterator[Case]:
    commands = {"train": [], "align": [], "plan": []}
    for name, content in RECIPES.items():
        file = put(folder / f"{name}.yaml", content)
        for command in commands:
            yield Case("recipes", name, [command, str(file)], REFUSED, file.name)
        words = ["quickstart", "--recipe", str(file), "--output", str(folder / "runs"), "--name", name]
        yield Case("recipes", name, words, REFUSED, file.name)
    good = put(folder / "good.yaml", b"preferences: p.jsonl\noutput: run\n")
    for override in OVERRIDES:
        named = override if override.isidentifier() else ""
        yield Case("overrides", override, ["train", str(good), override], REFUSED, named)
        if override != "judge=3":
            words = ["quickstart", override, "--output", str(folder / "q"), "--name", "x"]
            yield Case("overrides", override, words, REFUSED, named)
    score = ["score", str(folder), "--judge", JUDGE, "--output"]
    given = ("out.txt", "o.jsonl --batch-size 0", "o.jsonl --batch-size x", "o.jsonl --kind best", "/nowhere/a.jsonl")
    given += ("o.jsonl --device tpu", "o.jsonl --instruction nothing", "o.jsonl --max-frames -1", "o.jsonl --nothing 1")
    for number, words in enumerate(map(str.split, given)):
        yield Case("options", str(number), [*score, *words], REFUSED, "")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint_cases(folder: Path) -> Iterator[Case]:
    put(folder / "a.png", picture("png", size=32))
    rows = put(folder / "rows.jsonl", lines({"prompt": "a", "candidate": "a.png"}))
    source = BUNDLED / JUDGE
    weights = load_file(source / "model.safetensors")
    first = sorted(weights)[3]

    def saved(content: dict[str, torch.Tensor]) -> Callable[[Path], Any]:
        return lambda path: save_file(content, path, metadata={"format": "pt"})

    spoiled: dict[str, tuple[str, Content | None]] = {
        "no weights": ("model.safetensors", None),
        "empty weights": ("model.safetensors", b""),
        "cut weights": ("model.safetensors", (source / "model.safetensors").read_bytes()[:9000]),
        "weights of text": ("model.safetensors", b"weights"),
        "weights with a huge head": ("model.safetensors", b"\xff" * 7 + b"\x7f" + bytes(50)),
        "wrapped weights": ("model.safetensors", saved({f"module.{name}": w for name, w in weights.items()})),
        "one weight less": ("model.safetensors", saved({name: w for name, w in weights.items() if name != first})),
        "one weight more": ("model.safetensors", saved(weights | {"more": torch.zeros(2)})),
        "a weight of another shape": ("model.safetensors", saved(weights | {first: torch.zeros(2, 3)})),
        "a weight of nan": ("model.safetensors", saved(weights | {first: weights[first] * torch.nan})),
        "no config": ("config.json", None),
        "a config of text": ("config.json", b"config"),
        "a config of a list": ("config.json", b"[]"),
        "an empty config": ("config.json", b"{}"),
        "a nested config": ("config.json", b'{"a":' * 5000),
        "a config of another model": ("config.json", b'{"model_type": "bert"}'),
        "a config of an unknown model": ("config.json", b'{"model_type": "nothing"}'),
        "no tokenizer": ("tokenizer.json", None),
        "a tokenizer of text": ("tokenizer.json", b"words"),
        "a tokenizer of null": ("tokenizer.json", b"null"),
        "a tokenizer's config of a list": ("tokenizer_config.json", b"[]"),
        "no template": ("chat_template.jinja", None),
        "an empty template": ("chat_template.jinja", b""),
        "a broken template": ("chat_template.jinja", b"{% for %}"),
        "a template that raises": ("chat_template.jinja", b"{{ raise_exception('no') }}"),
        "a template of nothing": ("chat_template.jinja", b"assistant:"),
        "a template of dots": ("chat_template.jinja", b"{{ messages[0].__class__.__mro__ }}"),
        "a picture's config of text": ("preprocessor_config.json", b"pictures"),
        "a picture's config of a list": ("preprocessor_config.json", b"[]"),
        "a reward's config of text": ("reward_config.json", b"reward"),
        "a reward's config of a list": ("reward_config.json", b"[1]"),
        "a reward of another kind": ("reward_config.json", b'{"kind": "best"}'),
        "a reward with another key": ("reward_config.json", b'{"kindness": 1}'),
        "a nested reward's config": ("reward_config.json", b'{"a":' * 5000),
        "another question": ("rendered_question.json", b'{"question": "Hello?", "fixed": []}'),
        "a question of text": ("rendered_question.json", b"question"),
    }
    for number, (name, (file, content)) in enumerate(spoiled.items()):
        judge = Path(shutil.copytree(source, folder / f"judge{number}"))
        (judge / file).unlink(missing_ok=True)
        if name.startswith("a picture's config"):
            (judge / "processor_config.json").unlink(missing_ok=True)
        if content is not None:
            put(judge / file, content)
        words = ["score", str(rows), "--judge", str(judge), "--output", str(folder / f"{number}.jsonl")]
        yield Case("checkpoints", name, [*words, "--kind", "pointwise"], REFUSED, "")
    for name, make in NO_FILE.items():
        if name == "a link to itself":
            continue
        judge = put(folder / f"judge {name}", make)
        words = ["score", str(rows), "--judge", str(judge), "--output", str(folder / "o.jsonl")]
        yield Case("checkpoints", name, words, REFUSED, judge.name)
        words = ["search", str(rows), "--generator", str(judge), "--judge", JUDGE, "--budget", "samples=1"]
        yield Case("checkpoints", name, [*words, "--output", str(folder / "f")], REFUSED, judge.name)
        words = ["evaluate", str(judge), "--tests", f"id={rows}", "--output", str(folder / "e")]
        yield Case("checkpoints", name, words, REFUSED, "")


# -- imports and reports -----------------------------------------------------------------------------------------------


def import_cases(folder: Path) -> Iterator[Case]:
    for source in ("hpdv3", "pickapic-v2", "mmrb2", "messages", "rapidata"):
        for number, (name, content) in enumerate({**NO_FILE, **BAD_TEXT}.items()):
            if name in ("an image that is gone", "a negative that is a list", "an image that is no path"):
                continue
            file = put(folder / f"{source} {name}.json", content)
            output = folder / f"{source}{number}.jsonl"
            words = ["data", "import", source, str(file), "--output", str(output)]
            yield Case("imports", f"{source}: {name}", words, REFUSED, file.name)


def report_cases(folder: Path) -> Iterator[Case]:
    outside = put(folder / "secret.png", picture("png"))
    contents: dict[str, bytes] = {**BAD_TEXT, "an object": b"{}"}
    for number, (name, content) in enumerate(contents.items()):
        run = folder / f"run{number}"
        run.mkdir()
        put(run / "summary.json", content)
        yield Case("reports", f"summary: {name}", ["report", str(run)], REFUSED, "summary.json")
    for name, content in NO_FILE.items():
        run = put(folder / f"run {name}", content)
        yield Case("reports", name, ["report", str(run)], REFUSED, "")
    del outside


BUILDERS = (prompt_cases, row_cases, preference_cases, media_cases)
BUILDERS += (recipe_cases, checkpoint_cases, import_cases, report_cases)
