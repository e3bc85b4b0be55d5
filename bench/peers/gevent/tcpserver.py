"""The seed's server: a greenlet for each connection, a greeting, then a line every so many seconds.

    tcpserver.py PORT SECONDS       as it was: "ok" every SECONDS, and nothing that a client sends is read
    tcpserver.py PORT --echo        every byte back, so that the bench can measure it beside others

Kept as it was published, but for an import that today's gevent no longer has, the address (127.0.0.1 instead of all),
and the end of a connection, with which its greenlet ends: the original prints the error and sends again, for ever.
"""

import sys

import gevent
from gevent.server import StreamServer


def handle(socket, address):
    socket.sendall(bytes("Welcome to the echo server! Type quit to exit.\r\n", "utf-8"))
    fileobj = socket.makefile()
    while True:
        gevent.sleep(sleeptime)
        try:
            socket.send(bytes("ok\n", "utf-8"))
        except OSError:
            return


def echo(socket, address):
    # The original sets nothing; StreamServer has set TCP_NODELAY.
    try:
        while data := socket.recv(4096):
            socket.sendall(data)
    except OSError:
        pass


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("Two parameters needed!")
        sys.exit(1)
    port = int(sys.argv[1])
    if sys.argv[2] == "--echo":
        serve = echo
    else:
        serve, sleeptime = handle, int(sys.argv[2])
    # default backlog is 256
    server = StreamServer(("127.0.0.1", port), serve, backlog=4096)
    server.serve_forever()
