"""Requirements of `ih-grpo sandbox build --with`, their resolution with uv, and lock files."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.sandbox.base import SandboxError
from service.sandbox.docker import packages
from service.sandbox.docker.packages import ImageInfo, Lock, parse_requirements, resolve
from tests.support.package_index import PackageIndex


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageIndex:
    """An index with the default image's only package ``base`` and with ``extra``, which needs ``base``."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "requirements.txt").write_text("# Packages\nbase==1.0\n")
    monkeypatch.setattr(packages, "image_folder", lambda: folder)
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    index = PackageIndex(tmp_path / "index")
    index.add("base", "1.0")
    index.add("base", "2.0")
    index.add("extra", "1.1", needs="base>=1")
    return index


def resolved(index: PackageIndex, path: Path, *requested: str) -> Lock:
    return resolve(parse_requirements(requested), path, {"PIP_INDEX_URL": index.url}, None)


def test_splits_requirements_at_commas_between_names() -> None:
    given = ["Xarray>=1,<2,scikit_learn[a,b] == 1.7", "umap-learn"]
    assert parse_requirements(given) == ("scikit-learn[a,b]==1.7", "umap-learn", "xarray<2,>=1")


@pytest.mark.parametrize("text", ["", "xarray,", "./xarray.whl", "--index-url=x", "a b", "xarray>>1"])
def test_rejects_what_is_not_a_package_name(text: str) -> None:
    with pytest.raises(SandboxError, match="is not the name of a package"):
        parse_requirements([text])


def test_rejects_urls() -> None:
    with pytest.raises(SandboxError, match="not URLs"):
        parse_requirements(["xarray @ https://example.org/xarray.whl"])


def test_rejects_packages_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="polars does not work in the sandbox: its threads"):
        resolve(parse_requirements(["numpy,Polars>=1"]), tmp_path / "packages.lock", {}, None)


def test_locks_default_packages_and_requested_ones_with_hashes(index: PackageIndex, tmp_path: Path) -> None:
    path = tmp_path / "packages.lock"
    lock = resolved(index, path, "extra")
    assert lock.pins == {"base": "1.0", "extra": "1.1"}
    assert lock.text.count("--hash=sha256:") == 2
    assert Lock.read(path) == lock
    assert lock.requested == ("extra",)
    assert "file:" not in lock.text, "the address of the index does not belong into the lock"


def test_keeps_locked_versions_when_newer_ones_appear(index: PackageIndex, tmp_path: Path) -> None:
    path = tmp_path / "packages.lock"
    before = resolved(index, path, "extra")
    index.add("extra", "1.2", needs="base>=1")
    index.add("other", "3.0")
    assert resolved(index, path, "extra") == before
    after = resolved(index, path, "extra", "other")
    assert after.pins == {"base": "1.0", "extra": "1.1", "other": "3.0"}
    assert after.image != before.image
    assert resolved(index, tmp_path / "new.lock", "extra").pins["extra"] == "1.2"


def test_tag_depends_on_the_pins_only(index: PackageIndex, tmp_path: Path) -> None:
    lock = resolved(index, tmp_path / "packages.lock", "extra")
    same = resolved(index, tmp_path / "other.lock", "extra>=1")
    assert same.requested != lock.requested
    assert same.image == lock.image == f"ih-grpo-sandbox:with-{lock.digest[:12]}"
    assert Lock((), lock.text.replace("1.1", "1.2")).image != lock.image


def test_reports_an_unknown_package_by_name(index: PackageIndex, tmp_path: Path) -> None:
    path = tmp_path / "packages.lock"
    with pytest.raises(SandboxError, match=r"the packages can't be resolved: .*extar was not found"):
        resolved(index, path, "extar")
    assert not path.exists()


def test_reports_a_conflict_with_the_default_image(index: PackageIndex, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"can't be resolved: .*base==1\.0 and base>=2"):
        resolved(index, tmp_path / "packages.lock", "base>=2")


def test_uses_a_lock_only_for_what_it_was_made_of(index: PackageIndex, tmp_path: Path) -> None:
    lock = resolved(index, tmp_path / "packages.lock", "extra")
    lock.check(())
    lock.check(("extra",))
    with pytest.raises(SandboxError, match="is for extra, not for extra, other"):
        lock.check(("extra", "other"))
    (tmp_path / "image/requirements.txt").write_text("base==2.0\n")
    with pytest.raises(SandboxError, match=r"does not have base 2\.0 of the default image"):
        lock.check(())


def test_reports_unusable_lock_files(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="can't be read"):
        Lock.read(tmp_path / "missing.lock")
    (tmp_path / "other.txt").write_text("numpy==1\n")
    with pytest.raises(SandboxError, match="is not a lock file"):
        Lock.read(tmp_path / "other.txt")


def test_missing_uv_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(packages, "import_module", missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"needs uv .*-m pip install uv"):
        resolve(("extra",), tmp_path / "packages.lock", {}, None)


def test_passes_the_index_settings_of_pip_to_uv() -> None:
    settings = {"PIP_EXTRA_INDEX_URL": "https://a https://b", "PIP_TRUSTED_HOST": "a"}
    options = ["--index", "https://a", "--index", "https://b", "--allow-insecure-host", "a"]
    assert packages._index_options(settings) == options


def test_separates_direct_packages_from_dependencies(index: PackageIndex) -> None:
    image = ImageInfo("image", 1, ("extra>=1",), {"Base": "1.0", "extra": "1.1", "dependency": "0.1"})
    assert image.direct == {"Base": "1.0", "extra": "1.1"}
    assert image.added == {"extra": "1.1"}
    assert ImageInfo("image", 1, ()).direct == {}
