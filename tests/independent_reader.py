"""Reads a chest by what docs/format.rst says, with nothing of chest: the proof that the page is enough."""
import io
import os
import pickle
import sqlite3
import struct
import zlib


def read_index(path):
    """The name of each key's file."""
    with open(os.path.join(path, ".keys"), "rb") as file:
        data = file.read()
    assert data[:3] == b"\x80\x05C"
    assert data[4 : 4 + data[3]].split()[:2] == [b"chest-keys", b"1"]
    stream = io.BytesIO(data)
    names = dict(pickle.load(stream))
    at = stream.tell()
    while len(data) - at >= 16:
        magic, length, checksum = struct.unpack_from("<4sQI", data, at)
        body = data[at + 16 : at + 16 + length]
        if magic != b"+chs" or len(body) < length or zlib.crc32(body) != checksum:
            break
        for key, name in pickle.loads(body):
            if name is None:
                names.pop(key, None)
            else:
                names[key] = name
        at += 16 + length
    return names


def read_value(path, name):
    """A value, from its file or its row."""
    if isinstance(name, str):
        with open(os.path.join(path, name), "rb") as file:
            return pickle.load(file)
    with sqlite3.connect(os.path.join(path, ".small")) as rows:
        assert rows.execute("PRAGMA user_version").fetchone() == (1,)
        (data,) = rows.execute("SELECT data FROM value WHERE id = ?", (name,)).fetchone()
    rows.close()
    return pickle.loads(data)


def array_places(data):
    """Where in a value file the bytes of its large arrays are: pairs of offset and size."""
    magic, stop, count, checksum = struct.unpack("<8sQII", data[-24:])
    if magic != b"\xffchest\r\n" or stop + 17 * count + 24 != len(data):
        return []
    assert zlib.crc32(data[stop:-24] + struct.pack("<Q", stop)) == checksum
    places = []
    for start, size, readonly in struct.iter_unpack("<QQ?", data[stop:-24]):
        end = start + (5 if readonly and size < 1 << 32 else 9)
        begin = -(-end // 64) * 64
        places.append((begin + 64 if begin - end in (1, 2) else begin, size))
    return places
