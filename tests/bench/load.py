"""``python -m tests.bench.load PORT SIZE KEYS SECONDS``: 50 connections that each get so many keys, again and again.

Requests are made beforehand, and replies only counted, so that the client is not what is measured; prints how many
were answered.
"""

import random
import select
import socket
import sys
import time
from typing import Final

CONNECTIONS: Final = 50
REQUESTS: Final = 2000
VALUE: Final = b"x" * 100


def key(number: int) -> bytes:
    """Return the key of an item."""
    return b"user:%08d" % number


def main(port: int, size: int, keys: int, seconds: float) -> int:
    """Return how many requests were answered, each with all it asked for."""
    draw = random.Random(1)
    requests = [b"get " + b" ".join(map(key, draw.sample(range(size), keys))) + b"\r\n" for _ in range(REQUESTS)]
    reply = keys * len(b"VALUE %b 0 %d\r\n%b\r\n" % (key(0), len(VALUE), VALUE)) + len(b"END\r\n")
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(connection, select.EPOLLIN)
        sockets[connection.fileno()] = connection
    missing = dict.fromkeys(sockets, reply)
    for number, connection in enumerate(sockets.values()):
        connection.send(requests[number])
    answered, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for fd, _ in poll.poll():
            missing[fd] -= len(sockets[fd].recv(1 << 18))
            if missing[fd] < 0:
                raise ValueError("more was replied than was asked for")
            if not missing[fd]:
                missing[fd] = reply
                answered += 1
                sockets[fd].send(requests[answered % REQUESTS])
    return answered


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
