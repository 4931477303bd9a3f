"""The worker: a process that trains, encodes and seals. Only here, and in tasks, PyTorch is loaded.

It reads orders (`schemas.work`) from its standard input and ends with it. It needs public keys and the
job's model key only. Prints of a task go to standard error: they can't disturb the protocol.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from broker.ports import Clock, File, Ports
from broker.system import system_ports
from edge_agent import orders, tasks
from edge_agent.sealer import open_model, seal_update
from edge_agent.tasks import Task, TaskError
from schemas import work
from schemas.encodings import FLOAT32
from schemas.errors import WireError
from schemas.events import Update, Vector
from schemas.fields import Metrics
from schemas.limits import TEXT_CHARS_MAX
from schemas.models import DELTA

try:
    import torch
    from torch import nn

    from edge_agent.encoder import encode_delta
    from edge_agent.own import Own
    from edge_agent.tasks.devices import device_for
    from edge_agent.tensors import (
        layout_of,
        load,
        load_parameters,
        model_parts,
        personal_names,
        subtract_base,
    )
except ImportError as error:
    if __name__ != "__main__":
        raise
    orders.serve_without_torch(error)
    raise SystemExit from error

if TYPE_CHECKING:
    from schemas.jobs import LocalSettings, TaskConfig

METRICS_MAX: Final = 64
WRITE_BYTES: Final = 4 << 20
OUT_OF_MEMORY: Final = ("can't allocate memory", "not enough memory", "out of memory")


class Failed(Exception):
    """An order can't be carried out; ``code`` is one of `schemas.events.DECLINE_REASONS`.

    ``local``: the text may quote data.
    """

    def __init__(self, code: str, text: str, *, local: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.local = local


class Parent(Protocol):
    """How the program that ordered the work is watched: as ``select.poll`` does."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]: ...


class Pacer:
    """Called after every optimiser step: keeps the share of the time, and ends with our parent."""

    def __init__(self, clock: Clock, share: float, parent: Parent) -> None:
        self._clock = clock
        self._rest = 1 / share - 1
        self._parent = parent
        self._resumed_s = clock.monotonic_s()

    def __call__(self) -> None:
        computed_s = self._clock.monotonic_s() - self._resumed_s
        # An order never comes while we train: the only event is the end of our input.
        if self._parent.poll(1_000 * computed_s * self._rest):
            raise SystemExit("the program that ordered this training is gone")
        self._resumed_s = self._clock.monotonic_s()


class Worker:
    """Carries orders out, one by one. ``parent`` polls the end of our input."""

    def __init__(self, ports: Ports, parent: Parent) -> None:
        self._ports = ports
        self._parent = parent

    def carry_out(self, order: work.AnyOrder) -> work.Reply:
        """The reply to ``order``; whatever a task does wrong comes back as a `Problem`."""
        try:
            match order:
                case work.Train():
                    return self._train(order)
                case work.Make():
                    return self._make(order)
                case work.Fit():
                    return self._fit(order)
                case work.Evaluate():
                    return self._evaluate(order)
                case work.Inspect():
                    return work.Inspected(facts=inspect(order))
        except Failed as failed:
            return work.problem(failed.code, str(failed), local=failed.local)
        except TaskError as error:
            return work.problem("task", str(error))
        except WireError as error:
            return work.problem("base", f"the model can't be used: {error}")
        except MemoryError:
            return work.problem("memory", "there is not enough memory for this model and this data")
        except Exception as error:  # noqa: BLE001  # a task may fail in any way; the process lives on
            code = "memory" if any(words in str(error) for words in OUT_OF_MEMORY) else "worker"
            return work.problem(code, f"{type(error).__name__}: {error}", local=True)

    def _train(self, order: work.Train) -> work.Reply:
        task, module = _build(order.task, order.config)
        device = device_for(task, order.device)
        model = open_model(self._ports.files, order)
        load(module, order.layout, model)
        module.to(device)
        own = Own(self._ports.files, order, module, model)
        data = _load_data(task, order.dataset)
        with _having_data("task"):
            evaluation = metrics(task.evaluate(module, data))
        trained, train_s = self._timed(task, module, data, order.local, order.cpu_share)
        delta = subtract_base(module, order.layout, model)
        own.leave(delta, trained.steps)
        del module, data, own
        content = encode_delta(self._ports.files, order, delta)
        update = Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[Vector(DELTA, order.layout.trained_count)],
            samples=trained.samples,
            steps=trained.steps,
            train_s=train_s,
            metrics=metrics(trained.metrics),
            evaluation=evaluation,
            content=sha256(content).digest(),
            encoding=msgspec.UNSET if order.encoding == FLOAT32 else order.encoding,
        )
        sealed = seal_update(self._ports, order, update, content)
        return work.Trained(
            clear=sealed.clear,
            seal=sealed.seal,
            samples=update.samples,
            steps=update.steps,
            train_s=train_s,
            metrics=update.metrics,
            evaluation=evaluation,
        )

    def _timed(
        self, task: Task, module: nn.Module, data: Any, local: LocalSettings, share: float
    ) -> tuple[tasks.Trained, float]:
        clock = self._ports.clock
        start_s = clock.monotonic_s()
        with _having_data("task"):
            trained = task.train(module, data, local, Pacer(clock, share, self._parent))
        return trained, clock.monotonic_s() - start_s

    def _make(self, order: work.Make) -> work.Reply:
        torch.manual_seed(order.seed)
        _, module = _build(order.task, order.config)
        names = personal_names(module, order.personal) if order.personal else ()
        layout = layout_of(module, order.job, names, controlled=order.controlled)
        if order.parameters:
            load_parameters(module, layout, Path(order.parameters))
        self._write(Path(order.out), model_parts(module, layout))
        return work.Made(layout=layout)

    def _fit(self, order: work.Fit) -> work.Reply:
        task, module = _build(order.task, order.config)
        load(module, order.layout, self._read(order.model))
        data = _load_data(task, order.dataset)
        trained, train_s = self._timed(task, module, data, order.local, order.cpu_share)
        self._write(Path(order.out), model_parts(module, order.layout))
        return work.Fitted(
            samples=trained.samples, steps=trained.steps, train_s=train_s, metrics=metrics(trained.metrics)
        )

    def _evaluate(self, order: work.Evaluate) -> work.Reply:
        config: TaskConfig = {**order.config, "held_out": 0} if order.whole else order.config
        task, module = _build(order.task, config)
        load(module, order.layout, self._read(order.model))
        return work.Evaluated(metrics=metrics(task.evaluate(module, _load_data(task, order.dataset))))

    def _read(self, path: str) -> bytearray:
        try:
            return bytearray(self._ports.files.read(Path(path)))
        except OSError as error:
            raise Failed("base", f"{path}: the model can't be read: {error.strerror or error}") from error

    def _write(self, path: Path, parts: list[torch.Tensor]) -> None:
        files = self._ports.files
        files.remove(path)
        file: File = files.open(path, create=True)
        try:
            for part in parts:
                if part.numel():
                    raw = part.numpy().data.cast("B")
                    for at in range(0, len(raw), WRITE_BYTES):
                        file.append(raw[at : at + WRITE_BYTES])
            file.sync()
        finally:
            file.close()
        files.sync_dir(path.parent)


def metrics(found: Mapping[str, float]) -> Metrics:
    """What may travel of a task's metrics: finite numbers, at most `METRICS_MAX`."""
    finite = {str(name): float(value) for name, value in found.items() if math.isfinite(value)}
    return dict(list(finite.items())[:METRICS_MAX])


def _build(name: str, config: TaskConfig) -> tuple[Task, nn.Module]:
    task = tasks.find(name)(config)
    return task, task.build()


@contextmanager
def _having_data(code: str) -> Iterator[None]:
    """A task that has data in its hands may quote them in what it raises."""
    try:
        yield
    except (TaskError, WireError) as error:
        raise Failed(code, str(error), local=True) from error


def _load_data(task: Task, path: str) -> Any:
    with _having_data("data"):
        data = task.load(Path(path))
    if data.train_samples < 1:
        raise Failed("data", f"{path}: holds no samples; give it at least one")
    return data


def inspect(order: work.Inspect) -> dict[str, float | str]:
    """What a task finds in a data set: at most `METRICS_MAX` facts. Raises `TaskError`, `Failed`."""
    path = Path(order.dataset)
    kind = tasks.find(order.task)
    device_for(kind, order.device)
    if not order.dataset:
        return {}
    if order.config is not None:
        return {"train_samples": _load_data(kind(order.config), order.dataset).train_samples}
    try:
        if tell := getattr(kind, "inspect", None):
            return _bounded(tell(path))
        with path.open("rb"):
            return {"bytes": path.stat().st_size}
    except TaskError as error:
        raise Failed("data", str(error)) from error
    except OSError as error:
        text = f"{path}: {error.strerror}; correct its path under [data] or its permissions"
        raise Failed("data", text) from error


def _bounded(facts: Mapping[str, float | str]) -> dict[str, float | str]:
    cut = [(name, told[:TEXT_CHARS_MAX] if isinstance(told, str) else told) for name, told in facts.items()]
    return dict(cut[:METRICS_MAX])


def serve() -> None:
    """Take orders until our input ends."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    ports = system_ports()
    orders.serve(lambda parent: Worker(ports, parent).carry_out)


if __name__ == "__main__":
    serve()
