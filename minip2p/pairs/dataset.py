"""The files of pairs: a Parquet file for each unit, and the data set of all in the formats that trainers read.

The Parquet files say to the library `datasets` which columns are pictures, so it decodes them. The first three columns
are those of diffusers' InstructPix2Pix trainer, in its order.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL.PngImagePlugin import PngInfo

from minip2p.io.files import atomic_write, write_text
from minip2p.io.images import to_pil
from minip2p.io.tables import to_csv
from minip2p.pairs.candidates import Candidate
from minip2p.pairs.settings import SCORES
from minip2p.sampling import metadata
from minip2p.sampling.trajectory import Trajectory

Row = Mapping[str, Any]

PICTURES = ("input_image", "edited_image", "mask")
COLUMNS: Mapping[str, str] = MappingProxyType(  # and their types, as `datasets` names them
    {
        "input_image": "image",
        "edit_prompt": "string",
        "edited_image": "image",
        "mask": "image",
        "original_prompt": "string",
        "edited_prompt": "string",
        "kind": "string",
        "rank": "int64",
        "sample": "int64",
        "seed": "int64",
        "guidance": "float64",
        "cross_replace": "float64",
        "self_replace": "float64",
        "mask_kind": "string",
        **dict.fromkeys(SCORES, "float64"),
        "expected": "string",
    }
)
ARROW = MappingProxyType(
    {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
    }
)
TRAIN = "train-00000-of-00001"  # the name by which `datasets` knows the split


def schema() -> pa.Schema:
    """The columns, with the features of `datasets` in its metadata."""
    features = {
        name: {"_type": "Image"} if kind == "image" else {"dtype": kind, "_type": "Value"}
        for name, kind in COLUMNS.items()
    }
    content = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, ARROW[kind]) for name, kind in COLUMNS.items()], metadata=content)


def candidate_row(candidate: Candidate, rank: int | None) -> dict[str, Any]:
    """The row of a candidate. rank: 1 for the best of its prompts; None where it is not kept: it has no pictures."""
    edit, source = candidate.edit, candidate.source
    settings = {"Cross": candidate.cross_replace, "Self": candidate.self_replace, "Mask": candidate.mask_kind}
    pictures: dict[str, Any] = dict.fromkeys(PICTURES)
    if rank is not None:
        pictures["input_image"] = encode_png(source, candidate.before)
        pictures["edited_image"] = encode_png(edit, candidate.after, **settings)
        if candidate.mask is not None:
            pictures["mask"] = encode_png(edit, candidate.mask.float().mul(2).sub(1).expand(3, -1, -1), **settings)
    return {
        "input_image": pictures["input_image"],
        "edit_prompt": candidate.target.instruction,
        "edited_image": pictures["edited_image"],
        "mask": pictures["mask"],
        "original_prompt": source.prompt,
        "edited_prompt": edit.prompt,
        "kind": candidate.target.kind,
        "rank": rank,
        "sample": candidate.sample,
        "seed": source.seed,
        "guidance": source.guidance_scale,
        "cross_replace": candidate.cross_replace,
        "self_replace": candidate.self_replace,
        "mask_kind": candidate.mask_kind,
        **candidate.scores,
        "expected": candidate.target.expected,
    }


def encode_png(run: Trajectory, picture: Any, **settings: Any) -> dict[str, Any]:
    """A picture 3 H W of a run as `datasets` stores it: a PNG, with the run's parameters in it."""
    stream, info = io.BytesIO(), PngInfo()
    info.add_text("parameters", metadata.parameters(run, **settings))
    to_pil(picture).save(stream, "PNG", pnginfo=info)
    return {"bytes": stream.getvalue(), "path": None}


def write_unit(file: Path, rows: Sequence[Row]) -> None:
    """Writes the rows of a unit, of all of its candidates."""
    with atomic_write(file) as partial:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema()), partial)


def read_unit(file: Path) -> list[dict[str, Any]]:
    """The rows of a unit. Raises ValueError for a file that is damaged or has other columns."""
    try:
        with pq.ParquetFile(file) as opened:
            table = opened.read()
    except (pa.ArrowException, OSError):
        table = None
    if table is None or not table.schema.equals(schema()):
        raise ValueError(f"{file}: does not hold the candidates of its prompts: remove it to make them again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def write_parquet(folder: Path, units: Iterable[Sequence[Row]]) -> Path:
    """Writes the pairs of all units into data/, a row group for each unit that has any. Returns the file."""
    file = folder / "data" / f"{TRAIN}.parquet"
    with atomic_write(file) as partial, pq.ParquetWriter(partial, schema()) as writer:
        for rows in units:
            if rows:
                writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema()))
    return file


def write_image_folder(folder: Path, units: Iterable[Sequence[Row]]) -> Path:
    """Writes the pairs into imagefolder/train, with metadata.jsonl, as `datasets` reads image folders. Returns the
    metadata."""
    train, lines = folder / "imagefolder" / "train", []
    for name, row in numbered(units):
        line = {}
        for column, value in row.items():
            if column not in PICTURES:
                line[column] = value
            elif value is not None:
                line[f"{column}_file_name"] = f"{name}.{column}.png"
                with atomic_write(train / line[f"{column}_file_name"]) as partial:
                    partial.write_bytes(value["bytes"])
            else:
                line[f"{column}_file_name"] = None
        lines.append(json.dumps(line, ensure_ascii=False))
    write_text(train / "metadata.jsonl", "".join(f"{line}\n" for line in lines))
    return train / "metadata.jsonl"


def write_webdataset(folder: Path, units: Iterable[Sequence[Row]]) -> Path:
    """Writes the pairs into a tar file in webdataset/, where the files of a pair share the name before the dot.

    Its times and owners are zero, so that the bytes depend on the pairs alone. Returns the file.
    """
    file = folder / "webdataset" / f"{TRAIN}.tar"
    with atomic_write(file) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, row in numbered(units):
            values = {column: value for column, value in row.items() if column not in PICTURES}
            contents = {f"{column}.png": row[column]["bytes"] for column in PICTURES if row[column] is not None}
            contents["json"] = json.dumps(values, ensure_ascii=False).encode()
            for suffix, content in contents.items():
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file


def write_table(folder: Path, units: Iterable[Sequence[Row]]) -> Path:
    """Writes candidates.csv: what was drawn and measured for every candidate. Returns the file."""
    rows = [{k: v for k, v in row.items() if k not in (*PICTURES, "expected")} for unit in units for row in unit]
    write_text(folder / "candidates.csv", to_csv(rows))
    return folder / "candidates.csv"


def numbered(units: Iterable[Sequence[Row]]) -> Iterator[tuple[str, Row]]:
    """The pairs, each with the name of its files."""
    for number, row in enumerate(row for rows in units for row in rows):
        yield f"{number:08d}", row


FORMATS: Mapping[str, Callable[[Path, Iterable[Sequence[Row]]], Path]] = MappingProxyType(
    {"parquet": write_parquet, "imagefolder": write_image_folder, "webdataset": write_webdataset}
)
