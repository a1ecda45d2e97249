"""The system calls of chest that change files and names, noted as they are made, for `powerloss`."""
from __future__ import annotations

import errno
import io
import os
import pickle
from contextlib import contextmanager

from faults import put_between

CALLS = ("open", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "write", "writev",
         "ftruncate", "fsync", "fdatasync")
REAL = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}


class Recorder:
    """The calls that change what is below ``root``, in order, in terms of files and folders and not of paths."""

    def __init__(self, root):
        self.root = root
        self.ops = []
        self.ids = {self._inode(os.stat(root)): 0}  # of what there is: (device, inode) to a number that never comes again
        self.next = 1
        self.killed_at = None  # so many calls, and this process dies
        self.failing = ()  # the how manieth syncs from now on fail
        self.report = -1

    # Between chest and the system.

    @contextmanager
    def recording(self, monkeypatch):
        """Until the block ends, all calls are noted that chest makes by `os` and by `io.FileIO`."""
        with monkeypatch.context() as patch:
            for name, real in REAL.items():
                put_between(patch, name, real, self._wrapped(getattr(self, "_" + name), real))
            patch.setattr(io, "FileIO", self._file_io())
            patch.setattr("chest.storage.system._FULL_SYNC", None, raising=False)
            yield self

    def _wrapped(self, method, real):
        def call(*args, **more):
            return method(real, *args, **more)
        return call

    def _file_io(recorder):
        class File(io.FileIO):
            def __init__(self, path, mode):
                super().__init__(path, mode)
                recorder._made("create", path, None)

            def write(self, data):
                return recorder._written(self.fileno(), super().write, data, data)

        return File

    def note(self, *op):
        self.ops.append(op)
        if self.killed_at is not None and len(self.ops) >= self.killed_at:
            with open(self.report, "wb") as pipe:
                pickle.dump((self.ops, self.ids, self.next), pipe)
            os._exit(0)

    def killed(self, calls, action):
        """``action()`` in a process that is killed after so many ``calls``; returns whether it was."""
        report, self.report = os.pipe()
        pid = os.fork()
        if not pid:
            self.killed_at = len(self.ops) + calls
            action()
            self.killed_at = 0
            self.note("through")
        os.close(self.report)
        with open(report, "rb") as pipe:
            self.ops, self.ids, self.next = pickle.load(pipe)
        os.waitpid(pid, 0)
        if self.ops[-1] == ("through",):
            self.ops.pop()
            return False
        return True

    @staticmethod
    def _inode(status):
        return status.st_dev, status.st_ino

    def _place(self, path, folder=None):
        """The folder's number, and the name in it; `None` if that is not below the root."""
        above, name = os.path.split(path)
        status = os.stat(above or (os.curdir if folder is None else folder))
        number = self.ids.get(self._inode(status))
        return None if number is None else (number, name)

    def _of(self, fd):
        return self.ids.get(self._inode(os.fstat(fd)))

    def _made(self, what, path, folder):
        place = self._place(path, folder)
        if place is not None:
            self.ids[self._inode(os.stat(path, dir_fd=folder, follow_symlinks=False))] = self.next
            self.next += 1
            self.note(what, *place, self.next - 1)

    def _gone(self, status):
        if status.st_nlink < 2 or os.path.stat.S_ISDIR(status.st_mode):
            self.ids.pop(self._inode(status), None)

    def _open(self, real, path, flags, mode=0o777, *, dir_fd=None):
        new = flags & os.O_CREAT and not self._is_there(path, dir_fd)
        fd = real(path, flags, mode, dir_fd=dir_fd)
        assert not flags & os.O_TRUNC or self._of(fd) is None
        if new:
            self._made("create", path, dir_fd)
        return fd

    def _is_there(self, path, folder):
        try:
            return bool(os.stat(path, dir_fd=folder, follow_symlinks=False))
        except OSError:
            return False

    def _mkdir(self, real, path, mode=0o777, *, dir_fd=None):
        real(path, mode, dir_fd=dir_fd)
        self._made("mkdir", path, dir_fd)

    def _unlink(self, real, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False) if place else None
        real(path, dir_fd=dir_fd)
        if place:
            self._gone(status)
            self.note("unlink", *place)

    _remove = _rmdir = _unlink

    def _rename(self, real, source, target, **more):
        assert not more
        old, new = self._place(source), self._place(target)
        over = os.stat(target) if self._is_there(target, None) else None
        real(source, target)
        if old or new:
            assert old[0] == new[0], "within one folder only"
            if over:
                self._gone(over)
            self.note("rename", *old, new[1])

    _replace = _rename

    def _link(self, real, source, target, *, src_dir_fd=None, dst_dir_fd=None, follow_symlinks=True):
        more = {} if src_dir_fd is None else dict(src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        real(source, target, follow_symlinks=follow_symlinks, **more)
        place = self._place(target, dst_dir_fd)
        if place:
            status = os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
            self.note("link", *place, self.ids[self._inode(status)])

    def _written(self, fd, real, data, *args):
        number = self._of(fd)
        import fcntl

        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        before = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
        done = real(*args)
        if number is not None and done:
            self.note("write", number, before, bytes(data)[:done])
        return done

    def _write(self, real, fd, data):
        return self._written(fd, real, data, fd, data)

    def _writev(self, real, fd, pieces):
        return self._written(fd, real, b"".join(map(bytes, pieces)), fd, pieces)

    def _ftruncate(self, real, fd, size):
        real(fd, size)
        if self._of(fd) is not None:
            self.note("truncate", self._of(fd), size)

    def _fsync(self, real, fd):
        number = self._of(fd)
        if number is None:
            return
        now = 1 in self.failing
        self.failing = [n - 1 for n in self.failing if n > 1]
        if now:
            self.note("failed", number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.note("sync", number)

    _fdatasync = _fsync
