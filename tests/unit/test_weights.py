"""Weight files of every format: the same tensors, or a sentence that names the file."""

import io
import json
import pickle
import random
import sys
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import CreatesFile

from baichuan import weights
from baichuan.errors import CheckpointError
from baichuan.weights import WeightFiles, read_headers, read_tensors

TENSORS = {
    "a": torch.arange(12.0).view(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(2, 0, dtype=torch.int8),
}


def write(path, tensors, layout):
    if layout == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=layout == "zip")
    return path


def shard(directory, layout, parts, weight_map=None):
    """Write an index and one shard per part; `weight_map` replaces the true one."""
    stem, suffix = ("model", "safetensors") if layout == "safetensors" else ("pytorch_model", "bin")
    names = [f"{stem}-{i + 1:05}-of-{len(parts):05}.{suffix}" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write(directory / name, part, layout)
    true = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map or true}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return names


@pytest.fixture(params=["safetensors", "zip", "legacy"])
def layout(request):
    return request.param


@pytest.fixture
def single(tmp_path, layout):
    name = "model.safetensors" if layout == "safetensors" else "pytorch_model.bin"
    return write(tmp_path / name, TENSORS, layout)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_one_file(tmp_path, single):
    weights = WeightFiles(tmp_path)
    assert weights.shapes == {"a": (3, 4), "b": (5,), "c": (2, 0)}
    same(dict(weights.tensors()), TENSORS)


def test_shards(tmp_path, layout):
    parts = [{"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}]
    names = shard(tmp_path, layout, parts)
    weights = WeightFiles(tmp_path)
    assert [file.path.name for file in weights.files] == names
    same(dict(weights.tensors()), TENSORS)


def test_safetensors_are_preferred_and_the_pickle_is_not_even_opened(tmp_path):
    write(tmp_path / "model.safetensors", TENSORS, "safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    same(dict(WeightFiles(tmp_path).tensors()), TENSORS)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        WeightFiles(tmp_path, safetensors=False)


@pytest.mark.parametrize("share", [0, 1, 8, 0.01, 0.5, 0.99, -1])
def test_truncated(single, share):
    whole = single.read_bytes()
    kept = int(share * len(whole)) if isinstance(share, float) else share
    single.write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match=rf"{single.name} cannot be read \([\d,]+ bytes"):
        read_headers(single)
    with pytest.raises(CheckpointError, match="Fetch the file again"):
        list(read_tensors(single))


def test_forbidden(unprivileged, layout):
    names = shard(unprivileged, layout, [{name: tensor} for name, tensor in TENSORS.items()])
    for name in (names[1], next(unprivileged.glob("*.index.json")).name):
        (unprivileged / name).chmod(0)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read: permission denied"):
            WeightFiles(unprivileged)
        (unprivileged / name).chmod(0o600)
    same(dict(WeightFiles(unprivileged).tensors()), TENSORS)


def test_damaged_anywhere_is_read_or_refused_but_never_another_error(single):
    whole, chance, refused = single.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(min(len(whole), 600))] = chance.randrange(256)
        single.write_bytes(damaged)
        try:
            read_headers(single)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_git_lfs_pointer(single):
    single.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99\n")
    with pytest.raises(CheckpointError, match=r"git-lfs pointer.*git lfs pull"):
        read_headers(single)


def test_web_page_in_place_of_a_file(single):
    single.write_text("<!doctype html><title>404</title>")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_headers(single)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(1)], "holds list"),
        ({"a": 3}, "holds 'a': int"),
        ({"model": {"a": torch.ones(1)}}, "holds 'model': dict"),
        ({3: torch.ones(1)}, "holds 3: Tensor"),
    ],
)
def test_pickle_of_something_else(tmp_path, content, found):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"no table of tensors by name .it {found}"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(1).expand(1 << 40), r"\[1099511627776\] torch.float32 in 4 bytes"),
        (torch.eye(3).to_sparse(), "torch.float32, torch.sparse_coo, cpu"),
        (torch.empty(1 << 40, device="meta"), "torch.float32, torch.strided, meta"),
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_pickle_of_tensors_that_are_no_weights(tmp_path, tensor, found):
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"is refused: a is no tensor of weights \({found}"):
        WeightFiles(tmp_path)


def test_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = write(tmp_path / "pytorch_model.bin", TENSORS, "zip")
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused: it is a compressed"):
        WeightFiles(tmp_path)


def test_a_file_is_opened_once_for_many_small_tensors(tmp_path, layout, monkeypatch):
    tensors, opened = {f"{i:03}": torch.tensor([float(i)]) for i in range(100)}, []

    def counted(open_it):
        def opening(*args, **kwargs):
            opened.append(args)
            return open_it(*args, **kwargs)

        return opening

    path = write(
        tmp_path / ("x.safetensors" if layout == "safetensors" else "x.bin"), tensors, layout
    )
    monkeypatch.setattr(weights, "safe_open", counted(weights.safe_open))
    monkeypatch.setattr(torch, "load", counted(torch.load))
    same(dict(read_tensors(path)), tensors)
    assert len(opened) <= 2  # for the headers, and for the data
    monkeypatch.setattr(weights, "_MAPPED", 40)
    same(dict(read_tensors(path)), tensors)
    monkeypatch.setattr(weights, "_MOST_TENSORS", 99)
    with pytest.raises(CheckpointError, match="it holds 100 tensors; allowed are 99"):
        read_headers(path)


def test_archive_of_the_oldest_format_is_refused(tmp_path):
    target = tmp_path / "ran"
    with tarfile.open(tmp_path / "pytorch_model.bin", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(CreatesFile(target), 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(CheckpointError, match=r"is refused.*Nothing was run"):
        WeightFiles(tmp_path)
    assert not target.exists()


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no weights: one of model\.safetensors"):
        WeightFiles(tmp_path)
    with pytest.raises(CheckpointError, match="There is no directory"):
        WeightFiles(tmp_path / "typo")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"metadata": {}}',
        '{"weight_map": 3}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": ["x.bin"]}}',
        "version https://git-lfs.github.com/spec/v1",
    ],
)
def test_index_that_is_none(tmp_path, text):
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is (not an index|not JSON|a git-lfs)"):
        WeightFiles(tmp_path)


def test_index_never_leads_out_of_the_directory(tmp_path, layout):
    inside = tmp_path / "inside"
    inside.mkdir()
    suffix = "safetensors" if layout == "safetensors" else "bin"
    outside = write(tmp_path / f"x.{suffix}", TENSORS, layout)
    (inside / "sub").mkdir()
    write(inside / "sub" / outside.name, TENSORS, layout)
    for name in (f"../{outside.name}", str(outside), f"sub/{outside.name}"):
        shard(inside, layout, [{"b": TENSORS["b"]}], dict.fromkeys(TENSORS, name))
        with pytest.raises(CheckpointError, match="is refused: it names files elsewhere"):
            WeightFiles(inside)


def test_missing_shards_are_named(tmp_path, layout):
    names = shard(tmp_path, layout, [{name: tensor} for name, tensor in TENSORS.items()])
    for name in names[1:]:
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 2 of 3 shards.*{names[1]}, {names[2]}"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "x\0", "", "."])
def test_shards_whose_names_no_file_can_have(tmp_path, name):
    shard(tmp_path, "zip", [TENSORS], {"a": name})
    with pytest.raises(CheckpointError, match=r"lacks 1 of 1 shards|names files elsewhere"):
        WeightFiles(tmp_path)


def test_promised_and_absent(tmp_path, layout):
    (name,) = shard(tmp_path, layout, [TENSORS])
    index = next(tmp_path.glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*TENSORS, "d"], name)}))
    with pytest.raises(CheckpointError, match=f"{name} lacks the tensor d"):
        WeightFiles(tmp_path)


def test_held_twice(tmp_path, layout):
    first, second = shard(tmp_path, layout, [TENSORS, {"b": TENSORS["b"] * 2}])
    with pytest.raises(CheckpointError, match=f"b is in both {first} and {second}"):
        WeightFiles(tmp_path)


def test_ctrl_c_within_torch_is_no_damage(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path)
    calls = left = 0

    def interrupt(frame, event, argument):
        nonlocal left
        if event == "call" and frame.f_code.co_filename == torch.storage.__file__:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    for read in (read_headers, lambda path: dict(read_tensors(path))):
        for calls in range(1, 30):  # at each call of a storage's methods
            left = calls
            sys.setprofile(interrupt)
            try:
                read(path)
            except KeyboardInterrupt:
                continue
            finally:
                sys.setprofile(None)
            break
        assert left > 0 and calls > 2
