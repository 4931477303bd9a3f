"""Fold through the coordinator's own intake, beside the bare work on the same bytes.

Three processes; *fold* has ``cores``, the others one. *make* enrols light devices, opens a round and leaves
each device's update as sealed chunks in the coordinator's spool, all but the last, small one. *fold* starts
the coordinator on that directory and publishes the signed offers; signatures are verified and every spooled
chunk is hashed (``arrival_s``, in normal life spread over the chunks' arrival). Then the last chunks arrive:
written, hashed, the whole made durable, journaled, receipted, opened, checked (finite, norm), judged, added
(``fold_s``), and the version is committed (``commit_s``). *bare* is one SHA-256 pass (``hash_s``) and the
opening by libsodium (``open_s``) of the same chunks from the same files, read into one buffer (``read_s``).

``ratio`` is what serve does from the spooled files on, with the verifying of the offers' signatures
(``signature_s``), to the bare work. A chunk is hashed when it arrives, before it counts as spooled: that is
not in it; ``ratio_with_arrival`` has it, as after a power cut, when the whole spool is hashed again.
``lag_p99_s`` is how late the event loop was while it folded, and ``lag_max_s`` with the commit, at instants
`TICK_S` apart. ``up`` is how the updates are encoded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import structlog

from broker.bodies import Bodies
from broker.bus import Credentials
from broker.memory import MemoryBus
from broker.system import system_ports
from compressors import encode
from coordinator.cli.state import open_journal
from coordinator.keystore import KeyStore, load_identity
from coordinator.recovery import recover
from coordinator.state import JobState, RequestState
from coordinator.stored import read_envelope, stored, stored_name
from schemas import events as e
from schemas import topics
from schemas.chunks import pack_chunk
from schemas.codec import pack, unpack
from schemas.encodings import ENCODINGS, FLOAT32, told_encoding
from schemas.envelope import open_envelope
from schemas.ids import DeviceId, key_id
from schemas.limits import CHUNK_OVERHEAD_BYTES
from schemas.sealing import chunk_open_into
from tests.standin import TASK, Federation, federation, spec

JOB = "job"
OFFERS = "offers"
FRACTION = 0.01  # of the coordinates that top-k keeps
ABLE = e.DeviceStatus(
    agent="standin",
    cores=1,
    memory_bytes=1 << 30,
    power="mains",
    tasks=[TASK],
    samples={},
    encodings=list(ENCODINGS),
)
CHUNK_BYTES = 244 * 4096  # so that the last chunk, which sets the fold off, is a small one


TICK_S = 0.005


class Lag:
    """How many seconds late the event loop is, at instants that don't wait for it."""

    def __init__(self) -> None:
        self.late_s: list[float] = []

    async def watch(self) -> None:
        due_s = time.perf_counter() + TICK_S
        while True:
            await asyncio.sleep(due_s - time.perf_counter())
            now_s = time.perf_counter()
            while due_s <= now_s:
                self.late_s.append(now_s - due_s)
                due_s += TICK_S


async def make(directory: Path, parameters: int, updates: int, up: str) -> None:
    """Leave ``updates`` sealed updates in the spool, and their signed offers in a file."""
    async with federation(directory, system_ports(), count=parameters) as fed:
        devices = [await fed.device(f"d{index:03d}") for index in range(updates)]
        for device in devices:
            await device.say(ABLE)
        encoded = {} if up == FLOAT32.name else {"compression": {"up": up, "fraction": FRACTION}}
        job = spec(JOB, cohort=updates, min_reports=updates, update_norm_max=1e9, deadline_s=86_400.0)
        await fed.command("submit", spec=job | encoded)
        draw = np.random.default_rng(1)
        offers = []
        (directory / "spool").mkdir()
        for device in devices:
            request = await device.next(e.TrainingRequest)
            delta = draw.standard_normal(parameters, dtype=np.float32)
            data = encode(told_encoding(request.encoding), delta, 1)
            update, _ = device.update(request, delta, 10, encoding=request.encoding)
            sealed, chunks = device.seal(request, update, data, CHUNK_BYTES)
            envelope = device.mailbox.sign(sealed)
            with (
                directory / "spool" / f"{stored_name(envelope.clear.recipient, envelope.digest)}.part"
            ).open("wb") as spool:
                spool.writelines([stored(envelope), *chunks[:-1]])
                os.fsync(spool.fileno())
            last = pack_chunk(envelope.transfer, len(chunks) - 1, chunks[-1])
            offers.append([device.id, envelope.to_bytes(), last])
    (directory / OFFERS).write_bytes(pack(offers))


async def fold(directory: Path, parameters: int) -> dict[str, float]:
    """Seconds of the phases (see the module), memory in bytes."""
    fed = Federation(directory, system_ports(), parameters)
    offers = unpack((directory / OFFERS).read_bytes(), list[tuple[str, bytes, bytes]], bytes_max=1 << 30)
    lag = Lag()
    async with asyncio.TaskGroup() as tasks:
        fed.start(tasks)
        async with MemoryBus(fed.broker, Credentials("sender"), []) as bus:
            await asyncio.sleep(0.5)  # the restart's own work is over
            job = fed.job(JOB)
            round_ = job.round
            idle_bytes = _status_bytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            granted = fed.coordinator.intake.uploads.credits
            start_s = time.perf_counter()
            for device, offer, _ in offers:
                await bus.publish(topics.up(fed.identity.federation, DeviceId(device)), offer)
            while len(granted.lines) < len(offers):  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.001)
            arrival_s = time.perf_counter() - start_s
            watch = tasks.create_task(lag.watch())
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            for device, _, last in offers:
                await bus.publish(topics.up(fed.identity.federation, DeviceId(device)), last)
            order = round_.order
            while len(order) < len(offers) or order[-1].state is not RequestState.FOLDED:  # noqa: ASYNC110
                await asyncio.sleep(0.004)  # rarely, because looking costs the core that is measured
            folded_s, folded_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
            lag_p99_s = float(np.percentile(lag.late_s, 99))
            while job.state is not JobState.FINISHED:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.001)
            committed_s = time.perf_counter() - start_s
            watch.cancel()
        peak_bytes = _status_bytes("VmHWM")
        await fed.stop()
    return {
        "arrival_s": arrival_s,
        "fold_s": folded_s,
        "fold_cpu_s": folded_cpu_s,
        "commit_s": committed_s,
        "idle_bytes": idle_bytes,
        "peak_bytes": peak_bytes,
        "lag_p99_s": lag_p99_s,
        "lag_max_s": max(lag.late_s),
    }


def bare(directory: Path) -> dict[str, float]:
    """Seconds for one digest pass and the opening of every chunk, read from the files into one buffer."""
    ports = system_ports()
    identity = load_identity(ports.files, directory)
    keys = KeyStore(ports.files, directory, ports.entropy)
    bodies = Bodies(ports.files, directory / "bodies")
    secrets = unpack(
        ports.files.read(directory / "keys" / "requests" / JOB / "000001.keys"), dict[str, bytes]
    )
    journal = open_journal(directory)
    state = recover(journal).state
    journal.close()
    hash_s = open_s = read_s = signature_s = 0.0
    for name in bodies.names():
        file = bodies.open(name)
        envelope, at = read_envelope(file)
        clear = envelope.clear
        assert clear.recipient.hex() in secrets
        key = keys.request_key(JOB, 1, clear.recipient)
        assert key is not None
        assert key_id(key.public) == clear.recipient
        began_s = time.perf_counter()
        envelope.check_signature(state.devices[state.by_sender[clear.sender]].signing)
        signature_s += time.perf_counter() - began_s
        opened = open_envelope(envelope, key, identity.federation)
        sealed = bytearray(clear.chunk_bytes + CHUNK_OVERHEAD_BYTES)
        plain = bytearray(clear.chunk_bytes)
        for index in range(clear.chunks):
            size = clear.chunk_size(index)
            part = memoryview(sealed)[: size + CHUNK_OVERHEAD_BYTES]
            began_s = time.perf_counter()
            file.read_into(at, part)
            read_at_s = time.perf_counter()
            assert sha256(part).digest() == opened.chunk_digests[index]
            hashed_at_s = time.perf_counter()
            chunk_open_into(opened.key, index, clear.chunks, part, opened.context, memoryview(plain)[:size])
            done_s = time.perf_counter()
            read_s += read_at_s - began_s
            hash_s += hashed_at_s - read_at_s
            open_s += done_s - hashed_at_s
            at += len(part)
        file.close()
    return {
        "bare_s": hash_s + open_s,
        "hash_s": hash_s,
        "open_s": open_s,
        "read_s": read_s,
        "signature_s": signature_s,
    }


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(
    parameters: int, updates: int, runs: int, cores: int = 1, up: str = FLOAT32.name
) -> dict[str, Any]:
    """One row of the table: ``runs`` times fold and bare, in turn, on the same bytes."""
    row: dict[str, Any] = {"parameters": parameters, "updates": updates, "cores": cores, "up": up}
    pairs = []
    for _ in range(runs):
        with TemporaryDirectory(prefix="fedbus-fold-") as name:
            of = Path(name) / "c", parameters, updates, cores, up
            _child("make", *of)
            pairs.append((_child("fold", *of), _child("bare", *of)))
    row |= {"fold": [f for f, _ in pairs], "bare": [b for _, b in pairs]}
    row["ratio"] = float(np.median([(f["fold_s"] + b["signature_s"]) / b["bare_s"] for f, b in pairs]))
    row["ratio_with_arrival"] = float(
        np.median([(f["arrival_s"] + f["fold_s"]) / (b["bare_s"] + b["read_s"]) for f, b in pairs])
    )
    done = parameters * updates
    row["parameters_per_s"] = float(np.median([done / (f["fold_s"] + b["signature_s"]) for f, b in pairs]))
    row["bare_parameters_per_s"] = float(np.median([done / b["bare_s"] for _, b in pairs]))
    over = [f["peak_bytes"] - f["idle_bytes"] for f, _ in pairs]
    row["peak_over_idle_bytes"] = int(np.median(over))
    row["peak_bytes_per_parameter"] = float(np.median(over)) / parameters
    row["lag_p99_s"] = float(np.median([f["lag_p99_s"] for f, _ in pairs]))
    return row


def _child(what: str, *of: Path | str | int) -> Any:
    argv = [sys.executable, "-m", "tests.bench.fold", what, *map(str, of)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "fold", "bare"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("parameters", type=int)
    parser.add_argument("updates", type=int)
    parser.add_argument("cores", type=int)
    parser.add_argument("up")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if options.what == "make":
        asyncio.run(make(options.directory, options.parameters, options.updates, options.up))
        print("{}")
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-options.cores if options.what == "fold" else -1 :])
    if options.what == "fold":
        print(json.dumps(asyncio.run(fold(options.directory, options.parameters))))
    else:
        print(json.dumps(bare(options.directory)))


if __name__ == "__main__":
    main()
