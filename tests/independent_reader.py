"""Reads a chest by what docs/format.rst says, with nothing of chest: the proof that the page is enough."""
import os
import pickle
import struct
from itertools import accumulate
from zlib import crc32

END_OF_LIST = b"\xc5\xe7keys\xb9\x93"
TRAILER = b"\xd3\xa6end\x95\xb3\xcb"


class Damaged(Exception):
    """A checksum differs, or something is not where it should be."""


def need(right, what):
    if not right:
        raise Damaged(what)


# The index


def read_index(path):
    """The ref of each key, in order."""
    with open(os.path.join(path, ".keys"), "rb") as file:
        data = file.read()
    need(data[:3] == b"\x80\x05C", "this is no list of chest's")
    need(data[4 : 4 + data[3]].split()[:2] == [b"chest-keys", b"2"], "this is another format")
    end = end_of_list(data)
    found = pickle.loads(data[:end])
    refs = dict(zip(found[0], accumulate(found[1])) if isinstance(found, tuple) else found)
    at = end + 24
    while at < len(data):
        body, at = commit(data, at)
        for key, ref in pickle.loads(body) if body else ():
            if ref is None:
                refs.pop(key, None)
            else:
                refs[key] = ref
    return refs


def end_of_list(data):
    end = data.find(END_OF_LIST)
    while end >= 0:
        fields = END_OF_LIST + struct.pack("<QI", end, crc32(data[:end]))
        if data[end : end + 24] == fields + struct.pack("<I", crc32(fields)):
            return end
        end = data.find(END_OF_LIST, end + 1)
    raise Damaged("the list has no footer")


def commit(data, at):
    """The body of the commit at this offset, and where it ends; no body if it is torn."""
    head = data[at : at + 20]
    if len(head) == 20 and head[:4] == b"+chs" and head[16:] == struct.pack("<I", crc32(head[:16])):
        length, checksum = struct.unpack("<QI", head[4:16])
        body, behind = data[at + 20 : at + 20 + length], at + 20 + length
        if data[behind : behind + 8] == TRAILER and crc32(body) == checksum:
            return body, behind + 8
        found, written = data[behind : behind + 8], TRAILER
    else:
        behind, found, written = at, head[:4], b"+chs"
    need(all(byte in (0, right) for byte, right in zip(found, written)), "a commit is damaged")
    need(TRAILER not in data[behind:], "a damaged commit is followed by another")
    return None, len(data)


# Values


def read_bytes(path, ref):
    """The bytes of a record or a loose file, all checksums verified, without the note."""
    if isinstance(ref, int):
        pack, offset, length, checksum = ref >> 104, ref >> 64 & 2**40 - 1, ref >> 32 & 2**32 - 1, ref & 2**32 - 1
        with open(os.path.join(path, ".packs", f"{pack:010x}"), "rb") as file:
            file.seek(offset)
            data = file.read(length)
        need(len(data) == length and crc32(data) == checksum, "the record is damaged")
        return data
    need(all(part and part[0] != "." for part in ref.split("/")) and "\0" not in ref, "the name leads astray")
    with open(os.path.join(path, ref), "rb") as file:
        data = file.read()
    return data[: read_note(data)[0]]


def read_value(path, ref):
    """A value written with the default settings."""
    return pickle.loads(read_bytes(path, ref))


def read_note(data):
    """Where the pickle of a loose file ends, and its arrays: (begin, size) each."""
    if data[-32:-24] != b"\xffchest2\n":
        need(not data.startswith(b"\x80\x05C\x05chest0"), "the file is cut off")
        return len(data), []  # of another program, or of chest 0.2.3
    stop, count, checksum, _, checksum_of_note = struct.unpack("<QIIII", data[-24:])
    need(stop + 24 * count + 32 == len(data), "the file is not as long as it was")
    need(crc32(data[stop:-4]) == checksum_of_note, "the note is damaged")
    crc = at = 0
    arrays = []
    for begin, size, gap, flags, array_checksum in struct.iter_unpack("<QQHHI", data[stop:-32]):
        need(at < begin - gap and begin % 64 == 0, "an array is not where it should be")
        crc, at = crc32(data[at:begin], crc), begin + size
        need(not flags & 2 or crc32(data[begin:at]) == array_checksum, "an array is damaged")
        arrays.append((begin, size))
    need(crc32(data[at:stop], crc) == checksum, "the pickle is damaged")
    return stop, arrays
