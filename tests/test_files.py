"""Atomic writing and short hashes."""

import os
import stat

import pytest

from vimpac_ext.files import atomic_write, sha256_of


def test_the_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as file:
        file.write("é")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é"
    with atomic_write(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def half_then_full_disk():
    yield "half"
    raise RuntimeError("disk")


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_write(path) as file:
        file.writelines(half_then_full_disk())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_other_users_can_read_it_as_the_umask_says(tmp_path):
    previous = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write("x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_other_modes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "a", "a"):
        pass


def test_file_names_that_are_not_utf8_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with atomic_write(tmp_path / "a") as file:
        file.write(name)
    assert (tmp_path / "a").read_bytes() == b"caf\xe9"


def test_hash_depends_on_every_part_and_where_it_ends(tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    base = sha256_of("a", "bc", tmp_path / "f")
    assert len(base) == 16
    assert base == sha256_of(b"a", b"bc", b"content")
    assert base != sha256_of("ab", "c", tmp_path / "f")
    assert sha256_of("a", length=40)[:16] == sha256_of("a")
    (tmp_path / "f").write_bytes(b"other")
    assert base != sha256_of("a", "bc", tmp_path / "f")
