"""Handles on one ``.keys``, for the tests of this floor."""
import os
from pathlib import Path

from chest.index import Index, Names
from chest.serialize import Codec
from chest.storage.keysfile import KeysFile


def keys_file(directory, codec=None):
    return KeysFile(str(directory), codec or Codec())


def another(keys, codec=None):
    """What another process has of the same file."""
    return keys_file(os.path.dirname(keys.path), codec)


def index_on(directory, **settings):
    return Index(keys_file(directory, **settings), Names())


def content(keys):
    return Path(keys.path).read_bytes()


def put(keys, data):
    """Put other bytes into place, in a new file as every writer does."""
    Path(keys.path + ".new").write_bytes(data)
    os.replace(keys.path + ".new", keys.path)


def committed(keys):
    return dict(another(keys).read()[1])


def commit(index, plain=False, moved=None):
    """As a chest commits: what others did first."""
    with index.keys.lock:
        index.refresh()
        return index.commit(plain, moved)


def on_disk(directory):
    """What a new handle finds."""
    index = index_on(directory)
    index.refresh()
    return dict(index.refs)
