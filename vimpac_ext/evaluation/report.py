"""The files of a test run: predictions, per-class accuracy, confusion matrix, protocol, result."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vimpac_ext.evaluation.confusion_plot import save_confusion_plot
from vimpac_ext.evaluation.metrics import confusion_matrix
from vimpac_ext.evaluation.multi_view import MultiViewResult
from vimpac_ext.files import atomic_write, sha256_of
from vimpac_ext.structures import UNLABELLED, VideoRecord

PROTOCOL_KEYS = (
    "dataset",
    "split",
    "annotations",
    "temporal_views",
    "spatial_crops",
    "start_rule",
    "crop_size",
    "fps",
    "sampling_rate",
    "num_frames",
    "tokenizer",
)
_TOP = 5


def write_report(
    folder: str | Path | None,
    result: MultiViewResult,
    records: Sequence[VideoRecord],
    class_names: Sequence[str],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """Write everything that a test run tells.

    - ``result.json``: what this function returns.
    - ``predictions.csv``: one line a video, missing ones included (their prediction is empty, and
      their label if it is not known).
    - ``per_class.csv``: one line a class.
    - ``confusion.csv``, ``confusion.png``: decoded videos; rows are true classes.
    - ``scores.npz``: ``video_ids`` (N,), ``scores`` float32 (N, C), ``labels`` (N,), ``decoded``
      (N,), for combining models; label -1: not known, of a missing video.

    Every file appears whole or not at all, ``result.json`` last.

    Args:
        folder: made if it does not exist; the files are replaced. None = write nothing.
        result: of `MultiViewEvaluator.result`.
        records: the N videos of the data set, in the order of the result.
        class_names: the C names, indexed by label; empty = the labels are the names.
        protocol: how the views were made. Needs `PROTOCOL_KEYS` (``annotations`` and ``tokenizer``
            are fingerprints, the latter None for pixels); may hold more. Plain JSON values.

    Returns:
        ``top1``, ``top5`` and ``mean_class_accuracy`` in percent, ``single_view`` (``top1`` and
        ``top5`` by one view alone, where the result has it), ``protocol`` and ``protocol_id`` (see
        `identified`).

    Raises:
        ValueError: if the protocol lacks a key, or the lengths disagree.
    """
    absent = [key for key in PROTOCOL_KEYS if key not in protocol]
    if absent:
        raise ValueError(f"the protocol lacks {', '.join(absent)}; it has: {', '.join(protocol)}")
    num_videos, num_classes = result.scores.shape
    class_names = class_names or [str(label) for label in range(num_classes)]
    if len(records) != num_videos or len(class_names) != num_classes:
        raise ValueError(
            f"the result is of {num_videos} videos and {num_classes} classes, but there are "
            f"{len(records)} records and {len(class_names)} class names"
        )
    summary = _summary(result, protocol)
    if folder is None:
        return summary
    folder = Path(folder)
    decoded = result.decoded
    counts = confusion_matrix(result.predictions[decoded], result.labels[decoded], num_classes)
    _write_csv(folder / "predictions.csv", _prediction_rows(result, records, class_names))
    _write_csv(folder / "per_class.csv", _class_rows(result, class_names))
    header: list[Any] = ["true \\ predicted", *class_names]
    rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
    _write_csv(folder / "confusion.csv", [header, *rows])
    save_confusion_plot(folder / "confusion.png", counts, class_names)
    _write_scores(folder / "scores.npz", result, records)
    with atomic_write(folder / "result.json") as file:
        json.dump(summary, file, indent=2)
        file.write("\n")
    return summary


def _summary(result: MultiViewResult, protocol: Mapping[str, Any]) -> dict[str, Any]:
    single = {"top1": result.single_view_accuracy(1), "top5": result.single_view_accuracy(_TOP)}
    return {
        "top1": result.topk_accuracy(1),
        "top5": result.topk_accuracy(_TOP),
        "mean_class_accuracy": float(np.nanmean(result.per_class_accuracy())),
        **({} if result.single_view_ranks is None else {"single_view": single}),
        **identified(protocol, result.ensemble, result.on_missing, result.counts()),
    }


def identified(
    protocol: Mapping[str, Any], ensemble: str, on_missing: str, counts: Mapping[str, int]
) -> dict[str, Any]:
    """A protocol with what came out, and its identity.

    Args:
        protocol: how the views were made.
        ensemble: see `MultiViewResult`.
        on_missing: see there.
        counts: of `count_videos`.

    Returns:
        ``protocol`` (the given one plus ensemble, on_bad_video and the counts) and
        ``protocol_id``, a hash of it: two results are comparable if theirs are equal.
    """
    full: dict[str, Any] = {
        **{key: _whole_numbers_as_int(value) for key, value in protocol.items()},
        "ensemble": ensemble,
        "on_bad_video": on_missing,
        **counts,
    }
    return {
        "protocol": full,
        "protocol_id": sha256_of(json.dumps(full, sort_keys=True), length=12),
    }


def _whole_numbers_as_int(value: Any) -> Any:
    # 2 and 2.0 frames a second are the same protocol and must have the same hash.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _prediction_rows(
    result: MultiViewResult, records: Sequence[VideoRecord], class_names: Sequence[str]
) -> Iterable[list[Any]]:
    yield [
        *("video_id", "path", "label", "label_name", "decoded", "prediction", "prediction_name"),
        *("correct", "probability", "top5", "top5_probabilities"),
    ]
    for index, record in enumerate(records):
        label = int(result.labels[index])
        named = ("", "") if label == UNLABELLED else (label, class_names[label])
        known = [record.video_id, record.path, *named]
        if not result.decoded[index]:
            correct = 0 if result.on_missing == "count_wrong" else ""
            yield [*known, 0, "", "", correct, "", "", ""]
            continue
        scores = result.scores[index]
        best = np.argsort(-scores, kind="stable")[:_TOP]  # stable: the lower class of equals first
        prediction = int(result.predictions[index])
        yield [
            *(*known, 1, prediction, class_names[prediction], int(prediction == label)),
            *(f"{scores[prediction]:.6f}", " ".join(str(i) for i in best)),
            " ".join(f"{scores[i]:.6f}" for i in best),
        ]


def _class_rows(result: MultiViewResult, class_names: Sequence[str]) -> Iterable[list[Any]]:
    yield ["label", "name", "videos", "decoded", "scored", "correct", "accuracy_percent"]
    accuracies = result.per_class_accuracy()
    correct = result.predictions == result.labels
    for label, name in enumerate(class_names):
        own = result.labels == label
        counts = (own, own & result.decoded, own & result.scored, own & correct)
        accuracy = "" if np.isnan(accuracies[label]) else f"{accuracies[label]:.2f}"
        yield [label, name, *(int(count.sum()) for count in counts), accuracy]


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_scores(path: Path, result: MultiViewResult, records: Sequence[VideoRecord]) -> None:
    with atomic_write(path, "wb") as file:
        np.savez_compressed(
            file,
            video_ids=np.array([record.video_id for record in records]),
            scores=result.scores.astype(np.float32),
            labels=result.labels,
            decoded=result.decoded,
        )
