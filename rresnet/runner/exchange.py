"""What passes between a trial process and its worker group: cells one way, records the other."""

import asyncio

from rresnet.cell import Cell


class Exchange:
    """An actor that both sides ask; records are bytes to it, so that it need not import torch to read them."""

    def __init__(self) -> None:
        self._cells: list[Cell | None] = []
        self._records: dict[int, bytes] = {}
        self._changed = asyncio.Condition()

    async def ask(self, cell: Cell | None) -> None:
        """Have the group train a cell, after those that were asked for before; None ends the group."""
        async with self._changed:
            self._cells.append(cell)
            self._changed.notify_all()

    async def asked(self, number: int) -> Cell | None:
        """The cell that was asked for as that, from 0, once it is there."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < len(self._cells))
            return self._cells[number]

    async def answer(self, number: int, record: bytes) -> None:
        """Give the record of a cell."""
        async with self._changed:
            self._records[number] = record
            self._changed.notify_all()

    async def answered(self, number: int) -> bytes:
        """The record of the cell that was asked for as that, once it is there; it is forgotten here."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._records)
            return self._records.pop(number)
