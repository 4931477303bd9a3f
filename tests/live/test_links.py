"""The lines that chaos cuts: nothing passes while they are cut, and what was on its way comes later."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos.links import Links, Namespaces, Relays, links

pytestmark = pytest.mark.live

DEVICE = "device-1"
PATIENCE_S = 20.0
TALK = """
import socket, sys
line = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
for text in sys.stdin.buffer:
    line.sendall(text)
"""


@pytest.fixture(params=[Namespaces, Relays])
def line(request: pytest.FixtureRequest) -> Iterator[Links]:
    if request.param is Namespaces and not isinstance(links([DEVICE]), Namespaces):
        reason = "network namespaces are not allowed here; run this as root"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with request.param([DEVICE]) as made:
        yield made


def test_nothing_passes_a_cut_line_and_all_of_it_when_it_is_mended(line: Links) -> None:
    with socket.create_server((line.host, 0)) as listener:
        listener.settimeout(PATIENCE_S)
        port = listener.getsockname()[1]
        line.connect(port)
        url = line.url(DEVICE)
        to = url.removeprefix("mqtt://").split(":") if url else [line.host, str(port)]
        argv = [*line.before(DEVICE), sys.executable, "-c", TALK, *to]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, bufsize=0) as talker:
            assert talker.stdin is not None
            near, _ = listener.accept()
            with near:
                near.settimeout(PATIENCE_S)
                talker.stdin.write(b"one\n")
                assert near.recv(100) == b"one\n"
                line.cut(DEVICE)
                talker.stdin.write(b"two\n")
                near.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    near.recv(100)
                line.mend(DEVICE)
                near.settimeout(PATIENCE_S)
                assert near.recv(100) == b"two\n"
                talker.stdin.close()
