"""Write the dashboards where Grafana is told to look for them."""

import json
from pathlib import Path
from typing import Any

from dashboards import hallucination, health, steering

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by the name of their file."""
    made = [module.make() for module in (hallucination, steering, health)]
    return {f"{board['uid']}.json": board for board in made}


def text(board: dict[str, Any]) -> str:
    """The dashboard as its file holds it."""
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, board in dashboards().items():
        (FOLDER / name).write_text(text(board), encoding="utf-8")


if __name__ == "__main__":
    main()
