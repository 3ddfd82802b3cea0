# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads and writes beneath a guest's root filesystem, from the host, that never follow its symlinks out of it.

Names are resolved one component at a time (openat(2), O_NOFOLLOW) in the merged view of all layers, as the guest would see
them: a symlink on the way is followed within the guest, a last component that is no regular file is never opened.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from typing import Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, FleetError

_MOST_LINKS = 40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")

WRITTEN, SAME, ABSENT = "written", "same", "absent"


class _Directory:
    """A directory of the merged view: an open descriptor in each layer that has it, the topmost layer first."""

    def __init__(self, descriptors: list[int | None], parent: _Directory | None, name: str):
        self.descriptors, self.parent, self.name = descriptors, parent, name

    def merged(self) -> int:
        """The descriptor whose owner, mode and xattrs the guest sees."""
        return next(descriptor for descriptor in self.descriptors if descriptor is not None)


class GuestRoot:
    """A guest's root filesystem.

    :param layers: directories of the host, the writable topmost one first; one for a plain directory, delta and lowers for overlay.
    """

    def __init__(self, layers: Sequence[str]):
        self._open: list[int] = []
        self._layers = list(layers)
        self._root: _Directory | None = None

    def __enter__(self) -> GuestRoot:
        try:
            self._root = _Directory([self._keep(os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) for layer in self._layers], None, "")
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def _keep(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def stat(self, path: str) -> os.stat_result | None:
        """What a path is, its last component not followed; None where there is nothing."""
        found = self._find(path)
        return found[2] if found else None

    def read(self, path: str, limit: int = 1 << 20) -> bytes | None:
        """The content of a regular file, None where there is nothing.

        :raises FleetError: CONFLICT for anything but a regular file.
        """
        found = self._find(path)
        if not found or found[2] is None:
            return None
        directory, name, _stat, layer = found
        return self._read(path, directory.descriptors[layer], name, limit)

    @staticmethod
    def _read(path: str, descriptor: int, name: str, limit: int) -> bytes:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
        except OSError as error:
            raise _no_file(path) from error
        try:
            if not modes.S_ISREG(os.fstat(file).st_mode):
                raise _no_file(path)
            return os.read(file, limit)
        finally:
            os.close(file)

    def replace(self, path: str, data: bytes) -> str:
        """Replace the content of a regular file that exists, at once; owner, mode and xattrs stay, and the directory's times.

        :returns: WRITTEN, SAME or ABSENT.
        :raises FleetError: CONFLICT for anything but a regular file.
        """
        found = self._find(path)
        if not found or found[2] is None:
            return ABSENT
        directory, name, stat, layer = found
        if not modes.S_ISREG(stat.st_mode):
            raise _no_file(path)
        source = directory.descriptors[layer]
        if self._read(path, source, name, len(data) + 1) == data:
            return SAME
        times = os.fstat(directory.merged())
        top = self._in_top_layer(directory)
        temporary = f".{name}.fleet.lxc"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=top)
        new = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=top)
        try:
            old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
            try:
                os.write(new, data)
                _copy_metadata(old, new, os.fstat(old))
            finally:
                os.close(old)
            os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=top)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=top)
            raise
        finally:
            os.close(new)
            _set_times(top, times)
        return WRITTEN

    def write(self, path: str, data: bytes, mode: int = 0o644) -> str:
        """Like :meth:`replace`, and make a file that does not exist, with its directory's owner.

        :returns: ABSENT where there is no such directory.
        """
        found = self._find(path)
        if not found:
            return ABSENT
        directory, name, stat, _layer = found
        if stat is not None:
            return self.replace(path, data)
        owner = os.fstat(directory.merged())
        top = self._cleared(directory, name)
        with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=top), "wb") as file:
            file.write(data)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), mode)
        return WRITTEN

    def names(self, path: str) -> list[str]:
        """What a directory holds, as the guest sees it; [] where there is none.

        :raises FleetError: CONFLICT where a symlink is on the way.
        """
        found = self._find(path, follow=False)
        if not found or found[2] is None:
            return []
        directory, name, stat, layer = found
        if not modes.S_ISDIR(stat.st_mode):
            raise _symlinked(path)
        directory = self._enter(directory, name, layer)
        every = {name for descriptor in directory.descriptors if descriptor is not None for name in os.listdir(descriptor)}
        return sorted(name for name in every if self._lookup(directory, name)[0] is not None)

    def remove(self, path: str) -> str:
        """Remove a file, a symlink or a whole directory; a whiteout covers what lower layers hold there.

        :returns: WRITTEN or ABSENT.
        :raises FleetError: CONFLICT where a symlink is on the way.
        """
        found = self._find(path, follow=False)
        if not found or found[2] is None:
            return ABSENT
        directory, name = found[:2]
        times = os.fstat(directory.merged())
        top = self._in_top_layer(directory)
        _remove(name, top)
        if self._lookup(directory, name)[0] is not None:
            os.mknod(name, modes.S_IFCHR, 0, dir_fd=top)
        _set_times(top, times)
        return WRITTEN

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it that are missing, each with the owner of the one that it is made in.

        :raises FleetError: CONFLICT where something else is in the way.
        """
        parts = [part for part in path.split("/") if part]
        for end in range(1, len(parts) + 1):
            directory, name, stat, _layer = self._find("/".join(parts[:end]), follow=False)
            if stat is not None and not modes.S_ISDIR(stat.st_mode):
                raise _symlinked(path)
            if stat is None:
                top = self._cleared(directory, name)
                os.mkdir(name, 0o755, dir_fd=top)
                self._own(directory, name, top)
                made = os.open(name, _DIRECTORY, dir_fd=top)
                os.fchmod(made, 0o755)  # whatever the umask is
                os.close(made)
                _hide_lower(directory, name)

    def link(self, path: str, target: str) -> str:
        """Make a symlink where there is nothing.

        :returns: WRITTEN, SAME where there is something, or ABSENT where there is no such directory.
        :raises FleetError: CONFLICT where a symlink is on the way.
        """
        found = self._find(path, follow=False)
        if not found or found[2] is not None:
            return SAME if found else ABSENT
        directory, name = found[:2]
        top = self._cleared(directory, name)
        os.symlink(target, name, dir_fd=top)
        self._own(directory, name, top)
        return WRITTEN

    def _cleared(self, directory: _Directory, name: str) -> int:
        """A directory in the topmost layer, a name in it free: where the guest sees nothing, only a whiteout can be there."""
        top = self._in_top_layer(directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=top)
        return top

    @staticmethod
    def _own(directory: _Directory, name: str, top: int) -> None:
        owner = os.fstat(directory.merged())
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=top, follow_symlinks=False)

    def _in_top_layer(self, directory: _Directory) -> int:
        """A directory's descriptor in the topmost layer, made there like the guest sees it where only lower layers have it."""
        if directory.descriptors[0] is not None:
            return directory.descriptors[0]
        times = os.fstat(directory.parent.merged())
        parent = self._in_top_layer(directory.parent)
        model = directory.merged()
        stat = os.fstat(model)
        # Made under another name first: with wrong owner or mode it must never be seen.
        temporary = f".{directory.name}.fleet.lxc"
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(temporary, dir_fd=parent)
        os.mkdir(temporary, 0o700, dir_fd=parent)
        descriptor = self._keep(os.open(temporary, _DIRECTORY, dir_fd=parent))
        _copy_metadata(model, descriptor, stat)
        _set_times(descriptor, stat)
        os.rename(temporary, directory.name, src_dir_fd=parent, dst_dir_fd=parent)
        _set_times(parent, times)
        directory.descriptors[0] = descriptor
        return descriptor

    def _find(self, path: str, follow: bool = True) -> tuple[_Directory, str, os.stat_result | None, int] | None:
        """The directory that holds a path's last component, that component, its stat, and the layer it is in.

        :param follow: whether a symlink on the way is followed within the guest, or refused (CONFLICT).
        """
        pending = [part for part in path.split("/") if part not in ("", ".")]
        directory, links = self._root, 0
        while pending:
            name = pending.pop(0)
            if name == "..":
                directory = directory.parent or directory
                continue
            stat, layer = self._lookup(directory, name)
            if not pending:
                return directory, name, stat, layer
            if stat is None:
                return None
            if modes.S_ISLNK(stat.st_mode):
                if not follow:
                    raise _symlinked(path)
                links += 1
                if links > _MOST_LINKS:
                    raise FleetError(f"{path} of the guest is a loop of symlinks", kind=CONFLICT)
                target = os.readlink(name, dir_fd=directory.descriptors[layer])
                pending = [part for part in target.split("/") if part not in ("", ".")] + pending
                directory = self._root if target.startswith("/") else directory
                continue
            if not modes.S_ISDIR(stat.st_mode):
                return None
            directory = self._enter(directory, name, layer)
        return None

    @staticmethod
    def _lookup(directory: _Directory, name: str) -> tuple[os.stat_result | None, int]:
        for layer, descriptor in enumerate(directory.descriptors):
            if descriptor is None:
                continue
            try:
                stat = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if len(directory.descriptors) > 1 and modes.S_ISCHR(stat.st_mode) and stat.st_rdev == 0:
                return None, 0  # a whiteout
            return stat, layer
        return None, 0

    def _enter(self, directory: _Directory, name: str, layer: int) -> _Directory:
        descriptors: list[int | None] = [None] * len(directory.descriptors)
        for below in range(layer, len(descriptors)):
            descriptor = directory.descriptors[below]
            if descriptor is None:
                continue
            try:
                descriptors[below] = self._keep(os.open(name, _DIRECTORY, dir_fd=descriptor))
            except FileNotFoundError:
                continue
            except OSError:
                break  # something else than a directory hides what is below it
            if len(descriptors) > 1 and _opaque(descriptors[below]):
                break
        return _Directory(descriptors, directory, name)


def _remove(name: str, directory: int) -> None:
    """Remove what a name stands for in a directory of the host, and all below it; no symlink is followed."""
    with contextlib.suppress(FileNotFoundError):
        if not modes.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            return
        for _path, directories, files, descriptor in os.fwalk(name, topdown=False, follow_symlinks=False, dir_fd=directory):
            for entry in files:
                os.unlink(entry, dir_fd=descriptor)
            for entry in directories:
                _remove(entry, descriptor)  # empty by now, or a symlink to a directory
        os.rmdir(name, dir_fd=directory)


def _hide_lower(directory: _Directory, name: str) -> None:
    """Make a new directory opaque where a lower one would show through, which was covered by a whiteout until now."""
    for below in directory.descriptors[1:]:
        with contextlib.suppress(OSError):
            if below is not None and os.stat(name, dir_fd=below, follow_symlinks=False):
                descriptor = os.open(name, _DIRECTORY, dir_fd=directory.descriptors[0])
                try:
                    for prefix in _OVERLAY_XATTRS:
                        os.setxattr(descriptor, f"{prefix}opaque", b"y")
                finally:
                    os.close(descriptor)
                return


def _opaque(descriptor: int) -> bool:
    for prefix in _OVERLAY_XATTRS:
        with contextlib.suppress(OSError):
            if os.getxattr(descriptor, f"{prefix}opaque") == b"y":
                return True
    return False


def _set_times(descriptor: int, stat: os.stat_result) -> None:
    os.utime(descriptor, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _copy_metadata(model: int, new: int, stat: os.stat_result) -> None:
    os.fchown(new, stat.st_uid, stat.st_gid)
    os.fchmod(new, modes.S_IMODE(stat.st_mode))
    for name in os.listxattr(model):
        if not name.startswith(_OVERLAY_XATTRS):
            os.setxattr(new, name, os.getxattr(model, name))


def _no_file(path: str) -> FleetError:
    return FleetError(
        f"/{path.lstrip('/')} of the guest is no regular file", why="symlinks, devices and pipes of a guest are not written through", kind=CONFLICT
    )


def _symlinked(path: str) -> FleetError:
    return FleetError(f"/{path.lstrip('/')} of the guest is left alone", why="a symlink, or something else that is no directory, is on the way", kind=CONFLICT)
