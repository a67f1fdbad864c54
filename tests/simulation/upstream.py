"""The application's side: it offers batches under tokens, is told results, and is sometimes not there.

A batch is offered until its token comes back, and then the next one. An event counts as told when it was answered
with a 2xx; where the answer was lost on its way the upstream has seen it all the same.
"""

import json
import random
from collections import deque

import httpx
import trio

from .messages import as_json
from .observed import Observed, Offered, Reported


class Upstream:
    """`trouble` is the chance that a request goes wrong while `calm` is not set."""

    def __init__(self, trouble: float, chance: random.Random, observed: Observed) -> None:
        self._trouble = trouble
        self._chance = chance
        self._observed = observed
        self._waiting: deque[Offered] = deque()
        self._now_us = lambda: 0
        self.calm = False
        self.gone = False

    def offer(self, offered: Offered) -> None:
        self._observed.offered.append(offered)
        self._waiting.append(offered)

    @property
    def empty(self) -> bool:
        return not self._waiting

    def client(self, life: int) -> httpx.AsyncClient:
        async def handle(request: httpx.Request) -> httpx.Response:
            await trio.sleep(self._chance.random() * 0.2)
            if self.gone:
                raise httpx.ConnectError("refused")
            trouble = not self.calm and self._chance.random() < self._trouble
            if trouble and self._chance.random() < 0.5:
                return httpx.Response(self._chance.choice((500, 502, 503, 429)))
            if request.url.path.endswith("/fetch-messages"):
                answer = self._fetch(request)
            else:
                answer = self._report(request, life, acknowledged=not trouble)
            if trouble:
                raise httpx.ReadError("the answer was lost")
            return httpx.Response(200, content=json.dumps(answer).encode())

        return httpx.AsyncClient(transport=httpx.MockTransport(handle))

    def _fetch(self, request: httpx.Request) -> dict[str, object]:
        token = request.url.params.get("token")
        if self._waiting and token == self._waiting[0].token:
            offered = self._waiting.popleft()
            offered.confirmed_at = trio.current_time()
            self._observed.tell("upstream", f"{token} is confirmed")
        if not self._waiting:
            return {"messages": []}
        offered = self._waiting[0]
        offered.given += 1
        self._observed.tell("upstream", f"offers {offered.token}: {', '.join(each.id for each in offered.messages)}")
        more = len(self._waiting) > 1
        return {"messages": [as_json(each) for each in offered.messages], "more_messages": more, "token": offered.token}

    def _report(self, request: httpx.Request, life: int, acknowledged: bool) -> dict[str, object]:
        event = json.loads(request.content)
        self._observed.reported.append(Reported(trio.current_time(), life, event, acknowledged))
        self._observed.tell("upstream", f"is told {event['id']} {event['status']}{'' if acknowledged else ' (lost)'}")
        return {}
