"""Reads what the tests need from a little-endian ELF file: sections and symbols."""
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    address: int
    data: bytes
    link: int
    size: int
    is_loaded: bool


@dataclass(frozen=True)
class Symbol:
    name: str
    value: int
    size: int
    section: int


class Elf:
    """`sections` in the file's order (so that a symbol's section is an index), `symbols`, `machine` and `word_bytes`."""

    ARM = 40
    RISC_V = 243
    SYMBOL_TABLE = 2
    NO_BITS = 8
    ALLOCATED = 2

    def __init__(self, path):
        with open(path, "rb") as file:
            image = file.read()
        if image[:4] != b"\x7fELF" or image[4:6] not in (b"\1\1", b"\2\1"):
            raise ValueError(f"{path} is not a little-endian ELF file")
        self.word_bytes = 4 * image[4]
        self.machine, = struct.unpack_from("<H", image, 18)
        table, = struct.unpack_from("<I", image, 32) if self.word_bytes == 4 else struct.unpack_from("<Q", image, 40)
        size, count, names_index = struct.unpack_from("<HHH", image, 46 if self.word_bytes == 4 else 58)
        layout = "<10I" if self.word_bytes == 4 else "<2I4Q2I2Q"
        headers = [struct.unpack_from(layout, image, table + i * size) for i in range(count)]

        def content(header):
            return b"" if header[1] == self.NO_BITS else image[header[4]:header[4] + header[5]]

        names = content(headers[names_index])
        self.sections = [Section(text_at(names, h[0]), h[1], h[3], content(h), h[6], h[5], h[2] & self.ALLOCATED != 0)
                         for h in headers]
        self.symbols = [symbol for section in self.sections if section.kind == self.SYMBOL_TABLE
                        for symbol in self._symbols(section)]

    def section_index(self, name):
        return next((i for i, section in enumerate(self.sections) if section.name == name), None)

    def _symbols(self, section):
        names = self.sections[section.link].data
        if self.word_bytes == 4:
            for name, value, size, _, _, index in struct.iter_unpack("<IIIBBH", section.data):
                yield Symbol(text_at(names, name), value, size, index)
        else:
            for name, _, _, index, value, size in struct.iter_unpack("<IBBHQQ", section.data):
                yield Symbol(text_at(names, name), value, size, index)


def text_at(table, offset):
    return table[offset:table.index(b"\0", offset)].decode()
