"""``journal stage``: a coordinator at the beginning of a recording, to which its devices can be played.

It has the export's keys and members, and of one job the specification and version 0: no round, no update.
The entries are the export's own, with two exceptions. By the last one, the devices that were asked first can
be asked at once: a coordinator that learns of one after the other may begin with fewer. And where a round
folded more updates than the job wants, as they were there before the last one wanted was looked at, the job
wants as many: which of two is faster, that look or the next update, cannot be played.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace as with_fields

from broker.journal_open import open_segments
from broker.journal_segments import SEGMENT_BYTES
from broker.ports import Ports, write_atomic
from coordinator import facts as f
from coordinator.broker_admin.roster import FILE as ROSTER
from coordinator.broker_admin.roster import FOLDER as BROKER
from coordinator.config import FILE, Config, config_text
from coordinator.core import BEHAVIOUR
from coordinator.entries import Logged, Turned, encode_entry
from coordinator.inputs import Moment, Ticked
from coordinator.onto import OntoRefused
from coordinator.onto.script import Script, read_script, the_job
from coordinator.onto.source import Source
from coordinator.recovery import FOLDER
from schemas.events import DeviceStatus

KEYS = "keys"
OF_JOBS = frozenset({"jobs", "requests"})  # keys that a coordinator draws while it serves
OF_BROKER = (ROSTER, "users.json")
ENROLMENT = (f.Invited, f.Joined, f.Activated)
FRAME_ENTRIES = 256
FRAME_BYTES = 1 << 20


def stage(ports: Ports, directory: Path, target: Path, config: Config, job: str = "") -> str:
    """Make ``target``, whole or not at all, of the export in ``directory``; the job that it begins with.

    Raises `OntoRefused`, `broker.journal.JournalError`, `coordinator.keystore.KeysMissing`, OSError.
    """
    files, draft = ports.files, target.with_name(f"{target.name}.new")
    for path in (target, draft):
        if files.exists(path):
            raise OntoRefused(f"{path} exists already; name another place, or move it away")
    source = Source(ports, directory)
    try:
        job = the_job(source.entries(), job)
        script = read_script(source.entries(), job)
        _put_log(ports, draft, source, script)
        _put_model(ports, draft, source, script)
        _put_keys(ports, draft, directory)
        write_atomic(files, draft / FILE, config_text(config).encode(), mode=0o644)
        files.rename(draft, target)
        files.sync_dir(target.parent)
    except BaseException:
        with suppress(OSError):
            files.remove(draft)
        raise
    finally:
        source.close()
    return job


def able(script: Script, device: str, devices: Iterable[str]) -> DeviceStatus:
    """What a device says that it can do, if only ``devices`` shall be asked."""
    recorded = script.devices[device].status
    if recorded is None:
        raise OntoRefused(f"the recording asks {device}, which never said what it can do")
    return with_fields(recorded, tasks=[script.job.spec.task] if device in devices else [])


def _entries(source: Source, script: Script) -> Iterator[Turned]:
    """Of the log, what the beginning is made of."""
    job, last = script.job.id, None
    for entry in source.entries():
        if isinstance(entry, Turned) and (kept := [fact for fact in entry.facts if _begins(fact, job)]):
            last = with_fields(entry, facts=[_wanting(fact, script.crowded) for fact in kept])
            yield last
    if last is not None:
        first = [device for device, _ in next(script.drawn()).asked]
        able_now: list[f.AnyFact] = [
            f.StatusChanged(device=device, status=able(script, device, first)) for device in first
        ]
        # Past the time in which a first round waits for more devices than it needs.
        run_s = max(last.at.run_s, script.job.submitted_run_s + script.job.spec.deadline_s)
        at = Moment(run_s, last.at.wall_s)
        yield Turned(at=at, behaviour=BEHAVIOUR, input=Ticked(), facts=able_now)


def _wanting(fact: f.AnyFact, updates: int) -> f.AnyFact:
    """The job, as its recorded rounds went: whom to ask, and when to end, the recording says."""
    if not isinstance(fact, f.JobSubmitted):
        return fact
    cohort = max(fact.spec.cohort, updates)
    spec = with_fields(fact.spec, cohort=cohort, quarantine_after=0, evaluation=None)
    return with_fields(fact, spec=spec)


def _begins(fact: f.AnyFact, job: str) -> bool:
    version_0 = isinstance(fact, f.VersionCommitted) and fact.version == 0
    of_job = (isinstance(fact, f.JobSubmitted) or version_0) and fact.job == job  # type: ignore[union-attr]
    return isinstance(fact, ENROLMENT) or of_job


def _put_log(ports: Ports, draft: Path, source: Source, script: Script) -> None:
    federation = source.identity.federation
    ports.files.make_dir(draft)
    segments, _ = open_segments(
        ports.files, draft / FOLDER, federation, read_only=False, marks=(), segment_bytes=SEGMENT_BYTES
    )
    try:
        for frame in _frames(_entries(source, script)):
            segments.advance(segments.write(frame))
    finally:
        segments.close()


def _frames(entries: Iterable[Logged]) -> Iterator[list[bytes]]:
    frame: list[bytes] = []
    for entry in entries:
        frame.append(encode_entry(entry))
        if len(frame) == FRAME_ENTRIES or sum(map(len, frame)) > FRAME_BYTES:
            yield frame
            frame = []
    if frame:
        yield frame


def _put_model(ports: Ports, draft: Path, source: Source, script: Script) -> None:
    job, first = script.job.id, script.versions[0].model
    folder = draft / "models" / job
    ports.files.make_dir(folder)
    write_atomic(ports.files, folder / "layout", source.store.layout_blob(job), mode=0o644)
    try:
        model = source.store.model(job, first)
    except (OSError, ValueError) as error:
        raise OntoRefused(f"the initial model of job {job} is missing: {error}; export anew") from error
    write_atomic(ports.files, folder / source.store.model_path(job, first).name, model)


def _put_keys(ports: Ports, draft: Path, directory: Path) -> None:
    files = ports.files
    files.make_dir(draft / KEYS)
    for name in files.names(directory / KEYS):
        if name not in OF_JOBS:
            write_atomic(files, draft / KEYS / name, files.read(directory / KEYS / name))
    files.make_dir(draft / BROKER)
    for name in OF_BROKER:
        if files.exists(directory / BROKER / name):
            write_atomic(files, draft / BROKER / name, files.read(directory / BROKER / name))
