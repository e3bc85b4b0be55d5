"""Locust users that speak Throng's `line` protocol over TCP and hold the server to what it promises.

    pip install -r requirements.txt
    locust -f locustfile.py --headless -H 127.0.0.1:7000 -u 50 -r 50 -t 10s

A user holds one connection: it is greeted, sends a line and awaits its echo, takes the heartbeats that come in between,
and says `quit` when Locust stops it. A connection that is lost is made again a second later. The options are those of
`add_options` below (Locust's own --help shows none of a locustfile); each has an environment variable too.

Locust gets requests of type `line`: `connect`, `greeting`, `echo`, `quit`; `heartbeat`, whose response time is how late it
came; and `farewell`, after which the user goes. A failure has its cause, and stands under what was awaited; where nothing
was, under `hold`.

Invariant: what was asked of the server is reported once, as answered or as failed, also when a user is stopped in the
midst of it. So Locust's counts are those of the server's summary.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import socket
import sys
import time
from argparse import ArgumentTypeError
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from gevent import GreenletExit
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

# What the server says: wire/src/line.rs.
GREETING = b"Welcome to the echo server! Type quit to exit.\r\n"
HEARTBEAT = b"ok\n"
FAREWELL = b"bye\n"
MAX_LINE_BYTES = 64 * 1024
CLOSED = b""

# A message is its number and a line end: of any fewer bytes, two could be the same.
MIN_MESSAGE_BYTES = 12
MAX_SOURCES = 65_536
RECONNECT_S = 1.0


class NotAsPromised(Exception):
    """The server broke the protocol. The text is the same for each case of a cause, as Locust counts failures by it."""


class Farewell(Exception):
    """The server asks its clients to go."""


@dataclass(slots=True)
class Awaited:
    """An answer that the server owes."""

    name: str
    answer: bytes
    since: float


class LineUser(User):
    """One connection of the `line` protocol."""

    sources: ClassVar[Iterator[str]] = itertools.repeat("")
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.options: Any = environment.parsed_options
        self.socket: socket.socket | None = None
        # In the order of the answers.
        self.awaited: deque[Awaited] = deque()
        self.unsent = b""
        self.received = b""
        self.beat_due = math.inf
        self.beat_overdue = math.inf

    @task
    def turn(self) -> None:
        """A connection where there is none, a message, and the time until the next one."""
        began = time.perf_counter()
        try:
            if self.socket is None:
                self.connect()
            if self.options.message_bytes > 0:
                line = message(next(self.numbers), self.options.message_bytes)
                self.ask("echo", line, answer=line)
            self.hear(until=began + self.options.message_interval)
        except Farewell:
            self.leave()
            time.sleep(RECONNECT_S)
        except (OSError, ValueError, NotAsPromised) as error:
            self.lose(error)
            time.sleep(RECONNECT_S)

    def on_stop(self) -> None:
        """Also when Locust has ended the user in the midst of anything."""
        if self.awaited and self.awaited[0].name == "connect":
            self.lose(GreenletExit("stopped while it connected"))
        elif self.socket is not None:
            self.leave()

    # What a user does.

    def connect(self) -> None:
        """Connects and is greeted."""
        since = time.perf_counter()
        self.awaited.append(Awaited("connect", b"", since))
        host, port = target_of(self.host)
        source = next(self.sources)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(self.options.answer_timeout)
        if source:
            # The port is chosen at the connect, so that a source address has all its ports for each target.
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            self.socket.bind((source, 0))
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.report(self.awaited.popleft().name, since)
        self.ask("greeting", b"", answer=GREETING)

    def leave(self) -> None:
        """Says `quit` and waits for the close, and for what the server owes until then."""
        try:
            self.ask("quit", b"quit\n", answer=CLOSED)
            self.disconnect()
        except (OSError, NotAsPromised) as error:
            self.lose(error)
        except GreenletExit as stopped:
            self.lose(stopped)
            raise

    def lose(self, error: BaseException) -> None:
        """Reports all that was awaited as failed, and disconnects."""
        now = time.perf_counter()
        for awaited in self.awaited or [Awaited("hold", b"", now)]:
            self.report(awaited.name, awaited.since, exception=error)
        self.disconnect()

    def disconnect(self) -> None:
        """As before the first connect."""
        if self.socket is not None:
            self.socket.close()
        self.socket = None
        self.awaited.clear()
        self.unsent = self.received = b""
        self.beat_due = self.beat_overdue = math.inf

    # What is said and heard.

    def ask(self, name: str, line: bytes, answer: bytes) -> None:
        """Sends `line`, and hears until all that is owed has come, `answer` last."""
        since = time.perf_counter()
        self.awaited.append(Awaited(name, answer, since))
        self.unsent += line
        self.flush()
        self.hear(until=since + self.options.answer_timeout)
        if self.awaited:
            raise TimeoutError("no answer within --answer-timeout")

    def flush(self) -> None:
        """Keeps what is not sent yet, should Locust end the user meanwhile."""
        assert self.socket is not None
        self.socket.settimeout(self.options.answer_timeout)
        while self.unsent:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def hear(self, until: float) -> None:
        """Takes lines until nothing is awaited any more; where nothing is, until the time is over."""
        awaiting = bool(self.awaited)
        while True:
            line = self.receive(min(until, self.beat_overdue))
            now = time.perf_counter()
            if line is not None:
                self.take(line, now)
                if awaiting and not self.awaited:
                    return
            elif now >= self.beat_overdue:
                overdue = NotAsPromised("heartbeat overdue: has the server another --heartbeat, or does it stall?")
                self.report("heartbeat", self.beat_due, exception=overdue)
                self.beat_overdue = now + self.options.heartbeat
            elif now >= until:
                return

    def receive(self, until: float) -> bytes | None:
        """The next line with its end, or CLOSED; None where there is none in time."""
        assert self.socket is not None
        while (end := self.received.find(b"\n") + 1) == 0:
            # At least once without waiting: what came while others ran is not late.
            self.socket.settimeout(max(0.0, until - time.perf_counter()))
            try:
                received = self.socket.recv(MAX_LINE_BYTES)
            except (TimeoutError, BlockingIOError):
                return None
            if not received:
                return CLOSED
            self.received += received
            if len(self.received) > MAX_LINE_BYTES and b"\n" not in self.received:
                raise NotAsPromised("a line over the limit")
        line, self.received = self.received[:end], self.received[end:]
        return line

    def take(self, line: bytes, now: float) -> None:
        """Holds `line` against what the server may say now."""
        awaited = self.awaited[0] if self.awaited else None
        if awaited is not None and line == awaited.answer:
            self.awaited.popleft()
            self.report(awaited.name, awaited.since, length=len(line))
            if awaited.name == "greeting":
                self.expect_beat(now)
        elif line == CLOSED:
            raise ConnectionError("closed by the server")
        elif awaited is not None and awaited.name == "greeting":
            raise NotAsPromised("greeting not as promised: is it a throng-server with --protocol line?")
        elif line == HEARTBEAT:
            # The first one may come at any time within its interval.
            self.report("heartbeat", min(self.beat_due, now), length=len(line))
            self.expect_beat(now)
        elif line == FAREWELL:
            self.report("farewell", now, length=len(line))
            if awaited is None or awaited.name != "quit":
                raise Farewell
        elif awaited is not None and awaited.name == "echo":
            raise NotAsPromised("wrong echo: not the line that was sent")
        else:
            raise NotAsPromised("a line that nobody asked for")

    def expect_beat(self, now: float) -> None:
        """The next heartbeat counts from the one before, or from the greeting."""
        if self.options.heartbeat > 0:
            self.beat_due = now + self.options.heartbeat
            self.beat_overdue = self.beat_due + self.options.heartbeat_grace

    def report(self, name: str, since: float, length: int = 0, exception: BaseException | None = None) -> None:
        """Hands a request to Locust."""
        self.environment.events.request.fire(
            request_type="line",
            name=name,
            response_time=(time.perf_counter() - since) * 1000,
            response_length=length,
            exception=exception,
            context={},
        )


def message(number: int, size: int) -> bytes:
    """A line of `size` bytes that no other message of this process is, nor anything that the server says."""
    return b"%0*d\n" % (size - 1, number)


# Options. All that can be refused is refused before anything starts, with exit code 2.


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Those of Throng, beside Locust's own."""
    # Of a group, an option is not on the web page, which could give it any value.
    group = parser.add_argument_group("Throng", "The target is Locust's own -H HOST:PORT. Times are in seconds.")

    def add(name: str, kind: Any, default: Any, text: str) -> None:
        variable = "THRONG_" + name.upper().replace("-", "_")
        group.add_argument(f"--{name}", type=kind, default=default, env_var=variable, help=text)

    add("source", source_list, "", "Addresses or networks to connect from, in turn: 127.1.0.0/24,127.2.0.1")
    add("message-bytes", message_size, 64, "Size of a message, line end included; 0: none, connections are only held")
    add("message-interval", seconds, 1.0, "From a message to the next of the same user; 0: as fast as echoes come")
    add("heartbeat", seconds, 10.0, "Interval of the server's heartbeats (its --heartbeat); 0: none is missed")
    add("heartbeat-grace", seconds, 1.0, "A heartbeat that is so much late is a failure")
    add("answer-timeout", seconds, 10.0, "A connect, greeting, echo or close that takes longer is a failure")


@events.init.add_listener
def refuse_bad_target(environment: Environment, **_: Any) -> None:
    """The web page may name the target later, and a worker gets it from its master."""
    options: Any = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner) or not (environment.host or options.headless):
        return
    try:
        target_of(environment.host)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Here and not before, since a worker has its options from its master."""
    options: Any = environment.parsed_options
    LineUser.sources = itertools.cycle(sources_of(options.source) or [""])


def target_of(host: str | None) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPv6]:PORT`."""
    name, _, port = (host or "").rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{host!r} is no target; name one with -H HOST:PORT, such as -H 127.0.0.1:7000")
    return name.strip("[]"), int(port)


def sources_of(text: str) -> list[str]:
    """The addresses of a list of addresses and networks."""
    networks = [ipaddress.ip_network(item.strip(), strict=False) for item in text.split(",") if item.strip()]
    if sum(network.num_addresses for network in networks) > MAX_SOURCES:
        raise ValueError(f"{text} is more than {MAX_SOURCES} addresses")
    return [str(address) for network in networks for address in network.hosts()]


def source_list(text: str) -> str:
    """An option that `sources_of` takes."""
    try:
        sources_of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def message_size(text: str) -> int:
    """An option: 0, or the bytes of a line that the server takes."""
    size = int(text)
    if size != 0 and not MIN_MESSAGE_BYTES <= size <= MAX_LINE_BYTES:
        raise ArgumentTypeError(f"{size}: 0, or {MIN_MESSAGE_BYTES} to {MAX_LINE_BYTES} bytes")
    return size


def seconds(text: str) -> float:
    """An option: a time that is not negative."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text}: a time in seconds, 0 or more")
    return value
