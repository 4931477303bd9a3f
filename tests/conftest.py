"""Settings for every test, the brokers that they share, and what becomes of tests that miss a package."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.brokers import PackageMissing, RabbitMQ

# Hypothesis fails examples that took longer than 200 ms by default: no test of ours judges wall time.
# In CI the examples are the same in every run; elsewhere they are new ones each time.
settings.register_profile("fedbus", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fedbus")

ENABLE = "sudo tests/install_brokers.sh"


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One RabbitMQ for all tests; who stops it starts it again."""
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    yield from _skipped_without_package()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    yield from _skipped_without_package()


def _skipped_without_package() -> Generator[None]:
    """A test whose broker or data is not installed is skipped; in CI, where nobody reads that, it fails."""
    try:
        yield
    except PackageMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}; install it: {ENABLE}", pytrace=False)
        pytest.skip(str(missing))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was not tested for want of a package, and the one command that changes that."""
    skipped = [
        report for report in terminalreporter.getreports("skipped") if "is not installed" in _why(report)
    ]
    if not skipped:
        return
    terminalreporter.section("not tested: packages are missing", yellow=True)
    for report in skipped:
        terminalreporter.line(f"{report.nodeid}: {_why(report)}")
    terminalreporter.line(f"To test these, too: {ENABLE}", bold=True)


def _why(report: pytest.TestReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
