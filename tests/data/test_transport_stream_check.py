import av
import numpy as np
import pytest
from made_videos import MadeVideo

from vimpac_ext.data import transport_stream_check
from vimpac_ext.data.decode import VideoDecodeError, VideoReader

PACKET = 188


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A stream with sound; its bytes, and the packet identifier of its video."""
    folder = tmp_path_factory.mktemp("transport")
    path = MadeVideo("sound.ts", num_b_frames=3, sound_seconds=4).write(folder)
    with av.open(str(path)) as container:
        return path.read_bytes(), container.streams.video[0].id


def packets_of(content: bytes, stream_id: int) -> list[int]:
    """Positions of a stream's packets, one after the other."""
    return [
        position
        for position in range(0, len(content), PACKET)
        if int.from_bytes(content[position + 1 : position + 3], "big") & 0x1FFF == stream_id
    ]


def first_damage(tmp_path, content, stream_id):
    path = tmp_path / "changed.ts"
    path.write_bytes(content)
    return transport_stream_check.first_damage(path, stream_id)


def test_a_whole_stream_has_no_damage(whole, tmp_path, monkeypatch):
    content, stream_id = whole
    assert first_damage(tmp_path, content, stream_id) is None
    monkeypatch.setattr(transport_stream_check, "_PACKETS_AT_ONCE", 7)
    assert first_damage(tmp_path, content, stream_id) is None


def test_noise_anywhere_is_found_where_it_is(whole, tmp_path):
    content, _ = whole
    random = np.random.default_rng(0)
    for begin in random.integers(0, len(content) - 2000, 100).tolist():
        noise = random.integers(0, 256, 1200, np.uint8).tobytes()
        path = tmp_path / "noise.ts"
        path.write_bytes(content[:begin] + noise + content[begin + len(noise) :])
        with pytest.raises(
            VideoDecodeError, match=r"noise\.ts.*(damaged|cut off|Invalid|no video)"
        ):
            VideoReader(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("packets_at_once", [8192, 5])
def test_a_lost_packet_of_the_video_is_found(share, packets_at_once, whole, tmp_path, monkeypatch):
    content, stream_id = whole
    monkeypatch.setattr(transport_stream_check, "_PACKETS_AT_ONCE", packets_at_once)
    positions = packets_of(content, stream_id)
    rank = int(share * len(positions))
    lost, following = positions[rank : rank + 2]
    found = first_damage(tmp_path, content[:lost] + content[lost + PACKET :], stream_id)
    assert found == following - PACKET


def test_lost_sound_does_not_matter(whole, tmp_path):
    content, stream_id = whole
    sound = packets_of(content, stream_id + 1)[5]
    assert first_damage(tmp_path, content[:sound] + content[sound + PACKET :], stream_id) is None


def test_a_gap_that_the_stream_announces_is_none(whole, tmp_path):
    content, stream_id = whole
    positions = packets_of(content, stream_id)
    # A packet with an adaptation field that is not empty has a place for the sign.
    with_field = (r for r, p in enumerate(positions) if content[p + 3] & 0x20 and content[p + 4])
    rank = next(r for r in with_field if r > 20)
    lost, following = positions[rank - 1], positions[rank]
    signed = bytearray(content)
    signed[following + 5] |= 0x80
    gap = bytes(signed[:lost] + signed[lost + PACKET :])
    assert first_damage(tmp_path, gap, stream_id) is None
    signed[following + 1] |= 0x80  # the receiver's mark of a damaged packet
    assert first_damage(tmp_path, bytes(signed), stream_id) == following


def test_a_packet_that_is_cut_is_found(whole, tmp_path):
    content, stream_id = whole
    cut = content[: 50 * PACKET + 100]
    assert first_damage(tmp_path, cut, stream_id) == 50 * PACKET
    assert first_damage(tmp_path, cut[: 50 * PACKET], stream_id) is None


@pytest.mark.parametrize(("before", "after"), [(4, 0), (0, 16)])
def test_packets_of_other_sizes(before, after, whole, tmp_path):
    content, stream_id = whole
    longer = b"".join(
        bytes(before) + content[position : position + PACKET] + bytes(after)
        for position in range(0, len(content), PACKET)
    )
    assert first_damage(tmp_path, longer, stream_id) is None
    path = tmp_path / "changed.ts"
    assert VideoReader(path).num_frames_at(25) == 100
    size = PACKET + before + after
    lost, following = (p // PACKET * size for p in packets_of(content, stream_id)[30:32])
    gap = longer[:lost] + longer[lost + size :]
    assert first_damage(tmp_path, gap, stream_id) == following - size
