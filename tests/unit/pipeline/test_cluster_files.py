"""The cluster files are what Ray takes, and the scripts find the project from where `ray submit` puts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "workflows").glob("cluster*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_cluster_file_fits_rays_schema(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    assert config["file_mounts"] == {"~/triptych": "."}
    assert any("constraints.txt" in command for command in config["setup_commands"])
    assert all("0.0.0.0" not in command for command in config["head_start_ray_commands"])


def test_the_autoscaler_may_start_gpu_nodes_and_let_all_but_one_go() -> None:
    types = yaml.safe_load((ROOT / "workflows" / "cluster.yaml").read_text())["available_node_types"]
    assert types["gpu"]["min_workers"] < types["gpu"]["max_workers"]
    assert types["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("view", ["regions", "grid", "patches", "pixels"])
def test_a_script_that_was_copied_alone_into_the_home_folder_finds_the_project(view: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "workflows" / f"extract_{view}.py", tmp_path)
    (tmp_path / "triptych").symlink_to(ROOT)
    (tmp_path / "workflows").mkdir()  # of somebody else; ours goes first
    command = [sys.executable, "-S", "-c", FIND, str(tmp_path / f"extract_{view}.py")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "triptych"), done.stderr


FIND = """
import runpy, sys, types
found = types.ModuleType("workflows.cli")
found.script = lambda view: print(sys.path[0])
sys.modules["workflows"], sys.modules["workflows.cli"] = types.ModuleType("workflows"), found
runpy.run_path(sys.argv[1], run_name="__main__")
"""
