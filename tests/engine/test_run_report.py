"""The web page about runs, parsed again and compared with the files that it is about."""

import base64
import csv
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_project import make_tiny_project
from web_page import Page

from vimpac_ext.config import load_config
from vimpac_ext.data.bad_videos import BadVideo, append_bad_video
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.run_report import write_run_report
from vimpac_ext.visualization import RunFileError, read_metrics, save_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The OUTPUT_DIRs of a pre-training and of a fine-tuning with its test."""
    folder = tmp_path_factory.mktemp("project")
    configs = make_tiny_project(folder)
    run(prepare(configs / "pretrain.yaml", ["SOLVER.MAX_EPOCH", "1"]))
    run(prepare(configs / "finetune.yaml", ["TRAIN.EVAL_PERIOD", "1"]))
    return folder


def report(tmp_path, *folders, base=None):
    write_run_report(folders, tmp_path / "page.html", base)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_numbers_are_those_of_the_files(trained, tmp_path):
    folder = trained / "finetune"
    page, _ = report(tmp_path, folder)
    result = json.loads((folder / "test/result.json").read_text())
    [[top1, top5, mean]] = page.table("top-1 %", "top-5 %", "mean class accuracy %")
    for shown, name in ((top1, "top1"), (top5, "top5"), (mean, "mean_class_accuracy")):
        assert float(shown) == pytest.approx(result[name], rel=1e-5)
    assert any(result["protocol_id"] in text for text in page.paragraphs)
    assert {key: value for key, value in page.table("what", "value")} == {  # noqa: C416
        key: "–" if value is None else str(value) for key, value in result["protocol"].items()
    }
    with (folder / "test/per_class.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert page.table(*header) == rows
    metrics = read_metrics(folder)
    curves = {row[0]: row[1:] for row in page.table("scalar", "values")}
    assert set(curves) == set(metrics.series) | set(metrics.timings)
    points = metrics.series["train_iter/loss"]
    values = [value for _, value in points]
    expected = [len(points), points[-1][0], values[-1], min(values), max(values)]
    assert [float(x) for x in curves["train_iter/loss"]] == pytest.approx(expected, rel=1e-5)
    files = [row[0] for row in page.table("file", "size")]
    assert files == sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(files) == 2


def test_the_configuration_is_compared_with_the_base_and_the_defaults(trained, tmp_path):
    base = trained / "configs/finetune.yaml"
    page, _ = report(tmp_path, trained / "finetune", base=base)
    assert page.table("key", "this run", "finetune.yaml") == [["TRAIN.EVAL_PERIOD", "1", "0"]]
    own = yaml.safe_load((trained / "finetune/config.yaml").read_text())
    changed = {row[0]: row[1:] for row in page.table("key", "this run", "default")}
    assert changed["SOLVER.BASE_LR"] == ["0.01", "0.0001"]
    assert changed["HEADS.classification.NAME"] == ["ClassificationHead", "(not set)"]
    assert changed["TRAIN.TOKEN_STORE"][0] == own["TRAIN"]["TOKEN_STORE"]
    assert "SOLVER.EPS" not in changed
    sources = load_config(base).sources
    assert set(changed) <= {*sources, "TRAIN.EVAL_PERIOD"}
    page, _ = report(tmp_path, trained / "finetune")
    assert any("--base" in text for text in page.paragraphs)


def test_keys_that_an_older_run_could_not_have_stand_apart(trained, tmp_path):
    folder = tmp_path / "finetune"
    shutil.copytree(trained / "finetune", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["KNN"]["K"]  # as if written before there was such a key
    del config["SOLVER"]["BASE_LR"]  # this one the base sets, so it matters
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    page, _ = report(tmp_path, folder, base=trained / "configs/finetune.yaml")
    keys = {row[0]: row[1:] for row in page.table("key", "this run", "finetune.yaml")}
    assert keys["SOLVER.BASE_LR"] == ["(not set)", "0.01"]
    assert "KNN.K" not in keys
    assert any("earlier version wrote: KNN.K" in text for text in page.paragraphs)


def test_the_page_needs_nothing_else_and_holds_the_pictures_unchanged(trained, tmp_path):
    folder = tmp_path / "runs/finetune"
    shutil.copytree(trained / "finetune", folder)
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    save_image(folder / "pictures/masks.png", image)
    (folder / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    page, text = report(tmp_path, folder)
    assert all(source.startswith("data:") for source in page.sources)
    assert all(target.startswith(("data:", "#")) for target in page.targets)
    assert "http" not in text
    assert "url(" not in text
    assert not page.tags & {"script", "iframe", "object", "embed"}
    data = [base64.b64decode(source.split(",", 1)[1]) for source in page.sources]
    for name in ("pictures/masks.png", "test/confusion.png", "film.mp4"):
        assert (folder / name).read_bytes() in data
        assert name in text
    curves = read_metrics(folder).series
    several = [name for name, points in curves.items() if len(points) > 1]
    assert sum(content.startswith(b"\x89PNG") for content in data) == 2 + len(several) > 4
    for name in several:  # in words, for those who do not see it
        (first, start), (last, end) = curves[name][0], curves[name][-1]
        words = f"{name} over updates. finetune: {start:.4g} at update {first}, {end:.4g} at "
        assert sum(description.startswith(words) for description in page.descriptions) == 1
        assert f"at update {last}" in " ".join(page.descriptions)
    assert len(page.descriptions) == len(page.sources)
    assert all(page.descriptions)
    assert 'name="viewport"' in text


def test_what_is_missing_is_said(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    page, _ = report(tmp_path, folder)
    for text in (
        "Not tested: there is no test/result.json.",
        "No curves: metrics.jsonl is missing or has no scalars.",
        "No pictures in the folder; tools/visualize.py with --output in it makes some.",
        "There is no test/per_class.csv.",
        "Test: there is no test/predictions.csv.",
        "There is no config.yaml: the run has not been trained.",
        "There are no checkpoints.",
    ):
        assert text in page.paragraphs
    assert any("does not tell what it ran with" in text for text in page.paragraphs)
    assert "TRAIN.TOKEN_STORE: not known." in page.paragraphs


def test_bad_videos_of_the_test_and_of_the_stores(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)
    store = tmp_path / "store"
    shutil.copytree(trained / "tokens_train", store)
    entry = BadVideo("clips/<b>bad</b>", "clips/bad.mp4", "cut off & empty")
    append_bad_video(store / "bad_videos.jsonl", entry)
    config = (folder / "config.yaml").read_text().replace(str(trained / "tokens_train"), str(store))
    (folder / "config.yaml").write_text(config)
    predictions = folder / "test/predictions.csv"
    with predictions.open(newline="") as file:
        header, *rows = csv.reader(file)
    rows[2][header.index("decoded")] = "0"
    with predictions.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    page, text = report(tmp_path, folder)
    assert page.table("video_id", "path", "reason") == [list(entry)]
    assert "<b>" not in text
    assert "Test: 1 videos were not decoded." in page.paragraphs
    shown = [rows[2][header.index(name)] for name in ("video_id", "path", "label_name")]
    assert page.table("video_id", "path", "label_name") == [shown]
    assert any(t.startswith("TEST.TOKEN_STORE") and "0 bad" in t for t in page.paragraphs)


def test_stores_that_are_lists_of_the_authors_folders(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["TRAIN"]["TOKEN_STORE"] = ["dalle/a", "dalle/b"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    page, _ = report(tmp_path, folder, base=trained / "configs/finetune.yaml")
    text = "TRAIN.TOKEN_STORE (dalle/a, dalle/b): folders of the authors', which do not list bad"
    assert any(paragraph.startswith(text) for paragraph in page.paragraphs)
    assert any(t.startswith("TEST.TOKEN_STORE") and "0 bad" in t for t in page.paragraphs)
    rows = {row[0]: row[1] for row in page.table("key", "this run", "finetune.yaml")}
    assert "dalle/b" in rows["TRAIN.TOKEN_STORE"]


def test_a_test_without_a_training_has_its_configuration_and_reasons(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)
    (folder / "config.yaml").unlink()  # what a test alone leaves is below test/
    assert (folder / "test/config.yaml").is_file()
    predictions = folder / "test/predictions.csv"
    with predictions.open(newline="") as file:
        header, *rows = csv.reader(file)
    rows[1][header.index("decoded")] = "0"
    with predictions.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    bad = BadVideo(rows[1][header.index("video_id")], "clips/bad.mp4", "cut off")
    append_bad_video(folder / "test/bad_videos.jsonl", bad)
    page, _ = report(tmp_path, folder)
    shown = [rows[1][header.index(name)] for name in ("video_id", "path", "label_name")]
    columns = ("video_id", "path", "label_name", "reason")
    assert page.table(*columns) == [[*shown, "cut off"]]
    assert "There is no config.yaml: the run has not been trained." not in page.paragraphs
    assert any(t.startswith("TEST.TOKEN_STORE") and "0 bad" in t for t in page.paragraphs)


def test_bad_videos_of_the_training(trained, tmp_path):
    """Each once, however often it was met; without the list the page does not say "none"."""
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)
    page, _ = report(tmp_path, folder)
    assert any(t.startswith("Training: there is no bad_videos.jsonl") for t in page.paragraphs)
    entries = [BadVideo("a/1", "a/1.mp4", "<i>empty</i>"), BadVideo("b", "b.avi", "cut off")]
    for entry in (*entries, entries[0]):
        append_bad_video(folder / "bad_videos.jsonl", entry)
    page, text = report(tmp_path, folder)
    assert "Training: 2 videos could not be decoded; others took their places." in page.paragraphs
    assert page.table("video_id", "path", "reason") == [list(entry) for entry in entries]
    assert "<i>" not in text
    (folder / "bad_videos.jsonl").write_text("[1]\n")
    with pytest.raises(RunFileError, match=r"run/bad_videos\.jsonl is not a list of bad videos"):
        report(tmp_path, folder)


def test_everything_is_escaped(trained, tmp_path):
    evil = "<script>alert('&\"')</script>"
    folder = tmp_path / 'a"<i>run'
    shutil.copytree(trained / "finetune", folder)
    result = json.loads((folder / "test/result.json").read_text())
    result["protocol"]["dataset"] = evil
    (folder / "test/result.json").write_text(json.dumps(result))
    with (folder / "test/per_class.csv").open("a", newline="") as file:
        csv.writer(file).writerow([4, evil, 0, 0, 0, 0, "cut\udcff".encode("utf-8", "replace")])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"_type": evil, "update": 1, evil: 1.0}) + "\n")
    save_image(folder / '"><img src=x>.png', np.zeros((2, 2, 3), np.uint8))
    (folder / "config.yaml").write_text(yaml.safe_dump({"OUTPUT_DIR": evil}))
    page, text = report(tmp_path, folder)
    assert "<script" not in text
    assert "<i>" not in text
    assert page.tags.isdisjoint({"script", "i"})
    assert all(source.startswith("data:") for source in page.sources)
    assert dict(page.table("what", "value"))["dataset"] == evil
    assert page.headings[0] == 'Run a"<i>run'
    [changed] = [row for row in page.table("key", "this run") if row[0] == "OUTPUT_DIR"]
    assert changed[1] == evil


def test_several_runs_stand_side_by_side(trained, tmp_path):
    other = tmp_path / "runs/other"
    shutil.copytree(trained / "finetune", other)
    result = json.loads((other / "test/result.json").read_text())
    result |= {"top1": 12.5, "protocol_id": "another"}
    (other / "test/result.json").write_text(json.dumps(result))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("RNG_SEED: 0", "RNG_SEED: 7"))
    page, _ = report(tmp_path, trained / "finetune", other, trained / "pretrain")
    rows = {row[0]: row[1:] for row in page.table("run", "top-1 %")}
    first = json.loads((trained / "finetune/test/result.json").read_text())
    assert float(rows["finetune"][0]) == pytest.approx(first["top1"], rel=1e-5)
    assert rows["other"][0] == "12.5"
    assert [rows["finetune"][3], rows["other"][3]] == [first["protocol_id"], "another"]
    assert rows["pretrain"][:4] == ["–"] * 4
    assert "Not tested: pretrain." in page.paragraphs
    assert any("2 different protocols" in text for text in page.paragraphs)
    keys = {row[0]: row[1:] for row in page.table("key", "finetune", "other", "pretrain")}
    assert keys["RNG_SEED"] == ["0", "7", "0"]
    assert keys["MASKER.NAME"] == ["", "", "BlockMasker"]
    assert "SOLVER.EPS" not in keys
    last = {row[0]: row[1:] for row in page.table("scalar", "finetune", "other", "pretrain")}
    loss = read_metrics(trained / "pretrain").series["train_iter/token_loss"][-1][1]
    assert last["train_iter/token_loss"][:2] == ["–", "–"]
    assert float(last["train_iter/token_loss"][2]) == pytest.approx(loss, rel=1e-5)
    assert {target for target in page.targets if target[0] == "#"} == {f"#{i}" for i in page.ids}


def versions_of(page):
    """Of each file that tells them, and last those of the report."""
    return [dict(table[1:]) for table in page.tables if table[0] == ["package", "version"]]


def told_of(page):
    """Hardware and so on, of each file."""
    tables = [table[1:] for table in page.tables if table[0] == ["run on", "value"]]
    return [dict(table) for table in tables]


def test_a_run_writes_what_it_ran_with(trained, tmp_path):
    for folder in ("pretrain", "finetune", "finetune/test"):
        content = json.loads((trained / folder / "environment.json").read_text())
        assert content["versions"]["torch"] == torch.__version__
        assert content["versions"]["numpy"] == np.__version__
        assert content["versions"]["python"] == platform.python_version()
        assert content["hardware"].endswith((" thread", " threads"))
        assert content["hardware"].split(", ")[-1].split()[0] == str(torch.get_num_threads())
        assert content["processes"] == 1
        assert content["command"] == shlex.join(sys.argv)
    page, _ = report(tmp_path, trained / "finetune")
    own, of_report = versions_of(page)  # the test's are the same
    assert own == content["versions"]
    assert of_report["torch"] == torch.__version__
    assert told_of(page) == [{k: str(content[k]) for k in ("hardware", "processes", "command")}]


def test_a_test_on_another_machine_is_told_apart(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)
    content = json.loads((folder / "test/environment.json").read_text())
    content |= {"hardware": "Another GPU", "versions": {"torch": "9.9"}}
    (folder / "test/environment.json").write_text(json.dumps(content))
    page, _ = report(tmp_path, folder)
    assert [found["torch"] for found in versions_of(page)[:-1]] == [torch.__version__, "9.9"]
    assert [told["hardware"] for told in told_of(page)][1] == "Another GPU"


@pytest.mark.parametrize(
    ("name", "at"), [("result.json", "demo"), ("stage.json", "demo/seed_0/finetune")]
)
def test_versions_of_older_runs_come_from_what_stands_beside_or_above(trained, tmp_path, name, at):
    """The demo's result, and the record of a table's stage."""
    folder = tmp_path / "demo/seed_0/finetune"
    shutil.copytree(trained / "finetune", folder)
    for path in list(folder.rglob("environment.json")):
        path.unlink()
    content = {"versions": {"torch": "1.2.3"}, "hardware": "A GPU", "command": "python x.py"}
    (tmp_path / at / name).write_text(json.dumps(content))
    page, _ = report(tmp_path, folder)
    found, of_report = versions_of(page)
    assert found == {"torch": "1.2.3"}
    assert of_report["numpy"] == np.__version__
    assert told_of(page) == [{"hardware": "A GPU", "command": "python x.py"}]
    assert any(str(tmp_path / at / name) in text for text in page.paragraphs)


def write_run(folder, losses=(3.0, 2.0, 1.0), **config):
    """An OUTPUT_DIR with a curve, and a configuration if there is one."""
    folder.mkdir(parents=True)
    events = [{"_type": "x", "update": u, "loss": float(v)} for u, v in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_values_that_are_not_finite_are_counted(tmp_path):
    diverged = write_run(tmp_path / "runs/a", (1.0, 0.5, "nan"))
    lost = write_run(tmp_path / "runs/b", ("inf",) * 9)
    page, _ = report(tmp_path, diverged)
    assert "x/loss (1 value not finite, update 3): drawn without." in page.paragraphs
    page, _ = report(tmp_path, diverged, lost)
    updates = "updates 1, 2, 3, 4, 5, ..., 9"
    assert f"x/loss (9 values not finite, {updates}): drawn without." in page.paragraphs
    assert "a: x/loss (1 value not finite, update 3), left out here." in page.paragraphs
    page, _ = report(tmp_path, lost)
    assert f"x/loss (9 values not finite, {updates}): drawn without." in page.paragraphs


def test_pictures_of_stages_are_shown_once(tmp_path):
    run = write_run(tmp_path / "run", SEED=1)
    image = np.zeros((2, 2, 3), np.uint8)
    for stage in (0, 1):
        save_image(write_run(run / f"stage_{stage}") / f"drawn/{stage}.png", image)
    save_image(run / "stage_show/own.png", image)  # no stage
    (run / "stage_0/drawn/x.svg").write_text("<svg/>")
    page, text = report(tmp_path, run)
    captions = re.findall("<figcaption>([^<]*)", text)
    assert captions == ["stage_show/own.png", "drawn/0.png", "drawn/1.png"]
    assert [t for t in page.paragraphs if "x.svg" in t] == [
        "Not shown, only .png, .gif, .jpg, .jpeg, .mp4 are: drawn/x.svg."
    ]


def test_pictures_that_are_none_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "empty.png").write_bytes(b"")
    (run / "text.gif").write_bytes(b"GIF89 of old")
    (run / "film.mp4").write_bytes(b"ftypisom")
    (run / "photo.JPG").write_bytes(b"\xff\xd8\xff\xe0rest")
    (run / "b.webp").write_bytes(b"RIFF")
    (run / "a.svg").write_text("<svg/>")
    page, text = report(tmp_path, run)
    assert re.findall("<figcaption>([^<]*)", text) == ["photo.JPG"]
    for expected in (
        "empty.png is empty, so it is not shown.",
        "text.gif does not begin as image/gif does, so it is not shown.",
        "film.mp4 does not begin as video/mp4 does, so it is not shown.",
        "Not shown, only .png, .gif, .jpg, .jpeg, .mp4 are: a.svg, b.webp.",
    ):
        assert expected in page.paragraphs
    assert text.count('class="missing">empty.png is empty') == 1


def test_a_store_that_is_not_configured_is_no_defect(tmp_path):
    run = write_run(tmp_path / "run", TRAIN={"TOKEN_STORE": "gone"}, TEST={"TOKEN_STORE": ""})
    page, text = report(tmp_path, run)
    assert "<p>No TEST.TOKEN_STORE is configured.</p>" in text
    assert any(t.startswith("TRAIN.TOKEN_STORE (gone): not found") for t in page.paragraphs)


def test_runs_without_a_difference_are_said_to_have_none(tmp_path):
    runs = [write_run(tmp_path / f"runs/{name}", SEED=1) for name in "ab"]
    page, _ = report(tmp_path, *runs)
    assert "0 keys differ." in page.paragraphs
    assert all(len(table) > 1 for table in page.tables)
    (runs[1] / "config.yaml").write_text("SEED: 2")
    for folder in runs:
        (folder / "metrics.jsonl").write_text("")
    page, _ = report(tmp_path, *runs)
    assert "1 keys differ." in page.paragraphs
    assert page.table("key", "a", "b") == [["SEED", "1", "2"]]
    assert "No run has scalars." in page.paragraphs
    assert all(len(table) > 1 for table in page.tables)


def test_folders_that_are_no_runs_and_broken_files_are_named(trained, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(FileNotFoundError, match=r"none is not the OUTPUT_DIR of a run: it has no"):
        write_run_report([tmp_path / "none"], page)
    with pytest.raises(ValueError, match="given twice"):
        write_run_report([trained / "pretrain"] * 2, page)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("a: [")
    with pytest.raises(RunFileError, match=r"config\.yaml is not valid YAML"):
        write_run_report([broken], page)
    assert page.read_text() == "old"


def test_the_tool_writes_into_the_run(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained / "finetune", folder)

    def tool(*words):
        command = [sys.executable, str(ROOT / "tools/report.py"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    done = tool(folder)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    Page((folder / "report.html").read_text(encoding="utf-8"))
    done = tool(folder, trained / "pretrain")
    assert (done.returncode, "several runs need --output" in done.stderr) == (2, True)
    done = tool(tmp_path)
    assert done.returncode == 1
    assert "is not the OUTPUT_DIR of a run" in done.stderr
