"""Videos whose colour tells their class, and configurations that train on them in seconds."""

import csv
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import yaml

CLASS_NAMES = ("reddish", "greenish", "bluish")
NUM_TRAIN, NUM_TEST = 12, 6
VOCAB_SIZE = 64  # of the tokenizer that ships with the package
RESNET = {"NAME": "TimmFrames", "model": "resnet10t"}
TRANSFORMER = {"NAME": "VimpacTransformer", "embed_dim": 16, "num_heads": 2, "num_layers": 1}


def make_video_project(folder: Path) -> SimpleNamespace:
    """Writes videos, the lists train, test and with_bad, and class names.

    The last test video is shorter than a clip; with_bad is test and a file that is no video.
    """
    root = folder / "videos"
    (root / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for number in range(NUM_TRAIN + NUM_TEST):
        split = "train" if number < NUM_TRAIN else "test"
        label = number % len(CLASS_NAMES)
        name = f"below/{number}.mp4" if split == "test" else f"{number}.mp4"
        last = number == NUM_TRAIN + NUM_TEST - 1
        write_video(root / name, label, 6 if last else 24 + number, rng)
        lists[split].append(f"{name} {label}")
    (root / "below/bad.mp4").write_bytes(b"no video")
    lists["with_bad"] = [*lists["test"], "below/bad.mp4 1"]
    for name, lines in lists.items():
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return SimpleNamespace(folder=folder, root=root)


def write_video(path: Path, label: int, num_frames: int, rng: np.random.Generator) -> None:
    """One channel is brighter than the others; everything else is noise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        colour = rng.integers(20, 60, 3)
        colour[label] += 120
        for _ in range(num_frames):
            noise = rng.integers(-20, 20, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
            image = np.clip(colour + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def video_config(project: SimpleNamespace, name: str, **changes: dict) -> Path:
    """A fine-tuning on the videos; ``changes`` are merged in. Returns the YAML file."""
    dataset = {"NAME": "PathLabelList", "class_file": "classes.txt"}
    content = {
        "TASK": {"NAME": "FinetuneTask"},
        "BACKBONE": RESNET,
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": len(CLASS_NAMES)},
        "DATA": {
            "PATH_TO_DATA_DIR": str(project.root),
            "NUM_FRAMES": 4,
            "TARGET_FPS": 4.0,
            "TRAIN_CROP_SIZE": 32,
            "TEST_CROP_SIZE": 32,
        },
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {"DATASET": {**dataset, "split": "train"}, "BATCH_SIZE": 4},
        "TEST": {
            "DATASET": {**dataset, "split": "test"},
            "NUM_ENSEMBLE_VIEWS": 3,
            "NUM_SPATIAL_CROPS": 3,
            "BATCH_SIZE": 7,
        },
        "SOLVER": {"MAX_EPOCH": 1, "BASE_LR": 0.003},
        "TENSORBOARD": False,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(project.folder / name),
    }
    path = project.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(_merged(content, changes)))
    return path


def token_changes(project: SimpleNamespace) -> dict:
    """What makes a `video_config` one over stored tokens."""
    return {
        "TOKENIZER": {"NAME": "VQVAETokenizer"},
        "BACKBONE": TRANSFORMER,
        "DATA": {"VOCAB_SIZE": VOCAB_SIZE},
        "TRAIN": {"TOKEN_STORE": str(project.folder / "tokens_train")},
        "TEST": {"TOKEN_STORE": str(project.folder / "tokens_test")},
        "SOLVER": {"MAX_EPOCH": 4, "BASE_LR": 0.02},
    }


def read_predictions(run_folder: Path) -> dict[str, np.ndarray]:
    """Path of each decoded test video -> its scores, as a test run wrote them."""
    scores = np.load(run_folder / "test/scores.npz")
    with (run_folder / "test/predictions.csv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    return dict(zip(paths, scores["scores"], strict=True))


def _merged(base: dict, changes: dict) -> dict:
    both = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        replaced = not isinstance(value, dict) or not isinstance(old, dict) or key == "BACKBONE"
        both[key] = value if replaced else _merged(old, value)
    return both
