"""Relays that offer CRAM-MD5, aiosmtpd and Postfix: the password logs in and never crosses the wire."""

import hmac
import socketserver
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from .postfix import Unavailable, postfix
from .relays import free_port
from .service import mail

USER, PASSWORD = "clerk ü", "pässword, and a long one: longer than the 64 octets after which HMAC hashes its key first"
CHALLENGE = b"<1896.697170952@relay.example>"

DIGEST = hmac.new(PASSWORD.encode(), CHALLENGE, "md5").hexdigest().encode()

STANDING: dict[str, object] = {}


class ChallengingRelay:
    """aiosmtpd with a mechanism of RFC 2195, written against hmac alone; it notes who came in and how."""

    def __init__(self, *without: str) -> None:
        self.port = free_port()
        self.logins: list[tuple[str, bytes]] = []
        self.wire: list[bytes] = []
        relay = self

        class Conversation(SMTP):
            async def auth_CRAM__MD5(self, _: object, args: list[str]) -> AuthResult:
                response = await self.challenge_auth(CHALLENGE)
                assert isinstance(response, bytes)
                relay.wire.append(response)
                user, _, digest = response.rpartition(b" ")
                relay.logins.append(("CRAM-MD5", user))
                return AuthResult(success=user == USER.encode() and digest == DIGEST, handled=False)

        class Stock(Controller):
            def factory(self) -> SMTP:
                return Conversation(relay, **self.SMTP_kwargs)

        self._controller = Stock(
            self, "127.0.0.1", self.port, auth_require_tls=False, auth_exclude_mechanism=without,
            authenticator=self._by_password,
        )  # fmt: skip

    def _by_password(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        self.logins.append((mechanism, b""))
        return AuthResult(success=True, handled=False)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return "250 2.0.0 taken"

    @contextmanager
    def listening(self) -> Iterator["ChallengingRelay"]:
        self._controller.start()
        try:
            yield self
        finally:
            self._controller.stop()


@pytest.mark.parametrize(("auth", "without"), [("cram-md5", ()), ("cram-md5", ("PLAIN", "LOGIN")), ("auto", ())])
async def test_cram_md5_logs_in_and_keeps_the_password(shared, auth, without):
    """By its name; where nothing else is offered; and first of all where the connection is clear."""
    account = f"{auth}-{len(without)}"
    with ChallengingRelay(*without).listening() as relay:
        await shared.account(account, relay.port, user=USER, password=PASSWORD, auth=auth, tls="none")
        await shared.add([mail(account, account_id=account)])
        (result,) = await shared.until_results(1, account)
        assert result["status"] == "sent"
        assert set(relay.logins) == {("CRAM-MD5", USER.encode())}
        assert not any(PASSWORD.encode() in said for said in relay.wire)
    (listed,) = [each for each in (await shared.get("/accounts"))["accounts"] if each["id"] == account]
    assert listed["auth"] == auth and listed["has_password"]


class Authority(socketserver.StreamRequestHandler):
    """What Postfix asks whether a login is good: Dovecot's authentication protocol, with one mechanism and one user."""

    def handle(self) -> None:
        self._say("VERSION\t1\t1", "MECH\tCRAM-MD5\tdictionary", "SPID\t1", "CUID\t1", "COOKIE\t" + "0" * 32, "DONE")
        for line in self.rfile:
            words = line.decode().rstrip("\n").split("\t")
            if words[0] == "AUTH":
                self._say(f"CONT\t{words[1]}\t{b64encode(CHALLENGE).decode()}")
            elif words[0] == "CONT":
                self._say(self._judge(words[1], b64decode(words[2])))

    def _judge(self, request: str, response: bytes) -> str:
        good = response == USER.encode() + b" " + DIGEST
        return f"OK\t{request}\tuser={USER}" if good else f"FAIL\t{request}\tuser=nobody"

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\n" for line in lines).encode())


class AuthorityServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


WITH_LOGIN = """
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{port}
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
"""


@contextmanager
def postfix_with_login() -> Iterator[int]:
    """A Postfix that takes mail only from who has logged in; its port. Raises Unavailable."""
    with AuthorityServer(("127.0.0.1", 0), Authority) as authority:
        serving = threading.Thread(target=authority.serve_forever)
        serving.start()
        try:
            with postfix(WITH_LOGIN.format(port=authority.server_address[1])) as made:
                yield made.port
        finally:
            authority.shutdown()
            serving.join()


async def test_postfix_lets_in_who_answers_its_challenge(shared):
    try:
        with postfix_with_login() as port:
            for name, password, status in (("good", PASSWORD, "sent"), ("bad", "another", None)):
                await shared.account(name, port, user=USER, password=password, auth="cram-md5", tls="none")
                await shared.add([mail(name, account_id=name)])
                if status:
                    (result,) = await shared.until_results(1, name)
                    assert result["status"] == status, result
                else:
                    found = await shared.until("/status", lambda answer: "reason" in answer["accounts"]["bad"])
                    assert found["accounts"]["bad"]["reason"] == "auth"
    except Unavailable as reason:
        pytest.skip(str(reason))


async def test_a_wrong_password_is_the_accounts_trouble_and_costs_the_mail_nothing(shared):
    with ChallengingRelay().listening() as relay:
        await shared.account("wrong", relay.port, user=USER, password="another", auth="cram-md5", tls="none")
        await shared.add([mail("wrong", account_id="wrong")])
        found = await shared.until("/status", lambda answer: "reason" in answer["accounts"]["wrong"])
        assert found["accounts"]["wrong"]["reason"] == "auth"
        assert (await shared.message("wrong"))["status"] == "pending" and "another" not in shared.lines
        await shared.account("wrong", relay.port, user=USER, password=PASSWORD, auth="cram-md5", tls="none")
        (result,) = await shared.until_results(1, "wrong")
        assert result["status"] == "sent" and result["attempts"] == 1


async def test_a_name_without_a_user_is_refused(shared):
    body = {"id": "x", "host": "127.0.0.1", "port": 25, "auth": "cram-md5"}
    answer = await shared.client.post("/account", json=body)
    assert answer.status_code == 400 and answer.json()["error"] == "user is missing: auth cram-md5 needs one"
    answer = await shared.client.post("/account", json=body | {"auth": "digest"})
    assert answer.json()["error"] == "the body does not fit: auth is none of auto, cram-md5, login, plain"
