"""What README.md and docs/ say is true: commands parse, links lead somewhere, named keys and paths exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from post_platform.config import KEYS, RunConfig, flatten, load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# Parses a script's arguments with the script's own parser, and stops before it does anything.
PARSE = """
import argparse, json, runpy, sys

def stop_after(parse):
    def parsed(self, *arguments):
        parse(self, *arguments)
        sys.exit(0)
    return parsed

for name in ("parse_args", "parse_intermixed_args"):
    setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
codes = []
for command in json.load(sys.stdin):
    sys.argv, sys.path[0] = command, "pipelines"
    try:
        runpy.run_path(command[0], run_name="__main__")
        codes.append("did not parse its arguments")
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""


def commands(page: str) -> list[list[str]]:
    """Every command in a page's bash blocks and inline code, as words without comments."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page, re.DOTALL)
    inline = re.findall(
        r"`((?:python \w+/\w+\.py|make \w+)\b[^`\n]*)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    )
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL = [(name, command) for name, page in PAGES.items() for command in commands(page)]


def test_commands_are_found():
    shown = [command[:2] for name, command in ALL if name == "README.md"]
    for expected in (["make", "quickstart"], ["make", "test"], ["python", "pipelines/train.py"]):
        assert expected in shown


def test_every_command_is_of_a_kind_that_is_checked_here():
    assert {command[0] for _, command in ALL} <= {"make", "python", "mlflow", "source"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command[1] for _, command in ALL if command[0] == "make"} <= targets


def test_mlflow_is_installed_by_the_lock():
    assert re.search(r"^mlflow==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def refused(shown: list[list[str]]) -> list[list[str]]:
    """The commands whose script does not take their arguments."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(shown), cwd=ROOT, capture_output=True, text=True, check=True
    )
    codes = json.loads(done.stdout.splitlines()[-1])
    return [words for words, code in zip(shown, codes, strict=True) if code != 0]


def test_scripts_accept_the_arguments_shown():
    shown = [command[1:] for _, command in ALL if command[0] == "python"]
    assert all((ROOT / words[0]).is_file() for words in shown), shown
    assert refused([words for words in shown if words[0].startswith("pipelines/")]) == []


def test_the_check_of_arguments_can_fail():
    wrong = [["pipelines/train.py", "--epochs", "3"], ["pipelines/check.py"], ["pipelines/score.py", "nuscenes"]]
    assert refused(wrong) == wrong


def test_overrides_shown_are_accepted_by_the_configuration():
    for _, command in ALL:
        if command[:2] == ["python", "pipelines/train.py"]:
            overrides = [word for word in command if re.fullmatch(r"[\w.]+=.*", word)]
            file = ROOT / command[command.index("--config") + 1] if "--config" in command else None
            load_config(file, overrides)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_exist(name):
    folder = (ROOT / name).parent
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name])]
    missing = [t for t in targets if t and "://" not in t and not (folder / t).exists()]
    assert missing == []


def test_every_page_is_linked_from_the_readme_s_table_with_what_it_answers():
    section = README.split("\n## Documentation\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[(\w+)\]\((docs/\w+\.md)\) \| (.+) \|$", section, re.MULTILINE)
    assert sorted(page for _, page, _ in rows) == sorted(PAGES.keys() - {"README.md"})
    assert all(page == f"docs/{title}.md" for title, page, _ in rows)


@pytest.mark.parametrize("name", PAGES)
def test_config_keys_named_exist(name):
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    named = re.findall(r"`([a-z]+\.(?!(?:json|yaml|py|safetensors)\b)[a-z_]+)(?:=[^`]*)?`", PAGES[name])
    assert [key for key in named if key.split(".")[0] in sections and key not in KEYS] == []


def test_defaults_in_the_table_are_the_defaults():
    section = README.split("## Configuration")[1].split("\n## ")[0]
    table = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^|]+)` \|", section, re.MULTILINE))
    defaults = flatten(RunConfig())
    assert len(table) > 20
    for key, shown in table.items():
        value = str(Path(shown).resolve()) if shown.startswith("./") else yaml.safe_load(shown)
        assert defaults[key] == value, key


def tree_paths() -> list[str]:
    """The paths that the repository map names."""
    block = re.search(r"## Repository\n\n```\n(.*?)```", README, re.DOTALL)
    assert block
    folders: list[str] = []
    found = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.strip().split("  ")[0].split():
            path = "/".join([*folders[:depth], name.rstrip("/")])
            found.append(path)
            folders[depth:] = [path.rpartition("/")[2] if depth else path]
    return found


def test_the_repository_map_names_existing_paths():
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_the_repository_map_names_every_script_and_package():
    scripts = {f"pipelines/{path.name}" for path in (ROOT / "pipelines").glob("[a-z]*.py")}
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "platform").glob("*/*/__init__.py")}
    assert scripts | packages <= set(tree_paths())


def test_no_page_names_a_machine():
    for name, page in PAGES.items():
        assert not re.search(r"/(tmp|home|root|work)/|shared/|\blocalhost\b", page), name


def test_the_configuration_reference_is_the_schema_s():
    script = ROOT / "docs/configuration.py"
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(script)!r})['page'](), end='')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert PAGES["docs/configuration.md"] == done.stdout, "write it again: python docs/configuration.py"
    assert all(f"| `{key}`" in done.stdout for key in KEYS)
