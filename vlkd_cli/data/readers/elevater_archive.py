"""Images inside zip archives and next to them, read in place.

Only the position of each row's bytes is stored (a few numbers per row), not the archives'
directories: PatchCamelyon's has 262,144 entries.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.texts import read_at
from vlkd_cli.data.readers.elevater_index import Rows
from vlkd_cli.errors import DataError

_MEMBER = re.compile(r"^(.+?\.zip)@(.+)$", re.IGNORECASE)
_PLACE = np.dtype(
    [
        ("archive", "i4"),
        ("method", "i4"),
        ("offset", "i8"),
        ("stored", "i8"),
        ("size", "i8"),
        ("crc", "u4"),
    ]
)
_LOCAL_HEADER_BYTES = 30


class Places:
    """Where the bytes of every row are.

    Args:
        folder: of the data set.
        rows: of its index.
        index: the index's file, for messages.

    Raises:
        DataError: an archive is missing or damaged, or rows point to what is not there.
    """

    def __init__(self, folder: Path, rows: Rows, index: Path) -> None:
        self.folder, self.rows = folder, rows
        self.table = np.zeros(len(rows.paths), dtype=_PLACE)
        self.table["archive"] = -1
        self.archives: list[Path] = []
        self._files: dict[int, int] = {}
        members: dict[str, dict[str, list[int]]] = {}
        loose: list[int] = []
        for row in range(len(rows.paths)):
            found = _MEMBER.match(rows.path(row))
            if found is None:
                loose.append(row)
            else:
                members.setdefault(found[1], {}).setdefault(_inner(found[2]), []).append(row)
        for archive, wanted in members.items():
            self._find_members(folder / archive, wanted, index)
        self._find_files(loose, index)

    def _find_members(self, path: Path, wanted: dict[str, list[int]], index: Path) -> None:
        number = len(self.archives)
        self.archives.append(path)
        found = 0
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    own = wanted.get(_inner(entry.filename))
                    if own is None:
                        continue
                    if (
                        entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                        or entry.flag_bits & 1
                    ):
                        raise DataError(
                            f"{path}: member '{entry.filename}' is encrypted or compressed in"
                            " an unsupported way; repack the archive, stored or deflated."
                        )
                    location = (
                        number,
                        entry.compress_type,
                        entry.header_offset,
                        entry.compress_size,
                        entry.file_size,
                        entry.CRC,
                    )
                    found += sum(self.table[row]["archive"] < 0 for row in own)
                    for row in own:
                        self.table[row] = location
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing, and {index} points into it. Put the data set's archive there."
            ) from error
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: no readable zip archive ({error}). Copy it again.") from error
        rows = [row for own in wanted.values() for row in own]
        if found < len(rows):
            first = min(row for row in rows if self.table[row]["archive"] < 0)
            raise DataError(
                f"{index}: {len(rows) - found} of {len(self.rows.paths)} rows point to members that"
                f" {path} lacks, first row {first} '{self.rows.path(first)}'. The index and the"
                " archive are of different copies of the data; use matching ones."
            )

    def _find_files(self, loose: list[int], index: Path) -> None:
        missing: list[int] = []
        for row in loose:
            try:
                self.table[row]["size"] = os.stat(self.folder / self.rows.path(row)).st_size
            except OSError:
                missing.append(row)
        if missing:
            raise DataError(
                f"{index}: {len(missing)} of {len(self.rows.paths)} rows point to files that are"
                f" missing in {self.folder}, first row {missing[0]} '{self.rows.path(missing[0])}'."
                " Put them there."
            )

    def read(self, row: int) -> bytes | str:
        """Encoded bytes of a member, or the path of a plain file.

        Raises:
            Broken: the member is damaged.
        """
        location = self.table[row]
        if location["archive"] < 0:
            return str(self.folder / self.rows.path(row))
        number, offset = int(location["archive"]), int(location["offset"])
        file = self._files.get(number)
        try:
            if file is None:
                file = self._files[number] = os.open(self.archives[number], os.O_RDONLY)
            header = os.pread(file, _LOCAL_HEADER_BYTES, offset)
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            start = offset + _LOCAL_HEADER_BYTES + name_length + extra_length
            data = read_at(file, start, int(location["stored"]))
            if location["method"] == zipfile.ZIP_DEFLATED:
                # No more than the directory promises: a few bytes may unpack to gigabytes.
                unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
                data = unpacker.decompress(data, int(location["size"]) + 1)
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise Broken(f"damaged in the archive ({error})") from error
        if len(data) != location["size"] or zlib.crc32(data) != location["crc"]:
            raise Broken("damaged in the archive (the bytes do not match their checksum)")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _inner(name: str) -> str:
    name = name.replace("\\", "/")
    return name[2:] if name.startswith("./") else name
