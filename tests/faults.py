"""Faults at system calls: the n-th call that chest makes fails, as a full disk, a bad one, or a signal would have it."""
from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager

import chest

HERE = os.path.dirname(os.path.abspath(chest.__file__))
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EACCES, errno.ESTALE, errno.EMFILE)
CALLS = ("open", "write", "writev", "pread", "preadv", "read", "fstat", "stat", "lstat", "unlink", "rmdir", "mkdir",
         "makedirs", "replace", "fsync", "ftruncate", "posix_fallocate", "utime", "link", "listdir", "scandir", "lseek")
SHORT = "short"  # instead of an error number: a write that takes only a part of what it is given


class Faults:
    """``with faults(n, error):`` the ``n``-th of chest's own system calls fails; ``seen`` counts them, ``what`` names it.

    An ``error`` that can be called is, at that moment: what it returns is raised, if it is an exception.
    """

    def __init__(self):
        self.n = self.seen = 0
        self.error = None
        self.what = ""

    def strike(self, name):
        if not self.n or not sys._getframe(2).f_code.co_filename.startswith(HERE):
            return None
        self.seen += 1
        if self.seen != self.n:
            return None
        self.what = name
        return self.error

    @contextmanager
    def __call__(self, n, error):
        self.n, self.error, self.seen, self.what = n, error, 0, ""
        try:
            yield self
        finally:
            self.n = 0

    def wrap(self, name, real):
        def call(*args, **more):
            error = self.strike(name)
            if error is None:
                return real(*args, **more)
            if callable(error):  # an exception to be raised, or something to be done at this moment
                done = error()
                if isinstance(done, BaseException):
                    raise done
                return real(*args, **more)
            if error == SHORT:
                return short(name, real, args) if name.startswith("write") else real(*args, **more)
            path = args[0] if args and isinstance(args[0], str) else None
            raise OSError(error, os.strerror(error), path)

        return call


def short(name, real, args):
    """A write of half of the bytes; other calls are left alone."""
    if name == "write":
        return real(args[0], bytes(args[1])[: max(len(args[1]) // 2, 1)])
    if name == "writev":
        data = b"".join(map(bytes, args[1]))
        return real(args[0], [data[: max(len(data) // 2, 1)]])
    raise AssertionError(name)


def put_between(patch, name, real, call):
    """Have ``call`` called for the ``real`` function of this name in `os`, however chest holds that."""
    patch.setattr(os, name, call)
    for support in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
        if real in support:
            support.add(call)
    for module in [module for key, module in list(sys.modules.items()) if key.startswith("chest.")]:
        for held in [held for held, value in vars(module).items() if value is real]:  # bound to a name of its own at import
            patch.setattr(module, held, call)


def install(monkeypatch):
    """Put the faults between chest and the system."""
    faults = Faults()
    for name in CALLS:
        if hasattr(os, name):
            real = getattr(os, name)
            put_between(monkeypatch, name, real, faults.wrap(name, real))
    return faults
