"""Links from the pages to files outside docs/ become links into the repository; used by mkdocs.yml."""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """A page whose links to files outside docs/ are addresses of the repository; called by mkdocs."""
    folder = pathlib.Path(page.file.abs_src_path).parent

    def address(match: re.Match) -> str:
        path = (folder / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.exists():
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{path.relative_to(ROOT)}{match[2] or ''})"

    return LINK.sub(address, markdown)
