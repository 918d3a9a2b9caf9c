"""`rewarddance annotate`: pairs into a store of votes, people invited, the page served, and a judge that learns beside
it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewarddance.annotate.learning import LearningPlan, score_once, work
from rewarddance.annotate.recipe import HandingOut, PageOptions
from rewarddance.annotate.sources import Made, compared, pair_up, read_pairs, read_tests
from rewarddance.annotate.store import Pair, Store, hashed
from rewarddance.data.media import write_picture
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError
from rewarddance.jobs.recipes import AnnotateRun
from rewarddance.reward.instructions import load_tree
from rewarddance.runtime.checkpoint import (
    checkpoint_digest,
    find_checkpoint,
    writable_folder,
    write_text_atomically,
)
from rewarddance.runtime.devices import digest_of
from rewarddance.runtime.listening import listen
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import Prompt

_NEEDED = ("fastapi", "uvicorn")
_SHARED = ("store", "judge", "retrain", "judges", "training", "seed")


def run_annotation(run: AnnotateRun, say: Callable[[str], object]) -> None:
    """Serve the page until the process is told to end. say: is told the links.

    The same command again goes on: with the same store, its pairs, its people and their links. Raises InputError before
    anything is made where the extra `annotate` is not installed, nobody could open the page or others could, and for
    pairs, a judge or an address that cannot be had.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"the page needs {missing[0]}, which is not installed.", "pip install 'rewarddance[annotate]'")
    from rewarddance.annotate.server import VoteServer, check_open

    options = PageOptions(**{name: getattr(run, name) for name in PageOptions.model_fields})
    check_open(options)
    listen(options.host, options.port).close()  # a port that is taken is said before pictures are made
    if run.criteria:
        load_tree(run.criteria)
    plan = learning_plan(run)
    writable_folder(run.store.parent)
    with locked(run.store):
        store = open_store(run)
        tokens = invite(store, options.people)
        if plan is not None:
            score_once(plan, store)

        def ready(address: str) -> None:
            for line in links(run.store, tokens, options.address or address):
                say(line)

        with learning_beside(plan if run.retrain else None):
            VoteServer(store, options).run(ready)


def open_store(run: AnnotateRun) -> Store:
    """The store with the pairs of a run in it. Raises InputError where no pair could be handed out."""
    rule = HandingOut(**{name: getattr(run, name) for name in HandingOut.model_fields})
    pairs = gather_pairs(run)
    tests = read_tests(run.tests) if run.tests else []
    store = Store(run.store, rule)
    if not (run.compare and store.count("wanted")):  # a comparison's pairs are fixed before its first vote
        store.add_pairs([*tests, *pairs])  # one that is in both is a test
    if run.policy == "ranking" and not any(pair.model_a and pair.model_b for pair in pairs):
        raise InputError(
            f"the policy ranking asks about models, and no pair of {run.input} names its two.",
            "Name them: model_a and model_b in each row, or choose another policy.",
        )
    if store.count("wanted") == 0:
        raise InputError(f"{run.store} holds no pair to vote on.", "Give pairs that are not all test pairs.")
    return store


def gather_pairs(run: AnnotateRun) -> list[Pair]:
    """The pairs of the input: of a file or pictures, or of what generators make for its prompts."""
    if run.generator:
        pairs = pair_up(make_pictures(run), run.pairs_per_prompt, run.seed)
    else:
        pairs = read_pairs(run.input, run.pairs_per_prompt, run.seed)
    return compared(pairs, run.compare, run.compare_pairs, run.seed) if run.compare else pairs


def make_pictures(run: AnnotateRun) -> list[Made]:
    """Pictures of each generator for each prompt, in `<store>_pictures/`; those that are there are not made again.

    A picture's name says what it was made by and for, so that none is taken for another prompt's or generator's.
    """
    from rewarddance.generators.pipelines import load_generator  # a page of pairs that are there opens without it
    from rewarddance.generators.sampling import sample

    prompts = read_prompts(run.input)
    folder = writable_folder(run.store.with_name(f"{run.store.stem}_pictures"))
    made = []
    for name in run.generator:
        names = [_made_as(run, name, p, prompt) for p, prompt in enumerate(prompts)]
        wanted = [(p, k, folder / f"{names[p]}-{k}.png") for p in range(len(prompts)) for k in range(run.samples)]
        made += [Made(prompts[p].text, path, name, prompts[p].image_path) for p, _, path in wanted]
        left = [item for item in wanted if not item[2].exists()]
        if not left:
            continue
        generator = load_generator(name, run.num_inference_steps, run.guidance_scale)
        with progress_bar(f"pictures of {name}", len(left)) as bar:
            for start in range(0, len(left), run.batch_size):
                batch = left[start : start + run.batch_size]
                seeds = [run.seed + 1_000_003 * p + k for p, k, _ in batch]
                pixels = sample(generator, [prompts[p] for p, _, _ in batch], seeds, run.batch_size)
                for (_, _, path), picture in zip(batch, pixels, strict=True):
                    scratch = path.with_name(f".{path.name}")
                    write_picture(picture, scratch)
                    scratch.replace(path)
                bar.advance(len(batch))
    return made


def _made_as(run: AnnotateRun, generator: str, place: int, prompt: Prompt) -> str:
    """What the pictures of a prompt by a generator are called: a digest of all that they come from."""
    image = prompt.image_path
    made_from = {
        "generator": checkpoint_digest(generator),
        "options": (run.num_inference_steps, run.guidance_scale, run.seed),
        "prompt": (place, prompt.text, prompt.negative, image and digest_of([image])),
    }
    return hashlib.blake2b(json.dumps(made_from).encode(), digest_size=8).hexdigest()


# -- people ------------------------------------------------------------------------------------------------------------


def invite(store: Store, people: Sequence[str]) -> dict[str, str]:
    """Each person's token, and the owner's, who sees the report. Those of before are kept, or void if not named now."""
    if not people:
        return {}
    path = _invitations(store.path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {name: link.rpartition("/i/")[2] for name, _, link in (line.partition("\t") for line in lines)}
    valid = store.people()
    invited = (*people, "owner")
    for person in valid.values():
        if person.name not in invited:
            store.uninvite(person.name)
    tokens = {name: token for name, token in known.items() if name in invited and hashed(token) in valid}
    for name in invited:
        if name not in tokens:
            tokens[name] = store.invite(name, owner=name == "owner")
    return tokens


def links(store: Path, tokens: dict[str, str], address: str) -> Iterator[str]:
    """What to say of where the page is. The links are kept beside the store, for nobody else's eyes."""
    if not tokens:
        yield f"vote at {address}; the report is at {address}/report"
        return
    text = "".join(f"{name}\t{address.rstrip('/')}/i/{token}\n" for name, token in tokens.items())
    write_text_atomically(_invitations(store), text, 0o600)
    yield f"the page is at {address}; each person has a link, and yours is owner's ({_invitations(store)}):"
    yield from text.splitlines()


def _invitations(store: Path) -> Path:
    return store.with_name(f"{store.name}.invitations")


# -- the judge ---------------------------------------------------------------------------------------------------------


def learning_plan(run: AnnotateRun) -> LearningPlan | None:
    """How the judge learns; None where there is none. Raises InputError for a judge or a key that there is not."""
    if run.judge is None:
        return None
    from rewarddance.reward.remote.addresses import is_address

    if is_address(run.judge):
        raise InputError(f"the judge {run.judge!r} is behind a server.", "Give the folder of one, or a bundled name.")
    find_checkpoint(run.judge)
    given: dict[str, Any] = {name: getattr(run, name) for name in _SHARED} | {"retrain": run.retrain or 1}
    plan = LearningPlan(**given, policy=run.policy, folder=run.store.with_name(f"{run.store.stem}_judges"))
    plan.recipe  # noqa: B018  a key that is not right is said now
    return plan


@contextmanager
def learning_beside(plan: LearningPlan | None) -> Iterator[None]:
    """A process that learns while the block runs, and goes on where it was the next time."""
    if plan is None:
        yield
        return
    threads = max(1, (os.cpu_count() or 2) - 1)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(plan, threads, os.getpid()), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(20)
