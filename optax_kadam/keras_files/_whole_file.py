"""`whole_file`: a file is written as a whole or not at all, whatever stops the writing.

The bytes go into a temporary file in the folder of the target. Once all of them are on the disk, it is moved to the
target, which the system does in one step. Only a process that is killed leaves the temporary file behind, and the next
save into the folder removes it: a saver holds a lock on its temporary file, and the system ends that with the process.
"""

import contextlib
import io
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO, cast

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, a file that is open can be neither removed nor moved.
    fcntl = None

_PREFIX, _SUFFIX = ".kadam-", ".tmp"


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes the place of the one at `path` if the context is left without an error.

    The file keeps the permissions of the one that it replaces. Where `path` is a symbolic link, the file that it leads
    to is replaced. If two processes write to `path` at once, each writes a file of its own, and that of the last one to
    end stays.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if there is something at `path` that is no file.
      OSError: if the system refuses to write, with its number and with `path`. The old file is at `path` then.
    """
    with _errors_of(path):
        target, mode = _checked(path)
        _remove_leftovers(target.parent)
        temporary, descriptor = _created(target.parent, 0o666 if mode is None else 0o600)
    raw = _File(descriptor, path)
    file = io.BufferedRandom(raw)
    try:
        yield cast(BinaryIO, file)
        file.flush()
        with _errors_of(path):
            if mode is not None:
                os.chmod(temporary, mode)
            os.fsync(descriptor)
            if fcntl is None:
                file.close()
            os.replace(temporary, target)
    except BaseException:
        raw.close()  # What `file` still holds must not be written, which would fail again on a full disk.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    file.close()
    _sync_folder(target.parent)


class _File(io.FileIO):
    """The temporary file. An error of a write to it names the path that the user gave."""

    def __init__(self, descriptor: int, path: pathlib.Path):
        super().__init__(descriptor, "r+b")
        self._path = path

    def write(self, data: object) -> int:
        with _errors_of(self._path):
            return super().write(data)  # pyright: ignore[reportArgumentType]: it is what BufferedRandom hands over.


@contextlib.contextmanager
def _errors_of(path: pathlib.Path) -> Iterator[None]:
    """Let errors of the system name `path`, whichever file it was."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # It is one of our own.
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _checked(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Return where `path` leads to, and the permissions of the file there, or None if there is none."""
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of `path` must exist. Received: path={str(path)!r}. Make it first.")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"There must be a file or nothing at `path`. Received: path={str(path)!r}, which is a folder or a device. "
            "Name another path."
        )
    return target, stat.S_IMODE(mode)


def _created(folder: pathlib.Path, mode: int) -> tuple[pathlib.Path, int]:
    """Create a temporary file, and return its path and a descriptor that holds a lock on it."""
    while True:
        temporary = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, mode)
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # Before it was locked, another saver took it for a leftover, which it removes.


def _lock(descriptor: int) -> bool:
    """Lock an own temporary file against removal; return whether nobody is removing it.

    The lock is a shared one, which does not keep others from reading: the HDF5 library locks what it reads likewise.
    """
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # The filesystem has no locks. There, no saver removes leftovers.
            pass
    return True


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # It is in use or gone, or it belongs to another user.
            if fcntl is None:
                leftover.unlink()
                continue
            descriptor = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: pathlib.Path) -> None:
    """Write the names in a folder to the disk where the system can, so that the new file outlasts a power cut.

    The new file is in its place already: an error is of no use to the caller.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
