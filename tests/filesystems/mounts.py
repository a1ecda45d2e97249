"""File systems that are mounted for a test, and unmounted after it whatever happens.

Each function is a context manager that takes an empty folder and gives the place to work in.  `Unavailable` says why
there is none.
"""
from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess

LIMIT = 60  # seconds that a command may take


class Unavailable(Exception):
    """There is no such file system on this machine."""


def run(*command):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if shutil.which(command[0], path=path) is None:
        raise Unavailable(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL,
                              env=dict(os.environ, PATH=path))
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)} took more than {LIMIT} seconds") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(place, *command):
    """``place`` with what ``command`` mounts there."""
    os.mkdir(place)
    run(*command)
    try:
        if not os.path.ismount(place):
            raise Unavailable(f"{' '.join(command)} mounted nothing")
        yield place
    finally:
        for options in ([], ["-l"]):  # lazily, if something is left open there: then it goes with that
            if os.path.ismount(place):
                subprocess.run(["umount", *options, place], capture_output=True, timeout=LIMIT)


@contextlib.contextmanager
def image(folder, megabytes, *make):
    """A loop device with a new file system, made by the command ``make``; it goes with its last user."""
    path = os.path.join(folder, "image")
    with open(path, "xb") as file:
        file.truncate(megabytes << 20)
    run(*make, path)
    device = run("losetup", "--find", "--show", path)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], capture_output=True, timeout=LIMIT)


@contextlib.contextmanager
def tmpfs(folder):
    place = os.path.join(folder, "place")
    with mounted(place, "mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", place):
        yield place


@contextlib.contextmanager
def layers(folder):
    """A folder of a tmpfs, and what mounts another one over it, as containers have it over their image."""
    with tmpfs(folder) as under:
        lower, upper, work = (os.path.join(under, name) for name in ("lower", "upper", "work"))
        for path in (lower, upper, work):
            os.mkdir(path)
        place, options = os.path.join(under, "merged"), f"lowerdir={lower},upperdir={upper},workdir={work}"
        yield lower, lambda: mounted(place, "mount", "-t", "overlay", "-o", options, "overlay", place)


@contextlib.contextmanager
def overlayfs(folder):
    with layers(folder) as (_, merge), merge() as place:
        yield place


@contextlib.contextmanager
def formatted(folder, make, how):
    """A small image, made a file system by the command ``make``, and mounted by the command ``how``."""
    place = os.path.join(folder, "place")
    with image(folder, 64, *make) as device, mounted(place, *how, device, place):
        yield place


def by(make, *how):
    return functools.partial(formatted, make=make, how=how)


ALL = {
    "ext4": by(["mkfs.ext4", "-q"], "mount", "-t", "ext4"), "tmpfs": tmpfs, "overlayfs": overlayfs,
    # By ntfs-3g, with names that differ in case alone taken as one, as Windows does.
    "ntfs, without case": by(["mkntfs", "-QFq"], "lowntfs-3g", "-o", "ignore_case,umask=022"),
    # No hard links, times to the second, other inode numbers when memory is short, names without case.
    "exFAT, by FUSE": by(["mkfs.exfat"], "mount.exfat-fuse", "-o", "umask=022"),
    "vfat": by(["mkfs.vfat"], "mount", "-t", "vfat", "-o", "umask=022"),
}
