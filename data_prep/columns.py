"""Rows of JSON lines and Parquet as columns. What a column reader does not take as it stands is read row by row.

So both ways accept the same files, and the slow one names the row that is wrong.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from data_prep.files import InputError
from data_prep.parallel import Piece
from data_prep.reading import BYTE_ORDER_MARK, Block, not_in_encoding
from data_prep.rows import batch_of, batches_of, content_ids, pick

STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
PARQUET_BATCH_BYTES = 2**23
PARQUET_BATCH_ROWS = 1024


def read_json_lines(block: Block, text_column: str, id_column: str | None, errors: str) -> Iterator[Piece]:
    """The rows of a block of UTF-8 JSON lines."""
    content = block.content()
    if block.start == 0:
        content = content.removeprefix(BYTE_ORDER_MARK)
    batch = fast_json_lines(content, text_column, id_column, block.name)
    if batch is not None:
        yield Piece(batch)
        return
    try:
        text = content.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise not_in_encoding(block.path, "utf-8", block.stop - len(content), error) from None
    for part in batches_of(slow_json_lines(text, block, text_column, id_column)):
        yield Piece(part)


def slow_json_lines(text: str, block: Block, text_column: str, id_column: str | None) -> Iterator[tuple[str, str]]:
    for index, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            number = block.first_line() + index
            raise InputError(f"{block.path} line {number} is not JSON ({error}): mend or remove the line.") from None
        if not isinstance(row, dict):
            number = block.first_line() + index
            raise InputError(f"{block.path} line {number} is not a JSON object: each line has to be one.")
        try:
            yield pick(row, text_column, id_column, block.name, str(block.path))
        except InputError:  # Once more with the number of the line, for which the file is read up to here.
            place = f"{block.path} line {block.first_line() + index}"
            yield pick(row, text_column, id_column, block.name, place)


def fast_json_lines(content: bytes, text_column: str, id_column: str | None, name: str) -> pa.RecordBatch | None:
    """The rows where each line is an object with a text (and an id that is text or a whole number), else None."""
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    # Arrow's reader takes several objects on a line, and one on several lines. No JSON has this sequence inside of it.
    divided = content.count(b"}\n{") == lines - 1 or content.count(b"}\r\n{") == lines - 1
    if not (divided and content.startswith(b"{") and content[-3:].rstrip().endswith(b"}")):
        return None
    for id_type in (pa.string(), pa.int64()) if id_column is not None else (None,):
        fields = {text_column: pa.string()} | ({} if id_type is None else {id_column: id_type})
        if len(fields) < 1 + (id_type is not None):
            return None
        try:
            table = pj.read_json(
                pa.BufferReader(content),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(content) + 1),
                parse_options=pj.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"),
            ).combine_chunks()
            table.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            continue
        # A null may be a field that is not there, which is an error. So are two objects that Arrow took for one line.
        if table.num_rows != lines or any(column.null_count for column in table.columns):
            return None
        texts = pa.concat_arrays(table.column(text_column).chunks)
        if id_column is None:
            ids = content_ids(name, texts)
        else:
            ids = pa.concat_arrays(table.column(id_column).chunks).cast(pa.string())
        return pa.record_batch({"id": ids, "text": texts})
    return None


def open_parquet(path: Path, columns: list[str]) -> pq.ParquetFile:
    """A Parquet file that has these columns; InputError where it is none or has not."""
    try:
        parquet = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({error}): correct the entry in `files`.") from None
    missing = [column for column in columns if column not in parquet.schema_arrow.names]
    if missing:
        have = ", ".join(parquet.schema_arrow.names)
        parquet.close()
        raise InputError(f"{path} has no column {missing[0]!r}, only {have}: set `text_column` or `id_column`.")
    return parquet


def group_bytes(parquet: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """What the named columns of a row group take in memory, about."""
    metadata = parquet.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)


def read_row_group(path: Path, name: str, group: int, text_column: str, id_column: str | None) -> Iterator[Piece]:
    """The rows of one row group, some megabytes at a time."""
    columns = list(dict.fromkeys(column for column in (text_column, id_column) if column))
    with open_parquet(path, columns) as parquet:
        rows = parquet.metadata.row_group(group).num_rows
        size = group_bytes(parquet, group, columns) // max(rows, 1) + 1
        batch_rows = max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // size))
        try:
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
                yield Piece(parquet_batch(batch, path, name, text_column, id_column))
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(
                f"{path} cannot be read as text in row group {group} ({reason}): write it again, as UTF-8."
            ) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise InputError(f"{path} is damaged in row group {group} ({error}): fetch it again.") from None


def parquet_batch(
    batch: pa.RecordBatch, path: Path, name: str, text_column: str, id_column: str | None
) -> pa.RecordBatch:
    texts = as_strings(batch.column(text_column))
    ids = None
    if id_column is not None:
        own = batch.column(id_column)
        ids = own.cast(pa.string()) if pa.types.is_integer(own.type) else as_strings(own)
    if texts is None or (id_column is not None and (ids is None or ids.null_count)):
        rows = batch.to_pylist()
        return batch_of([pick(row, text_column, id_column, name, str(path)) for row in rows])
    texts = texts.fill_null("")
    texts.validate(full=True)
    return pa.record_batch({"id": content_ids(name, texts) if ids is None else ids, "text": texts})


def as_strings(column: pa.Array) -> pa.Array | None:
    """A column of text as plain strings; None where it is of another type."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if any(is_string(column.type) for is_string in STRINGS):
        return column.cast(pa.string())
    return None
