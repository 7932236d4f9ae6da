"""The list of bad videos, when several processes write it."""

import multiprocessing

import pytest

from vimpac_ext.data.bad_videos import BadVideo, append_bad_video, note_bad_video, read_bad_videos


def note_many(file, first, queue):
    entries = [BadVideo(str(number), "p", "r") for number in range(first, 24)]
    queue.put(sum(note_bad_video(file, entry) for entry in entries))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_several_processes_note_every_video_once(tmp_path):
    file = tmp_path / "new folder" / "bad.jsonl"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=note_many, args=(file, i, queue)) for i in (0, 4, 0, 8)]
    for process in processes:
        process.start()
    assert sum(queue.get(timeout=60) for _ in processes) == 24
    for process in processes:
        process.join()
    assert len(file.read_text().splitlines()) == 24
    assert set(read_bad_videos(file)) == {str(number) for number in range(24)}


def test_a_line_that_a_crash_cut_off_does_not_spoil_the_next(tmp_path):
    file = tmp_path / "bad.jsonl"
    append_bad_video(file, BadVideo("a", "p", "r"))
    with file.open("a") as stream:
        stream.write('{"video_id": "b", "pa')
    assert not note_bad_video(file, BadVideo("a", "p", "other"))
    assert note_bad_video(file, BadVideo("b", "p", "r"))
    assert list(read_bad_videos(file)) == ["a", "b"]
    assert file.read_text().endswith('"r"}\n')
