"""`log --follow` on a running service, while it is down, and after it has started again."""

import json
import signal
import subprocess

import trio

from .service import LOOK_S, WAIT_S_MAX, letterbook, mail

FOREVER = 4_000_000_000


async def lines_of(path, wanted):
    """Wait until so many lines are written."""
    with trio.fail_after(WAIT_S_MAX):
        while len(found := path.read_bytes().splitlines()) < wanted:
            await trio.sleep(LOOK_S)
    return found


async def test_following_outlives_the_service_and_its_export_verifies(service):
    it = await service()
    await it.account("a", 9)
    file = it.folder / "followed.jsonl"
    with file.open("wb") as out:
        command = letterbook("log", "--json", "--follow")
        following = subprocess.Popen(command, env=it.environment, cwd=it.folder, stdout=out)
    try:
        await it.add([mail(f"later-{number}", account_id="a", deferred_ts=FOREVER) for number in range(3)])
        await lines_of(file, (await it.status())["seq"])
        assert await it.stop() == 0
        await it.start()
        await it.add([mail("once more", account_id="a", deferred_ts=FOREVER)])
        await lines_of(file, (await it.status())["seq"])
        following.send_signal(signal.SIGINT)
        with trio.fail_after(WAIT_S_MAX):
            while (code := following.poll()) is None:
                await trio.sleep(LOOK_S)
        assert code == 0
    finally:
        if following.poll() is None:
            following.kill()
            following.wait()
    seqs = [json.loads(line)["seq"] for line in file.read_bytes().splitlines()]
    assert seqs == list(range(1, len(seqs) + 1))
    said = await it.run("verify", file)
    assert said.code == 0, said.err
