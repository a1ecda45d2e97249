"""The exceptions of chest.  A missing key or file is a ``KeyError``, what the system refuses an ``OSError``."""
from __future__ import annotations

import errno
from types import FrameType
from typing import Any

__all__ = ["ChestError", "DamagedError", "DumpError", "GoneError", "LoadError", "explain_dump", "explain_load",
           "explain_os", "of_the_process", "printable", "raise_of_a_signal", "raise_of_a_value", "raised_by_signal",
           "refused", "shown"]


class ChestError(Exception):
    """Something that only a chest can report; the classes below say what."""


class DumpError(ChestError):
    """A key or a value cannot be serialised.  It stays in memory, and nothing that was saved before is touched."""


class LoadError(ChestError):
    """A value, or the index ``.keys``, cannot be read back.  Nothing is changed on disk."""


class DamagedError(LoadError):
    """The bytes on disk are proven not to be those that were written: a checksum differs, or the file is cut off."""


class GoneError(KeyError):
    """The file of a key's value is gone, which `Chest.get` takes as if there were no key."""


def raised_by_signal(error: BaseException) -> bool:
    """Did a handler of a signal raise this error, such as a limit of time?  Then it is no fault of any value.

    Told by the traceback: one of its functions was given the frame below it, as a handler is.  Cost: O(frames).
    """
    trace = error.__traceback__
    while trace is not None and not _is_of_a_handler(trace.tb_frame):
        trace = trace.tb_next
    return trace is not None


def _is_of_a_handler(frame: FrameType) -> bool:
    """Was this function given the frame that it interrupted, as a handler of a signal is, and hardly anything else?"""
    below = frame.f_back
    if below is None or str(frame.f_globals.get("__name__")).startswith("chest."):
        return False  # the locals of chest's own frames are left alone, as a look at them refers to values
    given = [*frame.f_locals.values()]
    return any(one is below for part in given for one in (part if type(part) is tuple else (part,)))


def of_the_process(error: BaseException) -> bool:
    """Is it no fault of what was tried: is memory out, or did the handler of a signal raise it?"""
    return isinstance(error, MemoryError) or raised_by_signal(error)


def raise_of_a_signal(error: BaseException) -> None:
    """Raise ``error`` again if a handler of a signal raised it."""
    if raised_by_signal(error):
        raise error


def refused(error: object) -> bool:
    """Is this what the system refuses?  Its errors have numbers; those of a value's own code, or of ``dump``, none."""
    return isinstance(error, OSError) and error.errno is not None


def raise_of_a_value(error: OSError) -> None:
    """Raise a `DumpError` for what a value's own code raised, as where no server answers: what the system refuses
    stops a whole commit."""
    if refused(error) and not raised_by_signal(error):
        raise DumpError(f"{type(error).__name__}: {error}") from error


def explain_os(error: Any, what: str, path: str, kept: str = "") -> OSError:
    """``error`` of the system with what could not be done, and where; of the same class and number."""
    told = "it is a link, which is not followed" if error.errno == errno.ELOOP else error.strerror or error
    return OSError(error.errno or errno.EIO, f"cannot {what}: {told}{kept}", path)


def explain_dump(error: Exception, key: object, path: str, more: str = "") -> Exception:
    """Why the value of ``key`` could not be saved, and what to do about it."""
    kept = "; it stays in memory, and what was saved before is untouched"
    if refused(error):
        return explain_os(error, f"save the value of {shown(key)}{more}", path, kept)
    told = error if isinstance(error, DumpError) else f"{type(error).__name__}: {error}"
    return DumpError(f"cannot save the value of {shown(key)}{more} in {path}: {told}{kept}. Set a value that can be "
                     f"dumped, delete the key, or open the chest with another dump=")


def explain_load(error: Exception, key: object, path: str) -> Exception:
    """Why the value of ``key`` could not be loaded, and what to do about it."""
    if refused(error) and not isinstance(error, FileNotFoundError):  # that of a file which the value's own code opens
        return explain_os(error, f"load the value of {shown(key)}", path)
    path = printable(path)  # as the index has it, which may be a stranger's
    if isinstance(error, DamagedError):
        return DamagedError(f"cannot load the value of {shown(key)}: {path} is damaged ({error}); put it back from a "
                            f"copy, or set or delete the key")
    told = error if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
    return LoadError(f"cannot load the value of {shown(key)} from {path}: {told}. Nothing proves it lost: open the "
                     f"chest with the load=, the libraries and the classes that wrote it")


def printable(text: str, keep: str = "", most: int = 0) -> str:
    r"""``text`` with what is no visible character escaped, but for those in ``keep``; cut after ``most`` characters.

    A stranger can put escape sequences, and marks that turn the direction of writing, into a key or a file's name.
    """
    if most and len(text) > most:
        text = text[:most] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def shown(key: object, most: int = 200) -> str:
    """The text of ``key`` for people, whatever its ``repr`` does: printable, and cut after ``most`` characters.

    >>> shown('x'), shown([1, 2, 3], most=5)
    ("'x'", '[1, 2...')
    """
    try:
        text = repr(key)
    except Exception:  # code of the key's class, or an integer of more digits than Python turns into decimal ones
        text = hex(key) if isinstance(key, int) else f"<{type(key).__name__}>"
    return printable(text, most=most)
