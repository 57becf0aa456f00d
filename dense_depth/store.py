"""Where labels lie: a folder, or a bucket by URL. Objects appear whole or not at all."""

import contextlib
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dense_depth import InputError


class StoredFile(NamedTuple):
    """A file of a store: path, size, time of the last write in seconds since 1970."""

    path: str
    bytes: int
    modified_s: float


class Folder:
    """A label store in a folder. Writes are durable: write, fsync, rename, fsync the directory.

    Plain files, not obstore's LocalStore: that one never syncs, and hangs in a forked process (a data loader).
    """

    def __init__(self, url: str):
        """Opens a folder; raises InputError when there is none."""
        self._root = Path(url).resolve()
        self.url = str(self._root)
        if not self._root.is_dir():
            raise InputError(f"{url}: no such folder")

    def get(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file; raises FileNotFoundError."""
        with open(self._root / path, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)

    def sha256(self, path: str) -> str:
        """Hash of a file, read in pieces; raises FileNotFoundError."""
        with open(self._root / path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def walk(self, folder: str) -> Iterator[StoredFile]:
        """All files below a folder."""
        for directory, _, names in os.walk(self._root / folder):
            for name in names:
                path = Path(directory, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:  # deleted since it was listed
                    continue
                yield StoredFile(path.relative_to(self._root).as_posix(), status.st_size, status.st_mtime)

    def put(self, path: str, data: bytes) -> None:
        """Writes or replaces a file; readers see the old or the new bytes."""
        self._write_file(path, data, os.replace)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Writes a file unless it exists; of many callers at once exactly one gets True."""
        try:
            self._write_file(path, data, os.link)
        except FileExistsError:
            return False
        return True

    def put_group(self, folder: str, files: Mapping[str, memoryview], hashes: Mapping[str, str]) -> None:
        """Publishes a folder of files as one; the same bytes stay where they are, damaged ones are replaced."""
        final, staging = self._inside(folder), self._staging()
        try:
            if self._holds(folder, hashes):
                os.utime(final / "zarr.json")  # in use again: gc counts its age from now
                return
            for name, data in files.items():
                (staging / "new" / name).parent.mkdir(parents=True, exist_ok=True)
                _write_synced(staging / "new" / name, data)
            for directory, _, _ in os.walk(staging / "new"):
                _sync(Path(directory))
            self._make_parents(final)
            try:
                os.rename(staging / "new", final)
            except OSError:
                if not self._holds(folder, hashes):  # else another worker has just published the same bytes
                    os.rename(final, staging / "damaged")
                    os.rename(staging / "new", final)
            _sync(final.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def delete(self, path: str) -> None:
        """Removes a file or a folder, which disappears as a whole; one that is gone already is fine."""
        trash = self._staging()
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._inside(path), trash / "deleted")
        shutil.rmtree(trash)

    def leftovers(self) -> list[StoredFile]:
        """What writers that died have left under staging/, with the time of the last change."""
        staging = self._root / "staging"
        entries = sorted(staging.iterdir()) if staging.is_dir() else []
        return [StoredFile(f"staging/{entry.name}", 0, entry.lstat().st_mtime) for entry in entries]

    def _inside(self, path: str) -> Path:
        """Where to write or delete; refuses to leave the store, by name or through a link."""
        target = self._root / path
        if target.name in ("", "..") or not target.parent.resolve().is_relative_to(self._root):
            raise InputError(f"{path}: leaves the store {self._root}")
        return target

    def _staging(self) -> Path:
        """A new folder that only this call uses, on the file system of the final names."""
        folder = self._inside(f"staging/{uuid.uuid4().hex}")
        folder.mkdir(parents=True)
        return folder

    def _make_parents(self, target: Path) -> None:
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _sync(folder.parent)

    def _write_file(self, path: str, data: bytes, publish: Callable[[Path, Path], None]) -> None:
        final, staging = self._inside(path), self._staging()
        try:
            _write_synced(staging / "file", data)
            self._make_parents(final)
            publish(staging / "file", final)
            _sync(final.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _holds(self, folder: str, hashes: Mapping[str, str]) -> bool:
        names = {file.path.removeprefix(f"{folder}/") for file in self.walk(folder)}
        return names == hashes.keys() and all(self.sha256(f"{folder}/{name}") == hashes[name] for name in names)


class Bucket:
    """A label store in a bucket, through obstore: s3://, gs://, az://, and memory:// inside one process.

    The methods are those of ``Folder``.
    """

    def __init__(self, url: str):
        self.url = url
        self._objects = _open_objects(url)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.url,)

    def get(self, path: str, start: int = 0, stop: int | None = None) -> bytes:  # noqa: D102
        if stop is None:
            return bytes(self._objects.get(path).bytes())[start:]
        return bytes(self._objects.get_range(path, start=start, end=stop))

    def sha256(self, path: str) -> str:  # noqa: D102
        digest = hashlib.sha256()
        for piece in self._objects.get(path).stream():
            digest.update(piece)
        return digest.hexdigest()

    def walk(self, folder: str) -> Iterator[StoredFile]:  # noqa: D102
        for batch in self._objects.list(folder or None):
            yield from (StoredFile(file["path"], file["size"], file["last_modified"].timestamp()) for file in batch)

    def put(self, path: str, data: bytes) -> None:  # noqa: D102
        self._objects.put(path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:  # noqa: D102
        from obstore.exceptions import AlreadyExistsError

        try:
            self._objects.put(path, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def put_group(self, folder: str, files: Mapping[str, memoryview], hashes: Mapping[str, str]) -> None:  # noqa: D102
        for name in sorted(files, key=lambda name: name == "zarr.json"):  # what makes it a group comes last
            self._objects.put(f"{folder}/{name}", files[name])

    def delete(self, path: str) -> None:  # noqa: D102
        names = [file.path for file in self.walk(path)] or [path]
        self._objects.delete(sorted(names, key=lambda name: name != f"{path}/zarr.json"))

    def leftovers(self) -> list[StoredFile]:  # noqa: D102
        return []  # an object appears whole or not at all


def is_url(location: str | Path) -> bool:
    """Whether a location is a bucket and no folder."""
    return "://" in str(location)


def absolute(location: str | Path) -> str:
    """A URL as it is, and a folder by its absolute path, which holds wherever a worker stands."""
    return str(location) if is_url(location) else str(Path(location).resolve())


def holds_anything(location: str | Path) -> bool:
    """Whether there is a file at a folder or URL; raises InputError for a folder that is a file."""
    if not is_url(location) and not Path(location).exists():
        return False
    return any(True for _ in open_store(location).walk(""))


def open_store(location: str | Path | Folder | Bucket, *, create: bool = False) -> Folder | Bucket:
    """The store at a folder or URL; raises InputError when it is a folder that does not exist and is not to be made."""
    if isinstance(location, Folder | Bucket):
        return location
    if is_url(location):
        return Bucket(str(location))
    if create:
        Path(location).mkdir(parents=True, exist_ok=True)
    return Folder(str(location))


@functools.cache
def _open_objects(url: str) -> Any:
    """One client per URL: connections are reused, and memory:// is one store for the whole process."""
    from obstore.store import MemoryStore, from_url

    return MemoryStore() if url.startswith("memory://") else from_url(url)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
