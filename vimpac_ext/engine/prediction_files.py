"""Predictions for many files: which files, lines of text, JSON, and videos with the classes."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vimpac_ext.data import VideoReader
from vimpac_ext.data.annotations.common import VIDEO_EXTENSIONS, id_of_path, read_lines
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.data.video_file import open_video, video_stream
from vimpac_ext.engine.prediction import Prediction, Predictor
from vimpac_ext.files import atomic_write
from vimpac_ext.structures import VideoRecord
from vimpac_ext.visualization import captioner, save_video

_logger = logging.getLogger(__name__)

_USUAL_RATE = Fraction(25)  # of drawn videos whose file does not tell a rate
_HIGHEST_RATE = Fraction(60)


def read_class_names(file: str | Path) -> list[str]:
    """Names of classes, one a line in the order of their labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty or not UTF-8 text.
    """
    names = [name for _, name in read_lines(Path(file))]
    if not names:
        raise ValueError(f"{file}: expected a class name in each line, found none")
    return names


def video_records(paths: Iterable[str | Path]) -> list[VideoRecord]:
    """Records of files, and of all videos below folders by their suffix; each file once.

    Hidden files and folders are passed over. A record's ``video_id`` is the path below the folder
    that was given, or the file's name, without the suffix.

    Raises:
        ValueError: if there are no videos in a folder.
    """
    records: dict[Path, VideoRecord] = {}
    for given in map(Path, paths):
        files = _videos_below(given) if given.is_dir() else [given]
        if not files:
            suffixes = ", ".join(sorted(VIDEO_EXTENSIONS))
            raise ValueError(f"folder {given} has no videos (files ending in {suffixes})")
        for file in files:
            name = file.relative_to(given) if given.is_dir() else Path(file.name)
            records.setdefault(file.resolve(), VideoRecord(str(file), id_of_path(name)))
    return list(records.values())


def _videos_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def predict_files(
    predictor: Predictor,
    records: Sequence[VideoRecord],
    show: Callable[[str], object],
    top_k: int = 5,
    draw: Path | None = None,
    json_file: Path | None = None,
) -> int:
    """Classifies videos, shows each result as it comes, and writes the files asked for.

    Args:
        predictor: classifies.
        records: which videos.
        show: takes a text of some lines for each video.
        top_k: classes that are shown, drawn and written.
        draw: folder for a copy of every video with its classes drawn on it, without sound.
        json_file: receives all results.

    Returns:
        How many videos could not be decoded, for the prediction or for the drawing.

    Raises:
        ValueError: if ``top_k`` is not positive, or a drawn video would replace one of the videos.
    """
    if top_k < 1:
        raise ValueError(f"needs at least one class to show, got {top_k}")
    targets = _targets(records, draw) if draw else [None] * len(records)
    names, results, num_bad = predictor.class_names, [], 0
    bar = tqdm(total=len(records), unit="video", disable=None if len(records) > 1 else True)
    with bar:
        for prediction, target in zip(predictor.run(records), targets, strict=True):
            error = prediction.error
            if target is not None and not error:
                try:
                    draw_prediction(prediction, names, top_k, target)
                except VideoDecodeError as failure:
                    error = str(failure)
            num_bad += bool(error)
            show(_text(prediction, names, top_k, error))
            results.append(_content(prediction, names, top_k, error, target))
            bar.update()
    if json_file is not None:
        views = predictor.cfg.TEST.NUM_ENSEMBLE_VIEWS, predictor.cfg.TEST.NUM_SPATIAL_CROPS
        content = {
            "temporal_views": views[0],
            "spatial_crops": views[1],
            "device": str(predictor.device),
            "num_bad": num_bad,
            "videos": results,
        }
        with atomic_write(json_file) as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        _logger.info("wrote %s", json_file)
    if num_bad:
        _logger.warning("%d of %d videos could not be decoded", num_bad, len(records))
    return num_bad


def draw_prediction(
    prediction: Prediction, class_names: Sequence[str], top_k: int, target: Path
) -> None:
    """Writes the video again, with its best classes and their probabilities on every frame.

    Args:
        prediction: of the video.
        class_names: by label; empty = the labels are shown.
        top_k: how many classes.
        target: MP4 file, replaced.

    Raises:
        VideoDecodeError: if a frame cannot be decoded; nothing is written then.
    """
    lines = [
        (f"{share:.1%} {_name(class_names, label)}", share)
        for label, share in prediction.top(top_k)
    ]
    caption = captioner(lines)
    path = Path(prediction.record.path)
    rate = _frame_rate(path)
    frames = VideoReader(path).iter_frames(float(rate))
    save_video(target, map(caption, frames), rate)


def _targets(records: Sequence[VideoRecord], folder: Path) -> list[Path]:
    """A file for each drawn video; none is one of the videos themselves."""
    sources = {Path(record.path).resolve() for record in records}
    targets: list[Path] = []
    for record in records:
        name, number = record.video_id, 1
        while (target := folder / f"{name}.mp4") in targets:
            number += 1
            name = f"{record.video_id}_{number}"
        if target.resolve() in sources:
            raise ValueError(f"{target} is one of the videos; draw into another folder")
        targets.append(target)
    return targets


def _frame_rate(path: Path) -> Fraction:
    with open_video(path) as container:
        rate = video_stream(container, path).average_rate
    return min(rate, _HIGHEST_RATE) if rate else _USUAL_RATE


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if class_names else f"class {label}"


def _text(prediction: Prediction, class_names: Sequence[str], top_k: int, error: str) -> str:
    """Lines for the terminal."""
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in prediction.seconds.items())
    lines = [f"{prediction.record.path}  ({seconds})"]
    for label, share in prediction.top(top_k):
        lines.append(f"  {100 * share:6.2f} %  {_name(class_names, label)}")
    if error:
        lines.append(f"  error: {error}")
    return "\n".join(lines)


def _content(
    prediction: Prediction,
    class_names: Sequence[str],
    top_k: int,
    error: str,
    target: Path | None,
) -> dict[str, Any]:
    """For the JSON file."""
    content: dict[str, Any] = {"path": prediction.record.path, "error": error}
    content["classes"] = [
        {"label": label, "name": _name(class_names, label), "probability": share}
        for label, share in prediction.top(top_k)
    ]
    content["seconds"] = {name: round(value, 4) for name, value in prediction.seconds.items()}
    if target is not None and not error:
        content["drawn"] = str(target)
    return content
