"""Files in an artifact store: a folder, or an address that pyarrow's file systems know (`s3://…`, `gs://…`)."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Self

from pyarrow import ArrowException, fs

from app.errors import MantaError

_PIECE = 4 << 20
_GS_RETRY_S = 30  # of itself Google's client tries for a quarter of an hour, also where there is nobody
# What a store raises, whatever it is.
StoreError = (OSError, ArrowException)


def file_system(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or an address, and the path there; nothing need be there.

    Raises:
        MantaError: no such kind of address.
    """
    wanted = address if "://" in address else str(Path(address).absolute())
    if wanted.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in wanted:
        wanted += f"{'&' if '?' in wanted else '?'}retry_limit_seconds={_GS_RETRY_S}"
    try:
        system, path = fs.FileSystem.from_uri(wanted)
    except (*StoreError, ValueError) as error:
        why = str(error).replace(wanted, shown(address))
        raise MantaError(f"found {shown(address)!r}, wanted a path, s3:// or gs:// ({why})") from None
    return system, path


def shown(address: str) -> str:
    """The address as it may be printed: without the secret key that it may carry."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", address)


def below(address: str, name: str) -> str:
    """The address of a folder's child; what follows a question mark (the store's own options) stays behind it."""
    path, mark, options = address.partition("?") if "://" in address else (address, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


class Place:
    """A folder of a store. Every method raises one of `StoreError` where the store does not do what is asked."""

    def __init__(self, system: fs.FileSystem, path: str) -> None:
        self._system, self.path = system, path.rstrip("/")

    @classmethod
    def of(cls, address: str) -> Self:
        """The folder of that name or address; it need not be there.

        Raises:
            MantaError: no such kind of address.
        """
        return cls(*file_system(address))

    def __truediv__(self, name: str) -> "Place":
        return Place(self._system, f"{self.path}/{name}")

    def has(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return bool(self._system.get_file_info(f"{self.path}/{name}").type == fs.FileType.File)

    def folders_with(self, name: str) -> list[str]:
        """Names of the folders here that hold a file of that name, sorted."""
        found = self._system.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        below = [info.path.removeprefix(self.path).strip("/") for info in found if info.base_name == name]
        return sorted(path.split("/")[0] for path in below if path.count("/") == 1)

    def folders(self) -> list[str]:
        """Names of the folders here, sorted; none where this place is not there."""
        found = self._system.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def read(self, name: str) -> bytes:
        """A small file that is here."""
        with self._system.open_input_stream(f"{self.path}/{name}") as read:
            return bytes(read.read())

    def put(self, name: str, source: Path) -> int:
        """Copies a file here, under a path relative to this place; its bytes."""
        target = f"{self.path}/{name}"
        if self._system.type_name == "local":  # an object store has no folders, and no use for what stands for them
            self._system.create_dir(target.rpartition("/")[0])
        size = 0
        with source.open("rb") as read, self._system.open_output_stream(target) as write:
            while piece := read.read(_PIECE):
                write.write(piece)
                size += len(piece)
        return size

    def get(self, name: str, target: Path) -> None:
        """Copies a file from here; the folder of `target` is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._system.open_input_stream(f"{self.path}/{name}") as read, target.open("wb") as write:
            while piece := read.read(_PIECE):
                write.write(piece)

    def remove(self, folder: str) -> None:
        """Removes a folder with all of it, if it is here; somebody else may be removing it, too."""
        with suppress(FileNotFoundError):
            self._system.delete_dir(f"{self.path}/{folder}")
