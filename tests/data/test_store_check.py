"""Verification and repair: any damage is found and named, and only that."""

import json
import os
import shutil
import zlib
from dataclasses import replace

import lmdb
import numpy as np
import pytest

from vimpac_ext.data.store_check import check_store
from vimpac_ext.data.store_format import StoreMeta, VideoHeader, token_key, video_key
from vimpac_ext.data.store_repair import repair_store
from vimpac_ext.data.store_report import verification
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.data.token_store_writer import TokenStoreWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

META = StoreMeta("Fake", "Fake:1", 300, 8, 2.0, ("left", "right"), (16, 16))
NAMES = [f"class ü/video {i:03}" for i in range(60)]


def tokens_of(name):
    generator = np.random.default_rng(NAMES.index(name))
    shape = (1 + NAMES.index(name) % 7, *META.grid)
    return {view: generator.integers(META.vocab_size, size=shape) for view in META.views}


def write(folder, names=NAMES, shard_id=0, num_shards=1):
    with TokenStoreWriter(folder, META, shard_id, num_shards) as writer:
        for name in names:
            writer.add(name, tokens_of(name))


@pytest.fixture(scope="module")
def good_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "store"
    write(folder)
    return folder


@pytest.fixture
def store(good_store, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(good_store, tmp_path / "store")


def data_file(store):
    return store / "shard_00000" / "data.mdb"


def flip(file, position, bit=1):
    with file.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ bit]))


def position_of(store, name, view, frame):
    """Where a frame's tokens are in the file."""
    return data_file(store).read_bytes().index(tokens_of(name)[view][frame].astype("<u2").tobytes())


def assert_is_whole(store, names):
    opened = TokenStore(store)
    assert sorted(opened.video_ids) == sorted(names)
    for name in names:
        for view in META.views:
            expected = tokens_of(name)[view]
            np.testing.assert_array_equal(opened.read(name, view, range(len(expected))), expected)


def test_whole_store(store):
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert TokenStore(store).num_frames(NAMES[0]) == 1  # open in this process
    check = check_store(store)
    assert check.problems == []
    assert check.num_videos == len(NAMES)
    assert check.num_frames == sum(len(tokens_of(name)["left"]) for name in NAMES)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_every_flipped_bit_in_tokens_names_its_video(store):
    """Bits of tokens, also such that give another valid token, and of a checksum."""
    flip(data_file(store), position_of(store, NAMES[5], "right", 3))
    flip(data_file(store), position_of(store, NAMES[30], "left", 0) + 511, bit=128)
    flip(data_file(store), position_of(store, NAMES[41], "left", 2) + 512)
    problems = check_store(store).problems
    assert [problem.video_id for problem in problems] == [NAMES[5], NAMES[30], NAMES[41]]
    assert [problem.reason for problem in problems] == [
        "view right: wrong checksum",
        "view left: wrong checksum",
        "view left: wrong checksum",
    ]
    for name, view in ((NAMES[5], "right"), (NAMES[30], "left"), (NAMES[41], "left")):
        with pytest.raises(ValueError, match=f"video '{name}' .* {view}: wrong checksum of frame"):
            TokenStore(store).read(name, view, range(len(tokens_of(name)[view])))


def test_changed_name_is_found(store):
    """A video under the name of another would be trained on with a wrong label."""
    content = data_file(store).read_bytes()  # with old copies of the page, too
    data_file(store).write_bytes(content.replace(NAMES[7].encode(), NAMES[6].encode()))
    problems = check_store(store).problems
    assert [str(problem) for problem in problems] == [
        f"shard 0, video '{NAMES[6]}': view left: wrong checksum",
        f"shard 0, video '{NAMES[6]}': view right: wrong checksum",
        f"shard 0, video '{NAMES[6]}': its record in index.bin is wrong",
    ]
    assert {problem.number for problem in problems} == {7}


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_file_cut_short_names_what_is_gone(store, keep):
    content = data_file(store).read_bytes()
    rest = int(len(content) * keep)
    gone = {
        name
        for name in NAMES
        for view in META.views
        for frame in tokens_of(name)[view].astype("<u2")
        if content.index(frame.tobytes()) + frame.nbytes > rest
    }
    os.truncate(data_file(store), rest)
    check = check_store(store)
    first, *others = check.problems
    assert str(first) == f"shard 0: data.mdb is cut short by {len(content) - rest} bytes"
    named = {problem.video_id for problem in others}
    assert gone <= named
    assert len(named) == len(NAMES) - check.num_videos
    with pytest.raises(ValueError, match="is cut short: .* see tools/extract_tokens.py --verify"):
        TokenStore(store)
    repair_store(store, check)
    assert_is_whole(store, [name for name in NAMES if name not in named])


def test_file_without_the_tree_of_videos(store):
    os.truncate(data_file(store), 8192)
    assert [str(problem) for problem in check_store(store).problems] == [
        "shard 0: data.mdb is damaged or cut short; 60 videos cannot be read"
    ]


def change(store, action):
    """Change the LMDB as a program with an error might."""
    with lmdb.open(str(store / "shard_00000"), max_dbs=2, map_size=2**30) as environment:
        videos, tokens = environment.open_db(b"videos"), environment.open_db(b"tokens")
        with environment.begin(write=True) as transaction:
            action(transaction, videos, tokens)


def test_missing_and_senseless_entries(store):
    large = np.full((3, 16, 16), 300, "<u2")
    frames = np.zeros(3, META.frame_dtype)
    frames["tokens"] = large

    def action(transaction, videos, tokens):
        transaction.delete(token_key(4, 1), db=tokens)
        transaction.put(video_key(9), b"abc", db=videos)
        header = VideoHeader.unpack(transaction.get(video_key(16), db=videos), 2)
        value = frames.tobytes()
        transaction.put(token_key(16, 0), value, db=tokens)
        checksums = (zlib.crc32(value, zlib.crc32(header.video_id)), header.checksums[1])
        transaction.put(video_key(16), header._replace(checksums=checksums).pack(), db=videos)

    change(store, action)
    problems = check_store(store).problems
    assert [str(problem) for problem in problems] == [
        f"shard 0, video '{NAMES[4]}': view right: nothing instead of 2580 bytes",
        "shard 0, video 9: its header is damaged: a header of 3 bytes",
        f"shard 0, video '{NAMES[16]}': view left: token 300 is outside 0..299",
    ]


def test_wrong_index_is_told_from_wrong_tokens(store):
    flip(store / "shard_00000/index.bin", 24 * 11 + 3)
    (problem,) = check_store(store).problems
    assert (problem.video_id, problem.in_index) == (NAMES[11], True)
    assert NAMES[11] not in TokenStore(store)
    assert repair_store(store, check_store(store)) == []
    assert check_store(store).problems == []
    assert_is_whole(store, NAMES)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_escapes(store, seed):
    """Eight random bytes somewhere: whatever cannot be read right afterwards has been named."""
    generator = np.random.default_rng(seed)
    content = bytearray(data_file(store).read_bytes())
    page = int(generator.integers(2, len(content) // 4096)) * 4096
    for position in page + generator.integers(0, 4096 if seed % 2 else 64, 8):
        content[position] ^= int(generator.integers(1, 256))
    data_file(store).write_bytes(content)
    check = check_store(store)
    damaged = {problem.number for problem in check.problems}
    repair_store(store, check)
    kept = [] if -1 in damaged and not check.num_read[0] else NAMES
    assert_is_whole(store, [name for i, name in enumerate(kept) if i not in damaged])


@pytest.mark.parametrize("damage", ["flip", "cut", "destroy"])
def test_repaired_store_is_completed_by_the_next_writer(store, damage):
    write(store, [], 1, 2)  # an empty second shard
    if damage == "flip":
        flip(data_file(store), position_of(store, NAMES[5], "right", 3))
    elif damage == "cut":
        os.truncate(data_file(store), int(data_file(store).stat().st_size * 0.9))
    else:
        data_file(store).write_bytes(b"nonsense" * 10_000)
    check = check_store(store)
    (put_aside,) = repair_store(store, check)
    assert put_aside == store / "damaged_shard_00000"
    assert check_store(store).problems == []
    left = TokenStore(store).video_ids
    assert len(left) == check.num_videos == {"flip": 59, "cut": len(left), "destroy": 0}[damage]
    assert_is_whole(store, left)
    write(store, [name for name in NAMES if name not in left])
    assert_is_whole(store, NAMES)


def test_store_that_is_written_is_left_alone(store):
    message = "this process is writing .*shard_00000; verify it"
    with TokenStoreWriter(store, META), pytest.raises(ValueError, match=message):
        check_store(store)


def test_report(store):
    text, whole = verification(store, repair=False, as_json=False)
    assert whole
    assert "60 videos with 234 frames are whole, 0 problems" in text
    flip(data_file(store), position_of(store, NAMES[5], "right", 3))
    text, whole = verification(store, repair=False, as_json=False)
    assert not whole
    assert f"shard 0, video '{NAMES[5]}': view right: wrong checksum" in text
    assert "--repair leaves the damaged videos out" in text
    report, whole = verification(store, repair=True, as_json=True)
    content = json.loads(report)
    assert not whole
    assert (content["num_videos"], len(content["problems"])) == (59, 1)
    assert content["problems"][0]["video_id"] == NAMES[5]
    assert content["put_aside"] == [str(store / "damaged_shard_00000")]
    assert verification(store, repair=False, as_json=False)[1]


def test_a_second_shard_with_the_same_video_is_no_problem(store):
    with TokenStoreWriter(store, META, 1, 2) as writer:
        writer.done = type(writer.done)([])
        writer.add(NAMES[3], tokens_of(NAMES[3]))
    check = check_store(store)
    assert (check.problems, check.num_videos) == ([], 61)
    assert TokenStore(store).num_doubles == 1
    assert_is_whole(store, NAMES)


def test_meta_of_another_vocabulary(store):
    """The description is checked against the tokens, too."""
    meta = replace(META, vocab_size=290)
    (store / "meta.json").write_text(meta.to_json())
    problems = check_store(store).problems
    assert len(problems) > 50
    assert "is outside 0..289" in problems[0].reason
