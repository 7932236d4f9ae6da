"""The authors' token folders: the same clips as their code gave, and nothing wrong unnoticed."""

import io
import json
import os
import pickle
import random
import shutil

import lmdb
import numpy as np
import pytest
import torch
from original_format import record, write_token_folder
from torch.utils.data import DataLoader

from vimpac_ext.data import (
    OriginalTokens,
    StoredVideos,
    StoreMeta,
    TokenStoreWriter,
    open_token_dataset,
    open_tokens,
)
from vimpac_ext.data.clip_sampling import clip_indices, max_start
from vimpac_ext.data.original_folders import find_token_folders
from vimpac_ext.structures import UNLABELLED

FOLDER = "dalle_ucf101_train_test_fps16_hflip0_128{}128"
CROPS = ("top", "center", "bottom")
LABELS = {"ApplyEyeMakeup": 0, "YoYo": 100, "Archery": 2, "Biking": 10}


@pytest.fixture(scope="module")
def folders(fixtures_dir):
    return fixtures_dir / "original" / "video_tokens"


@pytest.fixture(scope="module")
def samples(fixtures_dir):
    return np.load(fixtures_dir / "original" / "token_samples.npz")


class AuthorsSampler:
    """Draws as the authors' data set: a folder, then the starts, from Python's `random`."""

    def __init__(self, num_views, num_clips, num_frames, stride, distance):
        self.num_views, self.num_clips, self.num_frames = num_views, num_clips, num_frames
        self.stride, self.distance = stride, distance

    def clips(self, video_frames, generator):
        last = max_start(video_frames, self.num_frames, self.stride)
        view = random.choice(range(self.num_views))
        starts = [random.randint(0, last)]
        if self.num_clips == 2:
            distance = last if self.distance is None else self.distance
            low, high = max(0, starts[0] - distance), min(starts[0] + distance, last)
            starts.append(random.randint(low, high))
        shape = (video_frames, self.num_frames, self.stride)
        return [(view, clip_indices(start, *shape)) for start in starts]


@pytest.mark.parametrize("num_temporal_views", [1, 3])
def test_test_clips_are_the_authors(folders, samples, num_temporal_views):
    clips = open_token_dataset(
        [folders / FOLDER.format(crop) for crop in CROPS],
        sampling_rate=4,
        num_temporal_views=num_temporal_views,
        start_rule="vimpac",
    )
    keys = json.loads(str(samples["keys"]))
    assert [record.video_id for record in clips.records] == keys
    assert sorted(map(clips.store.num_frames, keys)) == samples["lens"].tolist()
    for index in range(len(clips)):
        group = f"test_n{num_temporal_views}/{index}"
        sample = clips[index]
        assert sample["clips"].dtype == torch.int64
        np.testing.assert_array_equal(sample["clips"], samples[f"{group}/tokens"])
        assert sample["label"] == samples[f"{group}/label"]


@pytest.mark.parametrize("distance", [None, 0, 4])
def test_pretraining_pairs_are_the_authors(folders, samples, distance):
    clips = open_token_dataset(folders / FOLDER.format("center"), mode="pair")
    clips.sampler = AuthorsSampler(1, 2, 5, 1, distance)
    assert len(clips) == 4
    for index in range(len(clips)):
        random.seed(1980 + index)
        sample, group = clips[index], f"pretrain_R{distance}/{index}"
        np.testing.assert_array_equal(sample["clips"], samples[f"{group}/tokens"])
        assert sample["label"] == samples[f"{group}/label"]


def test_finetuning_clips_are_the_authors(folders, samples):
    clips = open_token_dataset(folders, mode="random")  # top, center, bottom: their order
    clips.sampler = AuthorsSampler(3, 1, 5, 4, None)
    for index in range(len(clips)):
        random.seed(1990 + index)
        sample, group = clips[index], f"finetune/{index}"
        np.testing.assert_array_equal(sample["clips"][0], samples[f"{group}/tokens"])
        assert sample["label"] == samples[f"{group}/label"]


def test_our_own_sampler_keeps_the_distance_in_seconds(folders, samples):
    clips = open_token_dataset(folders, mode="pair", num_frames=1, max_distance_seconds=4 / 16)
    tokens = OriginalTokens(folders)
    index = json.loads(str(samples["keys"])).index("Biking/v_Biking_g07_c02")
    frames = {}
    for view in tokens.meta.views:
        for frame, array in enumerate(tokens.read("Biking/v_Biking_g07_c02", view, range(40))):
            frames[array.tobytes()] = view, frame
    drawn = [
        [frames[clip.numpy().tobytes()] for clip in clips[(epoch, index)]["clips"]]
        for epoch in range(300)
    ]
    assert all(first[0] == second[0] for first, second in drawn)
    assert {second[1] - first[1] for first, second in drawn} == set(range(-4, 5))
    assert {first[0] for first, _ in drawn} == set(tokens.meta.views)


def test_a_split_file_chooses_videos(folders, samples, tmp_path):
    split = tmp_path / "split.csv"
    split.write_text("YoYo/v_YoYo_g25_c05.avi 101\n\nArchery/v_Archery_g02_c03.avi 3\n")
    clips = open_token_dataset(folders, split_file=split)
    assert [r.video_id for r in clips.records] == json.loads(str(samples["split_keys"]))
    assert [r.label for r in clips.records] == [2, 100]
    split.write_text("Archery/v_Archery_g02_c03,some text\nno/such video,1\n")
    with pytest.raises(ValueError, match=r"1 of 2 videos are not in the token store.*such video"):
        open_token_dataset(folders, split_file=split)
    clips = open_token_dataset(folders, split_file=split, allow_missing=True)
    assert len(clips) == 1
    assert [r.video_id for r in clips.missing] == ["no/such video"]


@pytest.mark.parametrize("form", ["parent", "pattern", "list", "one"])
def test_ways_to_name_folders(folders, form):
    source, views = {
        "parent": (str(folders), CROPS),
        "pattern": (f"{folders}/dalle_*_fps16_hflip0_128[bt]*128", ("top", "bottom")),
        "list": ([str(folders / FOLDER.format(c)) for c in ("bottom", "top")], ("bottom", "top")),
        "one": (folders / FOLDER.format("bottom"), ("bottom",)),
    }[form]
    tokens = open_tokens(source)
    assert tokens.meta.views == tuple(f"128{crop}128" for crop in views)
    assert (tokens.meta.fps, tokens.meta.grid, tokens.meta.stride) == (16.0, (16, 16), 8)
    # Views are told by name, whatever the order in which they were found.
    for crop in views:
        path = str(folders / FOLDER.format(crop))
        alone = OriginalTokens(path)
        read = [t.read("YoYo/v_YoYo_g25_c05", f"128{crop}128", [8, 0]) for t in (tokens, alone)]
        np.testing.assert_array_equal(*read)


def test_names_say_rate_size_and_flip(tmp_path):
    name = "dalle_something_something_train_fps2.5_hflip1_160bottom128"
    (tmp_path / name).mkdir()
    (folder,) = find_token_folders(tmp_path)
    assert (folder.dataset, folder.fps) == ("something_something_train", 2.5)
    assert folder.view.name == "160bottom128_hflip"


def made(tmp_path, view, values, kind="dalle_own_train_fps2_hflip0_"):
    return write_token_folder(tmp_path / f"{kind}{view}", values)


def made_tokens(seed, num_frames, side=2):
    return np.random.default_rng(seed).integers(0, 8192, (num_frames, side, side))


def test_folders_that_do_not_belong_together_are_refused(tmp_path):
    values = {"a": record(made_tokens(0, 3))}
    first = made(tmp_path, "16top16", values)
    with pytest.raises(ValueError, match="more than one folder for the view 16top16"):
        OriginalTokens([first, first])
    other = made(tmp_path, "16center16", values, "dalle_own_train_fps16_hflip0_")
    with pytest.raises(ValueError, match=r"own_train at 16 fps, 16 px; own_train at 2 fps, 16 px"):
        OriginalTokens([first, other])
    with pytest.raises(ValueError, match=r"different kinds.*dalle_own_train_fps2_hflip\*16"):
        open_token_dataset(tmp_path)
    wide = made(tmp_path, "32top32", values)
    with pytest.raises(ValueError, match="2 fps, 16 px; own_train at 2 fps, 32 px"):
        OriginalTokens([first, wide])
    # With the views asked for, folders of another size may stand beside.
    assert open_tokens([first, wide], ["16top16"]).meta.grid == (2, 2)
    with pytest.raises(ValueError, match="no folder with the view 20top16.*there is 16top16"):
        open_tokens(first, ["20top16"])
    for source in (tmp_path / "nowhere", [first, tmp_path / "nowhere"]):
        with pytest.raises(ValueError, match=r"no tokens in .*nowhere.* a name such as dalle_ucf1"):
            open_token_dataset(source)
    tokens = OriginalTokens(first)
    with pytest.raises(ValueError, match=r"fps is 2.0, expected 16.*no view x; there is 16top16"):
        tokens.require(views=["x"], fps=16, vocab_size=8192, tokenizer=None)


def test_videos_that_views_lack_are_named(tmp_path):
    made(tmp_path, "16top16", {n: record(made_tokens(0, 4), label=i) for i, n in enumerate("abc")})
    made(tmp_path, "16bottom16", {n: record(made_tokens(1, 4), label=7) for n in "acd"})
    tokens = OriginalTokens(tmp_path)
    assert tokens.video_ids == ["a", "c"]
    assert tokens.incomplete == {"b": ["16bottom16"], "d": ["16top16"]}
    assert tokens.locate_all(["a", "b", "z"])[:, 0].tolist() == [0, -1, -1]
    with pytest.raises(ValueError, match=r"2 of 4 videos are not in .*'b', 'd'"):
        open_token_dataset(tmp_path)
    assert len(open_token_dataset(tmp_path, allow_missing=True)) == 2
    assert len(open_token_dataset(tmp_path, views=["16top16"])) == 3
    videos = StoredVideos(tokens)
    assert [r.label for r in videos.records] == [0, 1, 2, 7]
    assert videos.missing == ["b", "d"]
    with pytest.raises(ValueError, match="video 'b' .*not in the view 16bottom16"):
        tokens.read("b", "16top16", [0])


def test_views_of_different_length_are_read_as_far_as_all_go(tmp_path):
    for view, length in (("16top16", 5), ("16center16", 4)):
        made(tmp_path, view, {"a": record(made_tokens(length, length))})
    tokens = OriginalTokens(tmp_path)
    assert tokens.num_frames("a") == 4
    location = tokens.locate("a")
    assert [tokens.num_frames_in(view, location) for view in tokens.meta.views] == [5, 4]
    assert tokens.read("a", "16top16", [4]).shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"frames 4 to 4 asked of video 'a' .*has 4 frames"):
        tokens.read("a", "16center16", [4])


def test_howto100m_has_no_labels(tmp_path):
    kind = "dalle_howto100m_train_val_fps2_hflip0_"
    folder = made(tmp_path, "16center16", {"a": record(made_tokens(0, 3), label=3)}, kind)
    assert open_token_dataset(folder)[0]["label"] == UNLABELLED
    assert open_token_dataset(folder, labelled=True)[0]["label"] == 3


def corrupt(value, how):
    if how == "flipped":  # a bit of the tokens
        position = value.index(b"NUMPY") + 130
        return value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]
    if how == "short":
        return value[: len(value) // 2]
    if how == "text":
        return b"no archive at all"
    tokens = made_tokens(0, 3)
    return {
        "empty": b"",
        "pickle": pickle.dumps(tokens),
        "objects": record_of(tokens=np.full((3, 2, 2), Trap(), object), label=0),
        "nameless": record_of(codes=tokens, label=0),
        "flat": record_of(tokens=tokens.ravel(), label=0),
        "floats": record_of(tokens=tokens / 2, label=0),
        "vocabulary": record(tokens + 8192),
        "negative": record(tokens - 8192),
        "wide": record(made_tokens(0, 3, side=4)),
    }[how]


def record_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Trap:
    """Notices if it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("flipped", "BadZipFile: Bad CRC-32"),
        ("short", "is damaged"),
        ("text", "is damaged"),
        ("empty", "is damaged"),
        ("pickle", "is damaged"),
        ("objects", "Object arrays cannot be loaded"),
        ("nameless", "no item named 'tokens.npy'"),
        ("flat", r"shape \(12,\)"),
        ("floats", "float64 array"),
        ("vocabulary", r"outside the vocabulary 0\.\.8191"),
        ("negative", r"outside the vocabulary 0\.\.8191"),
        ("wide", "4 x 4 tokens, the others 2 x 2"),
    ],
)
def test_damaged_records_name_the_video_and_nothing_runs(tmp_path, monkeypatch, how, reason):
    monkeypatch.chdir(tmp_path)
    good = record(made_tokens(0, 3))
    folder = made(tmp_path, "16top16", {"a": good, "some/video": corrupt(good, how)})
    tokens = OriginalTokens(folder)
    with pytest.raises(ValueError, match=f"video 'some/video' in .*data.mdb.*{reason}"):
        tokens.read("some/video", "16top16", [0])
    np.testing.assert_array_equal(tokens.read("a", "16top16", [2])[0], made_tokens(0, 3)[2])
    assert not (tmp_path / "trap").exists()


def test_lengths_are_read_without_the_tokens(tmp_path):
    """Else a pass over a large data set would read all of it for the lengths alone."""
    value = bytearray(record(made_tokens(0, 30, side=16)))
    value[8000:8010] = b"x" * 10
    tokens = OriginalTokens(made(tmp_path, "128top128", {"a": bytes(value)}))
    assert tokens.num_frames("a") == 30
    with pytest.raises(ValueError, match="Bad CRC-32"):
        tokens.read("a", "128top128", [0])


def test_damaged_files_are_named(tmp_path):
    folder = made(tmp_path, "16top16", {str(i): record(made_tokens(i, 50)) for i in range(40)})
    whole = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data.mdb is cut short: \d+ bytes"):
        OriginalTokens(folder)
    (folder / "data.mdb").write_bytes(b"x" * 10000)
    with pytest.raises(ValueError, match="data.mdb is damaged"):
        OriginalTokens(folder)
    (folder / "data.mdb").unlink()
    with pytest.raises(ValueError, match="has no data.mdb"):
        OriginalTokens(folder)
    empty = made(tmp_path, "16center16", {})
    with pytest.raises(ValueError, match="no video is in every view"):
        OriginalTokens(empty)


def test_one_path_can_be_opened_any_number_of_times(tmp_path, folders):
    first, second = OriginalTokens(folders), OriginalTokens(str(folders))
    link = tmp_path / FOLDER.format("top")
    link.symlink_to(folders / FOLDER.format("top"))
    for tokens in (first, second, OriginalTokens(link)):
        assert tokens.read("YoYo/v_YoYo_g25_c05", "128top128", [0]).shape == (1, 16, 16)


def test_a_folder_that_was_written_anew_is_read_anew(tmp_path):
    folder = made(tmp_path, "16top16", {"a": record(made_tokens(0, 3))})
    assert OriginalTokens(folder).video_ids == ["a"]
    held = OriginalTokens(folder)
    shutil.rmtree(folder)
    made(tmp_path, "16top16", {"b": record(made_tokens(1, 3))})
    tokens = OriginalTokens(folder)
    assert tokens.video_ids == ["b"]
    np.testing.assert_array_equal(tokens.read("b", "16top16", [1])[0], made_tokens(1, 3)[1])
    with pytest.raises(ValueError, match="there is no video 'a'"):
        held.read("a", "16top16", [1])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_workers(folders, method):
    clips = open_token_dataset(folders, mode="pair", seed=5)
    keys = [[(epoch, index) for index in (3, 1, 0)] for epoch in range(4)]
    alone = [batch["clips"] for batch in DataLoader(clips, batch_sampler=keys)]
    loader = DataLoader(clips, batch_sampler=keys, num_workers=2, multiprocessing_context=method)
    together = [batch["clips"] for batch in loader]
    assert len(alone) == len(together) == 4
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_pickled_readers_read_the_same(folders):
    tokens = OriginalTokens(folders)
    tokens.read("YoYo/v_YoYo_g25_c05", "128top128", [3])
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 2000  # no tokens in it
    again = pickle.loads(pickled)
    assert (again.meta, again.video_ids) == (tokens.meta, tokens.video_ids)
    read = [t.read("Archery/v_Archery_g02_c03", "128top128", [3]) for t in (tokens, again)]
    np.testing.assert_array_equal(*read)


def test_names_beyond_ascii(tmp_path):
    values = {name: record(made_tokens(i, 3)) for i, name in enumerate(("é/ü", "z", "日本"))}
    tokens = OriginalTokens(made(tmp_path, "16top16", values))
    assert tokens.video_ids == sorted(values)
    for index, name in enumerate(values):
        np.testing.assert_array_equal(tokens.read(name, "16top16", range(3)), made_tokens(index, 3))


def test_our_stores_open_the_same_way(tmp_path):
    meta = StoreMeta("Fake", "Fake:1", 30, 8, 2.0, ("16top16", "16center16"), (2, 2))
    with TokenStoreWriter(tmp_path, meta) as writer:
        for seed, name in enumerate("ba"):
            tokens = made_tokens(seed, 7) % 30
            writer.add(name, {"16top16": tokens, "16center16": tokens[::-1]})
    clips = open_token_dataset(tmp_path, num_frames=3)
    assert [(r.video_id, r.label) for r in clips.records] == [("a", UNLABELLED), ("b", UNLABELLED)]
    middle = made_tokens(1, 7)[2:5] % 30
    np.testing.assert_array_equal(clips[0]["clips"][0], middle)
    (tmp_path / "videos.csv").write_text("a 4\nb 2\n")
    assert [r.label for r in open_token_dataset(tmp_path).records] == [4, 2]


def test_lmdb_really_refuses_a_second_open(folders):
    """Why readers share what is open; and why it must be closed with the last of them."""
    path = str(folders / FOLDER.format("top"))
    tokens, other = OriginalTokens(path), OriginalTokens(path)
    del other
    with pytest.raises(lmdb.Error):
        lmdb.open(path, readonly=True, lock=False)
    del tokens
    with lmdb.open(path, readonly=True, lock=False), pytest.raises(ValueError, match="in use by"):
        OriginalTokens(path)
