"""Loss of power, in the manner of ALICE (Pillai et al., OSDI 2014): what may stand on the disk afterwards.

`Disk` replays system calls that a `recorder.Recorder` noted, up to a crash, and knows what no ``fsync`` has confirmed by
then; `Disk.state` chooses what may be left of that.

- *Data* of a file that was not synced may be there, lost, zeroed, torn at any byte, or any of these for each sector.
- *Names* in a folder that was not synced: a prefix of what was done, in all folders together or in each by itself, or
  any part of it, as nothing but an ``fsync`` of the folder forbids that.  A ``rename`` is one step.
- An ``fsync`` that failed confirms nothing, and what it was for is in doubt until it is written anew: a later one does not tell.
"""
from __future__ import annotations

import os
import zlib

SECTOR = 512


class _Content:
    """A file: what a sync confirmed, what was done since, and which bytes a failed one left in doubt."""

    def __init__(self):
        self.synced = b""
        self.pending = []
        self.doubts = []
        self.tried = 0  # so many of what is pending a failed sync was for

    def sync(self):
        for op in self.pending[self.tried :]:
            at, end = (op[2], float("inf")) if op[0] == "truncate" else (op[2], op[2] + len(op[3]))
            self.doubts = [part for begin, stop in self.doubts
                           for part in ((begin, min(stop, at)), (max(begin, end), stop)) if part[0] < part[1]]
        self.synced = self.newest()
        self.pending, self.tried = [], 0

    def fail(self):
        self.doubts += [(op[2], op[2] + len(op[3])) for op in self.pending[self.tried :] if op[0] == "write"]
        self.tried = len(self.pending)

    def versions(self):
        found = [self.synced]
        for op in self.pending:
            found.append(_after(found[-1], op))
        return found

    def newest(self):
        return self.versions()[-1]

    def doubted(self, data):
        """``data`` without the bytes in doubt."""
        for start, end in self.doubts:
            part = data[start:end]
            data = data[:start] + bytes(len(part)) + data[end:]
        return data

    # What may be there.

    def zeroed(self, rng):
        """The newest size, and none of the bytes."""
        size = len(self.newest())
        return self.synced[:size].ljust(size, b"\0")

    def torn(self, rng):
        """Some of what was done, and of the last a part."""
        if not self.pending:
            return self.synced
        at = rng.randrange(len(self.pending))
        before, op = self.versions()[at], self.pending[at]
        if op[0] == "truncate":
            return before
        size, edge = len(op[3]), rng.randrange(1, 9)
        cut = rng.choice([rng.randrange(size + 1), min(edge, size), max(size - edge, 0)])
        torn = _after(before, (*op[:3], op[3][:cut]))
        size = len(_after(before, op))
        return torn.ljust(size, b"\0") if rng.random() < 0.5 else torn

    def mixed(self, rng):
        """The size that it had at one time, and each sector as it was at any, or zeros."""
        versions = self.versions()
        size = len(rng.choice([*versions, versions[-1]]))
        sectors = []
        for start in range(0, size, SECTOR):
            end = min(start + SECTOR, size)
            part = rng.choice(versions)[start:end]
            sectors.append(part.ljust(end - start, b"\0"))
        return b"".join(sectors)

    def holed(self, rng):
        """The newest, but for some sectors in a row, which are as they were confirmed, or zeros."""
        data = self.newest()
        start = rng.randrange(len(data) // SECTOR + 1) * SECTOR
        end = min(start + SECTOR * rng.choice([1, 1, 4]), len(data))
        return data[:start] + self.synced[start:end].ljust(end - start, b"\0") + data[end:]


def _after(data, op):
    if op[0] == "truncate":
        return data[: op[2]].ljust(op[2], b"\0")
    _, _, start, new = op
    return data[:start].ljust(start, b"\0") + new + data[start + len(new) :]


class _Folder:
    def __init__(self):
        self.synced = {}
        self.pending = []  # calls, each with its place among all

    def entries(self, keep):
        """The names, with those of the calls that ``keep(place)`` lets through."""
        found = dict(self.synced)
        for at, op in self.pending:
            if not keep(at):
                continue
            if op[0] == "unlink":
                found.pop(op[2], None)
            elif op[0] == "rename":
                moved = op[4]
                found[op[3]] = moved
                if found.get(op[2]) == moved:
                    del found[op[2]]
            else:
                found[op[2]] = op[3]
        return found


class Disk:
    """What the calls up to now leave on a disk, and what of it is confirmed."""

    def __init__(self):
        self.files, self.folders, self.count = {}, {0: _Folder()}, 0

    def apply(self, op):
        self.count += 1
        if op[0] in ("write", "truncate"):
            self.files[op[1]].pending.append(op)
        elif op[0] == "sync" and op[1] in self.files:
            self.files[op[1]].sync()
        elif op[0] == "sync":
            folder = self.folders[op[1]]
            folder.synced, folder.pending = folder.entries(lambda at: True), []
        elif op[0] == "failed":
            if op[1] in self.files:
                self.files[op[1]].fail()
        else:
            folder = self.folders[op[1]]
            if op[0] == "create":
                self.files[op[3]] = _Content()
            elif op[0] == "mkdir":
                self.folders[op[3]] = _Folder()
            elif op[0] == "rename":
                op = (*op, folder.entries(lambda at: True)[op[2]])
            folder.pending.append((self.count, op))

    def tree(self, keep, data):
        """Relative paths with the bytes of files, `None` for folders; and the number of each file, as some are linked."""
        found, numbers, contents = {}, {}, {}

        def walk(number, above):
            entries = self.folders[number].entries(lambda at: keep(number, at))
            for name, inner in sorted(entries.items(), key=lambda entry: entry[1]):
                path = above + name
                if inner in self.folders:
                    found[path] = None
                    walk(inner, path + "/")
                    continue
                if inner not in contents:
                    contents[inner] = self.files[inner].doubted(data(inner, self.files[inner]))
                found[path], numbers[path] = contents[inner], inner

        walk(0, "")
        return found, numbers

    def state(self, rng):
        """A choice ``(keep, data)`` for `tree`: all or nothing, one step or file that is missing or there alone, or any."""
        steps = [0, *[at for folder in self.folders.values() for at, _ in folder.pending]]
        step, some, cuts, share = rng.choice(steps), _any(rng), {}, rng.choice([0.2, 0.5, 0.8])
        kept = {at for at in steps if rng.random() < share}
        one = rng.choice([None, *[number for number, file in self.files.items() if file.pending]])
        return rng.choice([
            rng.choice([(everything, newest), (nothing, confirmed), (everything, confirmed), (nothing, newest),
                        (everything, lambda number, file: file.zeroed(rng))]),
            (lambda number, at: at != step, newest), (lambda number, at: at == step, newest),
            (everything, lambda number, file: (some if number == one else newest)(number, file)),
            (everything, lambda number, file: (newest if number == one else some)(number, file)),
            (lambda number, at: at <= step, some), (lambda number, at: at in kept, some),
            (lambda number, at: at <= cuts.setdefault(number, rng.choice(steps)), some)])


everything, nothing = (lambda number, at: True), (lambda number, at: False)  # which names are kept
newest, confirmed = (lambda number, file: file.newest()), (lambda number, file: file.synced)  # and which bytes


def _any(rng):
    """One fate for all files, or one for each."""
    fates = [lambda file, rng: file.synced, lambda file, rng: file.newest(),
             _Content.zeroed, _Content.torn, _Content.mixed, _Content.holed]
    fate = rng.choice([*fates, None])
    return lambda number, file: (fate or rng.choice(fates))(file, rng)


def fingerprint(tree):
    """What tells one tree from another."""
    return tuple([(path, None if data is None else (len(data), zlib.crc32(data))) for path, data in tree.items()])


def make(tree, numbers, root):
    """Make the files and folders of a state below ``root``."""
    os.mkdir(root)
    first = {}
    for path, data in tree.items():
        full = os.path.join(root, path)
        if data is None:
            os.mkdir(full)
        elif numbers[path] in first:
            os.link(first[numbers[path]], full)
        else:
            first[numbers[path]] = full
            with open(full, "wb") as file:
                file.write(data)


def real_tree(root):
    """The files and folders that really are below ``root``, as `Disk.tree` has them."""
    found = {}
    for above, folders, files in os.walk(root):
        for name in folders:
            found[os.path.relpath(os.path.join(above, name), root)] = None
        for name in files:
            with open(os.path.join(above, name), "rb") as file:
                found[os.path.relpath(os.path.join(above, name), root)] = file.read()
    return found
