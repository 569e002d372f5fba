from bench import planner as bench

FIELDS = {"name", "ours", "peer", "ratio", "target", "reached"}


def test_a_hundred_plans_are_measured() -> None:
    row = bench.plans()
    assert set(row) == FIELDS
    assert row["ratio"] > 0


def test_the_import_is_measured_in_fresh_processes() -> None:
    row = bench.import_time()
    assert set(row) == FIELDS
    assert row["ratio"] > 0
