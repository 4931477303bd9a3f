"""The operator's door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator import control


@pytest.mark.parametrize("length", [1, 200])
async def test_a_directory_of_any_length_answers_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    directory = tmp_path / ("d" * length)
    directory.mkdir()

    async def echo(command: dict[str, Any]) -> Any:
        return command["op"]

    async with asyncio.TaskGroup() as tasks:
        door = tasks.create_task(control.serve(directory, echo))
        while not (directory / control.SOCKET).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for where in (directory, Path("/")):
            monkeypatch.chdir(where)
            assert await control.call(directory, {"op": "hello"}) == "hello"
        door.cancel()
    assert not (directory / control.SOCKET).exists()


@pytest.mark.parametrize("name", ["absent", "a" * 200])
async def test_no_coordinator_is_said_with_or_without_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(control.NotServing, match="start it with"):
        await control.call(tmp_path / name, {"op": "status"})
    (tmp_path / name).mkdir()
    with pytest.raises(control.NotServing, match="start it with"):
        await control.call(tmp_path / name, {"op": "status"})


def test_a_coordinator_that_ends_while_an_operator_is_connected_reports_nothing(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []

    async def never(command: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        door = asyncio.get_running_loop().create_task(control.serve(tmp_path, never))
        while not (tmp_path / control.SOCKET).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        _, writer = await asyncio.open_unix_connection(tmp_path / control.SOCKET)
        writer.write(b'{"op": "status"}\n')
        await asyncio.sleep(0.05)
        door.cancel()
        await asyncio.wait([door])
        writer.close()

    asyncio.run(serve())
    assert reported == []
