"""Text is UTF-8 wherever it is read or written, whatever the locale, and names of files need not be."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import lively_policy, toy_config, toy_demos

import ript
from ript.config.overrides import load_recipe
from ript.core.errors import DataError
from ript.demos.demo_set import open_demos
from ript.policies.loading import load_policy
from ript.report.page import write_report
from ript.rl import train_rl
from ript.run import files
from ript.run.folder import RunFolder
from ript.run.reading import read_config

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*Path(ript.__file__).parent.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def by_locale(source: str) -> list[str]:
    """Calls that would encode or decode text as the locale says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        constants = [a.value for a in [*node.args, *given.values()] if isinstance(a, ast.Constant)]
        binary = any(isinstance(value, str) and "b" in value and len(value) <= 3 for value in constants)
        opens = name in ("open", "os.fdopen", "io.open") or name.endswith(("NamedTemporaryFile", "TextIOWrapper"))
        kinds = (
            opens and not binary,
            name.endswith(".read_text") and not node.args,
            name.endswith(".write_text") and len(node.args) < 2,
            {"text", "universal_newlines"} & given.keys() and ("subprocess" in name or "Popen" in name),
            name.endswith("Tokenizer.from_file"),  # takes no name that is not UTF-8
        )
        if any(kinds) and "encoding" not in given:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_no_text_is_read_or_written_as_the_locale_says(path: Path) -> None:
    assert by_locale(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "path.read_text()",
        "path.write_text(text)",
        "subprocess.run(words, text=True)",
        "tempfile.NamedTemporaryFile('w')",
        "Tokenizer.from_file(name)",
    ],
)
def test_a_call_that_leaves_the_encoding_to_the_locale_would_be_found(source: str) -> None:
    assert by_locale(source) == [source]


LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""ASCII, without what Python does about it by itself."""

IN_ASCII = """
import locale, sys
from pathlib import Path
from ript.cli.main import main
from ript.run.files import read_json, write_json
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8")
write_json("a.json", {"a": "\\u2192"})
assert read_json("a.json") == {"a": "\\u2192"} and "\\u2192" in Path("a.json").read_bytes().decode()
sys.exit(main(["recipes", "mine.toml"]))
"""


def test_in_an_ascii_locale_files_and_pipes_are_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "ä → 語"\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", IN_ASCII], env=os.environ | LOCALE, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'recipe = "ä → 語"' in done.stdout.decode("utf-8")


def test_a_byte_order_mark_is_no_part_of_a_recipe_or_a_document(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "mine"\n', encoding="utf-8-sig")
    assert load_recipe(str(tmp_path / "mine.toml")).recipe == "mine"
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert files.read_json(tmp_path / "config.json") == {"a": 1}
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8-sig")
    assert files.read_lines(tmp_path / "rows.jsonl") == [{"a": 1}]
    (tmp_path / "mine.toml").write_text('recipe = "mine"\n', encoding="utf-16")
    with pytest.raises(DataError, match=r"mine\.toml is not a TOML document"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_run_in_a_folder_whose_name_is_not_utf8_is_made_resumed_and_reported(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"r\xff")
    odd.mkdir()
    config = toy_config(iterations=1)
    lively_policy(config).save_pretrained(odd / "policy")
    result = train_rl(config, odd / "policy", odd / "run")
    assert load_policy(result.policy) is not None
    assert read_config(odd / "run")["config"]["start"] == str(odd / "policy")
    text = (odd / "run" / "config.json").read_text(encoding="utf-8")
    assert json.loads(text)["config"]["start"] == str(odd / "policy") and "\\udcff" in text
    page = write_report([odd / "run"], odd / "page.html")
    assert "<html" in page.read_text(encoding="utf-8")
    with RunFolder.open(odd / "run") as run:
        found = run.load_checkpoint()
    assert found is not None and found.iteration == 1
    demos = toy_demos(odd / "demos.hdf5", config, "reach")
    assert len(list(open_demos(demos).demos())) == 2
