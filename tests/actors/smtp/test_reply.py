"""Replies are the same however their bytes arrive, and no relay can make the reader hold much."""

import pytest

from actors.smtp.reply import LINE_OCTETS_MAX, REPLY_LINES_MAX, TEXT_CHARACTERS_MAX, GarbageError, Reply, ReplyReader

from .helpers import cuts


def read(pieces: list[bytes]) -> list[Reply]:
    reader, replies = ReplyReader(), []
    for piece in pieces:
        reader.push(piece)
        while reply := reader.pull():
            replies.append(reply)
    return replies


def tr(data: bytes, *expected: Reply) -> None:
    """Whole, byte by byte, cut anywhere, and with the beginning of another reply behind it."""
    for pieces in cuts(data):
        assert read(pieces) == list(expected)
        assert read([*pieces, b"250-"]) == list(expected)


def test_one_line():
    tr(b"250 ok\r\n", Reply(250, (b"ok",)))


def test_a_code_alone_is_a_reply():
    tr(b"250\r\n", Reply(250, (b"",)))
    tr(b"250 \r\n", Reply(250, (b"",)))


def test_several_lines_are_one_reply():
    tr(b"250-first\r\n250-\r\n250 last\r\n", Reply(250, (b"first", b"", b"last")))


def test_a_bare_lf_ends_a_line_too():
    tr(b"250-first\n250 last\n", Reply(250, (b"first", b"last")))


def test_replies_that_arrive_together_stay_apart():
    tr(b"250 one\r\n451 two\r\n354 three\r\n", Reply(250, (b"one",)), Reply(451, (b"two",)), Reply(354, (b"three",)))


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n", b"hello\r\n", b"25 ok\r\n", b"2500 ok\r\n", b"150 ok\r\n", b"650 ok\r\n", b"250_ok\r\n",
        b" 250 ok\r\n",
        b"250-one\r\n251 two\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\x16\x03\x01\x02\x00\n", b"25\xb2 ok\r\n",
        b"250" + b" " * LINE_OCTETS_MAX + b"\r\n", b"x" * (LINE_OCTETS_MAX + 1),
        b"250-x\r\n" * (REPLY_LINES_MAX + 1), (b"250-" + b"x" * 2000 + b"\r\n") * 20,
    ],
)  # fmt: skip
def test_what_is_no_reply_is_garbage(data):
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(GarbageError):
            read(pieces)


def test_the_longest_line_that_is_taken():
    line = b"250 " + b"x" * (LINE_OCTETS_MAX - 5)
    assert read([line + b"\r\n"]) == [Reply(250, (line[4:],))]


@pytest.mark.parametrize(
    ("reply", "enhanced"),
    [
        (Reply(550, (b"5.1.1 no such user",)), "5.1.1"),
        (Reply(550, (b"5.1.1",)), "5.1.1"),
        (Reply(250, (b"2.0.0 ok",)), "2.0.0"),
        (Reply(550, (b"4.1.1 the class differs",)), None),
        (Reply(550, (b"host 5.1.1 not at the beginning",)), None),
        (Reply(550, (b"5.1.1.1 an address, not a code",)), None),
        (Reply(550, (b"#5.1.1 not a code",)), None),
        (Reply(354, (b"3.0.0 no such class",)), None),
    ],
)
def test_the_enhanced_code_stands_at_the_beginning_or_not_at_all(reply, enhanced):
    assert reply.enhanced == enhanced


def test_the_text_is_one_safe_line_with_each_code_once():
    assert (
        Reply(550, (b"5.1.1 no such", b"5.1.1 user\x00\x1b[31m", b"\xff")).text == "550 5.1.1 no such user [31m \ufffd"
    )
    assert Reply(250, (b"",)).text == "250"
    assert len(Reply(550, (b"x" * 2000,)).text) == TEXT_CHARACTERS_MAX
