"""The tensors of a checkpoint's files, read without running anything that is in them, and written again.

Files may be others': whatever is wrong with one is a ValueError. No name in an index and no link leads out of the folder, no
file takes more memory than its own size, and nothing is unpickled but the tensors and plain values of torch's weights_only.
"""

import fnmatch
import os
import pathlib
import pickle
import pickletools
import re
import shutil
import tempfile
import zipfile
from typing import Any, final

import torch
from torch import Tensor

from localplug import strict_json

_HELD_IN = ("model", "adapter_model", "pytorch_model")  # the names that weights have in a checkpoint's folder
_KINDS = (".safetensors", ".bin", ".pt")
_NAMED = re.compile(
    r"collections OrderedDict|torch Size|torch device|torch [a-z]+[0-9]*|torch [A-Z][A-Za-z0-9]*Storage"
    r"|torch\.storage [A-Z][A-Za-z]*Storage|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)"
)
"""What a state dict's pickle names: these calls take no more memory than the bytes beside them."""
_NOT_COPIED = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack",
    "*.gguf", "*.onnx", "trainer_state.json", "*.lplog", "*.lplog.new",
)  # fmt: skip


@final
class Checkpoint:
    """The tensors of a checkpoint, and the files they come from.

    Args:
        base: a folder as `save_pretrained` writes it (one file or several), or one .safetensors, .pt or .bin file of a state
            dict.

    Raises:
        OSError: a file cannot be read.
        ValueError: the folder holds no weights, or a file is damaged or not what it should be; says what.
    """

    def __init__(self, base: pathlib.Path) -> None:
        self.files: list[pathlib.Path] = [base]
        self.others: list[pathlib.Path] = []
        if base.is_dir():
            self.files, indices = _files_of(base)
            inside = sorted(path for path in base.iterdir() if path.is_file())
            kept = [p for p in inside if not any(fnmatch.fnmatch(p.name, n) for n in _NOT_COPIED)]
            self.others = indices + kept
            outside = [path.name for path in [*self.files, *self.others] if not _is_inside(path, base)]
            if outside:
                raise ValueError(f"{base} has links that lead out of it: {', '.join(outside[:5])}; put the files there")
        self._loaded = {file: _load(file) for file in self.files}
        self.tensors: dict[str, Tensor] = {}
        for file, (content, _) in self._loaded.items():
            self.tensors.update(_state_dict(content, file))

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Write every file with weights again, under its name, and copy the others that the folder does not have.

        A file is there as a whole or not at all, and a link in the folder is replaced, not followed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as made:
            for file in self.others:
                if not os.path.lexists(folder / file.name):
                    _place(shutil.copyfile(file, pathlib.Path(made, file.name)), folder)
            return [_place(self._written(file, pathlib.Path(made)), folder) for file in self._loaded]

    def _written(self, file: pathlib.Path, made: pathlib.Path) -> pathlib.Path:
        content, metadata = self._loaded[file]
        target = made / file.name
        if file.suffix == ".safetensors":
            _safetensors().save_file(content, str(target), metadata=metadata)
        else:
            torch.save(content, target)
        return target


def _place(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return file.replace(folder / file.name)


def _files_of(base: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(files with weights, index files) of a checkpoint's folder."""
    for kind in _KINDS:
        for stem in _HELD_IN:
            index, single = base / f"{stem}{kind}.index.json", base / f"{stem}{kind}"
            if index.exists():
                return [base / name for name in _named_in(index, kind)], [index]
            if single.exists():
                return [single], []
    wanted = ", ".join(f"{stem}{kind}" for kind in _KINDS[:2] for stem in _HELD_IN[:2])
    raise ValueError(f"{base} holds no weights: there is no {wanted} or index of one")


def _named_in(index: pathlib.Path, kind: str) -> list[str]:
    """The files that an index names, which are beside it."""
    content = strict_json.parse(_bytes_of(index), str(index))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} must have a weight_map: an object with the file's name for each tensor")
    names = sorted(set(places.values()))
    wrong = [
        name for name in names if "/" in name or "\\" in name or "\0" in name or not name.endswith(kind) or name == kind
    ]
    if wrong:
        raise ValueError(f"{index} must name {kind} files beside it, and has {', '.join(map(repr, wrong[:5]))}")
    return names


def _is_inside(path: pathlib.Path, base: pathlib.Path) -> bool:
    """Whether a file is in the folder itself, or, as in the cache of the hub, in the blobs that belong to its snapshot."""
    real, folder = path.resolve(), base.resolve()
    allowed = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    return any(real.is_relative_to(place) for place in allowed)


def _bytes_of(file: pathlib.Path) -> bytes:
    _refuse_irregular(file)
    return file.read_bytes()


def _refuse_irregular(file: pathlib.Path) -> None:
    if file.exists() and not file.is_file():
        raise OSError(f"{file} is no regular file")  # a pipe or a device may never end


def _load(file: pathlib.Path) -> tuple[Any, dict[str, str] | None]:
    """(what torch.load gives, or {name: tensor}; the metadata of a .safetensors file)."""
    _refuse_irregular(file)
    if file.suffix != ".safetensors":
        return _unpickled(file), None
    library = _safetensors()
    try:
        with library.safe_open(str(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118 (no mapping)
            return tensors, opened.metadata()
    except OSError:
        raise
    except Exception as error:  # SafetensorError has no base of its own
        raise ValueError(f"{file} is no right .safetensors file: {error}") from error


def _unpickled(file: pathlib.Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _refuse_bombs(file, members)
            pickles = [archive.read(m) for m in members if m.filename.lower().endswith(".pkl")]
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is no file of torch.save, or of before torch 1.6 (save its state dict again): {error}"
        ) from error
    for content in pickles:
        _refuse_calls(file, content)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        EOFError,
        RuntimeError,
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        raise ValueError(
            f"{file} is damaged, or holds more than tensors and plain values: {str(error).splitlines()[0]}"
        ) from error


def _refuse_bombs(file: pathlib.Path, members: list[zipfile.ZipInfo]) -> None:
    is_stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
    if not is_stored or sum(m.file_size for m in members) > file.stat().st_size:
        raise ValueError(f"{file} is compressed, which torch.save does not do: it may be made to fill the memory")


def _refuse_calls(file: pathlib.Path, content: bytes) -> None:
    """What weights_only would call and a state dict does not need; bytearray(10**11) is one such call."""
    try:
        named = {str(given) for code, given, _ in pickletools.genops(content) if code.name == "GLOBAL"}
    except Exception as error:  # of whatever kind: the bytes are no pickle
        raise ValueError(f"{file} is damaged: {error}") from error
    if others := sorted(name for name in named if not _NAMED.fullmatch(name)):
        raise ValueError(f"{file} holds more than tensors and plain values: {', '.join(others[:5])}")


def _state_dict(content: Any, file: pathlib.Path) -> dict[str, Tensor]:
    inner = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise ValueError(f"{file} must hold a state dict, it holds {type(content).__name__}")
    found = {key: value for key, value in inner.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in found.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{file}: {key} must be a dense tensor, it is {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{file}: {key} has shape {tuple(value.shape)}, more elements than are stored")
    return found


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "replaying onto .safetensors files needs safetensors: pip install localplug[replay]"
        ) from error
    return safetensors.torch
