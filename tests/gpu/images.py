"""An image folder as one file and back: python -m tests.gpu.images DIR FILE.npz

So CIFAR-10 travels to a machine that has no internet: the JPEG files' own bytes one after another, uncompressed, where
each begins, and its path. 60,000 files of 32×32 pixels are 53 MiB.
"""

import argparse
from pathlib import Path

import numpy as np


def pack(root: Path, path: Path) -> int:
    """Write all files below `root` into `path`; returns their number."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    contents = [file.read_bytes() for file in files]
    offsets = np.cumsum([0, *map(len, contents)])
    names = "\n".join(file.relative_to(root).as_posix() for file in files)
    content, listed = b"".join(contents), names.encode()
    np.savez(path, content=np.frombuffer(content, np.uint8), offsets=offsets, names=np.frombuffer(listed, np.uint8))
    return len(files)


def unpack(path: Path, root: Path) -> Path:
    """The image folder: `path` itself if it is one, else `root`, made from the packed file."""
    if path.is_dir():
        return path.resolve()
    with np.load(path) as packed:
        content, offsets = packed["content"].tobytes(), packed["offsets"].tolist()
        names = packed["names"].tobytes().decode().splitlines()
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for name, begin, end in zip(names, offsets, offsets[1:], strict=False):
        (root / name).write_bytes(content[begin:end])
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("path", type=Path, metavar="FILE.npz")
    options = parser.parse_args()
    print(f"{pack(options.root, options.path)} files, {options.path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
