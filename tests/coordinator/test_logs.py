"""Log lines: JSON for machines, with what the code bound to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from broker.worker import with_our_packages

SCRIPT = """
import logging
import structlog
from coordinator import logs

logs.set_up()
structlog.get_logger().info("version committed", job="digits", round=3)
logging.getLogger("fedbus.other").warning("%s is odd", "that")
logging.getLogger("fedbus.other").debug("not wanted")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("fedbus.other").exception("wrong")
"""


def test_away_from_a_terminal_each_line_is_one_json_document_on_standard_error() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        env=with_our_packages(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == ""
    assert [line["event"] for line in lines] == ["version committed", "that is odd", "wrong"]
    assert (lines[0]["job"], lines[0]["round"], lines[0]["level"]) == ("digits", 3, "info")
    assert (lines[1]["logger"], lines[1]["level"]) == ("fedbus.other", "warning")
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert all("timestamp" in line for line in lines)
