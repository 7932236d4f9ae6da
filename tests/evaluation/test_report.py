"""The files of a test run, read back."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from vimpac_ext.evaluation import PROTOCOL_KEYS, MultiViewEvaluator, write_report
from vimpac_ext.evaluation.confusion_plot import axis_names, save_confusion_plot
from vimpac_ext.structures import VideoRecord

NAMES = ["left, up", "right", "приём"]
RECORDS = [
    VideoRecord(f"/v/a b {i}.mp4", f"a b {i}", label) for i, label in enumerate([0, 1, 2, 0])
]
PROTOCOL = {
    **dict.fromkeys(PROTOCOL_KEYS, "x"),
    "temporal_views": 1,
    "spatial_crops": 1,
    "fps": 2.0,
    "tokenizer": None,
}


def make_result(on_missing="count_wrong"):
    """Right, wrong, right, missing."""
    evaluator = MultiViewEvaluator(4, 3, 1)
    probabilities = [[[0.5, 0.3, 0.2]], [[0.4, 0.2, 0.4]], [[0.0, 0.25, 0.75]]]
    evaluator.process([0, 1, 2], np.array(probabilities))
    return evaluator.result([record.label for record in RECORDS], on_missing)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions(tmp_path):
    write_report(tmp_path, make_result(), RECORDS, NAMES, PROTOCOL)
    rows = read_csv(tmp_path / "predictions.csv")
    assert rows[0] == {
        "video_id": "a b 0",
        "path": "/v/a b 0.mp4",
        "label": "0",
        "label_name": "left, up",
        "decoded": "1",
        "prediction": "0",
        "prediction_name": "left, up",
        "correct": "1",
        "probability": "0.500000",
        "top5": "0 1 2",
        "top5_probabilities": "0.500000 0.300000 0.200000",
    }
    assert [row["correct"] for row in rows] == ["1", "0", "1", "0"]
    assert (rows[1]["prediction"], rows[1]["top5"]) == ("0", "0 2 1")
    assert rows[2]["label_name"] == "приём"
    assert (rows[3]["decoded"], rows[3]["prediction"], rows[3]["top5"]) == ("0", "", "")


def test_per_class_and_confusion(tmp_path):
    write_report(tmp_path, make_result(), RECORDS, NAMES, PROTOCOL)
    rows = read_csv(tmp_path / "per_class.csv")
    assert [(row["name"], row["videos"], row["decoded"], row["correct"]) for row in rows] == [
        ("left, up", "2", "1", "1"),
        ("right", "1", "1", "0"),
        ("приём", "1", "1", "1"),
    ]
    assert [row["accuracy_percent"] for row in rows] == ["50.00", "0.00", "100.00"]
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == [row[0] for row in table[1:]] == NAMES
    counts = np.array([row[1:] for row in table[1:]], dtype=int)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert counts.sum() == 3


def test_skip_leaves_correct_open(tmp_path):
    summary = write_report(tmp_path, make_result("skip"), RECORDS, NAMES, PROTOCOL)
    assert summary["top1"] == pytest.approx(200 / 3)
    assert read_csv(tmp_path / "predictions.csv")[3]["correct"] == ""
    assert read_csv(tmp_path / "per_class.csv")[0]["accuracy_percent"] == "100.00"


def test_result_json_states_the_protocol(tmp_path):
    summary = write_report(tmp_path, make_result(), RECORDS, NAMES, PROTOCOL)
    assert json.loads((tmp_path / "result.json").read_text()) == summary
    assert summary["top1"] == 50.0
    assert summary["top5"] == 75.0
    assert summary["mean_class_accuracy"] == 50.0
    protocol = summary["protocol"]
    assert set(PROTOCOL_KEYS) < set(protocol)
    assert (protocol["ensemble"], protocol["on_bad_video"]) == ("sum", "count_wrong")
    counts = {"expected": 4, "decoded": 3, "missing": 1}
    for name, count in counts.items():
        assert protocol[f"{name}_videos"] == protocol[f"{name}_views"] == count


def test_protocol_id_tells_comparable_results():
    def identity(on_missing="count_wrong", **changes):
        protocol = {**PROTOCOL, **changes}
        summary = write_report(None, make_result(on_missing), RECORDS, NAMES, protocol)
        return summary["protocol_id"]

    base = identity()
    assert base == identity(fps=2)
    different = [identity(fps=4), identity("skip"), identity(temporal_views=10)]
    assert len({base, *different}) == 4


def test_scores_can_be_read_back(tmp_path):
    result = make_result()
    write_report(tmp_path, result, RECORDS, NAMES, PROTOCOL)
    stored = np.load(tmp_path / "scores.npz")
    assert stored["video_ids"].tolist() == [record.video_id for record in RECORDS]
    np.testing.assert_allclose(stored["scores"], result.scores, rtol=1e-6)
    np.testing.assert_array_equal(stored["decoded"], [True, True, True, False])


def test_names_are_optional_and_nothing_else_is_left(tmp_path):
    write_report(tmp_path / "new", make_result(), RECORDS, [], PROTOCOL)
    assert [row["name"] for row in read_csv(tmp_path / "new" / "per_class.csv")] == ["0", "1", "2"]
    names = "confusion.csv confusion.png per_class.csv predictions.csv result.json scores.npz"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names.split()


def test_wrong_input_writes_nothing(tmp_path):
    protocol = {key: value for key, value in PROTOCOL.items() if key != "start_rule"}
    with pytest.raises(ValueError, match="lacks start_rule; it has: dataset"):
        write_report(tmp_path, make_result(), RECORDS, NAMES, protocol)
    with pytest.raises(ValueError, match="4 videos and 3 classes, but there are 3 records"):
        write_report(tmp_path, make_result(), RECORDS[:3], NAMES, PROTOCOL)
    with pytest.raises(ValueError, match="2 class names"):
        write_report(tmp_path, make_result(), RECORDS, NAMES[:2], PROTOCOL)
    assert not list(tmp_path.iterdir())


def test_names_that_are_cut_short_alike_get_their_numbers():
    sentence = "Lifting a surface with something on it but not enough"
    names = axis_names([f"{sentence} {i}" for i in range(3)])
    assert len(set(names)) == 3
    assert [name.split()[-1] for name in names] == ["0", "1", "2"]
    assert axis_names(["open", sentence]) == ["open", f"{sentence[:37]}..."]
    assert axis_names(list("abcdefghijklmnopqrstu"))[20] == "u  20"


@pytest.mark.parametrize("num_classes", [1, 2, 8, 30])
def test_confusion_picture_has_a_coloured_diagonal(num_classes, tmp_path):
    counts = np.diag(np.arange(num_classes))  # class 0 has no videos
    names = [f"$class_{i}^ 视频 {'long ' * (i % 20)}" for i in range(num_classes)]
    save_confusion_plot(tmp_path / "confusion.png", counts, names)
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 50 + 11 * num_classes
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    full = (pixels == [8, 48, 107]).all(axis=1).sum()  # the darkest blue, 100 %
    assert full >= 100 * (num_classes - 1)
    grey = (pixels == 211).all(axis=1).sum()
    assert grey > 100 * num_classes
