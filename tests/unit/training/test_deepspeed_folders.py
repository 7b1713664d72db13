"""Folders laid out as DeepSpeed's ZeRO 2 leaves them are read without DeepSpeed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import read_state_dict
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.training.checkpoints import read_record, require_whole
from stable_audio_tools.training.run import train


@pytest.fixture
def checkpoint(make_settings) -> Path:
    run = train(make_settings(max_steps=2))
    return run / "checkpoints" / "step=00000002.ckpt"


def lay_out(checkpoint: Path, folder: Path, prefix: str) -> Path:
    """What ``engine.save_checkpoint(folder, client_state, tag="checkpoint")`` writes on the first rank."""
    content = torch.load(checkpoint, weights_only=True)
    state, _ = content.pop("state_dict"), content.pop("optimizer_states")
    (folder / "checkpoint").mkdir(parents=True)
    names = [name for name in state if "ema" not in name]
    engine = {
        "module": OrderedDict((prefix + name, value) for name, value in state.items()),
        "buffer_names": ["diffusion_ema.step"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, state[name].shape) for name in names)],
        "frozen_param_shapes": None,
        "shared_params": OrderedDict(),
        "lr_scheduler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 2,
        "dp_world_size": 2,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.16.0",
    }
    torch.save({**engine, **content}, folder / "checkpoint" / "mp_rank_00_model_states.pt")
    for rank in range(2):
        states = folder / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": {}}, states)
    (folder / "latest").write_text("checkpoint")
    return folder


@pytest.mark.parametrize("prefix", ["", "module.", "_forward_module."])
def test_a_folder_gives_what_the_file_gives(checkpoint, tmp_path, prefix):
    folder = lay_out(checkpoint, tmp_path / "step=00000002.ckpt", prefix)
    whole, found = read_state_dict(checkpoint), read_state_dict(folder)
    assert whole.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in whole.items())
    first = unwrap_checkpoint(checkpoint, None, tmp_path / "first", True)
    second = unwrap_checkpoint(folder, None, tmp_path / "second", True)
    assert first.read_bytes() == second.read_bytes()


def test_a_run_can_find_its_place_in_a_folder(checkpoint, tmp_path):
    folder = lay_out(checkpoint, tmp_path / "step=00000002.ckpt", "")
    require_whole(folder)
    first, second = read_record(checkpoint), read_record(folder)
    assert first["position"] == second["position"] == {"steps": 2, "batches": 2}
    assert first["shapes"] == second["shapes"]
    (folder / "latest").unlink()
    with pytest.raises(CheckpointError, match="not written to its end"):
        require_whole(folder)


def test_other_folders_are_refused_with_their_reason(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint file, or a folder of DeepSpeed"):
        read_state_dict(tmp_path)
    (tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointError, match=r"ZeRO 3.*zero_to_fp32\.py"):
        read_state_dict(tmp_path)
