"""Other systems, and file systems that can do less, emulated in this process: to be called before chest is imported.

As a script it emulates one, and then runs scenarios of `tests/filesystems` with it::

    python tests/emulations.py NAME FOLDER [SCENARIO...]
"""
from __future__ import annotations

import builtins
import contextlib
import errno
import mmap
import os
import shutil
import stat
import sys
import types

OPEN, FSYNC, CLOSE, UNLINK, REPLACE = os.open, os.fsync, os.close, os.unlink, os.replace


def refuse(number):
    def refused(*args, **more):
        raise OSError(number, os.strerror(number))

    return refused


def in_use(path):
    """Has this process the file open, or mapped?"""
    try:
        there = os.stat(path)
    except OSError:
        return False
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(fd)), there):
                return True
    with open("/proc/self/maps") as maps:
        return any(os.path.realpath(path) == line.split(maxsplit=5)[-1].strip() for line in maps)


# Refused by the file system.


def no_hard_links():
    os.link = refuse(errno.EPERM)


def no_call_for_links():
    del os.link


def no_utime():
    os.utime = refuse(errno.EPERM)


def no_flock():
    import fcntl

    fcntl.flock = refuse(errno.ENOTSUP)


def no_fsync_of_directories():
    os.fsync = lambda fd: refuse(errno.EINVAL)() if stat.S_ISDIR(os.fstat(fd).st_mode) else FSYNC(fd)


def _without(flag):
    def opens(path, flags, mode=0o777, *, dir_fd=None):
        return refuse(errno.EINVAL)() if flags & flag else OPEN(path, flags, mode, dir_fd=dir_fd)

    os.open = opens
    os.supports_dir_fd.add(opens)


def no_nofollow():
    _without(os.O_NOFOLLOW)


def no_directory_flag():
    _without(os.O_DIRECTORY)


def no_flags():
    del os.O_NOFOLLOW, os.O_DIRECTORY


def no_maps():
    class Refused(mmap.mmap):
        def __new__(cls, *args, **more):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    mmap.mmap = Refused


def short_names(limit=143):
    """No name of more than 143 bytes, as where names are encrypted."""
    def checked(function):
        def call(path, *args, **more):
            if not isinstance(path, int) and any(len(os.fsencode(part)) > limit for part in os.fspath(path).split("/")):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            return function(path, *args, **more)

        if function in os.supports_dir_fd:
            os.supports_dir_fd.add(call)
        if function in os.supports_fd:
            os.supports_fd.add(call)
        return call

    for name in ("open", "mkdir", "lstat", "stat", "unlink", "rmdir"):
        setattr(os, name, checked(getattr(os, name)))
    link = checked(lambda new, old, **more: LINK(old, new, **more))
    os.link = lambda old, new, **more: link(new, old, **more)
    os.supports_dir_fd.add(os.link)


def no_replacing_of_open_files():
    def replaces(source, target):
        if in_use(target) or in_use(source):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
        REPLACE(source, target)

    os.replace = os.rename = replaces


# Other systems.


def hide(hidden):
    """No file is there of which ``hidden`` says so, for the built-in ``open``."""
    opens = builtins.open

    def opens_others(file, *args, **more):
        if isinstance(file, str) and hidden(file):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
        return opens(file, *args, **more)

    builtins.open = opens_others


def macos():
    """``fsync`` stops at the disk's cache; no ``/proc`` tells of maps and mounts."""
    import fcntl

    real = fcntl.fcntl
    fcntl.F_FULLFSYNC = 51
    fcntl.fcntl = lambda fd, what, *more: FSYNC(fd) if what == 51 else real(fd, what, *more)
    os.fsync = lambda fd: FSYNC(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else refuse(errno.EIO)()
    sys.platform = "darwin"
    hide(lambda path: path.startswith("/proc/"))


def windows():
    """No fcntl, no fork, no pread; a file that is open, or mapped, can be neither removed nor replaced."""
    shutil._use_fd_functions = False
    import concurrent.futures.thread
    import multiprocessing
    import subprocess
    import tempfile

    del concurrent, multiprocessing, subprocess, tempfile  # imported while the system is what it is
    sys.platform = "win32"
    for name in ("pread", "preadv", "writev", "fork", "register_at_fork", "mkfifo", "sched_yield", "getuid", "O_NOFOLLOW",
                 "O_NONBLOCK", "O_DIRECTORY", "sync", "sysconf"):
        if hasattr(os, name):
            delattr(os, name)
    for name in ("supports_dir_fd", "supports_fd", "supports_follow_symlinks"):
        setattr(os, name, set())
    sys.modules["fcntl"] = None
    os.O_TEMPORARY, temporary, locked = 1 << 29, {}, {}

    def key(fd):
        status = os.fstat(fd)
        return status.st_dev, status.st_ino

    def locking(fd, how, size):
        assert size == 1 and os.lseek(fd, 0, os.SEEK_CUR) > 1 << 30, "a locked byte cannot be read by others"
        if how == 0:
            locked.pop(key(fd), None)
        elif locked.setdefault(key(fd), fd) != fd:
            raise PermissionError(13, "locked")

    def open_descriptor(path, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is not None:
            raise NotImplementedError("dir_fd is not there on this system")
        if os.path.isdir(path) and not flags & os.O_EXCL:
            raise PermissionError(13, "a directory cannot be opened", path)
        fd = OPEN(path, flags & ~os.O_TEMPORARY, mode)
        if flags & os.O_TEMPORARY:
            temporary[fd] = path
        return fd

    def close(fd):
        if locked.get(key(fd)) == fd:
            del locked[key(fd)]
        CLOSE(fd)
        path = temporary.pop(fd, None)
        if path is not None and path not in temporary.values():
            with contextlib.suppress(FileNotFoundError):
                UNLINK(path)

    def unlink(path, **more):
        if os.path.lexists(path) and in_use(path):
            raise PermissionError(13, "in use", path)
        UNLINK(path)

    def replace(source, target):
        if in_use(target) or in_use(source):
            raise PermissionError(13, "in use", target)
        REPLACE(source, target)

    os.open, os.close, os.unlink, os.remove, os.replace, os.rename = (
        open_descriptor, close, unlink, unlink, replace, replace)
    hide(lambda path: path == "/proc/self/mountinfo")
    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)


LINK = os.link
REFUSALS = [no_hard_links, no_call_for_links, no_utime, no_fsync_of_directories, no_flags, no_maps, short_names,
            no_replacing_of_open_files]
REFUSED_AT_OPENING = {no_flock: "cannot lock", no_nofollow: "O_NOFOLLOW", no_directory_flag: "O_DIRECTORY"}
SYSTEMS = [windows, macos]


def main(name, folder, *wanted):
    if not sys.flags.no_site:  # numpy is imported while the system is what it is
        with contextlib.suppress(ImportError):
            import numpy  # noqa: F401
    globals()[name]()
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:0] = [home, os.path.join(home, "tests")]
    from filesystems import scenarios

    for scenario, function in scenarios.SCENARIOS.items():
        if function in scenarios.NEEDS_PROCESSES or (wanted and scenario not in wanted):
            continue
        here = os.path.join(folder, scenario)
        os.mkdir(here)
        try:
            function(here)
        except Exception:
            import traceback

            print(f"{scenario}: {traceback.format_exc()}")
        else:
            print(f"{scenario}: right")


if __name__ == "__main__":
    main(*sys.argv[1:])
