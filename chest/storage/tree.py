"""Names below a directory, none of which leads out of it: no folder on the way that is a symbolic link is followed."""
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from chest.storage import system

__all__ = ["Tree"]


class Tree:
    """The files below ``root``, by relative names with "/" between their parts."""

    def __init__(self, root: str):
        self.root = root
        self.prefix = os.path.join(root, "")

    def make(self, durable: bool) -> None:
        """Make the root, and the folders above it, where they are not there; ``durable``: so that they stay."""
        root = above = os.path.abspath(self.root)
        new = []
        while not os.path.isdir(above) and os.path.dirname(above) != above:
            new.append(above)
            above = os.path.dirname(above)
        while True:
            try:
                os.makedirs(root, exist_ok=True)
                break
            except FileExistsError:  # or somebody dropped it just now
                if os.path.lexists(root) and not os.path.isdir(root):
                    raise NotADirectoryError(errno.ENOTDIR, "a chest is a directory, and this is a file; choose "
                                             "another path", self.root) from None
        for folder in (new[::-1] or [root]) if durable else ():
            try:
                system.sync_directory(os.path.dirname(folder))
            except PermissionError:  # of a folder that others made, and that we may not read
                if new:
                    raise

    def path(self, name: str) -> str:
        """The full path of a name, for people and for names without a "/"."""
        return self.prefix + (name if os.sep == "/" else name.replace("/", os.sep))

    @contextmanager
    def entry(self, name: str, make: bool = False) -> Iterator[tuple[str, int | None]]:
        """A path of a name and a ``dir_fd`` for it that are safe to use; ``make`` its folders where they are not there.

        `OSError` for a name that leads out of the root.  Errors within get the full path.  Cost: two system calls a
        folder, three where it may have to be made; none for a name without a "/".
        """
        *folders, last = name.split("/")
        if not {"", ".", ".."}.isdisjoint((*folders, last)) or (os.sep != "/" and ("\\" in name or ":" in name)):
            raise OSError(errno.EINVAL, "this is no name of a file of a chest", self.path(name))
        path, fd = self.root, None
        with system.Opened() as opened:
            try:
                if folders and system.WALKS:
                    system.open_into(opened, path, system.ROOT)
                    fd = opened[0]
                for folder in folders:
                    path = os.path.join(path, folder) if fd is None else folder
                    if make:
                        with suppress(FileExistsError):  # or it is a link, which is not followed
                            os.mkdir(path, dir_fd=fd)
                    if fd is not None:
                        system.open_into(opened, path, system.FOLDER, fd)
                        os.close(opened.pop(0))
                        fd = opened[0]
                    elif not stat.S_ISDIR(os.lstat(path).st_mode):
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                yield (os.path.join(path, last) if fd is None else last), fd
            except BaseException as error:
                if isinstance(error, OSError) and isinstance(error.filename, str):
                    error.filename = self.path(name)
                if make:
                    self.prune(name)
                raise

    def open(self, name: str, flags: int, opened: list[int], make: bool = False) -> os.stat_result:
        """Open a regular file; its descriptor is put into ``opened``, so that no Ctrl-C loses it.

        `OSError` for links, named pipes and devices.  Cost: an ``open`` and an ``fstat`` where the name has no "/".
        """
        for _ in range(100):
            try:
                if "/" not in name and os.sep == "/":
                    return system.open_regular(self.prefix + name, flags, opened)
                with self.entry(name, make) as (path, folder):
                    return system.open_regular(path, flags, opened, folder)
            except FileNotFoundError:  # another process removed the folder, empty just then, or a handler raised it
                if opened or not (make and "/" in name and os.path.isdir(self.root)):
                    raise
        raise FileNotFoundError(errno.ENOENT, "its folder is removed as often as it is made", self.path(name))

    def status(self, name: str) -> os.stat_result:
        """What the system says of a file, or of the link that stands there."""
        with self.entry(name) as (path, folder):
            return os.stat(path, dir_fd=folder, follow_symlinks=False)

    def size(self, name: str) -> int:
        """Bytes of a file, 0 if it is gone."""
        with system.tolerated():
            return self.status(name).st_size
        return 0

    def unlink(self, name: str, inode: int | None = None) -> None:
        """Remove a file, if it is there and has this ``inode``, and the folders that are empty then."""
        with suppress(FileNotFoundError, NotADirectoryError), self.entry(name) as (path, folder):
            if inode is not None:
                status = os.stat(path, dir_fd=folder, follow_symlinks=False)
                if status.st_ino != inode or not stat.S_ISREG(status.st_mode):
                    return
            os.unlink(path, dir_fd=folder)
        self.prune(name)

    def discard(self, name: str, inode: int | None = None) -> bool:
        """`unlink` a file that no index names, and say whether the system let it go; that it does not is a warning."""
        with system.tolerated("warning", "%s, which no index names, stays: %s", self.path(name)):
            self.unlink(name, inode)
            return True
        return False

    def prune(self, name: str) -> None:
        """Remove the folders of a name as far as they are empty."""
        with system.tolerated():
            while "/" in name:
                name = name.rpartition("/")[0]
                with self.entry(name) as (path, folder):
                    os.rmdir(path, dir_fd=folder)

    def listed(self, folder: str) -> list[str]:
        """The names in a folder; none if it is not there, or is a link."""
        with system.tolerated(), self.entry(folder + "/x") as (path, fd):
            return os.listdir(os.path.dirname(path) if fd is None else fd)
        return []

    def sync_folders(self, names: Iterable[str]) -> None:
        """Make names survive a loss of power: sync each of their folders once, the root too, whoever made them."""
        folders = {""}
        for name in names:
            while "/" in name:
                name = name.rpartition("/")[0]
                folders.add(name)
        for folder in sorted(folders, reverse=True):
            with self.entry(f"{folder}/x".lstrip("/")) as (_, fd):
                system.sync_directory(self.path(folder) if fd is None else fd)
