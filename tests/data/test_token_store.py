"""The token store: whole videos or nothing, exact reads, honest errors, any process."""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import lmdb
import numpy as np
import pytest

from vimpac_ext.data.bad_videos import read_bad_videos
from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.store_index import INDEX_DTYPE, StoreIndex, index_record
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.data.token_store_writer import TokenStoreWriter

META = StoreMeta(
    tokenizer="FakeTokenizer",
    tokenizer_fingerprint="FakeTokenizer-0123",
    vocab_size=300,
    stride=8,
    fps=2.0,
    views=("16center16", "16center16_hflip"),
    grid=(2, 3),
)


def tokens_of(name, num_frames, meta=META):
    """Tokens that depend on the video's name, so that mixed-up videos show."""
    generator = np.random.default_rng(zlib.crc32(os.fsencode(name)))
    shape = (num_frames, *meta.grid)
    return {view: generator.integers(meta.vocab_size, size=shape) for view in meta.views}


def write(folder, names, meta=META, **options):
    with TokenStoreWriter(folder, meta, **options) as writer:
        for number, name in enumerate(names):
            writer.add(name, tokens_of(name, number % 7 + 1, meta))


def assert_holds(store, names, meta=META):
    assert len(store) == len(names)
    assert sorted(store.video_ids) == sorted(names)
    for number, name in enumerate(names):
        length = number % 7 + 1
        expected = tokens_of(name, length, meta)
        assert name in store
        assert store.num_frames(name) == length
        store.verify(name)
        for view in meta.views:
            read = store.read(name, view, range(length))
            assert read.dtype == np.int64
            np.testing.assert_array_equal(read, expected[view])


NAMES = ["YoYo/v_YoYo_g25_c05", "1", "ü–文", "x" * 2000, "with space", "\udce9not_utf8"]


@pytest.mark.parametrize("vocab_size", [256, 257, 65536, 65537])
def test_round_trip_in_the_smallest_type(tmp_path, vocab_size):
    meta = replace(META, vocab_size=vocab_size)
    write(tmp_path / "store", NAMES, meta)
    store = TokenStore(tmp_path / "store")
    assert store.meta == meta
    assert meta.token_dtype.itemsize == {256: 1, 257: 2, 65536: 2, 65537: 4}[vocab_size]
    assert_holds(store, NAMES, meta)


def test_largest_token_survives(tmp_path):
    for vocab_size in (256, 65536, 65537):
        meta = replace(META, vocab_size=vocab_size, views=("a",))
        with TokenStoreWriter(tmp_path / str(vocab_size), meta) as writer:
            writer.add("v", {"a": np.full((1, 2, 3), vocab_size - 1)})
        read = TokenStore(tmp_path / str(vocab_size)).read("v", "a", [0])
        assert (read == vocab_size - 1).all()


def test_frames_in_any_order_and_copied_out(tmp_path):
    write(tmp_path / "s", ["a"] * 0 + ["a", "b", "c", "d", "e", "f", "g"])
    store = TokenStore(tmp_path / "s")
    expected = tokens_of("g", 7)["16center16"]
    frames = store.read("g", "16center16", [6, 0, 0, 3])
    np.testing.assert_array_equal(frames, expected[[6, 0, 0, 3]])
    frames[:] = -1  # the caller's own memory
    np.testing.assert_array_equal(store.read("g", "16center16", [3]), expected[[3]])
    assert store.read("g", "16center16", []).shape == (0, 2, 3)


def test_raw_layout_is_as_documented(tmp_path):
    """Another program can read the LMDB knowing only the docstring of store_format."""
    write(tmp_path / "s", ["a", "b"])
    meta = json.loads((tmp_path / "s" / "meta.json").read_text())
    assert meta["format_version"] == 2
    with lmdb.open(str(tmp_path / "s" / "shard_00000"), max_dbs=2, readonly=True) as environment:
        videos = environment.open_db(b"videos", create=False)
        tokens = environment.open_db(b"tokens", create=False)
        with environment.begin() as transaction:
            header = transaction.get(struct.pack(">Q", 1), db=videos)
            value = transaction.get(struct.pack(">QH", 1, 1), db=tokens)
    frames = [f.tobytes() for f in tokens_of("b", 2)["16center16_hflip"].astype("<u2")]
    checksums = [zlib.crc32(frame, i).to_bytes(4, "little") for i, frame in enumerate(frames)]
    expected = frames[0] + checksums[0] + frames[1] + checksums[1]
    assert value == expected
    assert header[12:] == b"b"
    assert struct.unpack("<III", header[:12])[::2] == (2, zlib.crc32(b"b" + expected))


def test_continues_and_knows_what_is_done(tmp_path):
    write(tmp_path / "s", NAMES[:3])
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        assert [name in writer.done for name in NAMES] == [True] * 3 + [False] * 3
        assert len(writer.done) == 3
        with pytest.raises(ValueError, match="'1' is in the store already"):
            writer.add("1", tokens_of("1", 2))
        for number, name in enumerate(NAMES[3:], start=3):
            writer.add(name, tokens_of(name, number % 7 + 1))
        assert len(writer.done) == 6
    assert_holds(TokenStore(tmp_path / "s"), NAMES)


def test_map_grows_for_small_and_large_videos(tmp_path):
    meta = replace(META, grid=(16, 16), views=("a",))
    tokens = {"a": np.zeros((500, 16, 16), int)}
    with TokenStoreWriter(tmp_path / "s", meta, map_size=2**16) as writer:
        for name in "abcdefg":
            writer.add(name, tokens)
    store = TokenStore(tmp_path / "s")
    assert sorted(store.video_ids) == list("abcdefg")
    assert store.read("g", "a", [499]).sum() == 0


@pytest.mark.parametrize(
    "lag", ["missing", "torn", "behind", "ahead", "holes", "of another", "empty"]
)
def test_index_is_repaired_from_the_lmdb(tmp_path, lag):
    names = [f"video {i}" for i in range(20)]
    write(tmp_path / "s", names)
    file = tmp_path / "s" / "shard_00000" / "index.bin"
    good = file.read_bytes()
    size = INDEX_DTYPE.itemsize
    bad = {
        "torn": good[:-5],
        "behind": good[: -3 * size],
        "ahead": good + good[:size],
        "holes": good[: 5 * size] + bytes(2 * size) + good[7 * size :],
        "of another": good[::-1],
        "empty": b"",
        "missing": b"",
    }[lag]
    file.write_bytes(bad)
    if lag == "missing":
        file.unlink()
    assert_holds(TokenStore(tmp_path / "s"), names)  # the reader changes nothing on disk
    assert not file.is_file() if lag == "missing" else file.read_bytes() == bad
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        assert all(name in writer.done for name in names)
    assert file.read_bytes() == good


def test_shards_side_by_side_need_no_merge(tmp_path):
    names = [f"video {i}" for i in range(30)]
    writers = [TokenStoreWriter(tmp_path / "s", META, i, num_shards=3) for i in range(3)]
    for number, name in enumerate(names):
        writers[number % 3].add(name, tokens_of(name, number % 7 + 1))
    for writer in writers:
        writer.close()
    assert_holds(TokenStore(tmp_path / "s"), names)
    # Another number of shards, and a video that two shards have: nothing doubled.
    with TokenStoreWriter(tmp_path / "s", META, 1, num_shards=5) as writer:
        assert all(name in writer.done for name in names)
        writer.done = type(writer.done)([])
        writer.add("video 0", tokens_of("video 0", 1))
    assert_holds(TokenStore(tmp_path / "s"), names)


def test_store_of_another_kind_is_refused_by_name(tmp_path):
    write(tmp_path / "s", ["a"])
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "s").rglob("*") if p.is_file())
    other = replace(META, tokenizer_fingerprint="Other-99", fps=4.0, views=("16center16",))
    with pytest.raises(ValueError, match="made with other settings") as error:
        TokenStoreWriter(tmp_path / "s", other, shard_id=1, num_shards=2)
    for text in ("'FakeTokenizer-0123' != 'Other-99'", "2.0 != 4.0", "views", str(tmp_path / "s")):
        assert text in str(error.value)
    after = sorted((p, p.read_bytes()) for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert before == after


def test_require_names_every_mismatch(tmp_path):
    write(tmp_path / "s", ["a"])
    store = TokenStore(tmp_path / "s")
    store.require()
    store.require("FakeTokenizer", "FakeTokenizer-0123", 300, 8, 2.0, (2, 3), META.views)
    with pytest.raises(ValueError, match="does not fit") as error:
        store.require("Another", "Other-1", 301, 16, 4.0, (3, 2), ["nowhere", "16center16"])
    message = str(error.value)
    for text in (
        "'Another'",
        "'Other-1'",
        "301",
        "16,",
        "4.0",
        "(3, 2)",
        "no view nowhere; it has 16center16",
    ):
        assert text in message


@pytest.mark.parametrize(
    ("stored", "wanted", "stride"), [(16, 16, 1), (16, 4, 4), (2, 0.5, 4), (29.97, 9.99, 3)]
)
def test_lower_rates(tmp_path, stored, wanted, stride):
    write(tmp_path / "s", ["a"], replace(META, fps=float(stored)))
    assert TokenStore(tmp_path / "s").stride_for(wanted) == stride


@pytest.mark.parametrize("wanted", [3, 32, 5.0, 0, -4, 15.9])
def test_rates_that_a_store_cannot_be_read_at(tmp_path, wanted):
    write(tmp_path / "s", ["a"], replace(META, fps=16.0))
    with pytest.raises(ValueError, match="has 16 frames per second .* it can at 16, 8, 5.33333, 4"):
        TokenStore(tmp_path / "s").stride_for(wanted)


def test_store_of_a_higher_rate_says_how_to_read_it(tmp_path):
    write(tmp_path / "s", ["a"], replace(META, fps=16.0))
    store = TokenStore(tmp_path / "s")
    with pytest.raises(ValueError, match="set DATA.TARGET_FPS 16 and multiply .* by 4"):
        store.require(fps=4.0)
    with pytest.raises(ValueError, match="fps is 16.0, expected 5.0$"):
        store.require(fps=5.0)


def test_index_of_many_videos_against_a_dictionary(tmp_path):
    """All shards, doubles in several of them, ids that are not there."""
    generator = np.random.default_rng(0)
    shards, expected = {}, {}
    for shard_id in (0, 3, 7):
        names = [f"v{i}" for i in generator.permutation(3000)[:1000]]
        lengths = generator.integers(1, 100, 1000)
        for number, (name, length) in enumerate(zip(names, lengths.tolist(), strict=True)):
            expected.setdefault(name, (shard_id, number, length))
        content = b"".join(
            index_record(name.encode(), length)
            for name, length in zip(names, lengths.tolist(), strict=True)
        )
        shards[shard_id] = np.frombuffer(content, INDEX_DTYPE)
    index = StoreIndex(shards)
    wanted = [f"v{i}" for i in range(3100)]
    found = index.locate(wanted)
    assert found.tolist() == [[*expected.get(name, (-1, -1, -1))] for name in wanted]
    assert len(index) == len(expected)
    assert index.num_doubles == 3000 - len(expected)
    assert sorted(index.frame_counts().tolist()) == sorted(e[2] for e in expected.values())
    numbers = index.numbers_by_shard()
    assert {
        (shard_id, number) for shard_id in numbers for number in numbers[shard_id].tolist()
    } == {e[:2] for e in expected.values()}
    assert StoreIndex({}).locate(["a"]).tolist() == [[-1, -1, -1]]


def test_reading_errors(tmp_path):
    write(tmp_path / "s", ["a", "b"])
    store = TokenStore(tmp_path / "s")
    with pytest.raises(ValueError, match="'zzz' is not among the 2 videos"):
        store.read("zzz", "16center16", [0])
    with pytest.raises(ValueError, match="'zzz'"):
        store.num_frames("zzz")
    with pytest.raises(ValueError, match="no view top; it has 16center16, 16center16_hflip"):
        store.read("a", "top", [0])
    for frames in ([0, 2], [-1]):
        with pytest.raises(ValueError, match="'b', which has 2 frames"):
            store.read("b", "16center16", frames)


def test_not_a_store(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        TokenStore(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a token store: it has no meta.json"):
        TokenStore(tmp_path)
    for text, reason in [
        ("{", "not valid JSON"),
        ("[]", "format None is unknown"),
        ('{"format_version": 9}', "format 9 is unknown"),
        ('{"format_version": 1}', "format 1 is unknown; .* reads format 2, extract .* again"),
        ('{"format_version": 2, "colour": 2}', "unknown fields \\['colour'\\]"),
    ]:
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            TokenStore(tmp_path)


def test_empty_store(tmp_path):
    write(tmp_path / "s", [])
    store = TokenStore(tmp_path / "s")
    assert (len(store), store.video_ids, "a" in store) == (0, [], False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("16center16"), "has views"),
        (lambda t: t.update(top=t["16center16"]), "has views"),
        (lambda t: t.update({"16center16_hflip": np.zeros((3, 2, 3), int)}), "shape \\(3, 2, 3\\)"),
        (lambda t: t.update({v: np.zeros((0, 2, 3), int) for v in t}), "shape \\(0, 2, 3\\)"),
        (lambda t: t.update({v: np.zeros((4, 3, 2), int) for v in t}), "shape \\(4, 3, 2\\)"),
        (lambda t: t.update({"16center16": np.zeros((4, 2, 3))}), "float64 array"),
        (lambda t: t["16center16_hflip"].fill(300), "tokens 300..300 are outside .* 0..299"),
        (lambda t: t["16center16"].fill(-1), "tokens -1..-1 are outside"),
    ],
)
def test_wrong_tokens_are_refused_whole(tmp_path, change, reason):
    tokens = tokens_of("a", 4)
    change(tokens)
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        with pytest.raises(ValueError, match=reason):
            writer.add("a", tokens)
        with pytest.raises(ValueError, match="no valid id"):
            writer.add("", tokens_of("a", 4))
        assert "a" not in writer.done
    assert len(TokenStore(tmp_path / "s")) == 0


@pytest.mark.parametrize("frame", [0, 2])
def test_flipped_bit_is_found_by_verify_and_by_reading_its_frame(tmp_path, frame):
    """Also a bit that turns a token into another valid one."""
    write(tmp_path / "s", NAMES[:3])
    file = tmp_path / "s" / "shard_00000" / "data.mdb"
    content = bytearray(file.read_bytes())
    expected = tokens_of(NAMES[2], 3)["16center16"]
    content[content.index(expected[frame].astype("<u2").tobytes()) + 6] ^= 1
    file.write_bytes(content)
    store = TokenStore(tmp_path / "s")
    store.verify(NAMES[0])
    with pytest.raises(ValueError, match="ü–文.* is damaged in view 16center16: wrong checksum"):
        store.verify(NAMES[2])
    with pytest.raises(ValueError, match=f"ü–文.* 16center16: wrong checksum of frame {frame}"):
        store.read(NAMES[2], "16center16", [1, frame])
    np.testing.assert_array_equal(store.read(NAMES[2], "16center16", [1]), expected[[1]])


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_file_cut_short_is_an_error_not_a_crash(tmp_path, keep):
    write(tmp_path / "s", [str(i) for i in range(50)], replace(META, grid=(16, 16)))
    file = tmp_path / "s" / "shard_00000" / "data.mdb"
    os.truncate(file, int(file.stat().st_size * keep))
    with pytest.raises(ValueError, match="data.mdb is cut short"):
        TokenStore(tmp_path / "s")
    with pytest.raises(ValueError, match="data.mdb is cut short"):
        TokenStoreWriter(tmp_path / "s", replace(META, grid=(16, 16)))


def test_file_that_is_no_lmdb(tmp_path):
    write(tmp_path / "s", ["a"])
    (tmp_path / "s" / "shard_00000" / "data.mdb").write_bytes(b"text" * 10000)
    for opens in (TokenStore, lambda folder: TokenStoreWriter(folder, META)):
        with pytest.raises(ValueError, match="data.mdb is damaged"):
            opens(tmp_path / "s")


def _read_in_child(store, names):
    assert_holds(store, names)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_store_in_other_processes(tmp_path, method):
    write(tmp_path / "s", NAMES)
    store = TokenStore(tmp_path / "s")
    assert_holds(store, NAMES)  # open in the parent before the fork
    context = multiprocessing.get_context(method)
    children = [context.Process(target=_read_in_child, args=(store, NAMES)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert_holds(store, NAMES)
    assert_holds(pickle.loads(pickle.dumps(store)), NAMES)
    assert len(pickle.dumps(store)) < 1000


def test_threads_read_together(tmp_path):
    names = [str(i) for i in range(40)]
    write(tmp_path / "s", names)
    store = TokenStore(tmp_path / "s")
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda _: assert_holds(store, names), range(8)))


def test_reader_and_writer_of_one_process(tmp_path):
    write(tmp_path / "s", ["a"])
    early = TokenStore(tmp_path / "s")
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        writer.add("b", tokens_of("b", 2))
        assert early.num_frames("a") == 1
        assert (early.read("a", "16center16", [0]) == tokens_of("a", 1)["16center16"]).all()
        assert_holds(TokenStore(tmp_path / "s"), ["a", "b"])
        with pytest.raises(ValueError, match="has a writer in this process already"):
            TokenStoreWriter(tmp_path / "s", META)
        writer.add("c", tokens_of("c", 3))
    assert_holds(TokenStore(tmp_path / "s"), ["a", "b", "c"])
    assert "c" not in early  # sees what was there when it was opened


def test_replaced_store_is_read_anew(tmp_path):
    write(tmp_path / "s", ["a"])
    write(tmp_path / "t", ["b", "c"])
    assert len(TokenStore(tmp_path / "s")) == 1
    (tmp_path / "s").rename(tmp_path / "old")
    (tmp_path / "t").rename(tmp_path / "s")
    assert_holds(TokenStore(tmp_path / "s"), ["b", "c"])


def _open_writer(folder, connection):
    try:
        TokenStoreWriter(folder, META)
    except ValueError as error:
        connection.send(str(error))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_second_process_is_refused_but_may_read(tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with TokenStoreWriter(tmp_path / "s", META) as writer, receiver, sender:
        writer.add("a", tokens_of("a", 1))
        store = TokenStore(tmp_path / "s")
        for target, arguments in [
            (_open_writer, (tmp_path / "s", sender)),
            (_read_in_child, (store, ["a"])),
        ]:
            child = context.Process(target=target, args=arguments)
            child.start()
            child.join()
            assert child.exitcode == 0
        assert "another process is writing this shard" in receiver.recv()
        writer.add("b", tokens_of("b", 2))
    assert_holds(TokenStore(tmp_path / "s"), ["a", "b"])
    write(tmp_path / "s", [])  # free again


def test_shard_id_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="shard_id 2 is not in 0..1"):
        TokenStoreWriter(tmp_path / "s", META, shard_id=2, num_shards=2)


def test_full_disk_keeps_what_was_committed(tmp_path):
    """A file-size limit stands for the full disk."""
    meta = replace(META, grid=(16, 16), views=("a",))
    tokens = {"a": np.arange(100 * 256).reshape(100, 16, 16) % 300}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, old[1]))
        with TokenStoreWriter(tmp_path / "s", meta) as writer:
            for number in range(6):
                writer.add(str(number), tokens)
            with pytest.raises(OSError, match="'6' could not .* is the disk full. The 6 videos in"):
                writer.add("6", tokens)
            assert len(writer.done) == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    store = TokenStore(tmp_path / "s")
    assert len(store) == 6
    for number in range(6):
        store.verify(str(number))
    with TokenStoreWriter(tmp_path / "s", meta) as writer:
        writer.add("6", tokens)
    read = TokenStore(tmp_path / "s").read("6", "a", range(100))
    np.testing.assert_array_equal(read, tokens["a"])


def test_bad_videos_are_listed_until_they_succeed(tmp_path):
    file = tmp_path / "s" / "bad_videos.jsonl"
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        writer.mark_bad("a", "videos/a.mp4", "truncated")
        writer.mark_bad("ü", "videos/ü.mp4", "empty")
        writer.mark_bad("a", "videos/a.mp4", "still truncated")
        assert len(file.read_text().splitlines()) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"video_id": "a", "path": "videos/a.mp4", "reason": "still truncated"},
        {"video_id": "ü", "path": "videos/ü.mp4", "reason": "empty"},
    ]
    with file.open("a") as stream:
        stream.write('{"video_id": "torn')  # the machine lost power here
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        assert "a" not in writer.done
        writer.add("a", tokens_of("a", 1))
        writer.mark_bad("b", "b.mp4", "missing")
    assert list(read_bad_videos(file)) == ["ü", "b"]
    with TokenStoreWriter(tmp_path / "s", META) as writer:
        writer.add("ü", tokens_of("ü", 1))
        writer.add("b", tokens_of("b", 1))
    assert not file.exists()


def _write_until_killed(folder, connection):
    with TokenStoreWriter(folder, META) as writer:
        for number in range(len(writer.done), 10000):
            writer.add(str(number), tokens_of(str(number), number % 7 + 1))
            connection.send(number)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_writer_killed_at_any_commit(tmp_path):
    """Every video that was reported as added is there after SIGKILL, and the rest can follow."""
    context, num_seen = multiprocessing.get_context("fork"), 0
    for wanted in (1, 2, 20, 21, 55, 60):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_write_until_killed, args=(tmp_path / "s", sender))
        child.start()
        while num_seen < wanted:
            num_seen = receiver.recv() + 1
        child.kill()
        child.join()
        receiver.close()
        sender.close()
        store = TokenStore(tmp_path / "s")
        assert len(store) >= num_seen
        num_seen = len(store)
        assert_holds(store, [str(number) for number in range(num_seen)])
