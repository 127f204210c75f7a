"""Numbers of as many bytes as they need, seven bits each, lowest first: Thrift's, RocksDB's and Avro's."""


def varint(data: bytes, place: int) -> tuple[int, int]:
    """An unsigned number and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def signed(zigzag: int) -> int:
    """The number that an unsigned one stands for in zigzag order: 0, -1, 1, -2 …"""
    return (zigzag >> 1) ^ -(zigzag & 1)
