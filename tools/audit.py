"""Ask whether the locked packages have known vulnerabilities: `python tools/audit.py PIP_AUDIT requirements/ci.txt`.

pip-audit asks a service on the network, passes over the packages that the service does not know, and then says that no
vulnerability is known. Here a package that was not looked up is counted and said, and if none was, the check failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Exit codes: nothing found; something found; nothing or not everything could be asked.
CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 3


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code and the lines to print for the JSON report of pip-audit."""
    packages = report["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none yet'}"
        for one in packages
        for found in one.get("vulns", ())
    ]
    code = VULNERABLE if lines else CLEAN
    asked = len(packages) - len(skipped)
    if skipped:
        shown = ", ".join(skipped[:8]) + (", ..." if len(skipped) > 8 else "")
        lines.append(f"The service knows nothing of {len(skipped)} of {len(packages)} packages: {shown}.")
        code = code or NOT_ASKED
    if not asked:
        lines.append("NOTHING WAS CHECKED. Run this where the vulnerability service of PyPI can be reached.")
    elif code == CLEAN:
        lines.append(f"No vulnerability is known of the {asked} packages.")
    return code, lines


def main(command: str, lock: str) -> int:
    """Run pip-audit on a lock file and print what it found; return an exit code."""
    done = subprocess.run(
        [
            command,
            "--requirement",
            lock,
            "--require-hashes",
            "--disable-pip",
            "--format",
            "json",
            "--progress-spinner=off",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        code, lines = verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        code, lines = NOT_ASKED, [f"NOTHING WAS CHECKED. The vulnerability service did not answer: {last}"]
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
