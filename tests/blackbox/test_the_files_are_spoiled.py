"""What stands in the way of a start, or is met later, is one line that names the file; nothing is made or lost."""

import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio
from msgspec import Struct

from letterbook.capture import CaptureRelay
from store.files import mark_path, read_or_make_key
from tests.letterbook.old import old_service

from .forks import Command, run_each
from .service import Said, Service, mail, service

MESSAGES = 200
LATER_TS = 2_000_000_000


class Log(Struct, frozen=True):
    """The files of a service that was stopped in order, in a case's own folder."""

    folder: Path

    @property
    def db(self) -> Path:
        return self.folder / "letterbook.db"

    @property
    def key(self) -> Path:
        return self.folder / "letterbook.key"

    def beside(self, name: str) -> Path:
        return Path(f"{self.db}{name}")

    @property
    def settings(self) -> dict[str, str]:
        return {"LETTERBOOK_STORAGE_DB_PATH": str(self.db), "LETTERBOOK_STORAGE_KEY_FILE": str(self.key)}

    def content(self) -> dict[str, bytes | None]:
        """All there is but the lock file, byte by byte."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
            if path != self.beside(".lock")
        }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a log that holds mail that waits."""
    folder: Path = tmp_path_factory.mktemp("whole") / "log"
    folder.mkdir()

    async def fill() -> None:
        async with service(folder) as it:
            await it.account("a", 9)
            await it.add(
                [mail(f"m{n}", account_id="a", body="x" * 3000, deferred_ts=LATER_TS) for n in range(MESSAGES)]
            )
            assert await it.stop() == 0

    trio.run(fill)
    for path in (*folder.glob("serve-*"), folder / "config.ini"):
        path.unlink()
    return folder


def copy(whole: Path, folder: Path) -> Log:
    shutil.copytree(whole, folder)
    return Log(folder)


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(db: Path) -> Iterator[None]:
    """Another program, in a process of its own, keeps the database locked."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdin and program.stdout and program.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            program.stdin.close()
            program.wait()


# What has become of the files. A spoiler may go on until the command has ended, and may change settings.

Spoiler = Callable[[Log], "Iterator[dict[str, str]] | dict[str, str] | None"]


def overwrite(path: Path, start: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x5a" * size)


def replace(path: Path, *, by: str | None = None, folder: bool = False) -> None:
    """By a text, by a folder, or by nothing."""
    if path.exists():
        path.unlink()
    if by is not None:
        path.write_text(by)
    if folder:
        path.mkdir()


def header(log: Log) -> None:
    overwrite(log.db, 0, 100)


def first_page(log: Log) -> None:
    overwrite(log.db, 100, 3000)


def pages_in_the_middle(log: Log) -> None:
    overwrite(log.db, 8192, log.db.stat().st_size // 2)


def cut_off(log: Log) -> None:
    os.truncate(log.db, log.db.stat().st_size // 3)


def cut_off_within_a_page(log: Log) -> None:
    os.truncate(log.db, 5000)


def no_database(log: Log) -> None:
    replace(log.db, by="a text\n" * 1000)


def another_programs(log: Log) -> None:
    replace(log.db)
    with closing(sqlite3.connect(log.db)) as other:
        other.execute("create table meta (x)")


def the_old_services(log: Log) -> None:
    replace(log.db)
    with old_service(log.db):
        pass


def a_newer_releases(log: Log) -> None:
    with closing(sqlite3.connect(log.db)) as newer, newer:
        newer.execute("insert into _sqlite_migrations (migration_set, name) values ('letterbook', 'to_come')")


def database_a_folder(log: Log) -> None:
    replace(log.db, folder=True)


def no_folder(log: Log) -> dict[str, str]:
    return {"LETTERBOOK_STORAGE_DB_PATH": str(log.folder / "none" / "letterbook.db")}


def database_read_only(log: Log) -> None:
    log.db.chmod(0o444)


def database_closed(log: Log) -> None:
    log.db.chmod(0)


def folder_read_only(log: Log) -> None:
    log.folder.chmod(0o555)


def wal_closed(log: Log) -> None:
    replace(log.beside("-wal"), by="")
    log.beside("-wal").chmod(0)


def lock_a_folder(log: Log) -> None:
    replace(log.beside(".lock"), folder=True)


def lock_closed(log: Log) -> None:
    log.beside(".lock").chmod(0)


def kept_locked(log: Log) -> Iterator[dict[str, str]]:
    with locked(log.db):
        yield {}


def key_lost(log: Log) -> None:
    replace(log.key)


def key_malformed(log: Log) -> None:
    replace(log.key, by="no key\n")


def key_of_another_log(log: Log) -> None:
    replace(log.key)
    read_or_make_key(log.key, False, os.urandom)


def key_a_folder(log: Log) -> None:
    replace(log.key, folder=True)


def key_closed(log: Log) -> None:
    log.key.chmod(0)


def mark_a_folder(log: Log) -> None:
    replace(mark_path(log.db), folder=True)


def mark_closed(log: Log) -> None:
    mark_path(log.db).chmod(0)


def nothing_yet(log: Log) -> None:
    for path in log.folder.iterdir():
        path.unlink()


def nothing_yet_and_a_folder_read_only(log: Log) -> None:
    nothing_yet(log)
    log.folder.chmod(0o555)


def nothing_yet_and_no_folder_for_the_key(log: Log) -> dict[str, str]:
    nothing_yet(log)
    return {"LETTERBOOK_STORAGE_KEY_FILE": str(log.folder / "none" / "letterbook.key")}


def nothing_yet_and_the_port_in_use(log: Log) -> Iterator[dict[str, str]]:
    nothing_yet(log)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"LETTERBOOK_SERVER_PORT": str(taken.getsockname()[1])}


class Case(Struct, frozen=True):
    """The words by which the start names the trouble; those of a command that only reads, None where it reads all the
    same; whether `check-config` sees it."""

    spoil: Spoiler
    start: str
    read: str | None = None
    checked: bool = True


DAMAGED = "letterbook.db is damaged: keep a copy"
NO_DATABASE = "letterbook.db is no SQLite database"
CLOSED = "letterbook.db cannot be opened"

CASES = (
    Case(header, NO_DATABASE, NO_DATABASE),
    Case(first_page, DAMAGED, DAMAGED),
    Case(pages_in_the_middle, DAMAGED, DAMAGED),
    Case(cut_off, DAMAGED, DAMAGED),
    Case(cut_off_within_a_page, DAMAGED, DAMAGED),
    Case(no_database, NO_DATABASE, NO_DATABASE),
    Case(another_programs, "the database of another program, with the tables meta", "holds no log of ours"),
    Case(the_old_services, "the old service's? `letterbook import` takes it over", "holds no log of ours"),
    Case(a_newer_releases, "written by a newer release"),
    Case(database_a_folder, "letterbook.db is no file", "letterbook.db is no file"),
    Case(no_folder, "/none: create it", "letterbook.db is no file"),
    Case(database_read_only, "letterbook.db cannot be read and written"),
    Case(database_closed, "letterbook.db cannot be read and written", CLOSED),
    Case(folder_read_only, "cannot be written, and SQLite makes files beside", "can only be read"),
    Case(wal_closed, "letterbook.db-wal cannot be read and written", CLOSED),
    Case(lock_a_folder, "letterbook.db.lock is no file"),
    Case(lock_closed, "letterbook.db.lock cannot be read and written"),
    Case(kept_locked, "letterbook.db is kept locked by another program", checked=False),
    Case(key_lost, "letterbook.key is missing beside a log"),
    Case(key_malformed, "letterbook.key is malformed"),
    Case(key_of_another_log, "letterbook.key holds the key"),
    Case(key_a_folder, "letterbook.key cannot be read or made (Is a directory)"),
    Case(key_closed, "letterbook.key cannot be read or made (Permission denied)"),
    Case(mark_a_folder, "letterbook.db.mark is no file"),
    Case(mark_closed, "letterbook.db.mark cannot be read and written"),
    Case(nothing_yet_and_a_folder_read_only, "cannot be written, and SQLite", "letterbook.db is no file"),
    Case(nothing_yet_and_no_folder_for_the_key, "letterbook.key cannot be made", "letterbook.db is no file"),
    Case(nothing_yet_and_the_port_in_use, "write another [server] port", "letterbook.db is no file", checked=False),
)


@contextmanager
def spoiled(case: Case, log: Log) -> Iterator[dict[str, str]]:
    found = case.spoil(log)
    with contextmanager(lambda: found)() if isinstance(found, Iterator) else _at_once(found) as changed:
        yield log.settings | changed


@contextmanager
def _at_once(settings: dict[str, str] | None) -> Iterator[dict[str, str]]:
    yield settings or {}


def is_one_line(said: Said, words: str) -> bool:
    """Exit code 1 and one line; lines that begin with a time may stand before it."""
    own = [line for line in said.err.splitlines() if line.startswith("letterbook: ")]
    return said.code == 1 and len(own) == 1 and said.err.endswith(f"{own[0]}\n") and words in own[0]


def environment(folder: Path) -> dict[str, str]:
    return Service(folder, {}).environment


def readable(log: Log) -> None:
    """Whatever was closed, so that the test may look."""
    log.folder.chmod(0o755)
    for path in log.folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


async def test_what_keeps_a_start_from_going_on_is_one_line_and_nothing_is_made_or_changed(whole, tmp_path):
    logs = [copy(whole, tmp_path / case.spoil.__name__) for case in CASES]
    with ExitStack() as spoilers:
        commands = []
        contents = []
        for case, log in zip(CASES, logs, strict=True):
            settings = spoilers.enter_context(spoiled(case, log))
            commands += [Command([word], settings) for word in ("check-config", "serve")]
            contents.append(contents_of_closed(log))
        said = await run_each(commands, tmp_path, environment(tmp_path))
        after = [contents_of_closed(log) for log in logs]
        for case, checked, served in zip(CASES, said[::2], said[1::2], strict=True):
            assert is_one_line(served, case.start), (case.spoil.__name__, served)
            assert not case.checked or checked.err == served.err.splitlines(keepends=True)[-1], (case, checked, served)
            assert case.checked or checked.code == 0, checked
        for case, before, now in zip(CASES, contents, after, strict=True):
            assert before == now, (case.spoil.__name__, before.keys() ^ now.keys())
    for log in logs:
        readable(log)


def contents_of_closed(log: Log) -> dict[str, bytes | None]:
    """Root reads what is closed to its owner; without root it is opened for the moment."""
    modes = {path: path.stat().st_mode for path in (log.folder, *sorted(log.folder.rglob("*")))}
    if os.geteuid():
        readable(log)
    found = log.content()
    for path, mode in modes.items():
        path.chmod(mode)
    return found


async def test_commands_that_only_read_say_it_in_one_line_too(whole, tmp_path):
    cases = [case for case in CASES if case.read]
    words = (["pending"], ["log"], ["show", "m1"], ["verify"], ["at", "3"], ["rebuild", "--check"], ["rebuild"])
    logs = [copy(whole, tmp_path / case.spoil.__name__) for case in cases]
    with ExitStack() as spoilers:
        commands = [
            Command(words[number % len(words)], spoilers.enter_context(spoiled(case, log)))
            for number, (case, log) in enumerate(zip(cases, logs, strict=True))
        ]
        commands += [Command(each, commands[0].environment) for each in words]
        said = await run_each(commands, tmp_path, environment(tmp_path))
    for case, each in zip(cases + cases[:1] * len(words), said, strict=True):
        assert is_one_line(each, case.read or ""), (case.spoil.__name__, each)
    for log in logs:
        readable(log)


# What is mended by the start itself


def mark_lost(log: Log) -> None:
    replace(mark_path(log.db))


def mark_malformed(log: Log) -> None:
    replace(mark_path(log.db), by='{"log":')


def key_open_to_others(log: Log) -> None:
    log.key.chmod(0o644)


def wal_of_nobody(log: Log) -> None:
    replace(log.beside("-wal"), by="not a frame\n" * 4000)


def index_of_nobody(log: Log) -> None:
    wal_of_nobody(log)
    replace(log.beside("-shm"), by="not an index\n" * 4000)


MENDED = {
    mark_lost: "the mark file is missing",
    mark_malformed: "the mark file is missing",
    key_open_to_others: "letterbook.key is open to others (mode 0644): run `chmod 600` on it",
    wal_of_nobody: "",
    index_of_nobody: "",
}
"""What is no reason to stay away, and the warning."""


async def test_what_is_no_reason_to_stay_away_is_a_warning_at_most(whole, tmp_path):
    logs = [copy(whole, tmp_path / spoil.__name__) for spoil in MENDED]
    for spoil, log in zip(MENDED, logs, strict=True):
        spoil(log)
    commands = [Command(words, log.settings) for log in logs for words in (["serve"], ["verify"])]
    said = await run_each(commands, tmp_path, environment(tmp_path))
    for warning, served, verified in zip(MENDED.values(), said[::2], said[1::2], strict=True):
        assert served.code == 0 and warning in served.err, served
        assert ("warning" in served.err) == bool(warning), served
        # What was there, and the two facts of the start and the stop.
        assert verified.code == 0 and f"{MESSAGES + 5} facts" in verified.out, verified


# What is met while it runs


@asynccontextmanager
async def resumed(whole: Path, folder: Path, **settings: object) -> AsyncIterator[tuple[Service, Log]]:
    log = copy(whole, folder)
    async with service(log.folder, **settings) as it:
        yield it, log


def said_and_ended(it: Service, code: int, words: str) -> bool:
    """The last line is the one; the service's own lines stand before it."""
    return is_one_line(Said(code, "", it.lines), words) and "Traceback" not in it.lines


async def test_a_page_that_turns_out_to_be_damaged_ends_the_service(whole, tmp_path):
    async with resumed(whole, tmp_path / "log") as (it, log):
        overwrite(log.db, 8192, log.db.stat().st_size - 8192)
        with suppress(httpx.TransportError):
            await it.client.get("/messages/m150")
        assert said_and_ended(it, await it.ended(), DAMAGED), it.lines


async def test_a_disk_that_fails_ends_the_service_and_what_was_accepted_is_there(whole, tmp_path):
    async with resumed(whole, tmp_path / "log") as (it, log):
        await it.add([mail("before", account_id="a", deferred_ts=LATER_TS)])
        # No file of the process may grow past here: SQLite is told of an error that is none of a full disk.
        resource.prlimit(it.pid, resource.RLIMIT_FSIZE, (log.db.stat().st_size, resource.RLIM_INFINITY))
        with suppress(httpx.TransportError):
            lost = mail("lost", account_id="a", body="x" * 3_000_000, deferred_ts=LATER_TS)
            answer = await it.client.post("/commands/add-messages", json={"messages": [lost]})
            assert answer.status_code == 503, answer
        assert said_and_ended(it, await it.ended(), "letterbook.db cannot be read or written, for the disk fails")
        await it.start()
        assert (await it.message("before"))["status"] == (await it.message("m1"))["status"] == "deferred"
        assert (await it.client.get("/messages/lost")).status_code == 404


async def test_while_another_program_keeps_the_database_locked_nothing_is_taken_and_ends_wait(whole, tmp_path):
    async with resumed(whole, tmp_path / "log", server_drain_seconds=0) as (it, log):
        answered = trio.Event()

        async def wait(message):
            await answered.wait()

        async with CaptureRelay(on_message=wait).listening() as relay:
            await it.account("b", relay.port)
            await it.add([mail("first", account_id="b")])
            await relay.until_received(1)
            with locked(log.db):
                one = {"messages": [mail("late", account_id="b")]}
                answer = await it.client.post("/commands/add-messages", json=one)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                assert answer.json()["error"].startswith("another program keeps the database locked: "), answer.json()
                assert (await it.client.get("/ready")).json() == {"ready": False, "reasons": ["disk"]}
                answered.set()
                assert (await it.message("first"))["status"] == "in_flight"
            await it.until_results(1, "b")
            await it.until("/status", lambda status: not status["reasons"])
            assert (await it.client.post("/commands/add-messages", json=one)).json()["queued"] == 1
            await it.until_results(2, "b")
            answered = trio.Event()
            await it.add([mail("doubtful", account_id="b")])
            await relay.until_received(3)
            with locked(log.db):
                assert await it.stop() == 1
            assert said_and_ended(
                it, 1, "the end of 1 attempt is not in the log (another program keeps the database"
            ), it.lines
            assert (await it.run("show", "doubtful")).out.splitlines()[1] == "status\tin_flight"
            await it.start()
            assert "attempts under way when the last run ended: 1" in it.lines
            timeline = (await it.message("doubtful"))["timeline"]
            assert "AttemptInterrupted" in [fact["kind"] for fact in timeline]
