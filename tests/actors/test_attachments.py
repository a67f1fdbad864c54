"""Attachments from elsewhere: real servers, real files, and every way in which they cannot be had."""

import gc
import tracemalloc
from base64 import b64decode
from contextlib import asynccontextmanager
from ipaddress import ip_network
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trio

from actors.attachments import (
    REASONS,
    AttachmentPolicy,
    Attachments,
    AttachmentTrouble,
    Room,
    azure_url,
    is_remote,
    place_in,
    s3_url,
)
from events.fact import Draft
from events.letter import Attachment, Letter, S3Object
from events.volume import VolumeSaved
from store.beside import Sealed

from .opened import opened
from .places import CONTENT, files, s3

LOOPBACK = (ip_network("127.0.0.0/8"),)
OPEN = AttachmentPolicy(allowed=LOOPBACK, timeout_s=60)


@pytest.fixture(scope="module")
def server():
    with files() as running:
        yield running


@pytest.fixture(scope="module")
def bucket():
    with s3(**{"2026/a b ü.pdf": CONTENT, "big": bytes(3000)}) as url:
        yield url


def letter(*attachments) -> Letter:
    return Letter(id="m", sender="a@b", to=("c@d",), subject="s", body="b", attachments=attachments)


def at(url, name="x.pdf") -> Attachment:
    return Attachment(name, url=url)


def on(storage_path, name="x.pdf") -> Attachment:
    return Attachment(name, storage_path=storage_path)


def with_(policy=OPEN, **fields) -> AttachmentPolicy:
    return msgspec.structs.replace(policy, **fields)


@asynccontextmanager
async def attaching(folder, policy=OPEN, **volumes):
    """Attachments over a store with these volumes: (backend, config, account)."""
    async with opened(folder) as store:
        for name, (backend, config, account_id) in volumes.items():
            sealed = Sealed(store.secrets.seal(msgspec.json.encode(config)))
            fact = VolumeSaved(name=name, backend=backend, config="d", account_id=account_id)
            await store.record([Draft(fact)], beside={0: sealed})
        attachments = Attachments(store, policy)
        yield attachments
        await attachments.aclose()
        assert attachments.room.free == policy.memory_bytes_max, "memory was taken and not given back"


async def had(attachments, *wanted, account="shop") -> list[bytes]:
    filled = await attachments.fill(letter(*wanted), account)
    assert not is_remote(filled.letter)
    contents = [b64decode(each.content, validate=True) for each in filled.letter.attachments]
    filled.release()
    return contents


async def missed(attachments, *wanted, account="shop") -> AttachmentTrouble:
    with pytest.raises(AttachmentTrouble) as caught:
        await attachments.fill(letter(*wanted), account)
    return caught.value


# URLs


async def test_several_come_at_once_in_their_places_beside_what_was_there_already(tmp_path, server):
    async with attaching(tmp_path) as attachments:
        wanted = at(f"{server.url}/ok"), Attachment("own.txt", "aGVsbG8="), at(f"{server.url}/gzip?a=b")
        assert await had(attachments, *wanted, at(f"{server.url}/deflate")) == [CONTENT, b"hello", CONTENT, CONTENT]
        filled = await attachments.fill(letter(Attachment("ü.pdf", url=f"{server.url}/ok", content_id="c")), "shop")
        assert (filled.letter.attachments[0].filename, filled.letter.attachments[0].content_id) == ("ü.pdf", "c")
        assert filled.letter.attachments[0].url is None
        filled.release()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "not_found"),
        ("/status/410", "not_found"),
        ("/status/401", "refused"),
        ("/status/403", "refused"),
        ("/status/400", "refused"),
        ("/status/408", "unavailable"),
        ("/status/429", "unavailable"),
        ("/status/500", "unavailable"),
        ("/status/503", "unavailable"),
        ("/status/204", "broken"),
        ("/status/304", "redirects"),
        ("/short", "broken"),
        ("/cut", "broken"),
        ("/garbage", "broken"),
        ("/brotli", "encoding"),
        ("/hop/6", "redirects"),
        ("/to/ftp%3A%2F%2Ffiles.example%2Fx", "redirects"),
        ("/to/http%3A%2F%2F169.254.169.254%2Flatest", "not_allowed"),
        ("/to/http%3A%2F%2F10.0.0.1%2F", "not_allowed"),
        ("/to/http%3A%2F%2F%5B%3A%3A1%5D%3A1%2F", "not_allowed"),
    ],
)
async def test_each_way_of_not_coming_has_its_reason(tmp_path, server, path, reason):
    async with attaching(tmp_path) as attachments:
        trouble = await missed(attachments, Attachment("own.txt", "aGVsbG8="), at(server.url + path, "Ann's.pdf"))
        assert (trouble.field, trouble.reason, trouble.again) == ("attachments[1]", reason, REASONS[reason].again)
        assert trouble.text.startswith('attachment "Ann\'s.pdf": ') and REASONS[reason].words in trouble.text


async def test_five_redirects_are_followed_and_no_body_of_them_is_read(tmp_path, server):
    async with attaching(tmp_path) as attachments:
        assert await had(attachments, at(f"{server.url}/hop/5")) == [CONTENT]
        assert await had(attachments, at(f"{server.url}/to/%2Fok")) == [CONTENT]


async def test_credentials_go_to_their_own_place_and_not_where_a_redirect_leads(tmp_path, server):
    with files() as other:
        config = {"base_url": f"{server.url}/to", "username": "ann", "password": "pw"}
        async with attaching(tmp_path, dav=("webdav", config, None)) as attachments:
            server.asked.clear()
            there = await missed(attachments, on("dav:http%3A%2F%2Fnowhere"))
            assert there.reason in ("redirects", "not_found", "not_allowed", "unreachable", "broken")
            assert "Authorization" in server.asked[0][1]
            await had(attachments, at(f"http://ann:pw@127.0.0.1:{server.port}/to/{other.url.replace('/', '%2F')}%2Fok"))
            assert "Authorization" not in other.asked[-1][1]


async def test_no_cookie_is_kept_for_the_next_who_asks(tmp_path, server):
    async with attaching(tmp_path) as attachments:
        await had(attachments, at(f"{server.url}/cookie"))
        await had(attachments, at(f"{server.url}/ok"))
        assert server.asked[-1][0] == "/ok" and "Cookie" not in server.asked[-1][1]


async def test_without_leave_this_machine_is_not_reached(tmp_path, server):
    async with attaching(tmp_path, with_(allowed=())) as attachments:
        server.asked.clear()
        assert (await missed(attachments, at(f"{server.url}/ok"))).reason == "not_allowed"
        assert (await missed(attachments, at(f"http://localhost:{server.port}/ok"))).reason == "not_allowed"
        assert server.asked == []


async def test_a_name_that_answers_otherwise_after_a_redirect_is_judged_again(tmp_path, server):
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])

    async def resolver(host, port):
        return next(answers)

    async with opened(tmp_path) as store:
        attachments = Attachments(store, OPEN, resolver=resolver)
        url = f"http://files.example:{server.port}/to/http%3A%2F%2Fother.example%3A{server.port}%2Fok"
        assert (await missed(attachments, at(url))).reason == "not_allowed"
        await attachments.aclose()


async def test_a_server_that_is_not_there_cannot_be_reached(tmp_path):
    with files() as gone:
        url = gone.url
    async with attaching(tmp_path) as attachments:
        assert (await missed(attachments, at(url))).reason == "unreachable"


async def test_limits_hold_for_each_and_for_all_together(tmp_path, server):
    async with attaching(tmp_path, with_(bytes_max=1000, total_bytes_max=2500)) as attachments:
        assert [len(each) for each in await had(attachments, *[at(f"{server.url}/size/1000")] * 2)] == [1000, 1000]
        assert (await missed(attachments, at(f"{server.url}/size/1001"))).reason == "too_large"
        assert (await missed(attachments, *[at(f"{server.url}/size/900")] * 3)).reason == "too_large"


async def test_a_bomb_is_undone_no_further_than_allowed(tmp_path, server):
    async with attaching(tmp_path, with_(bytes_max=5_000_000)) as attachments:
        gc.collect()
        tracemalloc.start()
        try:
            assert (await missed(attachments, at(f"{server.url}/bomb"))).reason == "too_large"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20_000_000


async def test_what_drips_ends_with_the_time_that_the_whole_fetch_has(tmp_path, server):
    async with attaching(tmp_path, with_(timeout_s=0.5)) as attachments:
        trouble = await missed(attachments, at(f"{server.url}/drip"))
        assert (trouble.reason, trouble.again) == ("timeout", True)


# Volumes


async def test_http_and_webdav_volumes(tmp_path, server):
    dav = {"base_url": f"{server.url}/login/", "username": "ann", "password": "p:wü"}
    volumes = {"web": ("http", {"base_url": f"{server.url}/ok"}, None), "dav": ("webdav", dav, None)}
    wrong = ("webdav", {**dav, "password": "x"}, None)
    async with attaching(tmp_path, **volumes, wrong=wrong) as attachments:
        server.asked.clear()
        assert await had(attachments, on("web:a b/ü?#.pdf"), on("dav:x")) == [CONTENT, CONTENT]
        assert "/ok/a%20b/%C3%BC%3F%23.pdf" in [path for path, _ in server.asked]
        assert (await missed(attachments, on("wrong:x"))).reason == "refused"


async def test_a_local_volume(tmp_path):
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.pdf").write_bytes(CONTENT)
    (folder / "out").symlink_to("/etc/passwd")
    volume, gone = ("local", {"path": str(folder)}, None), ("local", {"path": str(folder / "gone")}, None)
    async with attaching(tmp_path, with_(bytes_max=len(CONTENT)), files=volume, gone=gone) as attachments:
        assert await had(attachments, on("files:sub/a.pdf")) == [CONTENT]
        for path, reason in (("none", "not_found"), ("out", "not_allowed"), ("../x", "not_allowed")):
            assert (await missed(attachments, on(f"files:{path}"))).reason == reason
        assert (await missed(attachments, on("gone:x"))).reason == "unavailable"
    async with attaching(tmp_path / "files", with_(bytes_max=9), files=volume) as attachments:
        assert (await missed(attachments, on("files:sub/a.pdf"))).reason == "too_large"


async def test_a_memory_volume_is_empty_at_the_start(tmp_path):
    async with attaching(tmp_path, with_(bytes_max=9), mem=("memory", {}, None)) as attachments:
        assert (await missed(attachments, on("mem:x"))).reason == "not_found"
        attachments.memory["mem", "x"] = b"here"
        attachments.memory["mem", "y"] = bytes(10)
        assert await had(attachments, on("mem:x")) == [b"here"]
        assert (await missed(attachments, on("mem:y"))).reason == "too_large"


async def test_a_volume_is_judged_again_for_the_account(tmp_path):
    async with attaching(tmp_path, mem=("memory", {}, "shop")) as attachments:
        attachments.memory["mem", "x"] = b"here"
        assert await had(attachments, on("mem:x"), account="shop") == [b"here"]
        assert (await missed(attachments, on("mem:x"), account="other")).reason == "no_volume"
        assert (await missed(attachments, on("none:x"))).reason == "no_volume"


def s3_config(url, **fields):
    return {"bucket": "invoices", "endpoint_url": url, "access_key": "AK", "secret_key": "SK"} | fields


async def test_an_s3_volume_and_its_bucket(tmp_path, bucket):
    async with attaching(tmp_path, with_(bytes_max=len(CONTENT)), inv=("s3", s3_config(bucket), None)) as attachments:
        wanted = on("inv:2026/a b ü.pdf"), Attachment("y", s3=S3Object("invoices", "2026/a b ü.pdf"))
        assert await had(attachments, *wanted) == [CONTENT, CONTENT]
        assert (await missed(attachments, on("inv:none"))).reason == "not_found"
        assert (await missed(attachments, on("inv:a//b"))).reason == "not_found"


async def test_an_s3_endpoint_on_a_private_address_needs_leave_too(tmp_path, bucket):
    async with attaching(tmp_path, with_(allowed=()), inv=("s3", s3_config(bucket), None)) as attachments:
        assert (await missed(attachments, on("inv:big"))).reason == "not_allowed"


async def test_a_bucket_is_taken_from_the_accounts_own_volume_before_a_shared_one(tmp_path, bucket):
    shared = s3_config("http://127.0.0.1:1")
    volumes = {"a": ("s3", shared, None), "b": ("s3", s3_config(bucket), "shop")}
    wanted = Attachment("y", s3=S3Object("invoices", "big"))
    async with attaching(tmp_path, **volumes) as attachments:
        assert await had(attachments, wanted, account="shop") == [bytes(3000)]
        assert (await missed(attachments, wanted, account="other")).reason == "unreachable"


async def test_a_bucket_without_a_volume_is_the_environments(tmp_path, bucket, monkeypatch):
    names = {"ACCESS_KEY_ID": "AK", "SECRET_ACCESS_KEY": "SK", "REGION": "us-east-1", "ENDPOINT_URL": bucket}
    for name, value in names.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    async with attaching(tmp_path) as attachments:
        assert await had(attachments, Attachment("y", s3=S3Object("invoices", "big"))) == [bytes(3000)]
        assert (await missed(attachments, Attachment("y", s3=S3Object("other", "big")))).reason == "not_found"


def test_urls_of_clouds_are_signed_and_name_the_object():
    url = urlsplit(
        s3_url({"bucket": "b", "access_key": "AK", "secret_key": "hush", "region": "eu-west-1"}, "a/b c.pdf")
    )
    assert url.path.endswith("/a/b%20c.pdf") and url.hostname and url.hostname.endswith("amazonaws.com")
    assert "X-Amz-Signature" in parse_qs(url.query) and "hush" not in url.query
    azure = {"container": "c", "account_name": "acct"}
    assert azure_url(azure, "a b") == "https://acct.blob.core.windows.net/c/a%20b"
    signed = urlsplit(azure_url({**azure, "account_key": "aHVzaGh1c2g="}, "a b"))
    assert signed.hostname == "acct.blob.core.windows.net" and parse_qs(signed.query)["sp"] == ["r"]
    google = place_in("g", "gcs", {"bucket": "b", "token": "T"}, "a b")
    assert google.url == "https://storage.googleapis.com/b/a%20b"
    assert google.headers == {"Authorization": "Bearer T"}
    assert place_in("g", "gcs", {"bucket": "b"}, "a").headers == {}


@pytest.mark.parametrize("backend", ["gcs", "azure"])
async def test_clouds_that_cannot_be_reached_are_tried_again(tmp_path, backend):
    azure = {"container": "c", "account_name": "acct", "account_key": "aHVzaA=="}
    config = azure if backend == "azure" else {"bucket": "b", "token": "T"}

    async def resolver(host, port):
        raise OSError("no such name")

    async with attaching(tmp_path, cloud=(backend, config, None)) as attachments:
        attachments._resolver = resolver
        trouble = await missed(attachments, on("cloud:x"))
        assert (trouble.reason, trouble.again) == ("unreachable", True)


# Memory


async def test_room_is_given_in_order_and_given_back_by_who_is_cancelled(autojump_clock):
    room, got = Room(100), []

    async def take(name, amount):
        await room.take(amount)
        got.append(name)

    async with trio.open_nursery() as nursery:
        await room.take(80)
        nursery.start_soon(take, "large", 50)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, "small", 10)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        room.give(30)
        await trio.testing.wait_all_tasks_blocked()
        assert got == ["large"] and room.free == 0
        room.give(10)
        await trio.testing.wait_all_tasks_blocked()
        assert got == ["large", "small"]
        with trio.move_on_after(1):
            await room.take(70)
        nursery.start_soon(take, "next", 20)
        room.give(20)
    assert got[-1] == "next" and room.free == 0


async def test_who_finds_no_room_is_told_so_and_what_is_not_needed_is_given_back_at_once(tmp_path, autojump_clock):
    policy = with_(total_bytes_max=600, memory_bytes_max=1000)
    async with attaching(tmp_path, policy, mem=("memory", {}, None)) as attachments:
        attachments.memory["mem", "x"] = bytes(500)
        attachments.memory["mem", "y"] = bytes(100)
        first = await attachments.fill(letter(on("mem:y")), "shop")
        second = await attachments.fill(letter(on("mem:x")), "shop")
        assert attachments.room.free == 400
        trouble = await missed(attachments, Attachment("own", ""), on("mem:y"))
        assert (trouble.field, trouble.reason, trouble.again) == ("attachments[1]", "busy", True)
        first.release()
        second.release()


async def test_time_runs_out_while_a_name_is_looked_up_and_nothing_is_kept(tmp_path, autojump_clock):
    async def resolver(host, port):
        await trio.sleep_forever()

    async with opened(tmp_path) as store:
        attachments = Attachments(store, with_(timeout_s=30), resolver=resolver)
        before = trio.current_time()
        assert (await missed(attachments, at("http://files.example/"))).reason == "timeout"
        assert trio.current_time() - before == pytest.approx(30)
        assert attachments.room.free == OPEN.memory_bytes_max
        await attachments.aclose()
