"""Collecting: files of any size and form become the same documents, whatever reads them and however many processes."""

import bz2
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep import columns, document, parallel, reading, sources
from data_prep.cli import main
from data_prep.collect import collect
from data_prep.files import InputError
from data_prep.sources import Hub, Jsonl, Parquet, Source, Text
from data_prep.table_sources import Csv


def zstd(content: bytes) -> bytes:
    compressed = pa.Codec("zstd").compress(content, asbytes=True)
    assert isinstance(compressed, bytes)
    return compressed


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def rows_of(source: Source, folder: Path, workers: int = 1) -> list[tuple[str, ...]]:
    """What collecting a source leaves on the disk."""
    collect("x", source, workers, folder)
    return [
        tuple(row[name] for name in ("id", *document.sides(batch)))
        for batch in document.read(folder, "x")
        for row in batch.to_pylist()
    ]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_kind_of_text_is_read_through_every_compression_even_in_several_frames(tmp_path, suffix):
    compress = COMPRESS[suffix]
    lines = [json.dumps({"text": f"Zeile {number} ünï"}, ensure_ascii=False) + "\n" for number in range(300)]
    parts = ["".join(lines[:100]).encode(), "".join(lines[100:]).encode()]
    file = tmp_path / f"x.jsonl{suffix}"
    file.write_bytes(b"".join(map(compress, parts)))
    expected = [json.loads(line)["text"] for line in lines]
    assert [text for _, text in rows_of(Jsonl(files=[str(file)]), tmp_path / "jsonl")] == expected
    assert [text for _, text in rows_of(Text(files=[str(file)], separator="\n"), tmp_path / "text")] == [
        line.rstrip("\n") for line in lines
    ]
    table = tmp_path / f"x.csv{suffix}"
    table.write_bytes(compress(b'n,text\n1,"a, ""b""\nc"\n2,d\n'))
    assert [text for _, text in rows_of(Csv(files=[str(table)]), tmp_path / "csv")] == ['a, "b"\nc', "d"]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("kind", [Jsonl, Text])
def test_a_compressed_file_that_was_cut_off_is_an_error_and_never_a_shorter_corpus(tmp_path, suffix, kind):
    noise = random.Random(0)
    lines = "".join(json.dumps({"text": str(noise.random())}) + "\n" for _ in range(2000)).encode()
    file = tmp_path / f"x.jsonl{suffix}"
    file.write_bytes(COMPRESS[suffix](lines)[:-9])
    with pytest.raises(InputError, match=f"x.jsonl{suffix} is not a whole .* file .*: fetch it again"):
        collect("x", kind(files=[str(file)]), 1, tmp_path / "out")


ODD_LINES = [
    '{"text": "a", "id": 1}{"text": "b", "id": 2}',
    '{"text":',
    '{"text": "a", "id": 1} x',
    "[1]",
    "3",
    '{"body": "x", "id": 1}',
    '{"text": "x"}',
    '{"text": 5, "id": 1}',
    '{"text": ["x"], "id": 1}',
    '{"text": null, "id": 1}',
    '{"text": "half \\ud800 pair", "id": 1}',
    '{"text": "other half \\udc00", "id": 1}',
    '{"text": "whole \\ud83d\\ude00", "id": 1}',
    '{"text": "first", "text": "second", "id": 1}',
    '{"text": "tab\there", "id": 1}',
    '{"text": "nul \\u0000", "id": 1}',
    '{"text": "x", "id": 1, "n": NaN}',
    '{"text": "x", "id": 1, "n": 01}',
    '{"text": "x", "id": 1, "z": {"text": "inner", "id": 7}}',
    '{"te\\u0078t": "spelt", "id": 1}',
    "{'text': 'x', 'id': 1}",
    '{"text": "x", "id": 1,}',
    '{"text": "x", "id": null}',
    '{"text": "x", "id": true}',
    '{"text": "x", "id": 1.0}',
    '{"text": "x", "id": 1e3}',
    '{"text": "x", "id": -0}',
    '{"text": "x", "id": 99999999999999999999}',
    '{"text": "x", "id": "7"}',
    '{"text": "2024-01-01", "id": "2024-01-01"}',
    '{"text": "x\\/y", "id": [1]}',
    "",
    "   ",
    '  {"text": "indented", "id": 1}  ',
    '{"text": "carriage", "id": 1}\r',
    "\f",
    '{"text": "x \u2028 \x85 y", "id": 1}',
]


@pytest.mark.parametrize("id_column", [None, "id"])
@pytest.mark.parametrize("line", ODD_LINES)
def test_reading_json_by_blocks_says_what_reading_it_by_lines_says(tmp_path, monkeypatch, line, id_column):
    file = tmp_path / "x.jsonl"
    # Both ids that are numbers and ids that are text can be read as a column.
    for number, around in enumerate(['{"text": "um", "id": 1}', '{"text": "um", "id": "one"}']):
        file.write_bytes(f"{around}\n{line}\n{around}\n".encode())
        found = []
        for reader in ("fast", "slow"):
            if reader == "slow":
                monkeypatch.setattr(columns, "fast_json_lines", lambda *arguments: None)
            try:
                found.append(rows_of(Jsonl(files=[str(file)], id_column=id_column), tmp_path / f"{reader}{number}"))
            except InputError as error:
                found.append(str(error))
            monkeypatch.undo()
        assert found[0] == found[1]
        if isinstance(found[0], str):
            assert "line 2" in found[0]
        else:
            strict = [json.loads(text) for text in (around, line, around) if text.strip()]
            strict = [
                row["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                for row in strict
                if row["text"] is not None
            ]
            assert [text for _, text in found[0]] == strict


def test_plain_lines_of_json_are_read_as_columns():
    content = b'{"text": "a", "id": "x"}\n{"text": "b", "id": "y"}\n'
    for id_column in (None, "id"):
        assert columns.fast_json_lines(content, "text", id_column, "name") is not None
    assert columns.fast_json_lines(content.replace(b"\n", b"\r\n"), "text", None, "name") is not None
    assert columns.fast_json_lines(b'{"text": "a", "id": 5}\n', "text", "id", "name") is not None


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_wrong_line_behind_many_blocks_has_its_number_in_the_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 500)
    lines = [json.dumps({"text": f"line {number}"}) for number in range(1, 1001)]
    lines[776] = '{"text": oops}'
    lines[900] = '{"text": 5}'
    file = tmp_path / f"x.jsonl{suffix}"
    file.write_bytes(COMPRESS[suffix]("\n".join(lines).encode()))
    with pytest.raises(InputError, match="line 777 is not JSON"):
        collect("x", Jsonl(files=[str(file)]), 1, tmp_path / "out")
    content = file.read_bytes() if not suffix else gzip.decompress(file.read_bytes())
    file.write_bytes(COMPRESS[suffix](content.replace(b"oops", b'"caf\xe9"')))
    byte = content.index(b"oops") + 4
    with pytest.raises(InputError, match=f"is not utf-8: byte {byte} is 0xe9"):
        collect("x", Jsonl(files=[str(file)]), 1, tmp_path / "out")


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
@pytest.mark.parametrize("suffix", ["", ".zst"])
@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"\na\n\nbb\nccc", b"\xef\xbb\xbfa\nb\n" + b"x" * 200])
def test_blocks_are_whole_lines_and_together_the_file(tmp_path, monkeypatch, block, suffix, content):
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    file = tmp_path / f"x{suffix}"
    file.write_bytes(COMPRESS[suffix](content))
    blocks = list(reading.line_blocks(file, "x"))
    assert b"".join(part.content() for part in blocks) == content
    assert all(part.content().endswith(b"\n") for part in blocks[:-1])
    for part in blocks:
        assert content[part.start : part.stop] == part.content()
        assert part.first_line() == 1 + content[: part.start].count(b"\n")


def test_a_line_without_end_is_an_error_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(reading, "LINE_BYTES", 100_000)
    for suffix in ("", ".gz"):
        file = tmp_path / f"x.jsonl{suffix}"
        file.write_bytes(COMPRESS[suffix](b'{"text": "' + b"x" * 300_000 + b'"}\n'))
        with pytest.raises(InputError, match="has a line of more than 100000 bytes"):
            collect("x", Jsonl(files=[str(file)]), 1, tmp_path / "out")


def test_json_in_another_encoding_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.CHUNK_BYTES", 31)
    rows = [{"text": f"größer {number}"} for number in range(50)]
    for encoding in ("latin-1", "utf-16"):
        file = tmp_path / f"{encoding}.jsonl"
        file.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
        found = rows_of(Jsonl(files=[str(file)], encoding=encoding), tmp_path / encoding)
        assert [text for _, text in found] == [row["text"] for row in rows]
    with pytest.raises(InputError, match="no encoding 'utf-9'"):
        collect("x", Jsonl(files=[str(tmp_path / "latin-1.jsonl")], encoding="utf-9"), 1, tmp_path / "out")


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, monkeypatch):
    """Small pieces here, so that processes are started for little text; their sizes do not matter for the bytes either."""
    monkeypatch.setattr(parallel, "FEW_TASKS", 2)
    noise = random.Random(1)
    texts = [f"text {number} " + "wört " * noise.randrange(60) for number in range(3000)]
    (tmp_path / "in").mkdir()
    for part in range(4):
        own = texts[part * 700 : (part + 1) * 700]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in own)
        (tmp_path / "in" / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        pq.write_table(pa.table({"text": own}), tmp_path / "in" / f"{part}.parquet", row_group_size=100)
        (tmp_path / "in" / f"{part}.txt").write_text("\n".join(own))
    given = {
        "jsonl": Jsonl(files=[f"{tmp_path}/in/*.jsonl.gz"]),
        "parquet": Parquet(files=[f"{tmp_path}/in/*.parquet"]),
        "text": Text(files=[f"{tmp_path}/in/*.txt"], separator="\n"),
    }
    for name, source in given.items():
        found = []
        for workers, size in ((1, 10**6), (2, 20_000)):
            for module, constant in ((sources, "TASK_BYTES"), (reading, "BLOCK_BYTES"), (sources, "ROW_GROUP_BYTES")):
                monkeypatch.setattr(module, constant, size)
            record = collect("x", source, workers, tmp_path / f"{name}{workers}")
            found.append((record, content_of(tmp_path / f"{name}{workers}")))
        assert found[0] == found[1], name
        assert found[0][0]["documents"] == 2800


@pytest.mark.slow
def test_with_processes_a_limit_ends_the_reading_and_the_first_wrong_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "FEW_TASKS", 2)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 500)
    lines = [json.dumps({"text": f"line {number}"}) for number in range(1, 5001)]
    lines[4000], lines[4500] = '{"text": oops}', "[]"
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert [text for _, text in rows_of(Jsonl(files=[str(file)], limit=900), tmp_path / "limited", workers=2)] == [
        f"line {number}" for number in range(1, 901)
    ]
    with pytest.raises(InputError, match="line 4001 is not JSON"):
        collect("x", Jsonl(files=[str(file)]), 2, tmp_path / "out")


@pytest.mark.slow
def test_a_killed_process_is_one_sentence_and_not_a_wait_without_end():
    tasks = [parallel.Task(partial(os._exit, 1))] * 20
    with pytest.raises(InputError, match="One of 2 processes that read was killed"):
        list(parallel.in_order(tasks, 2))


@pytest.mark.parametrize("reader", [Jsonl, Parquet])
def test_what_is_empty_and_what_the_limit_leaves_out_is_counted_as_row_by_row(tmp_path, reader, monkeypatch):
    monkeypatch.setattr("data_prep.collect.BATCH_CHARACTERS", 20)
    texts = ["", "a", " \t", None, "b\u00a0", "\u2003", "c", "", "d"]
    file = tmp_path / f"x.{reader.__name__}"
    if reader is Jsonl:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file)
    for limit in (None, 1, 2, 3, 4, 9):
        full = [place for place, text in enumerate(texts) if text and text.strip()][:limit]
        stop = len(texts) if limit is None or limit > 4 else full[-1] + 1
        record = collect("x", reader(files=[str(file)], limit=limit), 1, tmp_path / f"out{limit}")
        assert (record["documents"], record["empty"]) == (len(full), stop - len(full))


@pytest.mark.parametrize(
    "type", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_text_of_every_string_type_is_read(tmp_path, type):
    plain = pa.array(["a", "b", "a", None, "ü"])
    column = plain.dictionary_encode() if pa.types.is_dictionary(type) else plain.cast(type)
    pq.write_table(pa.table({"text": column, "n": [5, 6, 7, 8, 9]}), tmp_path / "x.parquet")
    source = Parquet(files=[f"{tmp_path}/x.parquet"], id_column="n")
    assert rows_of(source, tmp_path / "out") == [("5", "a"), ("6", "b"), ("7", "a"), ("9", "ü")]


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([1, 2]), "holds int in 'text', not text"),
        (pa.array([b"a", b"b"]), "holds bytes in 'text', not text"),
        (pa.array([["a"], ["b"]]), "holds list in 'text', not text"),
        (pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")]),
         "cannot be read as text in row group 0"),
    ],
    ids=["numbers", "bytes", "lists", "not UTF-8"],
)  # fmt: skip
def test_parquet_that_holds_no_text_is_one_sentence(tmp_path, column, sentence):
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=f"x.parquet {sentence}"):
        collect("x", Parquet(files=[f"{tmp_path}/x.parquet"]), 1, tmp_path / "out")


def test_csv_takes_columns_by_name_or_number_and_tabs_in_tsv_files(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeffid,text,more\r\n7,"one, two",x\r\n8,"three\r\nfour ""x""",y\r\n')
    (tmp_path / "b.tsv").write_text("id\ttext\n9\tfive, six\n")
    found = rows_of(Csv(files=[f"{tmp_path}/*.?sv"], id_column="id"), tmp_path / "out")
    assert found == [("7", "one, two"), ("8", 'three\r\nfour "x"'), ("9", "five, six")]
    (tmp_path / "c.csv").write_text("1;one\n2;two\n")
    source = Csv(files=[f"{tmp_path}/c.csv"], header=False, separator=";", text_column=1, id_column=0)
    assert rows_of(source, tmp_path / "other") == [("1", "one"), ("2", "two")]


def test_csv_reads_a_field_of_megabytes_and_names_what_is_wrong(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text(f'text\n"{"long, " * 300_000}"\n')
    ((_, text),) = rows_of(Csv(files=[str(file)]), tmp_path / "out")
    assert text == "long, " * 300_000
    for content, sentence in [
        ("body\nx\n", "has no column 'text', only body: set"),
        ("n,text\n1,a\n2\n", "line 3 has 1 column"),
        ('text\n"a"b\n', "line 2 is not CSV"),
        ('text\n"a\n', "is not CSV"),
    ]:
        file.write_text(content)
        with pytest.raises(InputError, match=sentence):
            collect("x", Csv(files=[str(file)]), 1, tmp_path / "bad")
    file.write_text("n,text\n1,a\n2\n3,b\n")
    record = collect("x", Csv(files=[str(file)], skip_bad=True), 1, tmp_path / "skipped")
    assert (record["documents"], record["bad_lines"]) == (2, 1)
    with pytest.raises(InputError, match="set `header: true`"):
        Csv(files=[str(file)], header=False)
    with pytest.raises(InputError, match="a single character"):
        Csv(files=[str(file)], separator="||")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_corpus_is_the_same_streamed_and_downloaded_and_keeps_its_fingerprint(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["a", "b"], "n": [1, 2]}), folder / "train.parquet")
    source = Hub(name=str(folder), text_column="body", id_column="n", streaming=streaming)
    assert rows_of(source, tmp_path / "out") == [("1", "a"), ("2", "b")]
    assert "streaming" not in source.settings()


def test_new_sources_are_named_in_a_configuration(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("n,text\n" + "".join(f"{number},text {number}\n" for number in range(20)))
    config = {
        "output": str(tmp_path / "out"),
        "sources": {"table": {"class_path": "Csv", "init_args": {"files": [f"{tmp_path}/x.csv"], "id_column": "n"}}},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert main(["collect", "--config", str(tmp_path / "x.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "20 documents" in printed
    assert "0 bad lines" in printed
    (tmp_path / "x.csv").write_text("n\n1\n")
    assert main(["collect", "--config", str(tmp_path / "x.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (1_000_000_000, 1_000_000_000))
from pathlib import Path
from data_prep.collect import collect
from data_prep.sources import Jsonl
if __name__ == "__main__":
    record = collect("x", Jsonl(files=[sys.argv[1]]), int(sys.argv[3]), Path(sys.argv[2]))
    # Not ru_maxrss of its own, which counts what the process was before it began anew: a large pytest.
    [own] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(record["documents"], own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "workers"), [("", 2), (".gz", 1)])
def test_collecting_holds_a_few_blocks_and_not_the_file(tmp_path, suffix, workers):
    """Twice the size of the data segment that is allowed, read in half a gigabyte."""
    script, file = tmp_path / "limited.py", tmp_path / f"x.jsonl{suffix}"
    script.write_text(LIMITED)
    noise = random.Random(2)
    words = [f"w{number}" for number in range(5000)]
    with gzip.open(file, "wb", 1) if suffix else open(file, "wb") as stream:
        for number in range(500):
            text = " ".join(noise.choices(words, k=700))
            stream.write(b"".join(b'{"text": "%d %d %s"}\n' % (number, k, text.encode()) for k in range(1000)))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script), str(file), str(tmp_path / "out"), str(workers)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, env={"PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stderr
    documents, *peaks = map(int, result.stdout.split())
    assert documents == 500_000
    assert max(peaks) < 600_000, "kilobytes"
