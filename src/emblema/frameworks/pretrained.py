"""A name or a path -> a frozen model: shipped models, folders of three formats, and two online sources.

Nothing is fetched unless the name says so: `open_clip:ARCHITECTURE/TAG` or `hf:OWNER/NAME`.
"""

from __future__ import annotations

from pathlib import Path

from emblema.core.errors import BadCheckpoint, UnknownName
from emblema.frameworks.checkpoint import CONFIG, FORMAT, Loaded, load, read_json
from emblema.frameworks.hugging_face_weights import load_hugging_face
from emblema.frameworks.open_clip_weights import OPEN_CLIP_CONFIG, load_open_clip, load_open_clip_tag

MODELS = Path(__file__).parent.parent / "models"
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "spiece.model"]


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in MODELS.glob(f"*/{CONFIG}"))


def load_pretrained(name_or_path: str | Path, *, strict: bool = True) -> Loaded:
    """A model by shipped name, by folder, or by `open_clip:ARCHITECTURE/TAG` or `hf:OWNER/NAME`."""
    name = str(name_or_path)
    if name.startswith("open_clip:"):
        return load_open_clip_tag(name.removeprefix("open_clip:"), strict=strict)
    if name.startswith("hf:"):
        return load_folder(_fetch(name.removeprefix("hf:")), strict=strict)
    if name in shipped():
        return load(MODELS / name, strict=strict)
    if Path(name).is_dir():
        return load_folder(Path(name), strict=strict)
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")):
        raise BadCheckpoint(f"no checkpoint folder {name}")
    raise UnknownName("model or folder", name, [*shipped(), "open_clip:ARCHITECTURE/TAG", "hf:OWNER/NAME"])


def load_folder(folder: Path, *, strict: bool = True) -> Loaded:
    """A folder of emblema, open_clip or Hugging Face; the files say which."""
    if (folder / OPEN_CLIP_CONFIG).exists():
        return load_open_clip(folder, strict=strict)
    if not (folder / CONFIG).exists():
        raise BadCheckpoint(
            f"{folder} is no checkpoint: it has neither {CONFIG} (emblema, Hugging Face) nor {OPEN_CLIP_CONFIG}"
        )
    described = read_json(folder / CONFIG)
    if described.get("format") != FORMAT and "model_type" in described:
        return load_hugging_face(folder, strict=strict)
    return load(folder, strict=strict)


def _fetch(name: str) -> Path:
    """A model of the Hugging Face hub: from the local cache, and only then from the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        try:
            cached = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
            if any(cached.glob("*.safetensors")):
                return cached
        except LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BadCheckpoint(
            f"hf:{name} is not in the local cache and cannot be fetched ({type(error).__name__}). Check the name and "
            "the connection, or give the path of a folder"
        ) from error
