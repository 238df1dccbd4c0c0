"""Print the coverage of each package and fail where one is below its floor; `make coverage` has measured it.

Coverage counts lines and branches together, as coverage reports do. A floor is raised with the tests that earn it.
"""

import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package_of(path: str) -> str:
    """Return the folder that has a floor of its own: gateway, kernels or one of services."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "services" else parts[0]


def percentages(report: dict) -> dict[str, float]:
    """Return the percentage of each package's lines and branches that ran."""
    counted: dict[str, list[int]] = {}
    for path, file in report["files"].items():
        summary = file["summary"]
        sums = counted.setdefault(package_of(path), [0, 0])
        sums[0] += summary["covered_lines"] + summary["covered_branches"]
        sums[1] += summary["num_statements"] + summary["num_branches"]
    return {package: 100 * covered / total for package, (covered, total) in sorted(counted.items()) if total}


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floors = project["tool"]["moonshard"]["coverage"]
    report = ROOT / project["tool"]["coverage"]["json"]["output"]
    measured = percentages(json.loads(report.read_text()))
    failed = sorted(floors.keys() ^ measured.keys())
    for package in failed:
        print(f"{package} has {'no floor in pyproject.toml' if package in measured else 'a floor and no coverage'}")
    for package, percent in measured.items():
        floor = floors.get(package, 0)
        below = percent < floor
        failed += [package] * below
        print(f"{package:24} {percent:5.1f} %   floor {floor} %{'   BELOW' * below}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
