"""Lifecycle scripts as file assets: each a file of its own, below a prefix that is their digest."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from aws_cdk import AssetStaging, FileAssetPackaging, Stack
from constructs import Construct


class LifecycleScripts(Construct):
    """Files that HyperPod finds unpacked below one S3 prefix.

    The key of a file asset is the stack's prefix, the asset's hash and the file's suffix, so a
    hash that is a path puts a file where we want it.

    Args:
        files: The scripts. Their names must differ: they lie side by side.
        texts: Further files by name, with what is in them.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        files: Sequence[Path],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        contents = {each.name: each.read_bytes() for each in files}
        contents |= {name: text.encode() for name, text in (texts or {}).items()}
        self.digest = _digest(contents)
        self.names = sorted(contents)
        stack, prefix = Stack.of(self), f"lifecycle/{self.digest}"
        with tempfile.TemporaryDirectory() as folder:
            for name in self.names:
                path = Path(folder) / name
                path.write_bytes(contents[name])
                staged = AssetStaging(self, name, source_path=str(path))
                location = stack.synthesizer.add_file_asset(
                    file_name=staged.relative_staged_path(stack),
                    source_hash=f"{prefix}/{path.stem}",
                    packaging=FileAssetPackaging.FILE,
                )
        self.bucket_name = location.bucket_name
        self.prefix = prefix
        self.url = f"s3://{location.bucket_name}/{prefix}"


def _digest(contents: Mapping[str, bytes]) -> str:
    """Return a digest of names and contents: a changed file makes another prefix."""
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]
