"""One SMTP transaction: what is to be said for a mail, what was answered, and what that means for each recipient.

The first failure in stage order decides, per recipient: our own refusal before anything was sent, then RSET, MAIL,
this recipient's RCPT, DATA, the reply to the final dot. So a MAIL that was deferred with 451 stays a deferral of
everybody, although the RCPT and DATA that were pipelined behind it were answered 503 ("bad sequence"), which by
itself would be permanent; and a reply to DATA or to the dot speaks only to those whose RCPT was accepted.

A relay that is found out of step within the envelope (garbage, a reply out of place) is believed in nothing of it: one
reply too many before, and each recipient would have had the answer that was meant for the one before him.
"""

import re
from collections.abc import Iterator

from msgspec import Struct

from events.values import Outcome

from .addresses import ascii_address, can_stand_in_a_path
from .reply import TEXT_CHARACTERS_MAX, Reply
from .verdict import Scope, Verdict, judge, lost, queue_id, widest


class Mail(Struct, frozen=True):
    """What one transaction carries; a recipient is (index in the message's envelope, address).

    `eightbit` says that the content has octets beyond ASCII, `smtputf8` that its headers do (RFC 6531).
    """

    sender: str
    recipients: tuple[tuple[int, str], ...]
    content: bytes
    eightbit: bool = False
    smtputf8: bool = False


class Delivery(Struct, frozen=True):
    """What came of a mail: an outcome a recipient, and the relay's words for those it was not delivered to.

    `scope` is the widest of the failures, `stage` where the first of them was (`final` where there is none),
    `mail_accepted` whether MAIL was answered 250, `reusable` whether the connection may serve another mail.
    """

    outcomes: tuple[Outcome, ...]
    replies: tuple[tuple[int, str], ...]
    scope: Scope | None
    stage: str
    mail_accepted: bool
    reusable: bool


class Capabilities(Struct, frozen=True):
    """What the relay offered in its answer to EHLO (RFC 5321 section 4.1.1.1); `size` None means no limit."""

    pipelining: bool = False
    size_offered: bool = False
    size: int | None = None
    eightbitmime: bool = False
    smtputf8: bool = False
    starttls: bool = False
    auth: frozenset[str] = frozenset()


class Loss(Struct, frozen=True):
    """The conversation ended before the relay had said everything.

    `out_of_step`: it answered what it was not asked, so no answer of this envelope is known to be to its question.
    """

    stage: str
    text: str
    in_doubt: bool = False
    code: int | None = None
    out_of_step: bool = False


_OWN_FAR = Verdict("refused", "message", "nothing was sent for this message")
_OWN_NEAR = Verdict("refused", "recipient", "nothing was sent for this recipient")


class Transaction:
    """The transcript of one transaction; it grows as replies come, and `delivery` may be asked at any time."""

    def __init__(self, mail: Mail, offered: Capabilities) -> None:
        _refuse_misuse(mail)
        # The mail itself is not kept: an idle connection should not hold on to the last content it sent.
        self.content = clean(mail.content)
        self._recipients = mail.recipients
        self.loss: Loss | None = None
        self.mail_accepted = False
        self.accepted = 0
        paths = [_path(address, offered) for _, address in mail.recipients]
        sender = _path(mail.sender, offered) if mail.sender else ""
        self.refusal = _refusal(mail, sender, len(self.content), offered)
        self._eightbit = mail.eightbit or mail.smtputf8
        self._utf8 = mail.smtputf8 or not all((path or "").isascii() for path in (sender, *paths))
        self._sender = sender or ""
        self._paths = paths
        # Failures of the whole message in stage order, and each recipient's own reply to RCPT.
        self._failed: list[tuple[str, Reply]] = []
        self._rcpt: list[Reply | None] = [None if path is not None else _UNMAILABLE for path in paths]
        self._last: tuple[str, Reply] | None = None

    # What is to be said

    def commands(self, offered: Capabilities) -> Iterator[tuple[str, int, bytes]]:
        """(stage, recipient's position, line) for each command up to DATA; nothing where nobody is left to mail to."""
        if self.refusal or not any(path is not None for path in self._paths):
            return
        yield "mail", -1, f"MAIL FROM:<{self._sender}>{self._parameters(offered)}\r\n".encode()
        for position, path in enumerate(self._paths):
            if path is not None:
                yield "rcpt", position, f"RCPT TO:<{path}>\r\n".encode()
        yield "data", -1, b"DATA\r\n"

    def _parameters(self, offered: Capabilities) -> str:
        """SIZE by RFC 1870, BODY by RFC 6152, SMTPUTF8 by RFC 6531 section 3.4; each only where it was offered."""
        size = f" SIZE={len(self.content)}" if offered.size_offered else ""
        body = " BODY=8BITMIME" if offered.eightbitmime and self._eightbit else ""
        return size + body + (" SMTPUTF8" if self._utf8 else "")

    # What was answered

    def answered(self, stage: str, position: int, reply: Reply) -> None:
        good = reply.code < 400
        if stage == "rcpt":
            self._rcpt[position] = reply
            self.accepted += good
        elif stage in ("rset", "mail"):
            self.mail_accepted = good and stage == "mail"
            if not good:
                self._failed.append((stage, reply))
        elif not good or stage == "final":
            self._last = (stage, reply)

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to send the content to: MAIL stands and at least one RCPT does."""
        return self.accepted > 0 and not self._failed

    @property
    def failed(self) -> bool:
        """Whether RSET or MAIL was refused, so that nothing behind it can succeed."""
        return bool(self._failed)

    # What it means

    def delivery(self, *, reusable: bool) -> Delivery:
        outcomes, replies, scopes, stages = [], [], [], []
        taken = self._taken()
        for position, (index, _) in enumerate(self._recipients):
            stage, reply = self._deciding(position)
            if taken and reply is taken[0]:
                outcomes.append(Outcome(index, "delivered", *taken[1:]))
                continue
            verdict = self._verdict(stage, reply)
            code, enhanced, text = self._said(reply)
            outcomes.append(Outcome(index, verdict.status, code, enhanced))
            replies.append((index, text))
            scopes.append(verdict.scope)
            stages.append(stage)
        first, scope = min(stages, key=STAGE_ORDER.index, default="final"), widest(scopes)
        # A session in which the relay itself is in trouble (530, RSET refused) has no second mail in it.
        reusable = reusable and scope != "relay"
        return Delivery(tuple(outcomes), tuple(replies), scope, first, self.mail_accepted, reusable)

    def _taken(self) -> tuple[Reply, int, str | None, str | None] | None:
        """The reply by which the relay took the mail, read once for all recipients: code, enhanced code, queue id."""
        reply = self._last[1] if self._last else None
        if reply is None or reply.code >= 400:
            return None
        enhanced, words = reply.read()
        return reply, reply.code, enhanced, queue_id(words)

    def _deciding(self, position: int) -> tuple[str, Reply | None]:
        """The stage and reply that decide for a recipient: the first failure, else the last word, else the loss."""
        if self.refusal:
            return "own", self.refusal
        rcpt = self._rcpt[position]
        if self.loss is not None and self.loss.out_of_step and rcpt is not _UNMAILABLE:
            return self.loss.stage, None
        if self._failed:
            return self._failed[0]
        if rcpt is not None and rcpt.code >= 400:
            return ("own" if rcpt is _UNMAILABLE else "rcpt"), rcpt
        if rcpt is not None and self._last:
            return self._last
        return (self.loss.stage if self.loss else "mail"), None

    def _verdict(self, stage: str, reply: Reply | None) -> Verdict:
        if reply is None:
            return lost(in_doubt=self.loss is not None and self.loss.in_doubt)
        if stage == "own":
            return _OWN_NEAR if reply is _UNMAILABLE else _OWN_FAR
        return judge(stage, reply.code, reply.enhanced)

    def _said(self, reply: Reply | None) -> tuple[int | None, str | None, str]:
        if reply is not None:
            return reply.code, reply.enhanced, reply.text
        if self.loss is not None:
            return self.loss.code, None, self.loss.text[:TEXT_CHARACTERS_MAX]
        return None, None, "the transaction has not ended"


STAGE_ORDER = ("own", "rset", "mail", "rcpt", "data", "content", "final", "discard")


# Content, made safe for the wire


_NEWLINE = re.compile(rb"\r\n|\r|\n")


def clean(content: bytes) -> bytes:
    """Content with CRLF as its only line ends, one at its very end, and no NUL.

    A relay that takes a bare LF or CR for a line end, or drops NUL octets, would see `LF . LF` as the end of the
    mail and what follows as commands (SMTP smuggling, CVE-2023-51764). compose gives clean content, so this is
    three counts and no copy.
    """
    if b"\0" in content:
        content = content.replace(b"\0", b"")
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        content = _NEWLINE.sub(b"\r\n", content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def stuffed(content: bytes) -> bytes:
    """Clean content with each leading dot doubled (RFC 5321 section 4.5.2) and the final dot behind it."""
    first = b"." if content.startswith(b".") else b""
    return b"".join((first, content.replace(b"\r\n.", b"\r\n.."), b".\r\n"))


# Refusals of our own, written as the relay would have written them, so that all that read replies can read them


def _own(code: int, text: str) -> Reply:
    return Reply(code, (text.encode(),))


_UNMAILABLE = _own(553, "5.6.7 the address needs SMTPUTF8, which the relay does not offer; nothing was sent")


def _refusal(mail: Mail, sender: str | None, size: int, offered: Capabilities) -> Reply | None:
    """Why this relay can never take this mail, known before a byte is sent."""
    if offered.size is not None and size > offered.size:
        return _own(552, f"5.3.4 the mail has {size} octets, the relay takes {offered.size}; nothing was sent")
    if sender is None:
        return _own(553, "5.6.7 the sender's address needs SMTPUTF8, which the relay does not offer; nothing was sent")
    if mail.smtputf8 and not offered.smtputf8:
        return _own(553, "5.6.7 the headers need SMTPUTF8, which the relay does not offer; nothing was sent")
    if mail.eightbit and not offered.eightbitmime:
        return _own(554, "5.6.3 the content needs 8BITMIME, which the relay does not offer; nothing was sent")
    return None


def _path(address: str, offered: Capabilities) -> str | None:
    """What stands between the angle brackets, or None where this relay cannot take the address."""
    return ascii_address(address) or (address if offered.smtputf8 else None)


class MisuseError(RuntimeError):
    """Our own code asked for what cannot be: a programmer's error, never the relay's."""


def _refuse_misuse(mail: Mail) -> None:
    if not mail.recipients:
        raise MisuseError("a mail without recipients")
    for address in (mail.sender, *(address for _, address in mail.recipients)):
        if not can_stand_in_a_path(address):
            raise MisuseError("an address with a control character, a space or a bracket outside quotes")
