from constructs_lib.code_asset import source_files
from stacks.code import model_code_for
from stacks.wheelhouse import ROOT


def files(slug):
    return [path.relative_to(ROOT).as_posix() for path in source_files(ROOT, model_code_for(slug))]


def test_a_machine_gets_the_modules_of_every_innovation_and_the_targets_of_its_own():
    found = files("gqa")
    for slug in ("mla", "moe", "normalization", "sliding_window"):
        assert f"model_code/{slug}/model.py" in found
    assert "model_code/gqa/serve/__main__.py" in found
    assert "model_code/common/decoder.py" in found
    assert not [name for name in files("mla") if "gqa/serve" in name]


def test_no_file_goes_twice():
    for slug in ("gqa", "mla", "moe"):
        assert len(files(slug)) == len(set(files(slug)))
