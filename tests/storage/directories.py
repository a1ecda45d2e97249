"""What the tests of a local directory share: handles, children, faults."""
from __future__ import annotations

import pytest

from chest.errors import DamagedError
from chest.index.filenames import Names
from chest.serialize.codec import Codec
from chest.storage.directory import Directory


class Interrupts:
    """Ctrl-C comes as this value is written."""

    def __reduce__(self):
        raise KeyboardInterrupt


def directory(path, durable=False, **codec):
    """A handle on a directory that is there."""
    handle = Directory(str(path), Codec(durable=durable, **codec), Names())
    handle.make()
    return handle


def saved(handle, small=0, **items):
    """Write values; returns their refs."""
    done = handle.write(list(items.items()), small)
    for one in done:
        if one.error is not None:
            raise one.error
    return [one.ref for one in done]


def values(handle, refs):
    return [handle.load(ref).value for ref in refs]


def commit(handle, refs=()):
    """What a chest tells its storage as a plain commit that names ``refs`` is done."""
    handle.committed(plain=True)
    handle.reclaim(list(refs))


def damaged(handle, refs):
    """What can be loaded, and "damaged" for what cannot, as one by one so all together."""
    many = ["damaged" if isinstance(one, DamagedError) else one.value for one in handle.load_many(refs)]
    for ref, value in zip(refs, many):
        if value != "damaged":
            assert handle.load(ref).value == value
        else:
            with pytest.raises(DamagedError):
                handle.load(ref)
            assert not handle.same(ref, value)
    return many
