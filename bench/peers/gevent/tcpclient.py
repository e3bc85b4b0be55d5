"""The seed's client: a process for each connection, which prints what it gets.

    tcpclient.py PORT

Kept as it was published, but for the port, which was 8081, and the end, which is that of the connection.
"""

import sys
import time

from gevent import socket

print("Manual connect tcp server.")
skt = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
skt.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
skt.connect(("127.0.0.1", int(sys.argv[1])))
while msg := skt.recv(1024):
    print(msg)
    time.sleep(1)
