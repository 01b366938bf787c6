from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.errors import ApiError
from service.api.files.inputs import FilePart, file_part, named, prompt_note, safe_name
from service.store.files import StoredFile


def stored(filename: str, file_id: str = "") -> StoredFile:
    return StoredFile(file_id or f"file-{filename}", "ann", filename, "user_data", 3, "0" * 64, 1.0, None)


@given(st.text(max_size=300))
def test_every_name_becomes_a_safe_one(filename: str) -> None:
    name = safe_name(filename)
    assert re.fullmatch(r"[\w.-]{1,80}", name)
    assert not name.startswith(".")
    assert safe_name(name) == name


@given(
    st.lists(st.text(max_size=12), max_size=12), st.lists(st.sampled_from(["a", "a.csv", "file"]), max_size=3)
)
def test_names_in_one_container_differ(filenames: list[str], taken: list[str]) -> None:
    files = [stored(name, f"file-{index}") for index, name in enumerate(filenames)]
    names = [item.name.lower() for item in named(files, taken)]
    assert len(set(names)) == len(files)
    assert not set(names) & set(taken)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("sales.csv", "sales.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ann\\Q3 report.xlsx", "Q3_report.xlsx"),
        ("…", "file"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ("a\n- /inputs/b", "b"),
        ("Übersicht.pdf", "Übersicht.pdf"),
        ("x" * 100 + ".csv", "x" * 76 + ".csv"),
    ],
)
def test_safe_names(filename: str, name: str) -> None:
    assert safe_name(filename) == name


def test_the_same_file_is_named_once_and_texts_of_pdfs_have_room() -> None:
    files = [
        stored("a.pdf", "file-1"),
        stored("a.pdf", "file-1"),
        stored("a.pdf.txt"),
        stored("A.PDF", "file-2"),
    ]
    assert [item.name for item in named(files)] == ["a.pdf", "a.pdf-2.txt", "A-2.PDF"]


def test_note_lists_files_and_a_restart() -> None:
    assert prompt_note([], restarted=False) == ""
    assert prompt_note([("a.csv", 999), ("b.pdf", 1_234_567)], restarted=True) == (
        "\n\nThe Python session was restarted: earlier variables and files are gone.\n"
        "Files that the code can read:\n"
        "- /inputs/a.csv (999 bytes)\n"
        "- /inputs/b.pdf (1.2 MB; its text: /inputs/b.pdf.txt)"
    )


def test_parts_of_both_apis() -> None:
    assert file_part({"type": "input_file", "file_id": "f"}, "p") == FilePart("p", "f", id_field=".file_id")
    part = {"type": "file", "file": {"file_data": "MQ==", "filename": "a"}}
    assert file_part(part, "p") == FilePart("p", None, "MQ==", "a", ".file.file_id")
    for wrong in (
        {"type": "file", "file": 1},
        {"type": "file"},
        {"type": "input_file", "file_id": "", "file_data": ""},
    ):
        with pytest.raises(ApiError):
            file_part(wrong, "p")
