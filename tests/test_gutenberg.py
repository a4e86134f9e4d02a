"""Books of Project Gutenberg lose what it put around them, in whatever form, and nothing of their own."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from training.corpus.readers.books import strip_book
from training.prepare_data import main as prepare_data
from training.stage.files import read_json

CHAPTERS = [f"Chapter {number}\n\nThe miller said: it is {number} o'clock." for number in range(1, 90)]
BOOK = "THE MILL\n\nby A. Miller\n\nIn memory of Johannes Gutenberg, printer.\n\n\n\n" + "\n\n".join(CHAPTERS)
ABOUT = """This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.  You may copy it under the terms of the
Project Gutenberg License included with this eBook."""
LICENSE = """Updated editions will replace the previous one--the old editions will
be renamed.

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK

Section 1.  General Terms of Use"""
FACTS = """Title: The Mill
       and the Miller

Author: A. Miller

Release Date: May, 1995  [EBook #123]

Language: English"""
START, END = (f"*** {what} OF THE PROJECT GUTENBERG EBOOK THE MILL ***" for what in ("START", "END"))
OLD = """Project Gutenberg Etext of The Mill, by A. Miller
#2 in our series

Copyright laws are changing all over the world, be sure to check
the laws for your country before redistributing these files!!!

Please take a look at the important information in this header.
We encourage you to keep this file on your own disk.

**Welcome To The World of Free Plain Vanilla Electronic Texts**

*These Etexts Prepared By Hundreds of Volunteers and Donations*"""
SMALL_PRINT = """***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?  You know: lawyers.

*BEFORE!* YOU USE OR READ THIS ETEXT
By using or reading any part of this PROJECT GUTENBERG-tm etext, you agree.
"""
FORMS = {
    "modern": f"The Project Gutenberg eBook of The Mill\n\n{ABOUT}\n\n{FACTS}\n\n"
    f"{START}\n\nProduced by Al, and the Online Distributed\n"
    f"Proofreading Team at https://www.pgdp.net\n\n{BOOK}\n\n{END}\n{LICENSE}",
    "without a space, over two lines": f"The Project Gutenberg eBook, The Mill\n\n{FACTS}\n\n"
    f"***START OF THE PROJECT GUTENBERG EBOOK THE MILL\nAND THE MILLER***\n\n\nE-text prepared by Al\n\n\n\n"
    "Note: Project Gutenberg also has an HTML version of this\n      file.\n      See 1-h.htm or 1-h.zip:\n"
    f"      (http://www.gutenberg.net/1-h.zip)\n\n\n{BOOK}\n\n\n***END OF THE PROJECT GUTENBERG EBOOK THE MILL\n"
    f"AND THE MILLER***\n\n\n******* This file should be named 1.txt *******\n\n{LICENSE}",
    "this": f"{FACTS}\n\n*** START OF THIS PROJECT GUTENBERG EBOOK THE MILL ***\n\n\n{'*' * 70}\n"
    f"THIS EBOOK WAS ONE OF PROJECT GUTENBERG'S EARLY FILES\n{'*' * 70}\n\n{BOOK}\n\n"
    f"End of Project Gutenberg's The Mill\n\n*** END OF THIS PROJECT GUTENBERG EBOOK THE MILL ***\n{LICENSE}",
    "copyrighted": f"{FACTS}\n\n*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK THE MILL ***\n\n{BOOK}\n\n"
    f"*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK THE MILL ***\n{LICENSE}",
    "small print": f"{OLD}\n\n{SMALL_PRINT}\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n\n"
    f"Scanned by Charles with\nOmniPage software\n\n{BOOK}\n\nEnd of The Project Gutenberg Etext of The Mill\n",
    "small print of later": f"{OLD}\n\n{SMALL_PRINT}\n"
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10/04/01*END*\n"
    "[Portions of this header are copyright (C) 2001 by\nMichael S. Hart]\n[Project Gutenberg is a TradeMark]\n\n\n"
    f"{BOOK}\n\nEnd Project Gutenberg's The Mill",
    "small print behind": f"{OLD}\n\n{FACTS}\n\n"
    f"{BOOK}\n\nEnd of the Project Gutenberg Etext of The Mill\n\n{SMALL_PRINT}",
    "licence without a mark": f"{START}\n{BOOK}\n\n{LICENSE}",
    "notes at the begin": f"{START}\n\n[Transcriber's Note: one. There\n\nare two "
    f"paragraphs of it.]\n\nTranscriber’s notes:\n\n  Spelling was kept.\n\n  - so it was\n\n{BOOK}\n\n"
    f"{END}",
    "notes at the end": f"{START}\n\nTranscribed from the 1890 edition by Al\n\n{BOOK}"
    "\n\n\n                    Transcriber’s Notes\n\n\nPage 3: 'mlil' changed to 'mill'.\n\nItalics are _so_.\n\n"
    f"{END}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_book_is_left_whole_and_nothing_else_is(form: str) -> None:
    text, title = strip_book(FORMS[form])
    assert text == BOOK
    assert title == ("The Mill and the Miller" if FACTS in FORMS[form] else None)


@pytest.mark.parametrize(
    "text",
    [
        BOOK,
        f"Title: the sign above a door\n\n{BOOK}",
        f"{BOOK}\n\nThe notes of the transcriber are on page 3.",
        # What a mark or a note resembles in the middle of a book, or in pictures' captions, is the book's.
        f"{BOOK}\n\nProject work went on.\n\n{BOOK}",
    ],
)
def test_what_is_none_of_its_books_is_left_as_it_is(text: str) -> None:
    assert strip_book(text) == (text, None)


def test_a_note_on_a_picture_takes_nothing_along() -> None:
    note = "[Transcriber's Note: See picture mill.jpg]"
    text, _ = strip_book(f"{START}\n{BOOK}\n\n{note}\n\nAnd so they went home.")
    assert text == f"{BOOK}\n\nAnd so they went home."


def test_what_is_left_of_it_is_counted(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "books").mkdir()
    for number, form in enumerate(FORMS):
        (tmp_path / "books" / f"{number}.txt").write_text(FORMS[form].replace("o'clock", f"past {number}"))
    middle = "\n\n".join([*CHAPTERS, "Project Gutenberg stands in the middle.", *CHAPTERS])
    (tmp_path / "books" / "middle.txt").write_text(middle)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe: dict[str, Any] = {"sources": [{"name": "books", "files": str(tmp_path / "books"), "type": "gutenberg"}]}
    recipe |= {"tasks": 1, "shards": 1, "workers": 1, "val_fraction": 0.3}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "out")]
    prepare_data(["--config", str(tmp_path / "data.yaml"), *words])
    noise = read_json(tmp_path / "out" / "data_report.json")["noise"]
    assert noise["signs"] == {"Project Gutenberg": 1} and noise["documents"] == 1
