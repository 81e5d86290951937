"""Cases as JSON, in which processes hand them over."""

from typing import Any

from benchmarks.shared.shapes import Shape


def packed(case: Any) -> dict[str, Any]:
    """A case for JSON."""
    return case._asdict() | {"shape": case.shape._asdict()}


def unpacked(Case: Any, case: dict[str, Any]) -> Any:
    return Case(**(case | {"shape": Shape(**case["shape"])}))
