"""Files and folders that are written whole or not at all, and digests that lead nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.paths import (
    HomePaths,
    JobPaths,
    folder_name,
    folder_written_atomically,
    read_json,
    write_atomic,
    write_json,
)


class Killed(BaseException):
    pass


def content(folder: Path) -> dict[str, str]:
    """Everything below, hidden leftovers too."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"ü": [1, None]})
    write_json(path, {"b": 2})
    assert read_json(path) == {"b": 2}
    assert content(tmp_path) == {"deep/value.json": path.read_text()}


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "value", "old")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            write_atomic(tmp_path / "value", "new")
    assert content(tmp_path) == {"value": "old"}


def fill(final: Path, text: str) -> None:
    with folder_written_atomically(final) as folder:
        assert folder.parent == final.parent  # the same disk, or a rename would be a copy
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


def test_a_folder_is_made_and_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path / "made", "one")
    fill(tmp_path / "made", "two")
    assert content(tmp_path) == {"made/sub/file": "two"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed(), KeyboardInterrupt()])
def test_a_folder_whose_making_fails_leaves_the_old_one(error: BaseException, tmp_path: Path) -> None:
    fill(tmp_path / "made", "one")
    with pytest.raises(type(error)), folder_written_atomically(tmp_path / "made") as folder:  # noqa: PT012
        (folder / "file").write_text("half")
        raise error
    assert content(tmp_path) == {"made/sub/file": "one"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_between_its_renames_puts_the_old_one_back(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "made", "one")
    rename, count = Path.rename, [0]

    def renamed(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == failing:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renamed)
        with pytest.raises(OSError, match="Input/output"):
            fill(tmp_path / "made", "two")
    assert content(tmp_path) == {"made/sub/file": "one"}


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "a" * 64, "a" * 64,
     "sha256:" + "a" * 63, "sha256:" + "a" * 63 + "/", "sha256:" + "a" * 65, "sha256:" + "a" * 64 + "\n"],
)  # fmt: skip
def test_only_a_digest_names_a_folder_of_the_store(digest: str) -> None:
    for name in (folder_name, HomePaths(Path("/home")).dataset, HomePaths(Path("/home")).artifact):
        with pytest.raises(ValueError, match="not a digest"):
            name(digest)


def test_ids_are_numbers() -> None:
    paths = HomePaths(Path("/home"))
    assert paths.job(12) == JobPaths(Path("/home/jobs/12"))
    for bad in ("../1", "x", ""):
        with pytest.raises(ValueError, match="invalid literal"):
            paths.run(bad)  # type: ignore[arg-type]
