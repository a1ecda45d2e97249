"""Names below a directory, none of which leads out of it: no folder on the way that is a symbolic link is followed."""
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from chest.storage import system
from chest.storage.descriptors import descriptors

__all__ = ["Tree"]


class _Entry:
    """``with`` a path and a ``dir_fd`` for it that are safe to use; errors within get the full path.

    Cost: two system calls a folder; names without a "/" do not come here.
    """

    def __init__(self, root: str, name: str, make: bool):
        self._root, self._name, self._make = root, name, make
        self._fds: list[int] = []

    def __enter__(self) -> tuple[str, int | None]:
        *folders, last = self._name.split("/")
        try:
            if not system.WALKS:
                return self._checked(folders, last), None
            self._fds.append(os.open(self._root, system.FOLDER & ~getattr(os, "O_NOFOLLOW", 0)))
            for folder in folders:
                self._fds.append(self._into(folder))
                os.close(self._fds.pop(0))
            return last, self._fds[0]
        except BaseException as error:
            self.__exit__(None, error)
            raise

    def __exit__(self, kind: object, error: BaseException | None, *trace: object) -> None:
        while self._fds:
            os.close(self._fds.pop())
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = os.path.join(self._root, self._name)

    def __del__(self) -> None:
        self.__exit__(None, None)  # if Ctrl-C came just as it was to be called

    def _into(self, folder: str) -> int:
        above = self._fds[-1]
        for _ in range(100):
            try:
                return os.open(folder, system.FOLDER, dir_fd=above)
            except FileNotFoundError:
                if not self._make:
                    raise
            try:
                os.mkdir(folder, dir_fd=above)
            except FileExistsError:
                pass  # somebody was quicker; or it is a link to nowhere, which the next turn refuses
        raise FileNotFoundError(errno.ENOENT, "the folder is removed as often as it is made", self._root)

    def _checked(self, folders: list[str], last: str) -> str:
        path = self._root
        for folder in folders:
            path = os.path.join(path, folder)
            if self._make:
                try:
                    os.mkdir(path)
                except FileExistsError:
                    pass
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return os.path.join(path, last)


class Tree:
    """The files below ``root``, by relative names with "/" between their parts."""

    def __init__(self, root: str):
        self.root = root
        self.prefix = os.path.join(root, "")

    def make(self, durable: bool) -> None:
        """Make the root, and the folders above it, where they are not there; ``durable``: so that they stay."""
        root = os.path.abspath(self.root)
        new, above = [], root
        while not os.path.isdir(above) and os.path.dirname(above) != above:
            new.append(above)
            above = os.path.dirname(above)
        for _ in range(100):  # somebody may drop it meanwhile
            try:
                os.makedirs(root, exist_ok=True)
                break
            except FileExistsError:
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

    def entry(self, name: str, make: bool = False) -> _Entry:
        """For ``with``: ``path, dir_fd`` of a name; ``make`` its folders where they are not there."""
        return _Entry(self.root, name, make)

    def open(self, name: str, flags: int, opened: list[int], make: bool = False) -> os.stat_result:
        """Open a regular file; its descriptor is put into ``opened``, so that no Ctrl-C loses it.

        `OSError` for links, named pipes and devices.  Cost: an ``open`` and an ``fstat`` where the name has no "/".
        """
        before = len(opened)
        try:
            if "/" not in name:
                return system.open_regular(self.prefix + name, flags, opened)
            with self.entry(name, make) as (path, folder):
                return system.open_regular(path, flags, opened, folder)
        except OSError as error:
            if len(opened) > before or error.errno not in (errno.EMFILE, errno.ENFILE) or not descriptors.make_room():
                raise
        return self.open(name, flags, opened, make)

    def status(self, name: str) -> os.stat_result:
        """What the system says of a file, or of the link that stands there."""
        if "/" not in name:
            return os.lstat(self.prefix + name)
        with self.entry(name) as (path, folder):
            return os.stat(path, dir_fd=folder, follow_symlinks=False)

    def size(self, name: str) -> int:
        """Bytes of a file, 0 if it is gone."""
        try:
            return self.status(name).st_size
        except OSError as error:
            system.raise_of_a_signal(error)
            return 0

    def unlink(self, name: str, inode: int | None = None) -> bool:
        """Remove a file, if it has this ``inode``, and the folders that this leaves empty.  `False` if it is gone."""
        try:
            with self.entry(name) as (path, folder):
                if inode is not None:
                    status = os.stat(path, dir_fd=folder, follow_symlinks=False)
                    if status.st_ino != inode or not stat.S_ISREG(status.st_mode):
                        return False
                os.unlink(path, dir_fd=folder)
        except FileNotFoundError:
            return False
        self.prune(name)
        return True

    def prune(self, name: str) -> None:
        """Remove the folders of a name as far as they are empty."""
        while "/" in name:
            name = name.rpartition("/")[0]
            try:
                with self.entry(name) as (path, folder):
                    os.rmdir(path, dir_fd=folder)
            except OSError as error:
                system.raise_of_a_signal(error)
                return  # somebody keeps something in it, or was quicker

    def listed(self, folder: str) -> list[str]:
        """The names in a folder; none if it is not there, or is a link."""
        try:
            with self.entry(folder + "/x") as (path, fd):
                return os.listdir(os.path.dirname(path) if fd is None else fd)
        except OSError as error:
            system.raise_of_a_signal(error)
            return []

    def sync_folders(self, names: Iterable[str]) -> None:
        """Make names survive a loss of power: sync each of their folders once, the root too, whoever made them."""
        folders = {name.rpartition("/")[0] for name in names}
        for folder in list(folders):
            while folder:
                folder = folder.rpartition("/")[0]
                folders.add(folder)
        for folder in sorted(folders, reverse=True):
            with self.entry(folder + "/x" if folder else "x") as (path, fd):
                system.sync_directory(os.path.dirname(path) if fd is None else fd)
