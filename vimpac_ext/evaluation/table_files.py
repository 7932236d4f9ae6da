"""Files with one row for each video: NumPy's .npz and Parquet."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimpac_ext.files import atomic_write


@dataclass(frozen=True)
class VideoTable:
    """What is known of N videos.

    Attributes:
        video_ids: N.
        labels: int64 (N,), -1 without a label.
        decoded: bool (N,).
        columns: name -> float32 (N, D); NaN in rows that are not decoded.
        class_names: by label; may be empty.
        protocol: JSON text that says how the columns were made.
        protocol_id: its identity.
    """

    video_ids: Sequence[str]
    labels: NDArray[np.int64]
    decoded: NDArray[np.bool_]
    columns: Mapping[str, NDArray[np.float32]]
    class_names: Sequence[str]
    protocol: str
    protocol_id: str


def require_writer(path: Path, suffixes: Sequence[str]) -> None:
    """Checks that a file of this suffix can be written, before the work that fills it.

    Raises:
        ValueError: for another suffix.
        ImportError: if the package for it is not installed.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the file's name must end in {' or '.join(suffixes)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write_table(path: Path, table: VideoTable) -> None:
    """Writes a table whole or not at all, by the file's suffix.

    .npz has ``video_ids``, ``labels``, ``decoded``, the columns, ``class_names``, ``protocol`` and
    ``protocol_id``; none is pickled (`numpy.load` reads it as it is). .parquet has the columns
    ``video_id``, ``label``, ``decoded`` and the others as lists; class names (JSON), protocol and
    its id are in the metadata of the schema.

    Args:
        path: file, replaced.
        table: content.

    Raises:
        ValueError: for another suffix.
        ImportError: if the package for it is not installed.
    """
    require_writer(path, SUFFIXES)
    _WRITERS[path.suffix.lower()](path, table)


def _write_npz(path: Path, table: VideoTable) -> None:
    content: dict[str, Any] = {
        "video_ids": _texts(table.video_ids),
        "labels": table.labels,
        "decoded": table.decoded,
        **table.columns,
        "class_names": _texts(table.class_names),
        "protocol": np.array(table.protocol),
        "protocol_id": np.array(table.protocol_id),
    }
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **content)


def _texts(texts: Sequence[str]) -> NDArray[np.str_]:
    return np.array(list(texts), dtype=np.str_)  # of no texts, too: not an array of floats


def _write_parquet(path: Path, table: VideoTable) -> None:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    arrays = {
        "video_id": pyarrow.array(list(table.video_ids), pyarrow.string()),
        "label": pyarrow.array(table.labels),
        "decoded": pyarrow.array(table.decoded),
    }
    for name, values in table.columns.items():
        flat = pyarrow.array(values.reshape(-1))
        arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
    facts = {
        "class_names": json.dumps(list(table.class_names)),
        "protocol": table.protocol,
        "protocol_id": table.protocol_id,
    }
    with atomic_write(path, "wb") as file:
        parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(facts), file)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "a .parquet file needs pyarrow: pip install 'vimpac_ext[parquet]', or write .npz"
        ) from error
    return pyarrow


_WRITERS: dict[str, Callable[[Path, VideoTable], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
SUFFIXES = tuple(_WRITERS)
