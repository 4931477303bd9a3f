"""The real ports, on a real disk and with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.ports import LockHeld, write_atomic
from broker.system import OFFLOAD_THREADS, system_ports

ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
ECHO = (
    "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read(5).upper()); sys.stdout.flush(); sys.exit(7)"
)
HOLD = """
import sys
from pathlib import Path
from broker.system import system_ports
with system_ports().lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_was_written_is_read_back_at_its_offset(tmp_path: Path) -> None:
    file = system_ports().files.open(tmp_path / "a", create=True)
    file.append(b"hello ")
    file.append(memoryview(b"world"))
    file.write_at(0, b"J")
    file.sync()
    assert file.read_at(0, 100) == b"Jello world"
    assert file.read_at(6, 3) == b"wor"
    assert file.read_at(50, 3) == b""
    out = bytearray(b"_" * 8)
    assert file.read_into(6, memoryview(out)[1:4]) == 3
    assert file.read_into(9, memoryview(out)[4:]) == 2
    assert out == b"_world__"
    assert file.read_into(50, memoryview(out)) == 0
    file.truncate(5)
    assert file.size() == 5
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append(b"x")


def test_short_writes_of_the_system_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    file = system_ports().files.open(tmp_path / "a", create=True)
    file.append(b"0123456789")
    assert file.read_at(0, 100) == b"0123456789"
    file.close()


def test_a_file_must_exist_unless_it_may_be_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        system_ports().files.open(tmp_path / "a")
    assert not system_ports().files.exists(tmp_path / "a")


def test_modes_hold_whatever_the_umask(tmp_path: Path) -> None:
    files = system_ports().files
    before = os.umask(0o077)
    try:
        files.open(tmp_path / "shared", create=True, mode=0o644).close()
        files.open(tmp_path / "secret", create=True).close()
        files.make_dir(tmp_path / "x" / "y", mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "x" / "y").stat().st_mode) == 0o755


def test_folders_are_made_with_parents_and_removed_with_contents(tmp_path: Path) -> None:
    files = system_ports().files
    outside = tmp_path / "outside"
    files.make_dir(outside)
    files.open(outside / "kept", create=True).close()
    files.make_dir(tmp_path / "a" / "b")
    files.make_dir(tmp_path / "a" / "b")
    files.open(tmp_path / "a" / "b" / "f", create=True).close()
    (tmp_path / "a" / "link").symlink_to(outside)
    assert files.names(tmp_path / "a") == ["b", "link"]
    files.remove(tmp_path / "a")
    files.remove(tmp_path / "a")
    assert files.names(tmp_path / "a") == []
    assert files.exists(outside / "kept")


def test_an_atomic_write_replaces_and_a_failed_one_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = system_ports().files
    path = tmp_path / "state"
    write_atomic(files, path, b"old")
    write_atomic(files, path, b"new")
    assert files.read(path) == b"new"

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(files, path, b"newer")
    assert files.read(path) == b"new"


def test_a_killed_atomic_writer_leaves_old_or_new_bytes_whole(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from broker.ports import write_atomic;"
        "from broker.system import system_ports\n"
        "for n in range(10**9):\n"
        "    write_atomic(system_ports().files, Path(sys.argv[1]), bytes([n % 256]) * 100_000)\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=ENV
    ) as child:
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.kill()
    data = system_ports().files.read(path)
    assert len(data) == 100_000
    assert len(set(data)) == 1


def test_a_lock_is_refused_while_a_process_holds_it_and_freed_by_its_kill(tmp_path: Path) -> None:
    lock = system_ports().lock
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld, match=f"{path}: held by process {child.pid}"), lock.hold(path):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with lock.hold(path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_a_lock_is_not_shared_within_a_process_and_freed_at_the_end(tmp_path: Path) -> None:
    lock = system_ports().lock
    with lock.hold(tmp_path / "lock"), pytest.raises(LockHeld), lock.hold(tmp_path / "lock"):
        pass
    with lock.hold(tmp_path / "lock"):
        pass


async def test_offload_runs_elsewhere_and_passes_results_and_errors() -> None:
    offload = system_ports().offload
    assert await offload.run(threading.get_ident) != threading.get_ident()
    assert await offload.run(int, "ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal"):
        await offload.run(int, "x")


async def test_a_cancelled_offload_ends_only_after_its_function() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait()
        ended.set()

    offload = system_ports().offload
    async with asyncio.TaskGroup() as group:
        task = group.create_task(offload.run(work), name="work")
        await offload.run(started.wait)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        assert task.cancelled()


async def test_a_cancelled_offload_that_waits_for_a_thread_never_starts() -> None:
    release, ran = threading.Event(), threading.Event()
    offload = system_ports().offload
    async with asyncio.TaskGroup() as group:
        for _ in range(OFFLOAD_THREADS):
            group.create_task(offload.run(release.wait), name="busy")
        task = group.create_task(offload.run(ran.set), name="queued")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
    assert not ran.is_set()


async def test_a_child_answers_and_its_exit_status_is_seen(tmp_path: Path) -> None:
    child = await system_ports().spawn.start([sys.executable, "-c", ECHO], env=ENV)
    assert child.rss_bytes() > 0
    await child.write(b"hello")
    assert await child.read_exactly(5) == b"HELLO"
    with pytest.raises(EOFError, match=f"process {child.pid} closed its output after 0 of 1 bytes"):
        await child.read_exactly(1)
    assert await child.wait() == 7
    assert child.rss_bytes() == 0
    child.kill()
    assert await child.wait() == 7


async def test_a_child_that_closes_early_gives_eof_with_what_was_missing() -> None:
    child = await system_ports().spawn.start([sys.executable, "-c", "print('ab', end='')"], env=ENV)
    with pytest.raises(EOFError, match="after 2 of 10 bytes"):
        await child.read_exactly(10)
    assert await child.wait() == 0
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await child.write(b"x" * 1_000_000)
    child.kill()


async def test_a_killed_child_is_reaped_though_its_output_was_never_read() -> None:
    script = "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 100_000)"
    child = await system_ports().spawn.start([sys.executable, "-c", script], env=ENV)
    await child.read_exactly(5_000_000)
    child.kill()
    assert await child.wait() == -signal.SIGKILL


async def test_a_kill_takes_the_children_of_the_child(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    inner = "import sys, signal; held = open(sys.argv[1], 'wb'); print(1, flush=True); signal.pause()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    child = await system_ports().spawn.start([sys.executable, "-c", script, str(fifo)], env=ENV)
    assert await child.read_exactly(2) == b"1\n"
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # the last writer is gone
    os.close(reader)


async def test_a_childs_errors_are_appended_to_the_file_and_its_session_is_its_own(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    script = "import os, sys; print('oops', file=sys.stderr); print(os.getsid(0) == os.getpid(), end='')"
    child = await system_ports().spawn.start([sys.executable, "-c", script], env=ENV, stderr=log)
    assert await child.read_exactly(4) == b"True"
    assert await child.wait() == 0
    child.kill()
    assert log.read_text() == "before\noops\n"


async def test_a_missing_program_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        await system_ports().spawn.start(["/nonexistent/program"], env=ENV)


def test_the_ports_load_neither_numpy_nor_torch() -> None:
    script = "import sys, broker.system; print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_random_bytes_have_the_size_asked_and_differ() -> None:
    entropy = system_ports().entropy
    assert len(entropy.random_bytes(32)) == 32
    assert entropy.random_bytes(32) != entropy.random_bytes(32)


def test_the_monotonic_clock_never_goes_back() -> None:
    clock = system_ports().clock
    readings = [clock.monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)
    assert clock.wall_s() > 1.7e9
