"""requirements.lock: what requirements.txt allows, each file of it with its hash, for every supported Python."""

import importlib.util
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}


@pytest.fixture(scope="module")
def locked(repo_root) -> list[tuple[Requirement, int]]:
    """The requirements of the lock with their numbers of hashes."""
    text = (repo_root / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(Requirement(HASH.sub("", entry).strip()), len(HASH.findall(entry))) for entry in entries]


def test_every_version_is_one_and_has_hashes(locked):
    assert len(locked) > 40
    for requirement, hashes in locked:
        assert [spec.operator for spec in requirement.specifier] == ["=="], requirement
        assert hashes, requirement


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_is_within_the_ranges(locked, python, repo_root):
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.1"}
    there = {}
    for requirement, _ in locked:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in there, f"{name} twice"
            there[name] = next(iter(requirement.specifier)).version
    for line in (repo_root / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            wanted = Requirement(line.partition("#")[0])
            assert there[canonicalize_name(wanted.name)] in wanted.specifier, f"make the lock again: {line}"


def test_the_lock_names_no_place_to_install_from(repo_root):
    text = (repo_root / "requirements.lock").read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", text)


@pytest.fixture(scope="module")
def audit(repo_root):
    spec = importlib.util.spec_from_file_location("audit", repo_root / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package(*fixes: list[str]) -> dict:
    return {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": fixed} for fixed in fixes]}


def test_advisories_fail_where_something_can_be_done(audit):
    assert audit.verdict({"dependencies": [_package()]})[1] == 0
    assert audit.verdict({"dependencies": [_package([])]})[1] == 0
    lines, status = audit.verdict({"dependencies": [_package([], ["2"]), {"name": "b", "skip_reason": "unknown"}]})
    assert status == 1
    assert "1 of 2 packages" in lines[0]
    assert "a 1 has X-1, mended in 2" in lines[-1]


@pytest.mark.parametrize("content", [None, "no JSON", '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}'])
def test_without_the_database_nothing_is_claimed(audit, content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert audit.main(str(tmp_path / "report.json")) == 0
    assert "no package was audited" in capsys.readouterr().out
