"""How text is read from files, for all readers: encoding, byte order marks, lone
surrogates, line ends and JSON."""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
from typing import Any

from vlkd_cli.errors import DataError

_MARK = "\ufeff"
_LARGEST_FLOAT32 = float.fromhex("0x1.fffffep127")
_KINDS = {
    str: "a text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
}


class NotText(ValueError):
    """Bytes that are not text of an encoding; `line` is where, counted from 1."""

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


def decode_text(content: bytes, encoding: str = "utf-8") -> str:
    """The text of some bytes, cleaned as `clean_text` does.

    Raises:
        ValueError: the encoding is unknown.
        NotText: the bytes are not in this encoding.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return clean_text(content.decode(encoding))
    except UnicodeDecodeError as error:
        byte = content[error.start] if error.start < len(content) else 0
        raise NotText(
            f"byte {error.start} (0x{byte:02x}) is not {encoding} text",
            1 + content.count(b"\n", 0, error.start),
        ) from None
    except LookupError:
        raise ValueError(f"the encoding '{encoding}' is unknown") from None


def clean_text(text: str) -> str:
    """The text without a byte order mark in front, and with U+FFFD instead of lone surrogates,
    which no tokenizer and no file can hold. Pairs of surrogates become the character they
    encode."""
    if text.isascii():
        return text
    text = text.removeprefix(_MARK)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends. Only a line feed ends a line (with a carriage return
    before it or without): U+2028, form feeds and the like are characters of a caption."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def entries_of(text: str) -> list[str]:
    """The lines of a text that are not blank, stripped: captions, class names, templates."""
    cleaned = (clean_text(line.strip()).strip() for line in split_lines(text))
    return [line for line in cleaned if line]


def text_of(value: object) -> str:
    """A text out of JSON or YAML, cleaned and stripped.

    Raises:
        ValueError: the value is not a text.
    """
    if not isinstance(value, str):
        raise ValueError(f"{kind_of(value)}, not text")
    return clean_text(value).strip()


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), "an object")


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON document; bytes may be UTF-8, -16 or -32, with or without a byte order
    mark.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(
            content.removeprefix(_MARK) if isinstance(content, str) else _json_text(content)
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not {error.encoding} text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _json_text(content: bytes) -> str:
    encoding = json.detect_encoding(content)
    return content.decode("utf-8" if encoding == "utf-8-sig" else encoding).removeprefix(_MARK)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. A pipe, socket or device is refused instead of waited for.

    Raises:
        OSError: it cannot be read; the reason is in `strerror`.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL or a lone surrogate in the path
        raise FileNotFoundError(0, f"not a path of a file: {error}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise OSError(0, f"it is {what}, not a file")
        with open(handle, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file, which may be damaged or not a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return parse_json(read_file(path))


def read_at(handle: int, start: int, size: int) -> bytes:
    """Bytes of an open file.

    Raises:
        ValueError: the file ends before; a size that a damaged index or header gives is not
            allocated.
    """
    if start < 0 or size < 0 or start + size > os.fstat(handle).st_size:
        raise ValueError("the file ends before this part of it")
    return os.pread(handle, size, start)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file, cleaned as `clean_text` does.

    Raises:
        DataError: it cannot be read, is not in this encoding, or holds NUL characters, as UTF-16
            that is read in another encoding does; names the line.
    """
    try:
        text = decode_text(read_file(path), encoding)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except NotText as error:
        raise DataError(f"{path}:{error.line}: {error}. Save the file as {encoding}.") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}.") from None
    before, nul, _ = text.partition("\0")
    if nul:
        line = 1 + before.count("\n")
        raise DataError(
            f"{path}:{line}: holds a NUL character, so it is not {encoding} text. Save the file as"
            f" {encoding}."
        )
    return text


def read_entries(path: str | os.PathLike[str], encoding: str = "utf-8") -> list[str]:
    """The lines of a file that are not blank, stripped.

    Raises:
        DataError: as `read_text`.
    """
    return entries_of(read_text(path, encoding))


def read_lines(path: str | os.PathLike[str], encoding: str = "utf-8") -> list[str]:
    """The lines of a text file, without their ends; only line feeds (and CRLF) end a line, no lone
    carriage return.

    Raises:
        DataError: unreadable, or not in this encoding.
    """
    return split_lines(read_text(path, encoding))


def finite_number(value: object) -> float:
    """A number out of a cell or a JSON value; NaN where it is none that float32 can hold."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if abs(found) <= _LARGEST_FLOAT32 else math.nan


def number(text: str, path: str | os.PathLike[str], line: int, what: str) -> float:
    """A finite number out of a file, or an error that names its position."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{path}:{line}: {what} should be a number and is '{text[:40]}'. Correct the line."
        )
    return found
