"""A relay's side of a conversation, told as a script, and every way to cut its bytes."""

from collections.abc import Iterable, Iterator

from actors.smtp.engine import Engine, Event, State
from actors.smtp.transaction import Delivery, Mail

EHLO_PIPELINING = b"250-relay.example\r\n250-PIPELINING\r\n250-SIZE 10000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
EHLO_PLAIN = b"250 relay.example\r\n"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, byte by byte, and cut in two at every place."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    yield from ([data[:at], data[at:]] for at in range(1, len(data)))


def feed(engine: Engine, pieces: Iterable[bytes]) -> list[Event]:
    return [event for piece in pieces for event in engine.receive(piece)]


def greeted(ehlo: bytes = EHLO_PIPELINING) -> Engine:
    """An engine that is ready for mail."""
    engine = Engine("client.example")
    engine.receive(b"220 relay.example ESMTP\r\n")
    engine.hello()
    assert engine.take() == b"EHLO client.example\r\n"
    engine.receive(ehlo)
    assert engine.state is State.READY
    return engine


def mail(
    *recipients: str, sender: str = "from@example.com", content: bytes = b"Subject: x\r\n\r\nhello\r\n", **more: bool
) -> Mail:
    return Mail(sender, tuple(enumerate(recipients or ("to@example.org",))), content, **more)


def taken(engine: Engine) -> bytes:
    """All that the engine wants to send now."""
    return b"".join(iter(engine.take, b""))


def run(engine: Engine, letter: Mail, script: Iterable[bytes]) -> tuple[Delivery, list[bytes]]:
    """Send a mail against a script, one answer for each write; the writes are returned."""
    engine.start_transaction(letter)
    writes = [taken(engine)]
    for answer in script:
        engine.receive(answer)
        writes.append(taken(engine))
    return engine.delivery(), writes


def statuses(delivery: Delivery) -> list[str]:
    return [outcome.status for outcome in delivery.outcomes]
