from __future__ import annotations

import pytest
import torch

from simtrail.training.state import Checkpoints


def test_the_newest_is_loaded_and_the_last_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, "key", keep=2)
    assert not checkpoints
    assert checkpoints.load() is None
    for step in (5, 20, 100):
        checkpoints.save(step, {"step": step, "tensor": torch.arange(step)})
    assert checkpoints
    assert checkpoints.load()["step"] == 100
    assert sorted(p.name for p in (tmp_path / "key").iterdir()) == ["step-000000020.pt", "step-000000100.pt"]


def test_a_finished_run_is_kept_until_its_results_are_used(tmp_path):
    finished, running = Checkpoints(tmp_path, "finished"), Checkpoints(tmp_path, "running")
    for checkpoints in (finished, running):
        checkpoints.save(1, {})
    finished.finish()
    assert finished
    Checkpoints.discard_finished(tmp_path)
    assert running
    assert not finished


def test_another_key_has_no_checkpoint(tmp_path):
    Checkpoints(tmp_path, "key").save(1, {})
    assert Checkpoints(tmp_path, "other").load() is None


def test_a_full_disk_gives_a_warning_and_keeps_the_older_state(tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, {"x": 1})
    (tmp_path / "key" / "fill").symlink_to("/dev/full")

    class Full(type(tmp_path)):
        """A path whose temporary files are on a full device."""

        def open(self, mode="r", **options):
            return open("/dev/full" if self.suffix == ".tmp" else self, mode, **options)  # noqa: PTH123

    checkpoints.folder = Full(checkpoints.folder)
    with pytest.warns(UserWarning, match="no checkpoint of step 2 in .*No space left on device"):
        checkpoints.save(2, {"x": torch.zeros(100_000)})
    assert Checkpoints(tmp_path, "key").load() == {"x": 1}


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", "cut"])
def test_a_checkpoint_that_cannot_be_read_gives_a_warning_and_an_older_one_is_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, "key")
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((1000,), step)})
    newest = tmp_path / "key/step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:2000] if damage == "cut" else damage)
    with pytest.warns(UserWarning, match=r"step-000000002\.pt can't be read"):
        assert checkpoints.load()["x"][0] == 1
