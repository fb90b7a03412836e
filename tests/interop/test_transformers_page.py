"""The page that compares transformers with this library: every row names a test, and the tests exist."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "from-transformers.md"


def functions() -> set[str]:
    paths = pathlib.Path(__file__).parent.glob("test_transformers_*.py")
    return {
        node.name for path in paths for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    }


def test_every_row_names_tests_that_exist():
    rows = re.findall(r"^\| (?!of transformers \||-)(.+) \|$", PAGE.read_text().split("## Row by row")[1], re.MULTILINE)
    rows = [row.split(" | ") for row in rows if not row.startswith("--")]
    assert len(rows) > 40
    for row in rows:
        assert len(row) == 3, row
        names = re.findall(r"`(test_\w+)`", row[2])
        assert names and set(names) <= functions(), row


def test_the_page_names_every_class():
    page = PAGE.read_text()
    for name in re.findall(
        r" as (\w+)$", (ROOT / "vitpose_jax/interop/transformers/__init__.py").read_text(), re.MULTILINE
    ):
        assert name in page or name in ("BatchFeature", "ModelOutput"), name
