"""The user's own dump and load: what they are not led to by a file in the directory."""
from __future__ import annotations

import gzip
import json
import os

import pytest

from chest.serialize import Codec


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed on this system")
def test_links_are_not_followed_and_pipes_do_not_hang(tmp_path):
    made, target = Codec(json.dump, json.load), tmp_path / "target"
    target.write_text("1")
    os.symlink(target, tmp_path / "link")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "dangling"):
        with pytest.raises(OSError):
            made.load_from(str(tmp_path / name))
        for settings in ({}, {"open": gzip.open}):
            with pytest.raises(FileExistsError):
                Codec(json.dump, json.load, **settings).dump_to(2, str(tmp_path / name))
    assert target.read_text() == "1" and not (tmp_path / "nowhere").exists()


def test_a_bytearray_that_changes_while_it_is_written_is_no_damaged_file():
    value, written = bytearray(1 << 20), []

    def write(pieces):
        value[7] = 7  # as another thread does, behind the checksum
        written.extend(map(bytes, pieces))

    encoded = Codec().encode({"x": value}, write)
    found = Codec().decode_file(b"".join([*written, *encoded.pieces, encoded.note()]))[0]["x"]
    assert found in (value, bytearray(1 << 20))
