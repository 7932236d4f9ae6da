"""A plug-in: the demo's videos, labelled by what moves in them instead of how.

The shape shows in any single frame, so this is to the demo's motion classes what the paper's
spatially-heavy data sets are to its temporally-heavy ones (Section 4.1). The videos and their ids
are those of the motion classes, so the same tokens serve both.

    python tools/run_net.py --cfg configs/vimpac/demo/finetune.yaml \
        --plugin projects.vimpac.demo_shapes MODEL.NUM_CLASSES 6 \
        TRAIN.DATASET.NAME DemoShapes TRAIN.DATASET.split train \
        TEST.DATASET.NAME DemoShapes TEST.DATASET.split validation

`DemoFewLabels` leaves labels (of motions or shapes) to only some of them. With all labels most
models that were pre-trained to predict masked tokens are above 90 % of the motions; with few, it
shows what the pre-training left to learn.

    python tools/run_net.py --cfg configs/vimpac/demo/finetune.yaml \
        --plugin projects.vimpac.demo_shapes \
        TRAIN.DATASET.NAME DemoFewLabels TRAIN.DATASET.split train TRAIN.DATASET.num_videos 80
"""

import json
from dataclasses import replace
from pathlib import Path

from vimpac_ext.data.annotations import SomethingSomethingV2
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord


@DATASETS.register()
class DemoShapes:
    """The labelled demo videos with the shape of their thing as class.

    Attributes:
        records: as of `SomethingSomethingV2`, with other labels.
        class_names: the shapes of the training videos, sorted.
        fingerprint: differs from that of the motion classes.

    Args:
        root: folder of the demo data.
        split: "train" or "validation".

    Raises:
        FileNotFoundError: if the folder or a JSON file is missing.
        ValueError: if an entry names no thing, or one of a shape that no training video has.
    """

    def __init__(self, root: str, split: str = "train") -> None:
        motions = SomethingSomethingV2(root, split)
        self.class_names = sorted(set(_shapes(Path(root), "train").values()))
        shapes = _shapes(Path(root), split)
        self.records: list[VideoRecord] = []
        for record in motions.records:
            shape = shapes[record.video_id]
            if shape not in self.class_names:
                raise ValueError(
                    f"{root}: video {record.video_id!r} shows a {shape!r}, which no training video "
                    f"does; known: {', '.join(self.class_names)}"
                )
            self.records.append(replace(record, label=self.class_names.index(shape)))
        self.fingerprint = sha256_of(type(self).__name__, motions.fingerprint)


@DATASETS.register()
class DemoFewLabels:
    """The first labelled demo videos of a split.

    The motion classes take turns in them, so ten videos have one of each.

    Attributes:
        records: as of the whole split.
        class_names: all of them, whether a record has them or not.
        fingerprint: differs from that of the whole split.

    Args:
        root: folder of the demo data.
        split: "train" or "validation".
        num_videos: how many to keep.
        labels: "motion" or "shape".

    Raises:
        FileNotFoundError: if the folder or a JSON file is missing.
        ValueError: if the split has fewer videos, or for other labels.
    """

    def __init__(
        self, root: str, split: str = "train", num_videos: int = 80, labels: str = "motion"
    ) -> None:
        if labels not in LABELS:
            raise ValueError(f"labels {labels!r} are not one of {', '.join(LABELS)}")
        whole = LABELS[labels](root, split)
        if not 1 <= num_videos <= len(whole.records):
            raise ValueError(
                f"{root}: num_videos={num_videos}, but {split!r} has {len(whole.records)} videos"
            )
        self.records = whole.records[:num_videos]
        self.class_names = whole.class_names
        self.fingerprint = sha256_of(type(self).__name__, whole.fingerprint, str(num_videos))


LABELS = {"motion": SomethingSomethingV2, "shape": DemoShapes}


def _shapes(root: Path, split: str) -> dict[str, str]:
    """Video id -> the last word of its thing, such as "disc" of "a striped disc"."""
    path = root / "labels" / f"{split}.json"
    shapes = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        things = entry.get("placeholders") or [""]
        if not things[0]:
            raise ValueError(f"{path}: video {entry.get('id')!r} has no placeholders")
        shapes[str(entry["id"])] = things[0].split()[-1]
    return shapes
