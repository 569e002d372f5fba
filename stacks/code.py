"""What of model_code goes to a machine."""

from stacks.wheelhouse import ROOT


def model_code_for(slug: str) -> list[str]:
    """Return the files and folders that the targets of `slug` need, for a `CodeAsset`.

    All of common and of the slug's folder, and the modules of the other innovations: one model has
    several (Gemma 3 has grouped queries, windows and norms), and each is a few kilobytes.
    """
    own = ["model_code/__init__.py", "model_code/common", f"model_code/{slug}"]
    others = [
        path
        for model in sorted((ROOT / "model_code").glob("*/model.py"))
        if model.parent.name not in (slug, "common")
        for path in (model.parent / "__init__.py", model)
    ]
    return own + [path.relative_to(ROOT).as_posix() for path in others]
