"""Files, packed or not, on this machine or elsewhere, read within bounded memory and never silently in half."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

BOMB_RATIO, BOMB_BYTES = 300, 2**26  # text compresses to a tenth, logs to a hundredth of its size


class DecompressionBomb(Exception):
    """A compressed file unpacks to far more than text would."""


def refuse_bomb(packed: int, unpacked: int) -> None:
    """Compare the bytes of a compressed file with what they have become.

    Raises:
        DecompressionBomb: They have become too many.
    """
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * packed):
        raise DecompressionBomb(f"{packed} bytes unpacked to more than {unpacked}")


class Zstandard:
    """The content of a file of Zstandard frames; unlike the library's own reader, not silent about a frame cut off."""

    CHUNK = 2048  # a frame of one repeated byte unpacks to 30,000 times as much

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.frame: Any = None
        self.rest = self.ready = b""

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end.

        Raises:
            EOFError: The last frame is cut off.
        """
        import zstandard

        while not self.ready:
            data = self.rest or self.raw.read(self.CHUNK)
            if not data:
                if self.frame is not None:
                    raise EOFError("the last Zstandard frame is cut off")
                return b""
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.ready, self.rest = self.frame.decompress(data), b""
            if self.frame.eof:
                self.frame, self.rest = None, self.frame.unused_data
        part, self.ready = self.ready[:size], self.ready[size:]
        return part


class Unpacked(io.RawIOBase):
    """A file's decompressed bytes, refused once they are both many and out of proportion to the compressed ones."""

    def __init__(self, raw: BinaryIO, compression: str | None) -> None:
        from fsspec.compression import compr

        self.raw, self.compressed = raw, compression is not None
        if compression == "zstd":
            self.file: Any = Zstandard(raw)
        else:
            self.file = compr[compression](raw, mode="rb") if compression else raw
        self.seen = 0

    def readable(self) -> bool:
        """Return True, as `BufferedReader` asks for it."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any place, as Parquet is."""
        return not self.compressed

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in a file that is not packed."""
        return self.raw.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer and return the number of bytes.

        Raises:
            DecompressionBomb: The file is one.
            OSError: It is cut off.
        """
        try:
            # read1: what is good of a file that ends early comes out before the error does.
            data = self.file.read1(len(buffer)) if self.compressed else self.file.read(len(buffer))
        except EOFError as error:  # which warcio would take for the end of the archive
            raise OSError(f"the compressed file is cut off: {error}") from None
        buffer[: len(data)] = data
        self.seen += len(data)
        if self.compressed:
            refuse_bomb(self.raw.tell(), self.seen)
        return len(data)


@contextmanager
def open_unpacked(path: str, compression: str | None) -> Iterator[io.BufferedReader]:
    """Open a path or URL for reading its unpacked bytes; what a file in the middle of it raises is the library's."""
    import fsspec

    with fsspec.open(path, "rb") as raw:
        yield io.BufferedReader(Unpacked(raw, compression), buffer_size=2**20)
