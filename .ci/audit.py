"""What pip-audit's JSON says about requirements.lock, in sentences: `audit.py REPORT.json`.

Exit status: 1 if a package has a known vulnerability that a newer version mends; else 0, also where the database of
advisories could not be asked, which is said.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AGAIN = "raise its range and make the lock again (CONTRIBUTING.md)"


def verdict(report: Mapping[str, Any]) -> tuple[list[str], int]:
    """Sentences about a report of pip-audit, and the exit status."""
    packages = report.get("dependencies", [])
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return ["audit: the database of advisories could not be asked: no package was audited"], 0
    lines, status = [f"audit: {len(asked)} of {len(packages)} packages were compared with the advisories"], 0
    for package in asked:
        for found in package["vulns"]:
            mended = ", ".join(found["fix_versions"])
            status = 1 if mended else status
            remedy = f"mended in {mended}: {AGAIN}" if mended else "no version mends it yet"
            lines.append(f"audit: {package['name']} {package['version']} has {found['id']}, {remedy}")
    return lines, status


def main(path: str) -> int:
    """Print the verdict about a file; one that is not there or no report is a database that could not be asked."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    lines, status = verdict(report)
    sys.stdout.write("\n".join(lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
