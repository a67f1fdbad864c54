"""What relays that mean no good may say, for hypothesis to choose from: bytes in pieces, at a pace, and an end."""

from typing import NamedTuple

from hypothesis import strategies as st

GREETING, EHLO, READY_TLS, LOGGED_IN = (
    b"220 relay.example ESMTP\r\n",
    b"250-relay.example\r\n250-PIPELINING\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 STARTTLS\r\n",
    b"220 go ahead\r\n",
    b"235 2.7.0 welcome\r\n",
)
ENVELOPE, QUEUED = b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", b"250 2.0.0 Ok: queued as AB12\r\n"

CONVERSATIONS = (
    (GREETING, EHLO, READY_TLS, EHLO, LOGGED_IN, ENVELOPE, QUEUED, ENVELOPE, QUEUED, b"221 bye\r\n"),
    (GREETING, b"250-x\r\n250 PIPELINING\r\n", ENVELOPE, QUEUED, ENVELOPE, QUEUED, b"221 bye\r\n"),
    (GREETING, b"502 what\r\n", b"250 x\r\n", *(b"250 ok\r\n",) * 3, b"354 go\r\n", QUEUED, b"221 bye\r\n"),
)
"""What a good relay says, with and without TLS, AUTH and PIPELINING; two recipients."""

TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"


class Many(bytes):
    """Bytes that are shown by what they are made of."""

    def __new__(cls, unit: bytes, times: int, before: bytes = b"", behind: bytes = b"") -> "Many":
        return super().__new__(cls, before + unit * times + behind)

    def __repr__(self) -> str:
        return f"Many({bytes(self[:12])!r}.., {len(self)})"


MONSTERS = (
    Many(b"250-x\r\n", 300), Many(b"250-" + b"x" * 2000 + b"\r\n", 20), Many(b"x", 5000, b"250 "),
    Many(b"x", 70_000), Many(b"\0", 3000), Many(b"250-", 3000), Many(b"250 ok\r\n", 500), Many(b"421 go\r\n", 3),
    Many(b"\r\n", 100), Many(b"334 \r\n", 50), Many(TLS_ALERT, 10), Many(b" X", 900, b"250-AUTH", b"\r\n"),
)  # fmt: skip
"""Without end, without a line end, more than was asked for, or no SMTP at all."""

FLOODS = {"replies": b"250 ok\r\n" * 8192, "lines": b"250-x\r\n" * 9000, "octets": b"x" * 65_536}
"""What comes for ever, as fast as it is read."""

PLAUSIBLE = (
    b"220 hi\r\n", b"250 ok\r\n", b"250-a\r\n", b"354 go\r\n", b"334 \r\n", b"334 !\r\n", b"235 in\r\n", b"421 bye\r\n",
    b"451 later\r\n", b"550 5.1.1 no\r\n", b"550 5.1.1 \x1b[31m\x00\xe2\x80\xae\xff\x85no\r\n", b"530 log in\r\n",
    b"503 no\r\n", b"552 too much\r\n", b"454 no TLS\r\n", b"535 5.7.8 me secret\r\n", b"250\r\n", b"250\n", b"250 \n",
    b"250 first\r250 second\n", b"199 x\r\n", b"600 x\r\n", b"250 SIZE 1\r\n",
)  # fmt: skip

_LINES = st.builds(
    lambda code, sign, words, end: b"%03d" % code + sign + words + end,
    st.integers(0, 999),
    st.sampled_from([b" ", b"-", b"", b"\t"]),
    st.binary(max_size=60),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"", b"\r\r\n", b"\0\r\n"]),
)
REPLIES = st.one_of(
    st.sampled_from(PLAUSIBLE), st.sampled_from(PLAUSIBLE), _LINES, st.binary(max_size=80), st.sampled_from(MONSTERS)
)


class Saying(NamedTuple):
    """Bytes, after so many seconds; `asked` waits until the client has said something since the last bytes."""

    data: bytes
    pause: float = 0
    asked: bool = True


class Speech(NamedTuple):
    """What a relay says and how it ends: eof, reset, silence, or a flood by its name. After so many writes of the
    client's it takes no more: then it is `stuck`, or hangs up."""

    sayings: tuple[Saying, ...]
    end: str = "eof"
    takes: int | None = None
    stuck: bool = False


@st.composite
def replies_of_a_relay(draw: st.DrawFn) -> tuple[bytes, ...]:
    """A good conversation up to some place, with a reply of it dropped, doubled or changed, and then anything."""
    good = list(draw(st.sampled_from(CONVERSATIONS)))
    good = good[: draw(st.integers(0, len(good)))]
    for _ in range(draw(st.integers(0, 2)) if good else 0):
        at = draw(st.integers(0, len(good) - 1))
        good[at : at + 1] = draw(st.sampled_from([[], [good[at]] * 2])) if draw(st.booleans()) else [draw(REPLIES)]
        if not good:
            break
    return (*good, *draw(st.lists(REPLIES, max_size=4)))


def pieces(replies: tuple[bytes, ...], size: int) -> list[bytes]:
    """The replies as they are (0), or all of them in pieces of one size."""
    if not size:
        return [reply for reply in replies if reply]
    together = b"".join(replies)
    return [together[at : at + size] for at in range(0, len(together), size)]


@st.composite
def speeches(draw: st.DrawFn) -> Speech:
    replies = draw(replies_of_a_relay())
    size = draw(st.sampled_from([0, 0, 0, 7, 100_000]))
    if size == 7 and sum(map(len, replies)) > 4_000:
        size = 1000
    pause = draw(st.sampled_from([0, 0, 0.1, 19, 119, 299, 301]))
    asked = draw(st.booleans()) if not size else False
    sayings = tuple(Saying(piece, pause, asked) for piece in pieces(replies, size))
    end = draw(st.sampled_from(["eof", "reset", "silence", *FLOODS]))
    takes = draw(st.none() | st.integers(0, 6))
    return Speech(sayings, end, takes, draw(st.booleans()))
