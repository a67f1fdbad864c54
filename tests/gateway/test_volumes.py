"""Volumes over HTTP: what is listed, for whom, and that no secret is."""

import msgspec

from events.fact import Draft
from events.volume import VolumeSaved
from store.beside import Sealed

from .service import running

SECRETS = ("hush", "ann", "pw@")


async def save(service, name, backend, config, account_id=None):
    sealed = Sealed(service.store.secrets.seal(msgspec.json.encode(config)))
    fact = VolumeSaved(name=name, backend=backend, config="d" * 16, account_id=account_id)
    await service.one(Draft(fact), sealed)


async def test_volumes_are_listed_without_their_secrets(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await save(service, "b", "s3", {"bucket": "i", "access_key": "AK", "secret_key": "hush"}, "shop")
        await save(service, "a", "webdav", {"base_url": "https://ann:pw@h.example:1/x", "password": "hush"})
        await save(service, "c", "azure", {"container": "c", "account_key": "hush"}, "other")
        answer = await client.get("/volumes")
        assert not [secret for secret in SECRETS if secret in answer.text]
        a = {"name": "a", "backend": "webdav", "config": {"base_url": "https://h.example:1/x"}}
        b = {"name": "b", "backend": "s3", "config": {"bucket": "i", "access_key": "AK"}, "account_id": "shop"}
        c = {"name": "c", "backend": "azure", "config": {"container": "c"}, "account_id": "other"}
        assert answer.json() == {"ok": True, "volumes": [a, b, c]}
        assert (await client.get("/volumes?account_id=shop")).json()["volumes"] == [a, b]
        assert (await client.get("/volumes?account_id=")).json()["volumes"] == [a]
        assert (await client.get("/volume/b")).json() == {"ok": True, **b}


async def test_a_volume_that_is_not_there_is_a_404(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for path in ("/volume/none", "/volume/a%2Fb", "/volume/%00"):
            answer = await client.get(path)
            assert answer.status_code == 404 and answer.json()["ok"] is False


async def test_a_config_that_cannot_be_opened_is_left_out(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.one(Draft(VolumeSaved(name="a", backend="memory", config="d")), Sealed(bytes(40)))
        assert (await client.get("/volume/a")).json() == {"ok": True, "name": "a", "backend": "memory"}
