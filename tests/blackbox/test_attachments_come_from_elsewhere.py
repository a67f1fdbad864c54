"""Attachments from a web server, a local folder and a bucket arrive at aiosmtpd byte for byte; what cannot be had is
explained; volumes of config.ini yield to those set over HTTP, also after a restart."""

import email
import json

from tests.actors.places import CONTENT, files, s3

from .relays import StockRelay
from .service import kinds, mail

PRIVATE = {"attachments_allow_private_networks": "127.0.0.0/8"}


def attached(content):
    return {part.get_filename(): part.get_payload(decode=True) for part in email.message_from_bytes(content).walk()}


async def test_they_arrive_as_they_were(service, authority, ca_file, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a b.bin").write_bytes(CONTENT[::-1])
    relay = StockRelay(authority, {"shop": "pw"})
    with files() as web, s3(**{"2026/x.bin": CONTENT * 3}) as bucket, relay.listening():
        it = await service(**PRIVATE)
        await it.account("shop", relay.port, user="shop", password="pw", tls_ca_file=str(ca_file))
        config = {"bucket": "invoices", "endpoint_url": bucket, "access_key": "AK", "secret_key": "hush"}
        await it.post("/volume", {"name": "inv", "backend": "s3", "config": config, "account_id": "shop"})
        await it.post("/volume", {"name": "disk", "backend": "local", "config": {"path": str(folder)}})
        wanted = [
            {"filename": "web.bin", "url": f"{web.url}/gzip"},
            {"filename": "disk.bin", "storage_path": "disk:a b.bin"},
            {"filename": "volume.bin", "storage_path": "inv:2026/x.bin"},
            {"filename": "bucket.bin", "s3": {"bucket": "invoices", "key": "2026/x.bin"}},
        ]
        await it.add([mail("m", account_id="shop", attachments=wanted)])
        await relay.until_received(1)
        found = attached(relay.arrived[0].content)
        assert found["web.bin"] == CONTENT and found["disk.bin"] == CONTENT[::-1]
        assert found["volume.bin"] == found["bucket.bin"] == CONTENT * 3
        (result,) = await it.until_results(1)
        assert result["status"] == "sent"
        for data in (it.db.read_bytes(), it.lines.encode()):
            assert b"hush" not in data
        await it.stop()


async def test_what_cannot_be_had_is_explained(service, authority, ca_file):
    relay = StockRelay(authority, {"shop": "pw"})
    with files() as web, relay.listening():
        it = await service(**PRIVATE, delivery_max_retries=0)
        await it.account("shop", relay.port, user="shop", password="pw", tls_ca_file=str(ca_file))
        urls = {"gone": "/status/404", "down": "/status/503", "metadata": "/to/http%3A%2F%2F169.254.169.254%2F"}
        await it.add(
            [
                mail(name, account_id="shop", attachments=[{"filename": "Ann.pdf", "url": web.url + path}])
                for name, path in urls.items()
            ]
        )
        results = {result["id"]: result["error"] for result in await it.until_results(3)}
        assert results == {
            "gone": 'attachment "Ann.pdf": 404 not found',
            "down": 'Max retries (0) exceeded: attachment "Ann.pdf": 503 not available now',
            "metadata": 'attachment "Ann.pdf": not a public address, or outside of its volume',
        }
        timeline = (await it.message("gone"))["timeline"]
        assert kinds(timeline) == ["MessageAccepted", "AttemptStarted", "AttemptEnded"]
        assert (timeline[-1]["field"], timeline[-1]["reason"]) == ("attachments[0]", "not_found")
        answer = await it.post(
            "/commands/add-messages",
            {"messages": [mail("v", account_id="shop", attachments=[{"filename": "x", "storage_path": "none:x"}])]},
        )
        assert answer["rejected"] == [{"id": "v", "reason": "Invalid/unauthorized storage volumes: none:x"}]
        assert relay.arrived == []
        await it.stop()


async def test_volumes_of_config_ini_yield_to_those_set_over_http(service, tmp_path):
    here = {"volumes_volume.disk.backend": "local", "volumes_volume.disk.config": json.dumps({"path": "/srv"})}
    it = await service(**here)

    async def place():
        (volume,) = (await it.get("/volumes"))["volumes"]
        return volume["config"]["path"]

    assert await place() == "/srv"
    await it.post("/volume", {"name": "disk", "backend": "local", "config": {"path": "/mine"}})
    await it.stop()
    await it.start()
    assert await place() == "/mine"
    assert (await it.client.delete("/volume/disk")).status_code == 200
    assert (await it.get("/volumes"))["volumes"] == []
    await it.stop()
    await it.start()
    assert await place() == "/srv"
    assert [event["by"] for event in await it.events("VolumeSaved")] == ["config", "api", "config"]
    said = await it.run("volumes")
    assert "disk" in said.out and "/srv" in said.out
