"""The catalogue of models, the importer of published checkpoints, and the command around them."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.models import catalogue
from SAMRegistrationLib.models.architectures import find_architecture
from SAMRegistrationLib.models.catalogue import ModelEntry
from SAMRegistrationLib.models.command import add_models_arguments, run_models
from SAMRegistrationLib.models.importer import import_checkpoint
from SAMRegistrationLib.networks.sam_lite import SamLite

Checkpoint = dict[str, Any]
Saver = Callable[[Any], Path]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty model folders; returns the user's."""
    monkeypatch.setattr(catalogue, "SHIPPED_FOLDER", tmp_path / "shipped")
    monkeypatch.setenv("SAMREG_MODELS", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    """Write a checkpoint file and give its path."""

    def save(content: Any) -> Path:
        path = tmp_path / "SAM.pth"
        torch.save(content, path)
        return path

    return save


def _published_shapes(semantic: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a published file, written out from the description of its layout."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(prefix: str, outputs: int, inputs: int, kernel: tuple[int, int, int]) -> None:
        shapes[f"{prefix}.conv.weight"] = (outputs, inputs, *kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.bn.{name}"] = (outputs,)
        shapes[f"{prefix}.bn.num_batches_tracked"] = ()

    unit("backbone.conv1", 64, 1, (3, 7, 7))
    inputs = 64
    for layer, outputs in enumerate((64, 128, 256, 512), start=1):
        kernel = (1, 3, 3) if layer <= 2 else (3, 3, 3)
        unit(f"backbone.layer{layer}.0.downsample", outputs, inputs, (1, 1, 1))
        unit(f"backbone.layer{layer}.0.conv1", outputs, inputs, kernel)
        for name in ("0.conv2", "1.conv1", "1.conv2"):
            unit(f"backbone.layer{layer}.{name}", outputs, outputs, kernel)
        inputs = outputs
    heads = {"neck": (64, 128, 256), "read_out_head": (512,)}
    if semantic:
        heads["semantic_head"] = heads["neck"]
    for head, levels in heads.items():
        for index, channels in enumerate(levels):
            shapes[f"{head}.lateral_convs.{index}.conv.weight"] = (128, channels, 1, 1, 1)
            shapes[f"{head}.lateral_convs.{index}.conv.bias"] = (128,)
        shapes[f"{head}.fpn_convs.0.conv.weight"] = (128, 128, 3, 3, 3)
        shapes[f"{head}.fpn_convs.0.conv.bias"] = (128,)
    return shapes


def _checkpoint(semantic: bool = False, *, random: bool = False) -> Checkpoint:
    """A synthetic file of the published kind: meta, state_dict and the optimizer's momentum.

    Unless random, every tensor is one number expanded to its shape, which makes a small file.
    """
    generator = torch.Generator().manual_seed(5)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(20_000)
        if not random:
            return torch.tensor(0.5).expand(shape)
        value = torch.rand(shape, generator=generator)
        return value + 0.5 if name.endswith("running_var") else (value - 0.5) * 0.1

    state = {name: tensor(name, shape) for name, shape in _published_shapes(semantic).items()}
    optimizer = {
        "state": {0: {"momentum_buffer": torch.zeros(3)}},
        "param_groups": [{"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "params": [0]}],
    }
    meta = {
        "epoch": 12,
        "iter": 20_000,
        "mmcv_version": "1.3.9",
        "time": "Mon Jan  1 00:00:00 2024",
        "CLASSES": None,
    }
    return {"meta": meta, "state_dict": state, "optimizer": optimizer}


def _lite_entry(name: str = "small", **changes: Any) -> ModelEntry:
    values: dict[str, Any] = {
        "name": name,
        "architecture": "sam-lite",
        "file": f"{name}.safetensors",
        "sha256": "",
        "spacing": 2.0,
        "training_data": "made up",
        "licence": "Apache-2.0",
        "date": "2026-01-01",
        "accuracy": {"median error (mm)": 1.25},
        "configuration": {"widths": [16, 32, 48, 56], "embedding_channels": 16},
        "folder": catalogue.user_folder(),
    }
    return ModelEntry(**{**values, **changes})


def _install_lite(name: str = "small", **changes: Any) -> ModelEntry:
    entry = _lite_entry(name, **changes)
    return catalogue.install(entry, SamLite(**entry.configuration).state_dict())


class TestCatalogue:
    """What is installed."""

    def test_installed_model_is_listed_verified_and_loaded_unchanged(self) -> None:
        weights = SamLite(widths=(16, 32, 48, 56), embedding_channels=16).state_dict()
        entry = catalogue.install(_lite_entry(), weights)
        assert catalogue.list_models() == [entry]
        assert catalogue.find_model("small") == entry
        catalogue.verify(entry)
        loaded = catalogue.load_weights(entry)
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], value) for name, value in weights.items())

    def test_nothing_is_installed_where_no_folder_exists(self, folders: Path) -> None:
        assert not folders.exists() and catalogue.list_models() == []

    def test_shipped_models_come_before_the_user_s(self) -> None:
        _install_lite("mine")
        _install_lite("shipped", folder=catalogue.SHIPPED_FOLDER)
        assert [(entry.name, entry.shipped) for entry in catalogue.list_models()] == [
            ("shipped", True),
            ("mine", False),
        ]

    def test_installing_again_replaces_the_entry(self) -> None:
        _install_lite(licence="first")
        _install_lite(licence="second")
        assert [entry.licence for entry in catalogue.list_models()] == ["second"]

    def test_changed_weights_are_refused(self) -> None:
        entry = _install_lite()
        content = bytearray(entry.path.read_bytes())
        content[-1] ^= 1
        entry.path.write_bytes(content)
        with pytest.raises(InputError, match="sha256"):
            catalogue.verify(entry)

    def test_missing_weights_are_named(self) -> None:
        entry = _install_lite()
        entry.path.unlink()
        assert not entry.available
        with pytest.raises(InputError, match=r"small\.safetensors"):
            catalogue.load_weights(entry)

    def test_weights_of_another_architecture_are_refused(self) -> None:
        entry = catalogue.install(
            _lite_entry(), SamLite(widths=(16, 32, 48, 64), embedding_channels=16).state_dict()
        )
        with pytest.raises(InputError, match="do not fit"):
            catalogue.verify(entry)

    def test_architecture_of_a_newer_version_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match="sam-giant"):
            find_architecture("sam-giant")

    @pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 65, "sam", "mind"])
    def test_names_that_cannot_be_used_are_refused(self, name: str) -> None:
        with pytest.raises(UsageError):
            _install_lite(name)

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", '{"models": [{"name": "x"}]}', '{"models": 3}'],
        ids=["cut", "list", "fields", "number"],
    )
    def test_damaged_catalogue_is_an_error_that_names_the_file(self, folders: Path, text: str) -> None:
        folders.mkdir()
        (folders / "catalogue.json").write_text(text)
        with pytest.raises(InputError, match=r"catalogue\.json"):
            catalogue.list_models()

    def test_catalogue_cannot_point_outside_its_folder(self, folders: Path) -> None:
        folders.mkdir()
        entry = _lite_entry(file="../secret.safetensors").as_json()
        (folders / "catalogue.json").write_text(json.dumps({"models": [entry]}))
        with pytest.raises(InputError, match="outside"):
            catalogue.list_models()

    def test_removed_model_leaves_no_file(self, folders: Path) -> None:
        _install_lite("keep")
        _install_lite("drop")
        catalogue.remove("drop")
        assert [entry.name for entry in catalogue.list_models()] == ["keep"]
        assert {path.name for path in folders.iterdir()} == {"catalogue.json", "keep.safetensors"}

    def test_shipped_model_cannot_be_removed(self) -> None:
        entry = _install_lite(folder=catalogue.SHIPPED_FOLDER)
        with pytest.raises(UsageError, match="shipped"):
            catalogue.remove("small")
        assert entry.available

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that cannot be written")
    def test_unwritable_folder_is_reported(self, folders: Path) -> None:
        folders.mkdir(mode=0o500)
        with pytest.raises(InputError, match="cannot be written"):
            _install_lite()

    def test_file_in_the_folder_s_place_is_reported(self, folders: Path) -> None:
        folders.write_text("not a folder")
        with pytest.raises(InputError, match="cannot be written"):
            _install_lite()


def test_shipped_catalogue_is_whole_and_every_weight_file_is_catalogued(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(catalogue.__file__).parent
    monkeypatch.setattr(catalogue, "SHIPPED_FOLDER", folder)
    shipped = [entry for entry in catalogue.list_models() if entry.shipped]
    assert {path.name for path in folder.glob("*.safetensors")} == {entry.file for entry in shipped}
    for entry in shipped:
        assert entry.training_data and entry.licence
        catalogue.verify(entry)


class TestImport:
    """Published checkpoints."""

    @pytest.mark.parametrize("semantic", [False, True])
    def test_published_checkpoint_becomes_a_usable_model(self, saver: Saver, semantic: bool) -> None:
        checkpoint = _checkpoint(semantic, random=True)
        entry = import_checkpoint(saver(checkpoint), "published", licence="CC-BY", training_data="NIH-LN")
        assert (entry.architecture, entry.licence, entry.training_data) == ("sam-resnet18", "CC-BY", "NIH-LN")
        stored = load_file(entry.path)
        assert stored.keys() == checkpoint["state_dict"].keys()
        assert all(torch.equal(stored[name], value) for name, value in checkpoint["state_dict"].items())
        fine, coarse = get_extractor("published").extract_tensor(torch.zeros(1, 1, 4, 16, 16))
        assert fine.shape[1] == (256 if semantic else 128)
        assert coarse is not None and coarse.shape[1] == 128

    def test_bare_state_dict_inside_a_data_parallel_wrapper_is_accepted(self, saver: Saver) -> None:
        state = {f"module.{name}": value for name, value in _checkpoint()["state_dict"].items()}
        entry = import_checkpoint(saver(state), "wrapped")
        assert load_file(entry.path).keys() == _published_shapes(semantic=False).keys()

    def test_safetensors_file_is_accepted(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        save_file({name: value.clone() for name, value in _checkpoint()["state_dict"].items()}, path)
        entry = import_checkpoint(path, "safe")
        assert load_file(entry.path).keys() == _published_shapes(semantic=False).keys()

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda s: s.pop("neck.fpn_convs.0.conv.bias"), r"missing: neck\.fpn_convs\.0\.conv\.bias"),
            (lambda s: s.update({"fc.weight": torch.zeros(2)}), r"unexpected: fc\.weight"),
            (
                lambda s: s.update({"backbone.conv1.conv.weight": torch.zeros(64, 1, 7, 7, 7)}),
                "of another shape: backbone.conv1.conv.weight is 64x1x7x7x7 instead of 64x1x3x7x7",
            ),
            (
                lambda s: s.update({"backbone.conv1.bn.bias": torch.full((64,), float("nan"))}),
                r"not finite: backbone\.conv1\.bn\.bias",
            ),
            (lambda s: s.pop("semantic_head.fpn_convs.0.conv.bias"), r"missing: semantic_head\.fpn_convs"),
            (lambda s: s.update({"neck.extra": 3}), r"not tensors: neck\.extra"),
        ],
        ids=["missing", "unexpected", "misshapen", "not-finite", "half a semantic head", "number"],
    )
    def test_any_tensor_that_is_not_as_published_is_named(
        self, saver: Saver, folders: Path, change: Callable[[dict[str, Tensor]], Any], sentence: str
    ) -> None:
        checkpoint = _checkpoint(semantic=True)
        change(checkpoint["state_dict"])
        with pytest.raises(InputError, match=sentence):
            import_checkpoint(saver(checkpoint), "bad")
        assert not folders.exists()

    def test_long_lists_of_names_are_cut(self, saver: Saver) -> None:
        state = {name: value for name, value in _checkpoint()["state_dict"].items() if "layer4" not in name}
        with pytest.raises(InputError, match="and 25 more") as caught:
            import_checkpoint(saver(state), "bad")
        assert len(str(caught.value)) < 500

    def test_file_with_heads_only_is_refused(self, saver: Saver) -> None:
        heads = {k: v for k, v in _checkpoint()["state_dict"].items() if not k.startswith("backbone.")}
        with pytest.raises(InputError, match="only heads"):
            import_checkpoint(saver(heads), "bad")

    def test_checkpoint_of_another_network_is_refused(self, saver: Saver) -> None:
        with pytest.raises(InputError, match="none of its tensors belongs there"):
            import_checkpoint(saver({"state_dict": torch.nn.Conv3d(1, 2, 3).state_dict()}), "bad")

    def test_own_weights_in_half_precision_are_imported_with_their_configuration(self, tmp_path: Path) -> None:
        network = SamLite(widths=(16, 32, 48, 56), embedding_channels=48)
        path = tmp_path / "latest.safetensors"
        save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, path)
        entry = import_checkpoint(path, "own")
        assert entry.architecture == "sam-lite"
        assert SamLite(**entry.configuration).state_dict().keys() == network.state_dict().keys()
        assert entry.configuration["widths"] == [16, 32, 48, 56]
        assert entry.configuration["embedding_channels"] == 48
        fine, _ = get_extractor("own").extract_tensor(torch.zeros(1, 1, 16, 16, 16))
        assert fine.shape[1] == 48

    def test_own_weights_with_a_missing_tensor_are_refused(self, saver: Saver) -> None:
        state = SamLite(widths=(16, 32, 48, 56)).state_dict()
        state.pop("coarse_head.bias")
        with pytest.raises(InputError, match=r"exactly the tensors of sam-lite; missing: coarse_head\.bias"):
            import_checkpoint(saver(state), "bad")

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        path, trace = tmp_path / "evil.pth", tmp_path / "trace"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (trace,))

        torch.save({"state_dict": _checkpoint()["state_dict"], "meta": Evil()}, path)
        with pytest.raises(InputError, match="would run code"):
            import_checkpoint(path, "evil")
        assert not trace.exists()

    def test_numpy_value_in_the_meta_data_is_refused_with_the_way_out(self, saver: Saver) -> None:
        checkpoint = _checkpoint()
        checkpoint["meta"]["best"] = np.float64(0.5)
        with pytest.raises(InputError, match=r"numpy.*save its 'state_dict' alone"):
            import_checkpoint(saver(checkpoint), "bad")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not a checkpoint at all",
            pickle.dumps([1, 2], protocol=2),
            b"PK\x03\x04 cut short",
            pickle.dumps({}, protocol=2),
        ],
        ids=["empty", "text", "list", "cut archive", "nothing inside"],
    )
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_file_that_is_no_checkpoint_is_refused_in_a_sentence(
        self, tmp_path: Path, content: bytes, suffix: str
    ) -> None:
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"file{suffix}"):
            import_checkpoint(path, "bad")

    def test_truncated_checkpoint_is_refused(self, saver: Saver) -> None:
        path = saver(_checkpoint())
        path.write_bytes(path.read_bytes()[:10_000])
        with pytest.raises(InputError, match="readable"):
            import_checkpoint(path, "bad")

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"absent\.pth"):
            import_checkpoint(tmp_path / "absent.pth", "bad")

    def test_taken_name_is_refused(self, saver: Saver) -> None:
        _install_lite("taken")
        with pytest.raises(UsageError, match="already"):
            import_checkpoint(saver(_checkpoint()), "taken")


class TestCommand:
    """samreg models."""

    @staticmethod
    def _run(*words: str | Path) -> int:
        parser = argparse.ArgumentParser()
        add_models_arguments(parser.add_subparsers())
        return run_models(parser.parse_args(["models", *map(str, words)]))

    def test_import_list_info_verify_and_remove(self, saver: Saver, capsys: pytest.CaptureFixture[str]) -> None:
        assert self._run("import", saver(_checkpoint()), "--name", "published", "--licence", "CC-BY 4.0") == 0
        assert "--model published" in capsys.readouterr().out
        assert self._run("list") == 0
        assert "published" in capsys.readouterr().out
        assert self._run("info", "published") == 0
        described = capsys.readouterr().out
        assert "CC-BY 4.0" in described and catalogue.find_model("published").sha256 in described
        assert self._run("verify") == 0
        assert "published: good" in capsys.readouterr().out
        assert self._run("remove", "published") == 0
        assert catalogue.list_models() == []

    def test_model_is_called_like_its_file_by_default(self, saver: Saver) -> None:
        self._run("import", saver(_checkpoint()))
        assert catalogue.find_model("SAM").architecture == "sam-resnet18"

    def test_info_shows_measured_accuracy(self, capsys: pytest.CaptureFixture[str]) -> None:
        _install_lite()
        self._run("info", "small")
        assert "measured median error (mm)" in capsys.readouterr().out

    def test_list_says_where_models_would_be(self, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._run("list")
        assert str(folders) in capsys.readouterr().out

    def test_verify_goes_on_after_a_bad_model_and_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        _install_lite("bad").path.write_bytes(b"damaged")
        _install_lite("good")
        with pytest.raises(InputError, match="bad"):
            self._run("verify")
        assert "good: good" in capsys.readouterr().out

    def test_unknown_model_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="nothing"):
            self._run("info", "nothing")
