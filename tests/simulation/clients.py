"""Those who use the service: they ask, wait for the answer, and ask again where none came."""

import random
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from gateway.commands import handle_command
from letterbook.system import System

from .messages import as_json
from .observed import Asked, Message, Observed
from .scenario import Step

TRIES_MAX = 6


class Running(Protocol):
    """A life that can be asked."""

    number: int
    system: System
    gone: trio.Event

    def last_seq(self) -> int: ...


class Clients:
    """`running()` is the life that listens now, None while nobody does."""

    def __init__(self, observed: Observed, chance: random.Random, running: Callable[[], Running | None]) -> None:
        self._observed = observed
        self._chance = chance
        self._running = running

    async def act(self, step: Step) -> Asked:
        """Ask until there is an answer, or only once where the client does not insist."""
        asked = await self.ask(step.name, step.payload, step.messages)
        for _ in range(TRIES_MAX if step.insists else 0):
            if asked.answer is not None and not _to_be_repeated(asked):
                break
            await trio.sleep(self._chance.uniform(0.5, 20))
            asked = await self.ask(step.name, step.payload, step.messages)
        return asked

    async def ask(self, name: str, payload: dict[str, object], messages: tuple[Message, ...] = ()) -> Asked:
        """One command; without an answer where nobody listens, or the service dies with it."""
        if name == "addMessages":
            payload = {"messages": [as_json(each) for each in messages]}
        elif name == "sendMessage":
            payload = as_json(messages[0])
        asked = Asked(trio.current_time(), name, payload, messages)
        life = self._running()
        if life is None:
            return asked
        asked.life, asked.seq_before = life.number, life.last_seq()
        self._observed.asked.append(asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with, life, nursery.cancel_scope)
            answer = await handle_command(life.system.door, name, payload)
            nursery.cancel_scope.cancel()
            if not life.gone.is_set():
                asked.answer, asked.answered_at, asked.seq_after = answer, trio.current_time(), life.last_seq()
        self._tell(asked)
        return asked

    def _tell(self, asked: Asked) -> None:
        about = (
            ", ".join(f"{each.id} v{each.version}" for each in asked.messages)
            or msgspec.json.encode(asked.payload).decode()
        )
        answer = "no answer" if asked.answer is None else msgspec.json.encode(asked.answer).decode()
        self._observed.tell("client", f"{asked.name} {about} (asked at {asked.at:.3f}) -> {answer}")


async def _end_with(life: Running, scope: trio.CancelScope) -> None:
    await life.gone.wait()
    scope.cancel()


def _to_be_repeated(asked: Asked) -> bool:
    """Whether the service said 503: nothing was decided."""
    error = str((asked.answer or {}).get("error", ""))
    return not asked.ok and any(words in error for words in ("ask again", "disk is full", "is stopping"))
