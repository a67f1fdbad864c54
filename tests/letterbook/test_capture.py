"""The capture relay, spoken to by the standard library's client and, where that is too polite, byte by byte."""

import smtplib
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from letterbook import capture
from letterbook.capture import CaptureRelay

LETTER = b"Subject: hello\r\n\r\n.a line with a dot\r\nend\r\n"


async def by_client(relay: CaptureRelay, talk: Callable[[smtplib.SMTP], Any]) -> Any:
    """Hold a blocking conversation in a thread, so that the relay can answer."""

    def converse() -> Any:
        with smtplib.SMTP("127.0.0.1", relay.port, local_hostname="client.example", timeout=10) as client:
            return talk(client)

    return await trio.to_thread.run_sync(converse)


async def send(relay: CaptureRelay, *recipients: str, letter: bytes = LETTER) -> Any:
    return await by_client(relay, lambda client: client.sendmail("a@example.org", recipients, letter))


async def wire(relay: CaptureRelay, sent: bytes, piece: int = 1_000_000) -> bytes:
    """All that the relay says to these bytes, given in pieces; then the client half-closes."""
    ours, theirs = memory_stream_pair()
    heard = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.converse, theirs)
        for start in range(0, len(sent), piece):
            await ours.send_all(sent[start : start + piece])
        await ours.send_eof()
        async for data in ours:
            heard += data
    return bytes(heard)


def codes(heard: bytes) -> list[int]:
    """The code of each reply, its continuation lines left out."""
    return [int(line[:3]) for line in heard.split(b"\r\n") if line[3:4] == b" "]


def transaction(*recipients: str, letter: bytes = b"hi\r\n", sender: str = "a@example.org") -> bytes:
    lines = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
    return "\r\n".join(lines).encode() + b"\r\n" + letter + b".\r\n"


HELLO = b"EHLO client.example\r\n"


async def test_a_message_arrives_as_it_was_sent():
    async with CaptureRelay().listening() as relay:
        assert await send(relay, "b@example.org", "c@example.org") == {}
        (message,) = relay.messages
    assert message.sender == "a@example.org"
    assert message.recipients == ("b@example.org", "c@example.org")
    assert message.content == LETTER and message.acknowledged


async def test_its_capabilities_are_offered():
    async with CaptureRelay(message_bytes_max=5000).listening() as relay:
        features = await by_client(relay, lambda client: (client.ehlo(), client.esmtp_features)[1])
    assert set(features) == {"pipelining", "8bitmime", "smtputf8", "enhancedstatuscodes", "size"}
    assert features["size"] == "5000"


async def test_a_pipelined_conversation_is_answered_alike_in_one_piece_and_byte_by_byte():
    sent = HELLO + transaction("b@example.org") + transaction("550@example.org", "c@example.org") + b"QUIT\r\n"
    whole, bytewise = CaptureRelay(), CaptureRelay()
    heard = await wire(whole, sent)
    assert heard == await wire(bytewise, sent, piece=1)
    assert codes(heard) == [220, 250, 250, 250, 354, 250, 250, 550, 250, 354, 250, 221]
    assert [message.recipients for message in whole.messages] == [("b@example.org",), ("c@example.org",)]
    assert [message.content for message in bytewise.messages] == [b"hi\r\n", b"hi\r\n"]


@pytest.mark.parametrize(
    ("letter", "content"),
    [(b"", b""), (b"..\r\n", b".\r\n"), (b"a\r\n..b\r\n", b"a\r\n.b\r\n"), (b"a\n.\nb\r\n", b"a\n.\nb\r\n")],
)
@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
async def test_dots_are_unstuffed_wherever_reads_fall(letter, content, piece):
    relay = CaptureRelay()
    await wire(relay, HELLO + transaction("b@example.org", letter=letter), piece)
    assert [message.content for message in relay.messages] == [content]


async def test_what_is_out_of_order_is_refused():
    relay = CaptureRelay()
    sent = b"MAIL FROM:<a@b.c>\r\n" + HELLO + b"RCPT TO:<a@b.c>\r\nDATA\r\nMAIL FROM:a\r\n"
    sent += b"MAIL FROM:<a@b.c> X=1\r\nWHAT\r\n"
    sent += b"MAIL FROM:<>\r\nMAIL FROM:<>\r\nRCPT TO:<>\r\nDATA\r\nNOOP\r\nRSET\r\nRCPT TO:<a@b.c>\r\nbare\nfeed\r\n"
    assert codes(await wire(relay, sent)) == [
        *(220, 503, 250, 503, 503, 501, 555, 500),
        *(250, 503, 501, 503, 250, 250, 503, 500),
    ]


async def test_the_size_is_held_to_both_when_declared_and_when_met():
    relay = CaptureRelay(message_bytes_max=1000)
    sent = HELLO + b"MAIL FROM:<a@b.c> SIZE=1001\r\n" + transaction("b@b.c", letter=b"x" * 70_000 + b"\r\n")
    sent += transaction("b@b.c")
    assert codes(await wire(relay, sent)) == [220, 250, 552, 250, 250, 354, 552, 250, 250, 354, 250]
    assert [message.content for message in relay.messages] == [b"hi\r\n"]


async def test_a_mailbox_beyond_ascii_needs_smtputf8():
    relay = CaptureRelay()
    sent = HELLO + "MAIL FROM:<jörg@example.org>\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<jörg@b.c>\r\nRSET\r\n".encode()
    sent += "MAIL FROM:<jörg@example.org> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<jörg@b.c>\r\nDATA\r\n.\r\n".encode()
    assert codes(await wire(relay, sent)) == [220, 250, 553, 250, 553, 250, 250, 250, 354, 250]
    assert relay.messages[0].recipients == ("jörg@b.c",)


async def test_a_line_without_end_closes_the_conversation():
    assert codes(await wire(CaptureRelay(), HELLO + b"x" * 5000)) == [220, 250, 421]


async def test_a_recipient_asks_for_its_own_refusal():
    async with CaptureRelay().listening() as relay:
        refused = await send(relay, "550@example.org", "451+x@example.org", "good@example.org")
        assert {address: code for address, (code, _) in refused.items()} == {
            "550@example.org": 550,
            "451+x@example.org": 451,
        }
        assert refused["550@example.org"][1].startswith(b"5.1.1 ")
        assert relay.messages[0].recipients == ("good@example.org",)


async def test_451_then_250_is_counted_for_each_address():
    async with CaptureRelay().listening() as relay:
        for address in ("451-then-250@example.org", "451-then-250+other@example.org"):
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                await send(relay, address)
            assert caught.value.recipients[address][0] == 451
            assert await send(relay, address) == {}
        assert relay.received == 2


async def test_a_message_can_be_refused_after_the_dot():
    async with CaptureRelay().listening() as relay:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            await send(relay, "554-at-dot-then-250@example.org")
        assert caught.value.smtp_code == 554 and not relay.messages
        await send(relay, "554-at-dot-then-250@example.org")
        assert relay.received == 1


async def test_drop_after_dot_keeps_the_message_and_says_nothing():
    relay = CaptureRelay()
    sent = HELLO + transaction("drop-after-dot-then-250@example.org") + b"NOOP\r\n"
    assert codes(await wire(relay, sent)) == [220, 250, 250, 250, 354]
    assert codes(await wire(relay, sent)) == [220, 250, 250, 250, 354, 250, 250]
    assert [message.acknowledged for message in relay.messages] == [False, True]
    async with CaptureRelay().listening() as dropping:
        with pytest.raises(smtplib.SMTPServerDisconnected):
            await send(dropping, "drop-after-dot@example.org")


async def test_slow_waits_before_the_final_reply_and_not_before_the_others(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(CaptureRelay().converse, theirs)
        await ours.send_all(HELLO + transaction("slow-5@example.org"))
        heard, started = bytearray(), trio.current_time()
        while b"354 " not in heard:
            heard += await ours.receive_some()
        assert trio.current_time() == started
        assert codes(await ours.receive_some()) == [250]
        assert trio.current_time() == started + 5
        nursery.cancel_scope.cancel()


async def test_a_greeting_that_is_no_220_ends_the_conversation():
    for greeting in ("421 4.3.2 busy", "554 5.7.1 not you"):
        assert await wire(CaptureRelay(greeting=greeting), HELLO) == f"{greeting}\r\n".encode()


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({"mail_reply": "421 4.3.2 going down"}, [220, 250, 421]),
        ({"mail_reply": "451 4.3.0 later"}, [220, 250, 451, 503, 503, 500, 500]),
        ({"rcpt_reply": "550 5.1.1 nobody"}, [220, 250, 250, 550, 503, 500, 500]),
        ({"rcpt_reply": "550 5.1.1 nobody", "data_reply": "354 go on"}, [220, 250, 250, 550, 354, 554]),
        ({"data_reply": "451 4.3.0 later"}, [220, 250, 250, 250, 451, 500, 500]),
        ({"dot_reply": "552 5.2.2 full"}, [220, 250, 250, 250, 354, 552]),
    ],
)
async def test_replies_can_be_given(options, heard):
    assert codes(await wire(CaptureRelay(**options), HELLO + transaction("b@b.c"))) == heard


async def test_replies_can_be_multi_line_and_split():
    async with CaptureRelay(multi_line=True, split_bytes=1, dot_reply="250 2.0.0 one\ntwo").listening() as relay:
        assert await send(relay, "b@example.org") == {}
        assert relay.received == 1
    heard = await wire(CaptureRelay(dot_reply="250 2.0.0 one\ntwo"), HELLO + transaction("b@b.c"))
    assert heard.endswith(b"250-2.0.0 one\r\n250 two\r\n")


async def test_a_relay_that_hangs_accepts_and_says_nothing():
    async with CaptureRelay(hang=True).listening() as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught and relay.connections == 1
        await stream.aclose()


async def test_each_message_is_told_before_its_reply():
    told, heard = trio.open_memory_channel[capture.Captured](1)
    async with CaptureRelay(on_message=told.send).listening() as relay, heard:
        await send(relay, "b@example.org")
        assert heard.receive_nowait() is relay.messages[0]


async def test_the_oldest_messages_go_when_memory_is_full():
    relay = CaptureRelay(memory_bytes_max=10)
    await wire(relay, HELLO + b"".join(transaction("b@b.c", letter=b"%d\r\n" % number) for number in range(9)))
    assert relay.received == 9
    assert [message.content for message in relay.messages] == [b"6\r\n", b"7\r\n", b"8\r\n"]


async def test_one_can_wait_for_messages_and_count_connections():
    async with CaptureRelay().listening() as relay, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(send, relay, "slow-0.1@example.org")
        with trio.fail_after(10):
            await relay.until_received(3)
    assert relay.connections_total == 3 and relay.connections_max == 3 and relay.connections == 0


async def test_a_client_that_vanishes_ends_only_its_own_conversation():
    async with CaptureRelay().listening() as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(HELLO + b"MAIL FROM:<a@b.c>\r\n")
        await stream.aclose()
        assert await send(relay, "b@example.org") == {}


def test_remembered_addresses_are_bounded():
    first_times = capture.FirstTimes()
    numbers = range(capture.ADDRESSES_REMEMBERED_MAX + 1)
    assert all(first_times.is_first(str(number)) for number in numbers)
    assert first_times.is_first("0") and not first_times.is_first(str(numbers[-1]))
