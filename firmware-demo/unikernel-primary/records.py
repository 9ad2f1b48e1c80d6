#!/usr/bin/env python3
"""Looks at the records on a disk: the first ones that are whole and follow each other, and what comes behind them.

usage: records.py IMAGE [--at-least N]

Prints how many records there are, where they end and what of a record, if anything, lies behind. Exit code 1 if there are
fewer than N, or if what lies behind the last one is the start of another that is not whole: a torn record.

The layout is that of src/record.rs.
"""
import argparse
import pathlib
import struct
import sys
import zlib
from dataclasses import dataclass

BLOCK = 512
HEADER = struct.Struct("<4sIQII")
MAGIC = b"TbR1"
RECORD_BYTES_MAX = 8192


@dataclass(frozen=True)
class Found:
    """`count` records that end at `end`. `torn`: a header of the next one is there, and the record is not whole. `behind`:
    the first block behind the end that holds anything."""
    count: int
    end: int
    torn: bool
    behind: int | None


def record_at(disk, at):
    """The sequence number and the bytes of the record there, and whether it is whole; nothing if there is no header."""
    if at + HEADER.size > len(disk):
        return None
    magic, length, sequence, checksum, _ = HEADER.unpack_from(disk, at)
    if magic != MAGIC or not 0 < length <= RECORD_BYTES_MAX - HEADER.size:
        return None
    payload = disk[at + HEADER.size:at + HEADER.size + length]
    is_whole = len(payload) == length and zlib.crc32(payload, zlib.crc32(disk[at + 4:at + 16])) == checksum
    return sequence, -(-(HEADER.size + length) // BLOCK) * BLOCK, is_whole


def look_at(disk):
    """What is on a disk, given as bytes."""
    count, end, torn = 0, 0, False
    while found := record_at(disk, end):
        sequence, length, is_whole = found
        if sequence != count + 1 or not is_whole:
            torn = sequence == count + 1
            break
        count, end = sequence, end + length
    rest = disk[end:]
    filled = len(rest) - len(rest.lstrip(b"\0"))
    behind = None if filled == len(rest) else (end + filled) // BLOCK * BLOCK
    return Found(count, end, torn, behind)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=pathlib.Path)
    parser.add_argument("--at-least", type=int, default=0, metavar="N")
    options = parser.parse_args()
    found = look_at(options.image.read_bytes())
    behind = "nothing behind" if found.behind is None else f"something behind, from {found.behind} on"
    print(f"{options.image}: {found.count} records, which end at {found.end}; "
          f"{'the next one is torn' if found.torn else behind}")
    return 1 if found.torn or found.count < options.at_least else 0


if __name__ == "__main__":
    sys.exit(main())
