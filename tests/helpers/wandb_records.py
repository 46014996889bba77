"""Reads the records of an offline W&B run: a LevelDB log of protobufs after a 7-byte header."""

import json
import struct
import time

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


class Told:
    """One offline run: how it is called, and what was logged under which names."""

    def __init__(self, path):
        read, deadline = [], time.monotonic() + 60
        while not (read and read[-1].WhichOneof("record_type") == "exit"):
            assert time.monotonic() < deadline
            read = list(records(path)) if path.stat().st_size else []
            time.sleep(0.01)  # W&B's own process writes the file
        (header,) = (record.run for record in read if record.HasField("run"))
        self.id, self.group, self.job_type = header.run_id, header.run_group, header.job_type
        self.name, self.project = header.display_name, header.project
        self.config = {item.key: json.loads(item.value_json) for item in header.config.update}
        histories = [nested(r.history.item) for r in read if r.HasField("history")]
        self.rows = {row["_step"]: row for row in histories}
        self.summary = nested([i for r in read if r.HasField("summary") for i in r.summary.update])
        (self.exit_code,) = (r.exit.exit_code for r in read if r.HasField("exit"))

    def steps_of(self, key):
        return [step for step, row in self.rows.items() if key in row]

    def last(self, key):
        return self.rows[self.steps_of(key)[-1]][key]


def nested(items):
    """W&B's key-value records as a dictionary."""
    found = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def told(directory):
    """The offline runs whose files lie in a directory, the oldest first."""
    paths = directory.glob("wandb/offline-run-*/*.wandb")
    return [Told(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]
