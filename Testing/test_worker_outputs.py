"""What a worker writes and what it keeps, within this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from phantoms import PhantomPair, phantom_pair
from strategies import rotation

from SAMRegistrationLib import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Image,
    RegistrationResult,
    read_transform,
    register,
    write_image,
)
from SAMRegistrationLib.errors import Cancelled, InputError, NotEnoughMemoryError, UsageError
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.transforms import ItkTransform, Transform
from SAMRegistrationLib.worker.cache import BoundedCache, DeviceCaches
from SAMRegistrationLib.worker.dispatch import MEMORY_HINT, Task, checked_arguments, told
from SAMRegistrationLib.worker.feature_store import EmbeddingCounts, FeatureStore
from SAMRegistrationLib.worker.jobs import Jobs
from SAMRegistrationLib.worker.matching import file_identity
from SAMRegistrationLib.worker.outputs import inverse_of, whole_field, write_outputs
from SAMRegistrationLib.worker.registration import Registrations, usable_device

OUTPUTS = ["displacement", "warped", "jacobian"]


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(4.0)


@pytest.fixture(scope="module")
def result(pair: PhantomPair) -> RegistrationResult:
    return register(pair.fixed, pair.moving, preset="message-passing", model="mind")


@pytest.fixture(scope="module")
def files(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    paths = {"fixed": folder / "fixed.nii.gz", "moving": folder / "moving.nii.gz"}
    for name, path in paths.items():
        write_image(getattr(pair, name), path)
    return {name: str(path) for name, path in paths.items()}


def task(log: list[str] | None = None) -> Task:
    return Task(lambda *_: None, lambda: None, (log if log is not None else []).append)


def random_points(pair: PhantomPair, count: int = 300) -> np.ndarray:
    """World positions anywhere in the fixed volume's box."""
    size = np.array(pair.fixed.grid.size)
    return pair.fixed.grid.to_world(np.random.default_rng(0).uniform(-0.5, size - 0.5, (count, 3)))


def test_the_field_on_the_solvers_grid_is_the_whole_map_in_the_whole_volume(
    pair: PhantomPair, result: RegistrationResult
) -> None:
    field = whole_field(result.transform, pair.fixed.grid)
    assert field.grid.number_of_voxels < pair.fixed.grid.number_of_voxels * 2
    points = random_points(pair)
    gap = field.transform_points(points) - result.transform.transform_points(points)
    assert np.abs(gap).max() < 1e-3


def test_a_linear_map_needs_few_voxels(pair: PhantomPair) -> None:
    turned = AffineTransform.about_center(rotation((0.2, 0.1, -0.3)), (5, 0, 0), (30, -20, 9))
    field = whole_field(turned, pair.fixed.grid)
    assert field.grid.number_of_voxels < 2500
    points = random_points(pair)
    np.testing.assert_allclose(field.transform_points(points), turned.transform_points(points), atol=1e-3)


def fine_start(pair: PhantomPair) -> Transform:
    """A smooth field on a fine grid, as a user's start."""
    grid = pair.fixed.grid.resampled(3.0)
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    waves = np.stack([np.sin(z / 6), np.sin(x / 7), np.sin(y / 5)]) * 3
    return DisplacementField(torch.from_numpy(waves[None]).float(), grid)


def test_a_start_that_is_finer_than_the_solution_makes_the_field_finer(
    pair: PhantomPair, result: RegistrationResult
) -> None:
    deformation = result.transform.transforms[0]  # type: ignore[attr-defined]
    start = fine_start(pair)
    whole = CompositeTransform([deformation, start])
    field = whole_field(whole, pair.fixed.grid)
    assert min(field.grid.spacing) == pytest.approx(min(start.grid.spacing))  # type: ignore[attr-defined]
    points = random_points(pair)
    points = points[(np.abs(points) < np.array(pair.fixed.grid.extent) / 2 - 8).all(axis=1)]
    gap = np.linalg.norm(field.transform_points(points) - whole.transform_points(points), axis=1)
    assert gap.mean() < 0.1


def test_the_inverse_leads_back(pair: PhantomPair, result: RegistrationResult) -> None:
    field = whole_field(result.transform, pair.fixed.grid)
    inverse, residual = inverse_of(result.transform, field, pair.moving.grid)
    assert residual < 0.1
    points = pair.inside(500)
    back = inverse.transform_points(result.transform.transform_points(points))
    error = np.linalg.norm(back - points, axis=1)
    assert error.mean() < 0.05 and np.quantile(error, 0.95) < 0.2


@pytest.mark.parametrize("kind", ["linear", "start"])
def test_the_inverse_of_other_chains_leads_back_too(pair: PhantomPair, kind: str) -> None:
    small = AffineTransform.about_center(rotation((0.03, 0.02, -0.04)), (0, 0, 0), (6, -5, 4))
    transform: Transform = small
    if kind == "start":
        transform = CompositeTransform([small, fine_start(pair)])
    field = whole_field(transform, pair.fixed.grid)
    inverse, _ = inverse_of(transform, field, pair.moving.grid)
    points = pair.inside(500)
    points = points[np.linalg.norm(points, axis=1) < 40]
    back = inverse.transform_points(transform.transform_points(points))
    assert np.abs(back - points).max() < 0.5


def test_another_kind_of_start_becomes_a_field(pair: PhantomPair) -> None:
    spline = sitk.BSplineTransformInitializer(pair.fixed.to_sitk(), [4, 4, 4])
    spline.SetParameters(np.random.default_rng(1).uniform(-3, 3, len(spline.GetParameters())).tolist())
    transform = ItkTransform(spline)
    field = whole_field(transform, pair.fixed.grid)
    points = pair.inside(200)
    gap = field.transform_points(points) - transform.transform_points(points)
    assert np.abs(gap).max() < 0.1


def test_all_files_are_written_and_agree(pair: PhantomPair, result: RegistrationResult, tmp_path: Path) -> None:
    written = write_outputs(result, tmp_path / "job", OUTPUTS, True, task(), 0.9)
    names = ["transform.h5", "field.nrrd", "inverse.nrrd", "displacement.nrrd", "warped.nrrd", "jacobian.nrrd"]
    assert sorted(p.name for p in (tmp_path / "job").iterdir()) == sorted([*names, "report.json"])
    points = pair.inside(200)
    mapped = read_transform(written["transform"]).transform_points(points)  # type: ignore[attr-defined]
    for name in ("field", "displacement"):
        field = read_transform(written[name])
        assert np.abs(field.transform_points(points) - mapped).max() < 0.2  # type: ignore[attr-defined]
    warped = sitk.ReadImage(written["warped"])
    assert warped.GetPixelID() == sitk.sitkInt16 and warped.GetSize() == pair.fixed.grid.size
    assert np.array_equal(sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(result.warped.to_sitk()))
    determinant = sitk.GetArrayFromImage(sitk.ReadImage(written["jacobian"]))
    assert determinant.shape == pair.fixed.grid.shape and 0.8 < determinant.mean() < 1.2
    np.testing.assert_allclose(written["affine"], result.transform.transforms[-1].matrix)  # type: ignore[attr-defined]


def test_what_was_not_wanted_is_not_written(result: RegistrationResult, tmp_path: Path) -> None:
    written = write_outputs(result, tmp_path, [], False, task(), 0.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["field.nrrd", "report.json", "transform.h5"]
    assert [written[name] for name in ("inverse", *OUTPUTS)] == [None] * 4


def test_a_cancellation_at_the_last_moment_leaves_nothing(result: RegistrationResult, tmp_path: Path) -> None:
    def too_late() -> None:
        raise Cancelled("cancelled; nothing was written")

    with pytest.raises(Cancelled):
        write_outputs(result, tmp_path / "job", OUTPUTS, True, Task(lambda *_: None, too_late, print), 0.9)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    result: RegistrationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("SAMRegistrationLib.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"MB are needed"):
        write_outputs(result, tmp_path / "job", [], False, task(), 0.9)
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_goes_first() -> None:
    cache = BoundedCache(100)
    for name in "abc":
        cache.put(name, name, 30, name)
    assert cache.get("a") == "a"
    cache.put("d", "d", 30, "d")
    assert cache.get("b") is None and cache.size == 90
    assert [entry["description"] for entry in cache.contents()] == ["c", "a", "d"]


def test_nothing_larger_than_the_cache_is_kept_and_nothing_goes_for_it() -> None:
    cache = BoundedCache(100)
    cache.put("a", 1, 90, "a")
    cache.put("b", 2, 101, "b")
    assert cache.get("a") == 1 and cache.get("b") is None
    cache.put("a", 3, 100, "a")
    assert cache.get("a") == 3 and cache.size == 100


def test_every_device_has_a_cache_of_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "SAMRegistrationLib.worker.cache.available_memory", lambda device: {"cpu": 4000}.get(device)
    )
    caches = DeviceCaches()
    assert caches.of("cpu").limit == 1000 and caches.of("cuda:0").limit == 2**30
    assert DeviceCaches(7).of("cpu").limit == 7
    assert not caches.clear()
    caches.of("cpu").put("a", 1, 10, "a")
    assert caches.clear() and caches.of("cpu").size == 0


def test_an_embedding_is_computed_once_for_the_same_content(pair: PhantomPair) -> None:
    counts = EmbeddingCounts()
    extractor = FeatureStore(DeviceCaches(10**9)).extractors(counts)("sam")
    volume = torch.rand(1, 1, 16, 16, 16) * 1000 - 500
    with torch.inference_mode():
        first = extractor.extract_tensor(volume)
    again = extractor.extract_tensor(volume.clone())
    assert (counts.computed, counts.reused) == (1, 1) and again[0] is first[0]
    assert not first[0].is_inference(), "what is kept must fit into an optimization"
    extractor.extract_tensor(volume + 1)
    extractor.extract_tensor(volume.reshape(1, 1, 8, 32, 16))
    assert counts.computed == 3
    small = Image(
        pair.moving.data[:16, :16, :16].contiguous(),
        pair.moving.grid.cropped((0, 0, 0), (16, 16, 16)),
        "int16",
        "CT",
    )
    moved = Image(small.data, small.grid.cropped((1, 0, 0), (17, 16, 16)), "int16", "CT")
    features = extractor.extract(small)
    assert extractor.extract(small) is features
    assert extractor.extract(moved).fine.grid != features.fine.grid
    assert counts.computed == 5


def test_other_networks_and_no_networks_are_not_confused() -> None:
    store, counts = FeatureStore(DeviceCaches(10**9)), EmbeddingCounts()
    volume = torch.rand(1, 1, 16, 16, 16) * 1000 - 500
    first, second = (store.extractors(counts)(name) for name in ("sam", "sam-lite"))
    first.extract_tensor(volume)
    second.extract_tensor(volume)
    assert (counts.computed, counts.reused) == (1, 1), "both names mean one model"
    mind = store.extractors(counts)("mind", mind_spacing=3.0)
    assert mind.name == "mind" and mind.spacing == 3.0
    with pytest.raises(UsageError):
        store.extractors(counts)("no-such-model")


@pytest.mark.slow
def test_nobody_writes_into_kept_embeddings(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever presets do with features, the kept ones stay as they were put there."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    put = BoundedCache.put

    def recording(cache: BoundedCache, key: Any, value: Any, size: int, description: str) -> None:
        if key[1] == "tensor":
            kept.append((value[0], value[0].clone()))
        put(cache, key, value, size, description)

    monkeypatch.setattr(BoundedCache, "put", recording)
    jobs = Jobs(cache_bytes=10**9)
    for preset in ("default", "same-coarse", "samconvex"):
        jobs.handlers["register"](task(), **files, output=str(tmp_path), preset=preset)
    assert len(kept) >= 4 and all(torch.equal(value, copy) for value, copy in kept)


def failing(times: int, error: type[Exception] = NotEnoughMemoryError) -> Any:
    """Work that runs out of memory so many times, and then gives the device it ran on."""
    calls: list[str] = []

    def work(device: torch.device) -> list[str]:
        calls.append(device.type)
        if len(calls) <= times:
            raise error("cannot allocate memory")
        return calls

    return work


@pytest.mark.parametrize("error", [NotEnoughMemoryError, RuntimeError, MemoryError])
def test_where_memory_runs_out_what_is_kept_goes_first_and_then_the_cpu_is_used(error: type[Exception]) -> None:
    caches, notes = DeviceCaches(100), []
    jobs = Registrations(caches, FeatureStore(caches))
    gpu = torch.device("cuda")
    caches.of("cpu").put("a", 1, 10, "a")
    emptied = jobs.with_enough_memory(failing(1, error), gpu, True, notes.append)
    assert emptied == ["cuda", "cuda"] and caches.of("cpu").size == 0 and notes == []
    assert jobs.with_enough_memory(failing(1, error), gpu, True, notes.append) == ["cuda", "cpu"]
    assert len(notes) == 1 and "the CPU was used instead" in notes[0]
    with pytest.raises(NotEnoughMemoryError):
        jobs.with_enough_memory(failing(9, error), gpu, True, notes.append)
    with pytest.raises(NotEnoughMemoryError):
        jobs.with_enough_memory(failing(1, error), gpu, False, notes.append)


def test_other_errors_are_not_tried_again() -> None:
    def work(_: torch.device) -> None:
        raise RuntimeError("a fault")

    caches = DeviceCaches(100)
    with pytest.raises(RuntimeError, match="a fault"):
        Registrations(caches, FeatureStore(caches)).with_enough_memory(work, torch.device("cpu"), True, print)


def test_a_missing_gpu_is_an_error_unless_the_cpu_will_do() -> None:
    notes: list[str] = []
    assert usable_device("cuda:99", True, notes.append).type == "cpu" and len(notes) == 1
    with pytest.raises(InputError, match="cuda:99"):
        usable_device("cuda:99", False, notes.append)
    with pytest.raises(UsageError):
        usable_device("toaster", True, notes.append)


def handler(_: Task, *, path: str, number: int = 0, names: list | None = None) -> dict[str, Any]:
    return {"path": path, "number": number, "names": names}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"path": 3}, {"path": "a", "color": 1}, {"path": "a", "number": "1"}, {"path": None}, ["a"], None],
)
def test_parameters_that_do_not_fit_are_wrong_use(parameters: Any) -> None:
    with pytest.raises(UsageError, match='request "test"'):
        checked_arguments("test", handler, parameters)


def test_parameters_that_fit_are_handed_on() -> None:
    assert checked_arguments("test", handler, {"path": "a", "names": None}) == {"path": "a", "names": None}


def test_every_error_is_told_in_a_sentence_of_its_kind() -> None:
    assert told(InputError("no")) == ("no", None, "input")
    assert told(UsageError("no")) == ("no", None, "usage")
    assert told(Cancelled("no")) == ("no", None, "cancelled")
    assert told(NotEnoughMemoryError("no")) == ("no", MEMORY_HINT, "memory")
    assert told(MemoryError()) == ("memory ran out", MEMORY_HINT, "memory")
    sentence, hint, kind = told(ZeroDivisionError("division by zero\nmore"))
    assert sentence == "an unexpected error, ZeroDivisionError: division by zero" and hint and kind == "internal"


def test_a_replaced_file_has_another_identity(tmp_path: Path) -> None:
    file = tmp_path / "volume.nrrd"
    file.write_text("one")
    before, folder_before = file_identity(file), file_identity(tmp_path)
    assert file_identity(tmp_path / "." / "volume.nrrd") == before
    file.write_text("other")
    assert file_identity(file) != before and file_identity(tmp_path) != folder_before
    with pytest.raises(InputError, match="not found"):
        file_identity(tmp_path / "nothing")


def test_matching_refuses_what_cannot_be_matched(files: dict[str, str]) -> None:
    match = Jobs(cache_bytes=10**8).handlers["match"]
    with pytest.raises(UsageError, match="no matching method 'best'; there are sam, quiz, joint"):
        match(task(), **files, points=[[0, 0, 0]], method="best")
    with pytest.raises(UsageError, match="MIND"):
        match(task(), **files, points=[[0, 0, 0]], model="mind")
    for points in ([], [[0, 0]], [["a", 0, 0]], [[float("nan"), 0, 0]]):
        with pytest.raises(UsageError, match="points must be"):
            match(task(), **files, points=points)


def test_a_heat_map_is_a_volume_on_the_moving_grid(files: dict[str, str], tmp_path: Path) -> None:
    heat_map = Jobs(cache_bytes=10**8).handlers["heat_map"]
    output = tmp_path / "heat.nrrd"
    told = heat_map(task(), **files, point=[0.0, 0.0, 0.0], output=str(output))
    heat = read_image(output)
    assert heat.grid.isclose(read_image(files["moving"]).grid)
    assert told["highest"] == pytest.approx(float(heat.data.max()), abs=1e-4) and told["highest"] <= 1.001
    voxel = np.rint(heat.grid.to_voxel(told["peak"])).astype(int)
    assert float(heat.data[tuple(voxel[::-1])]) == pytest.approx(told["highest"], abs=1e-4)
    with pytest.raises(InputError, match="outside the fixed volume"):
        heat_map(task(), **files, point=[900.0, 0.0, 0.0], output=str(output))
    with pytest.raises(UsageError, match="points must be"):
        heat_map(task(), **files, point=[0.0, 0.0], output=str(output))


def test_every_point_is_answered_with_its_doubts(files: dict[str, str]) -> None:
    match = Jobs(cache_bytes=10**8).handlers["match"]
    found = match(task(), **files, points=[[0, 0, 0], [900, 0, 0]])
    assert found["method"] == "sam" and np.isfinite(found["matched"]).all()
    assert {name: len(found[name]) for name in ("score", "support", "cycle_mm", "reason")} == dict.fromkeys(
        ("score", "support", "cycle_mm", "reason"), 2
    )
    assert "outside the fixed volume" in found["reason"][1] and found["score"][1] == 0


def test_a_missing_gpu_is_told_in_the_report(files: dict[str, str], tmp_path: Path) -> None:
    log: list[str] = []
    request = Jobs(cache_bytes=10**8).handlers["register"]
    result = request(task(log), **files, output=str(tmp_path), preset="rigid", device="cuda:99", allow_cpu=True)
    assert log and result["report"]["warnings"] == result["warnings"] == log
    assert result["report"]["machine"]["device"] == "cpu"


def test_evaluate_and_apply_do_as_the_command_line(
    files: dict[str, str], pair: PhantomPair, tmp_path: Path
) -> None:
    jobs = Jobs(cache_bytes=10**8)
    labels = tmp_path / "labels.nrrd"
    write_image(pair.moving.with_data((pair.moving.data > 100).float()), labels, "uint8")
    registered = jobs.handlers["register"](task(), **files, output=str(tmp_path / "job"), preset="rigid")
    warped = tmp_path / "warped.nrrd"
    names = {"transform": registered["transform"], "reference": files["fixed"]}
    jobs.handlers["apply"](task(), **names, input=str(labels), output=str(warped), labels=True)
    image = sitk.ReadImage(str(warped))
    assert image.GetSize() == pair.fixed.grid.size and set(np.unique(sitk.GetArrayFromImage(image))) == {0, 1}
    report = jobs.handlers["evaluate"](
        task(),
        transform=registered["transform"],
        **files,
        fixed_labels=str(warped),
        moving_labels=str(labels),
        output=str(tmp_path / "evaluation.json"),
    )["report"]
    assert report["labels"]["mean"]["after"]["dice"] > 0.9 and (tmp_path / "evaluation.json").is_file()
