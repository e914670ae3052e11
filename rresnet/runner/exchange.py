"""What passes between a trial process and its worker group: requests one way, records the other."""

import asyncio
from typing import Literal, NamedTuple

from rresnet.cell import Cell


class Training(NamedTuple):
    """A cell to train, by a worker on each of these nodes."""

    cell: Cell
    nodes: tuple[str, ...]


Request = Training | Literal["forget", "end"]  # to forget: what all cells so far have left


class Exchange:
    """An actor that both sides ask; answers are bytes to it, so that it need not import torch to read them."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._answers: dict[int, bytes] = {}
        self._changed = asyncio.Condition()

    async def ask(self, request: Request) -> None:
        """Have the group do something, after what it was asked for before."""
        async with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    async def asked(self, number: int) -> Request:
        """The request with that number, from 0, once it is there."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < len(self._requests))
            return self._requests[number]

    async def answer(self, number: int, answer: bytes) -> None:
        """Say that a request is met, and with what."""
        async with self._changed:
            self._answers[number] = answer
            self._changed.notify_all()

    async def answered(self, number: int) -> bytes:
        """The answer to that request, once it is there; it is forgotten here."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._answers)
            return self._answers.pop(number)
