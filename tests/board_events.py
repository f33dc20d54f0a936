"""Reads back what a run wrote for TensorBoard, without TensorBoard."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(run):
    """All events of a run's logs, oldest first."""
    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            # The length and the record are each followed by a checksum of four bytes.
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += length + 16
    return found
