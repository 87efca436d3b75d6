"""What kind of file weights come in, told by its content; it reads no tensor and unpickles nothing.

What holds more than tensors is refused with three lines that turn it into a model folder from the caller's own process,
where the code that it needs, and the trust, already are.
"""

import pickletools
import zipfile
from collections.abc import Sequence
from enum import Enum, auto
from io import BytesIO
from pathlib import Path
from typing import NoReturn

from service.errors import InvalidWeights

READABLE = ".safetensors, or .pt, .pth, .bin or .ckpt as torch.save writes a state dict"
ANY_MODULE = "...  # your nn.Module, with its weights"
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # what torch.save wrote first, before its zip archives
_FOREIGN = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"{": "text, such as the index of sharded weights",
    b"<": "a web page",
}
_LFS = b"version https://git-lfs"
_HEAD_BYTES = 64
_SAFETENSORS_HEADER_BYTES = 100_000_000  # its own limit
_SCAN_BYTES = 1 << 20
_MAX_IR_VERSION = 64
_ONNX_SECOND_TAGS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)  # ModelProto's fields 2 to 8
_FOLDER_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")


class Format(Enum):
    """A format that tensors can be read from without running anything."""

    SAFETENSORS = auto()
    TORCH_ARCHIVE = auto()
    TORCH_LEGACY = auto()


def recognise(path: Path) -> Format:
    """Return a file's format.

    Raises:
        InvalidWeights: It is missing, empty, damaged, or something else; what it is and the cure are in the message.
    """
    if path.is_dir():
        _refuse_folder(path)
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _recognise_archive(path)
    if head.startswith(_LEGACY_MAGIC):
        return Format.TORCH_LEGACY
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_BYTES:
        return Format.SAFETENSORS
    return _refuse_file(path, head)


def refuse(path: Path, what: str, module: str = ANY_MODULE) -> NoReturn:
    """Refuse a file for what it is, with the three lines that make a model folder of it.

    Args:
        path: The file or directory.
        what: What it is, such as `a TorchScript archive`.
        module: The Python expression that gives the module in the caller's own process.

    Raises:
        InvalidWeights: Always.
    """
    raise InvalidWeights(
        f"{path} is {what}; what can be read is {READABLE}. Load it in your own process and save it from there:\n"
        f"    module = {module}\n"
        "    predictor = Predictor.capture(module, example)  # from service import Predictor\n"
        '    predictor.save("models/<name>")'
    )


def refuse_damaged(path: Path, why: str = "") -> NoReturn:
    """Refuse a file that was cut, altered, or is nothing known.

    Raises:
        InvalidWeights: Always.
    """
    raise InvalidWeights(
        f"{path} is damaged or not a file of weights{f' ({why})' if why else ''}; "
        f"copy it again, or save it again as {READABLE}"
    )


def whole_object(path: Path) -> str | None:
    """Return the class of a torch file's outermost object, such as `nets.Net`, None for a dict, without unpickling."""
    try:
        return _outermost(_pickle_bytes(path))
    except (ValueError, OSError, StopIteration, zipfile.BadZipFile):
        return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InvalidWeights(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not head:
        raise InvalidWeights(f"{path} is empty; copy it again")
    if head.startswith(_LFS):
        raise InvalidWeights(f"{path} is a pointer to Git LFS, not the weights; run `git lfs pull` beside it")
    return head


def _recognise_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError) as error:
        refuse_damaged(path, str(error).lower())
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        refuse(
            path, "a TorchScript archive, which runs code of its own", "...  # the nn.Module that it was scripted from"
        )
    if "archive_format" in inside or "models/model.json" in inside:
        refuse(path, "an exported program, from which dropout may be gone", "...  # the nn.Module that it came from")
    if "data.pkl" not in inside:
        refuse(path, "a zip archive without torch's weights")
    return Format.TORCH_ARCHIVE


def _refuse_file(path: Path, head: bytes) -> NoReturn:
    if _is_onnx(head) or path.suffix == ".onnx":
        refuse(path, "an ONNX graph", "...  # the nn.Module that it was exported from, or onnx2torch's")
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        refuse(
            path,
            "a pickle that torch.save did not write, which can run any code",
            "...  # unpickle it, if you trust it",
        )
    for magic, what in _FOREIGN.items():
        if head.lstrip().startswith(magic):
            refuse(path, what)
    refuse_damaged(path)


def _is_onnx(head: bytes) -> bool:
    """Tell whether a protobuf starts as ONNX's ModelProto does: a small ir_version, then one of its next fields."""
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < _MAX_IR_VERSION and head[2] in _ONNX_SECOND_TAGS


def _refuse_folder(path: Path) -> NoReturn:
    if (path / "MLmodel").is_file():
        refuse(path, "an MLflow model, which is loaded by unpickling", f"mlflow.pytorch.load_model({str(path)!r})")
    files = sorted(file.name for pattern in _FOLDER_FILES for file in path.glob(pattern))
    if (path / "config.json").is_file():
        refuse(path, f"a pretrained model's directory{_holding(files)}", f"AutoModel.from_pretrained({str(path)!r})")
    refuse(path, f"a directory{_holding(files)}")


def _holding(files: Sequence[str]) -> str:
    return f" (give a file inside it: {', '.join(files[:3])})" if files else ""


def _pickle_bytes(path: Path) -> bytes:
    """Return the start of the pickle that holds a torch file's object."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            with archive.open(name) as file:
                return file.read(_SCAN_BYTES)
    with path.open("rb") as file:
        stream = BytesIO(file.read(_SCAN_BYTES))
    for _ in range(3):  # magic number, protocol and system come first
        for _ in pickletools.genops(stream):
            pass
    return stream.read()


def _outermost(pickled: bytes) -> str | None:
    """Read a pickle opcode by opcode until it names what it builds."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "EMPTY_DICT":
            return None
        if opcode.name == "GLOBAL":
            return _class_name(str(argument).replace(" ", "."))
        if opcode.name == "STACK_GLOBAL":
            return _class_name(".".join(strings[-2:]))
        if isinstance(argument, str):
            strings.append(argument)
    return None


def _class_name(name: str) -> str | None:
    return None if name == "collections.OrderedDict" else name
