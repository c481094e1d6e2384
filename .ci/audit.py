"""What pip-audit found, in its JSON: exit status 1 if a newer version fixes a known vulnerability of a pinned one."""

import json
import sys
from pathlib import Path


def main(path: Path) -> int:
    """Print a line for each vulnerability, and one of how many packages were audited."""
    try:
        packages = json.loads(path.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, ValueError, KeyError):
        print("dependencies not audited: the service of known vulnerabilities does not answer")
        return 0
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        print("dependencies not audited: the service of known vulnerabilities knows none of them")
        return 0
    status = 0
    for package in audited:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"])
            status = 1 if fixed else status
            print(
                f"{package['name']} {package['version']}: {found['id']}, {f'fixed in {fixed}' if fixed else 'no fix'}"
            )
    print(f"{len(audited)} of {len(packages)} dependencies audited")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
