"""Object detectors of transformers, or any function, as GenEval asks them: a picture and class names in, objects out.

Mask2Former is GenEval's own (the same architecture and classes, in transformers' weights); Grounding DINO and OWL take
any class names. Scores of different detectors are on different scales, and so are the counts that come of them: a
figure by one detector is not to be compared with a figure by another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer
from transformers import Mask2FormerForUniversalSegmentation as Mask2FormerModel

from rewarddance.data.media import as_images
from rewarddance.errors import InputError, RewardDanceError, RewardError, first_line
from rewarddance.evaluation.object_scores import Detection
from rewarddance.evaluation.recipe import GenEvalRules
from rewarddance.reward.function_reward import import_module, is_factory
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.weights import LOAD_ERRORS, library_warnings, load_module

Picture = Float[Tensor, "3 H W"]
Detector = Callable[[Picture, Sequence[str]], Sequence[Detection]]
"""A picture in [0, 1] and the classes that are looked for -> the objects of these classes, of any score."""

NAMED = {
    "mask2former": "facebook/mask2former-swin-small-coco-instance",
    "grounding-dino": "IDEA-Research/grounding-dino-base",
    "owlv2": "google/owlv2-base-patch16-ensemble",
}
"""Detectors by a short name -> the checkpoint that it stands for."""
_COCO = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|"
    "skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|"
    "cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|computer mouse|tv remote|computer keyboard|cell phone|microwave|"
    "oven|toaster|sink|refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush"
)
COCO = tuple(_COCO.split("|"))
"""COCO's 80 classes in its order, in the words of GenEval's prompts; checkpoints name some of them otherwise."""
_LEAST = 0.05
"""Score from which on a detection is returned at all; every threshold in use is above it."""
_REMEDY = f"Give {', '.join(NAMED)}, a checkpoint of one of these families, or package.module:function."


class ObjectDetector(ABC):
    """A detector of transformers, frozen, in float32. rules: the thresholds that are customary for its family."""

    rules = GenEvalRules()

    def __init__(self, model: Any, folder: Path, device: str) -> None:
        self.model, self.device = model.eval().to(device), device
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)

    @abstractmethod
    def __call__(self, picture: Picture, names: Sequence[str]) -> list[Detection]: ...

    def _pixels(self, picture: Picture) -> dict[str, Tensor]:
        """What the family's own image processor makes of a picture, which it is given in 8 bits."""
        inputs = self.processor(images=as_images(picture[None])[0], return_tensors="pt")
        return {name: value.to(self.device) for name, value in inputs.items()}


class Mask2Former(ObjectDetector):
    """Instances with masks, of the classes that it was trained on.

    A score is the class's probability times the mean probability of the mask's pixels, as in the original; a box is the
    mask's bounds.
    """

    def __init__(self, model: Any, folder: Path, device: str) -> None:
        super().__init__(model, folder, device)
        self.classes = _classes(model.config)

    @torch.no_grad()
    def __call__(self, picture: Picture, names: Sequence[str]) -> list[Detection]:
        inputs = self._pixels(picture)
        outputs = self.model(pixel_values=inputs["pixel_values"], pixel_mask=inputs.get("pixel_mask"))
        scores = outputs.class_queries_logits[0].float().softmax(-1)[:, :-1]
        best = scores.flatten().topk(min(len(scores), scores.numel()))  # as many as there are queries, of any class
        wanted_labels = {self.classes.index(name) for name in names if name in self.classes}
        objects = []
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            query, label = divmod(place, scores.shape[1])
            if label in wanted_labels and score > _LEAST:
                logits = self._at_size(outputs.masks_queries_logits[0, query], inputs, picture.shape[-2:])
                if (detection := _instance(self.classes[label], score, logits)) is not None:
                    objects.append(detection)
        return objects

    def _at_size(self, mask: Tensor, inputs: dict[str, Tensor], size: Sequence[int]) -> Float[Tensor, "H W"]:
        """A mask's logits at the picture's size, without what the picture was filled up with."""
        input_size = inputs["pixel_values"].shape[-2:]
        enlarged = F.interpolate(mask[None, None].float(), size=input_size, mode="bilinear", align_corners=False)
        if "pixel_mask" in inputs:
            is_picture = inputs["pixel_mask"][0]
            enlarged = enlarged[..., : int(is_picture.any(1).sum()), : int(is_picture.any(0).sum())]
        return F.interpolate(enlarged, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].cpu()


def _instance(name: str, score: float, logits: Float[Tensor, "H W"]) -> Detection | None:
    """An object from its class's probability and its mask's logits; None of an empty mask."""
    mask = logits > 0
    if not mask.any():
        return None
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Detection(name, box, score * float(logits[mask].sigmoid().mean()), mask.numpy())


class GroundingDino(ObjectDetector):
    """Boxes of any classes, all asked in one text. A class's score is that of its most certain token."""

    rules = GenEvalRules(threshold=0.35, counting_threshold=0.35, max_overlap=0.7)

    def __init__(self, model: Any, folder: Path, device: str) -> None:
        super().__init__(model, folder, device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, picture: Picture, names: Sequence[str]) -> list[Detection]:
        lowercase = [name.lower() for name in names]
        text = "".join(f"{name}. " for name in lowercase).strip()
        tokens = self.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = tokens.pop("offset_mapping")[0].tolist()
        inputs = self._pixels(picture) | {name: value.to(self.device) for name, value in tokens.items()}
        outputs = self.model(**inputs)
        scores, start = [], 0
        for name in lowercase:
            columns = [column for column, (low, high) in enumerate(offsets) if low < start + len(name) and high > start]
            scores.append(outputs.logits[0, :, columns].float().sigmoid().amax(-1))
            start += len(name) + 2
        return _boxes(names, torch.stack(scores, -1), outputs.pred_boxes[0], picture.shape[-2:])


class Owl(ObjectDetector):
    """OWL-ViT and OWLv2: boxes of any classes, each asked as "a photo of a ..."."""

    rules = GenEvalRules(threshold=0.1, counting_threshold=0.1, max_overlap=0.7)

    def __init__(self, model: Any, folder: Path, device: str) -> None:
        super().__init__(model, folder, device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, picture: Picture, names: Sequence[str]) -> list[Detection]:
        texts = [f"a photo of a {name}" for name in names]
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        text_inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        outputs = self.model(**text_inputs, **self._pixels(picture))
        height, width = picture.shape[-2:]
        if self.model.config.model_type == "owlv2":  # it fills pictures up to squares
            height = width = max(height, width)
        return _boxes(names, outputs.logits[0].float().sigmoid(), outputs.pred_boxes[0], (height, width))


def _boxes(
    names: Sequence[str], scores: Float[Tensor, "Q N"], boxes: Float[Tensor, "Q 4"], size: Sequence[int]
) -> list[Detection]:
    """Each query as an object of its likeliest class. boxes: centre, width and height as shares of `size`."""
    best = scores.max(-1)
    x, y, width, height = boxes.float().cpu().unbind(-1)
    edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    edges = edges * torch.tensor([size[1], size[0], size[1], size[0]])
    rows = zip(best.values.tolist(), best.indices.tolist(), edges.tolist(), strict=True)
    return [Detection(str(names[label]), tuple(box), score) for score, label, box in rows if score > _LEAST]


class FunctionDetector(NamedTuple):
    """Any function `(picture, class names) -> detections`, whose answers are looked at.

    It gives a `Detection` of each object, or (class, box, score) with further fields of one behind. Raises RewardError
    naming one that is no detection; whatever the function itself raises comes as a RewardError, too.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, picture: Picture, names: Sequence[str]) -> list[Detection]:
        try:
            answers = [*self.function(picture, names)]
        except RewardDanceError:
            raise
        except Exception as error:
            raise RewardError(
                f"the detector {self.name} failed: {type(error).__name__}: {first_line(error)}.", "Correct it."
            ) from error
        return [self._checked(answer) for answer in answers]

    def _checked(self, answer: Any) -> Detection:
        try:
            detection = Detection(*answer)
            left, top, right, bottom = (float(edge) for edge in detection.box)
            valid = (
                left <= right and top <= bottom and 0 <= float(detection.score) <= 1 and isinstance(detection.name, str)
            )
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise RewardError(
                f"the detector {self.name} gave {answer!r}, which is no detection.",
                "Return (class, (left, top, right, bottom), score in 0 to 1).",
            )
        return detection._replace(box=(left, top, right, bottom), score=float(detection.score))


KINDS: dict[str, tuple[Any, type[ObjectDetector]]] = {
    "mask2former": (Mask2FormerModel, Mask2Former),
    "grounding-dino": (AutoModelForZeroShotObjectDetection, GroundingDino),
    "owlv2": (AutoModelForZeroShotObjectDetection, Owl),
    "owlvit": (AutoModelForZeroShotObjectDetection, Owl),
}
"""A checkpoint's model_type -> transformers' class, and ours around it."""


def load_detector(name: str, device: str = "cpu") -> ObjectDetector | FunctionDetector:
    """A detector by a name of NAMED, a checkpoint's folder or id, or `package.module:function`.

    Raises InputError where there is none of that name, or a family that is not known here.
    """
    if is_factory(name):
        place, _, function = name.rpartition(":")
        detect = getattr(import_module(place, f"the detector {name!r}"), function, None)
        if not callable(detect):
            raise InputError(f"there is no function {function!r} in {place}.", "Correct the detector's name.")
        return FunctionDetector(detect, name)
    folder, config = _config(name)
    what = f"the detector {name!r}"
    model_class, detector_class = KINDS[config.model_type]
    model = load_module(model_class, folder, what, _REMEDY, dtype=torch.float32)
    try:
        with library_warnings(what):
            return detector_class(model, folder, device)
    except LOAD_ERRORS as error:
        raise InputError(f"{what} cannot be loaded: {first_line(error)}.", _REMEDY) from error


class DetectorFacts(NamedTuple):
    """classes: what it can find, None where it can be asked for anything. rules: its family's customary thresholds."""

    classes: tuple[str, ...] | None
    rules: GenEvalRules


def detector_facts(name: str) -> DetectorFacts:
    """What is known of a detector before it is loaded. Raises as `load_detector` does."""
    if is_factory(name):
        return DetectorFacts(None, GenEvalRules())
    _, config = _config(name)
    classes = _classes(config) if config.model_type == "mask2former" else None
    return DetectorFacts(classes, KINDS[config.model_type][1].rules)


def _config(name: str) -> tuple[Path, Any]:
    folder = find_checkpoint(NAMED.get(name, name))
    try:
        config = AutoConfig.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise InputError(f"the detector {name!r} cannot be loaded: {first_line(error)}.", _REMEDY) from error
    if config.model_type not in KINDS:
        raise InputError(f"the detector {name!r} is of the family {config.model_type}.", _REMEDY)
    return folder, config


def _classes(config: Any) -> tuple[str, ...]:
    """A checkpoint's own classes; COCO's 80 in GenEval's words."""
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return COCO if len(labels) == len(COCO) else labels
