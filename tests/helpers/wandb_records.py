"""Reads the records of an offline W&B run: a LevelDB log of protobufs after a 7-byte header."""

import struct

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def records(path):
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position, parts = HEADER, b""
    while position + HEADER <= len(content):
        room = BLOCK - position % BLOCK
        if room < HEADER:  # a block's tail too short for a header is padding
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        part = content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
