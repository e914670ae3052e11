"""What passes between a trial process and its worker group: requests one way, records the other."""

import asyncio
from typing import Literal, NamedTuple

from rresnet.cell import Cell


class Training(NamedTuple):
    """A cell to train, by a worker on each of these nodes."""

    cell: Cell
    nodes: tuple[str, ...]


Request = Training | Literal["forget", "end"]  # "forget" frees what all cells so far have left


class Exchange:
    """An actor that both sides call. Answers are bytes to it, so that it need not import torch to read them."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._answers: dict[int, bytes] = {}
        self._changed = asyncio.Condition()

    async def ask(self, request: Request) -> None:
        """Queue a request for the group, after those made before."""
        async with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    async def asked(self, number: int) -> Request:
        """Wait for the request with that number, from 0, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < len(self._requests))
            return self._requests[number]

    async def answer(self, number: int, answer: bytes) -> None:
        """Store the answer to a request that has been met."""
        async with self._changed:
            self._answers[number] = answer
            self._changed.notify_all()

    async def answered(self, number: int) -> bytes:
        """Wait for the answer to that request and return it; it is then forgotten here."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._answers)
            return self._answers.pop(number)
