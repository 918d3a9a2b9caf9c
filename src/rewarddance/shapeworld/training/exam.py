"""A fixed test of what a judge base knows, by layout of the prompt, without any preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import Scene, Spec, near_miss, sample_scene, sample_spec
from rewarddance.shapeworld.training.conversations import Conversations, PictureConversations, grainy, normalised
from rewarddance.shapeworld.training.judge import answer_objective, picture_features

LAYOUTS = ("one object", "several of a kind", "two objects", "relation")
AT_ONCE = 50


class Exam:
    """Conversations that no base was trained on, and pairs of a right picture and one that misses the prompt.

    pairs: of each of the four layouts. The pictures were seen by no base; their prompts are of the whole grammar, which
    all bases learn from.
    """

    def __init__(self, tokenizer: Any, image_tokens: int, seed: int, *, pairs: int = 100, batches: int = 8) -> None:
        drawn = PictureConversations(tokenizer, image_tokens, seed + 1000)
        self.answers = drawn.ids("yes")[0], drawn.ids("no")[0]
        self.batches = [drawn.batch(32) for _ in range(batches)]
        rng, self.conversations = drawn.rng, drawn
        self.pairs: dict[str, list[tuple[Spec, Scene, Scene]]] = {layout: [] for layout in LAYOUTS}
        while any(len(chosen) < pairs for chosen in self.pairs.values()):
            spec = sample_spec(rng)
            if len(self.pairs[spec.layout]) < pairs:
                self.pairs[spec.layout].append((spec, sample_scene(spec, rng), self._missing(spec, rng)))
        self.pictures = {
            layout: [grainy(render(scene, "flat", rng), rng) for _, *scenes in chosen for scene in scenes]
            for layout, chosen in self.pairs.items()
        }

    @staticmethod
    def _missing(spec: Spec, rng: np.random.Generator) -> Scene:
        """A scene that differs in one thing from what the prompt asks for, and does not show it."""
        while True:
            scene = sample_scene(near_miss(spec, rng), rng)
            if not score_picture(render(scene), spec).correct:
                return scene

    def figures(self, model: Any) -> dict[str, Any]:
        """loss: the cross-entropy of answers, in nats a token. yes_no: the share of yes-or-no answers that are right.
        pairs: by layout, the share of pairs whose right picture matches with the higher probability."""
        losses, right = [], []
        for input_ids, labels, pixel_values, patches in self.batches:
            features = picture_features(model, pixel_values)
            _, figures = answer_objective(model, features, input_ids, labels, patches, self.answers, None)
            losses.append(float(figures["loss"]))
            right.append(float(figures["yes_no"]))
        pairs = {layout: self._ordered(model, layout) for layout in LAYOUTS}
        return {"loss": float(np.mean(losses)), "yes_no": float(np.mean(right)), "pairs": pairs}

    def _ordered(self, model: Any, layout: str) -> float:
        margins = []
        specs = [spec for spec, *_ in self.pairs[layout] for _ in range(2)]
        for start in range(0, len(specs), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            margins.append(self._margins(model, specs[rows], self.pictures[layout][rows]))
        margin = torch.cat(margins).view(-1, 2)
        return float((margin[:, 0] > margin[:, 1]).float().mean())

    def _margins(self, model: Any, specs: list[Spec], pictures: list[np.ndarray]) -> Tensor:
        """Logit of yes less logit of no, for each picture under its prompt, [N]."""
        openings = []
        for spec in specs:
            opening = [*self.conversations.ids(f"<|im_start|>user\nPrompt: {spec.text}\n")]
            openings.append([*opening, *self.conversations.ids("Candidate:"), *self.conversations.picture_ids])
        questions = ["Does the candidate match the prompt?"] * len(specs)
        return yes_margins(model, self.conversations, openings, questions, pictures)


def yes_margins(
    model: Any,
    conversations: Conversations,
    openings: Sequence[list[int]],
    questions: Sequence[str],
    pictures: Sequence[np.ndarray],
) -> Tensor:
    """Logit of yes less logit of no [N] where each question is asked after its opening (token ids).

    pictures: of all openings, [H, W, 3] each, in their order.
    """
    ids, ends = [], []
    for opening, question in zip(openings, questions, strict=True):
        row, labels = conversations.answered(opening, [(question, "yes")])
        ids.append(torch.tensor(row))
        ends.append(next(place for place, label in enumerate(labels) if label != -100))
    input_ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    features = picture_features(model, normalised(np.stack(pictures)))
    embeds = model.get_input_embeddings()(input_ids)
    is_picture = (input_ids == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(is_picture, features.pooler_output.flatten(0, 1).to(embeds.dtype))
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[torch.arange(len(ends)), torch.tensor(ends)]).float()
    yes, no = conversations.ids("yes")[0], conversations.ids("no")[0]
    return logits[:, yes] - logits[:, no]
