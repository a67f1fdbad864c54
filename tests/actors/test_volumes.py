"""Volumes: what is saved, what stands beside it, and what is kept where a secret is missing."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from actors.control import run_control
from actors.proxy_sync import Reports
from actors.volumes import opened_config, save_volume
from events.commands import Control, Refused, RemoveVolume, Reply, SaveVolume
from events.payloads import Volume
from events.places import shown
from store import reading
from store.secrets import Secrets
from store.views.volumes import VolumeRow

from .opened import facts, opened, rows

SECRETS = Secrets(b"k" * 32, lambda n: b"s" * n)
S3 = {"bucket": "invoices", "access_key": "AK", "secret_key": "hush"}


def volume(backend="s3", config=S3, **fields) -> Volume:
    return Volume(**{"name": "files", "backend": backend, "config": config, **fields})


def saved(new: Volume, stored=None, backend="s3"):
    row = VolumeRow("files", backend, "digest", None, "api", 0) if stored is not None else None
    return save_volume(new, row, stored or {}, SECRETS, "api")


@pytest.mark.parametrize(
    ("backend", "config", "word"),
    [
        ("s3", {}, "config.bucket is missing"),
        ("s3", {"bucket": None}, "config.bucket is missing"),
        ("s3", {"bucket": "a/b"}, "no name of a bucket"),
        ("s3", {"bucket": "b", "path": "/x"}, "config.path is no key"),
        ("s3", {"bucket": "b", "endpoint_url": "ftp://x"}, "config.endpoint_url must be"),
        ("gcs", {"token": "t"}, "config.bucket is missing"),
        ("azure", {"container": "c"}, "config.account_name is missing"),
        ("azure", {"container": "c", "account_name": "evil.example/"}, "config.account_name must be"),
        ("local", {"path": "files"}, "config.path must be a whole path"),
        ("local", {"path": "/a\0b"}, "control character"),
        ("http", {"base_url": "http://"}, "config.base_url must be"),
        ("http", {"base_url": "http://h:99999"}, "config.base_url must be"),
        ("http", {"base_url": "file:///etc"}, "config.base_url must be"),
        ("webdav", {"base_url": "https://h/?a=b"}, "config.base_url must be"),
        ("webdav", {"username": "u"}, "config.base_url is missing"),
        ("memory", {"size": "1"}, "config.size is no key of the backend memory: it has none"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_the_name_of_its_key(backend, config, word):
    refused = saved(volume(backend, config))
    assert isinstance(refused, Refused) and word in refused.sentence


@pytest.mark.parametrize("name", ["base64", "BASE64", "", "a:b", "a/b", "-a", "x" * 101, "a b", "ü"])
def test_names_that_no_storage_path_could_hold_are_refused(name):
    assert isinstance(saved(volume(name=name)), Refused)


def test_a_missing_secret_is_kept_while_the_place_stays_the_same():
    without = {"bucket": "invoices", "access_key": "AK"}
    assert saved(volume(config=without), S3).config == S3
    assert saved(volume(config=without, account_id="shop"), S3).config == S3
    assert saved(volume(config={**without, "secret_key": None}), S3).config == S3
    assert saved(volume(config={**S3, "secret_key": "new"}), S3).config["secret_key"] == "new"
    assert "secret_key" not in saved(volume(config={**without, "bucket": "other"}), S3).config
    assert "secret_key" not in saved(volume(config={**without, "endpoint_url": "https://evil.example"}), S3).config
    assert "secret_key" not in saved(volume(config={"bucket": "invoices"}), S3).config
    assert "token" not in saved(volume("gcs", {"bucket": "b"}), {"bucket": "b", "token": "t"}, "s3").config


def test_user_and_password_in_a_url_are_a_secret_like_any_other():
    stored = {"base_url": "https://ann:pw@files.example/a"}
    assert shown(stored) == {"base_url": "https://files.example/a"}
    assert saved(volume("http", {"base_url": "https://files.example/a"}), stored, "http").config == stored
    assert saved(volume("http", {"base_url": "https://bob:x@files.example/a"}), stored, "http").config == {
        "base_url": "https://bob:x@files.example/a"
    }
    assert saved(volume("http", {"base_url": "https://files.example/b"}), stored, "http").config == {
        "base_url": "https://files.example/b"
    }


async def nothing_to_let_go(older_than_s, by):
    return 0


@asynccontextmanager
async def controlling(folder):
    """(store, ask): a real control actor."""
    send, receive = trio.open_memory_channel(8)

    async def ask(command, by="api"):
        reply = Reply()
        await send.send(Control(command, by, reply))
        return await reply.get()

    async with opened(folder) as store, trio.open_nursery() as nursery:
        run = partial(run_control, receive, store, (), nothing_to_let_go, Reports(store, 10), max_age_us=1)
        nursery.start_soon(run)
        yield store, ask
        nursery.cancel_scope.cancel()


async def config_of(store, name="files"):
    return opened_config((await store.read(reading.sealed_volumes, (name,))).get(name), store.secrets)


async def test_the_log_has_a_digest_and_the_secrets_stand_beside_it_until_the_volume_goes(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        assert await ask(SaveVolume(volume(account_id="shop"))) == {"ok": True}
        assert await ask(SaveVolume(volume(account_id="shop"))) == {"ok": True}
        (entry,) = await facts(store)
        assert (entry.kind, entry.fact.name, entry.fact.account_id) == ("VolumeSaved", "files", "shop")
        ((data,),) = await rows(store, "select data from log")
        assert b"hush" not in data and b"invoices" not in data and b"AK" not in data
        ((sealed,),) = await rows(store, "select sealed from secrets")
        assert b"hush" not in sealed and await config_of(store) == S3
        assert await ask(RemoveVolume("files")) == {"ok": True}
        assert await rows(store, "select * from secrets") == [] and await config_of(store) is None
        refused = await ask(RemoveVolume("files"))
        assert isinstance(refused, Refused) and refused.status == 404
        assert await ask(SaveVolume(volume())) == {"ok": True}
        assert await config_of(store) == S3


async def test_what_config_ini_says_yields_to_what_was_set_over_http(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        from_file = SaveVolume(volume(), yields=True)
        changed = SaveVolume(volume(config={**S3, "bucket": "moved"}), yields=True)
        await ask(from_file, by="config")
        await ask(changed, by="config")
        assert (await config_of(store))["bucket"] == "moved"
        # Saved over HTTP just as it is, it is HTTP's from there on.
        await ask(SaveVolume(volume(config={**S3, "bucket": "moved"})), by="api")
        await ask(from_file, by="config")
        assert (await config_of(store))["bucket"] == "moved"
        await ask(RemoveVolume("files"), by="api")
        await ask(from_file, by="config")
        assert await config_of(store) == S3
        assert [entry.fact.by for entry in await facts(store)] == ["config", "config", "api", "api", "config"]
