"""Turns the guide's single HTML page into a PDF: pandoc reads it and typst sets it, without LaTeX.

python -m docs.pdf build/docs/paper/index.html build/docs/guide.pdf
"""

import sys
from pathlib import Path

import pypandoc
import typst
from bs4 import BeautifulSoup, Tag

TEMPLATE = Path(__file__).parent / "paper.typ"


def main() -> None:
    """Convert the page."""
    page, output = map(Path, sys.argv[1:])
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    article = soup.find("article")
    assert isinstance(article, Tag)
    simplify(article, soup)
    read_as = "html-native_divs-native_spans"
    body = pypandoc.convert_text(str(article), "typst", format=read_as, extra_args=["--wrap=none"])
    source = page.parent / "guide.typ"  # beside the pictures that it names
    source.write_text(TEMPLATE.read_text(encoding="utf-8") + "\n" + body, encoding="utf-8")
    typst.compile(source, output=output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def simplify(article: Tag, soup: BeautifulSoup) -> None:
    """Leave what is printed, in elements that pandoc knows."""
    for extra in article.select("a.headerlink, .toctree-wrapper > p.caption, button, summary"):
        extra.decompose()
    for code in article.select("div[class*=highlight-]"):
        (name,) = [name for name in code["class"] if name.startswith("highlight-")]
        language = {"ipython3": "python", "default": "", "none": "", "myst-ansi": ""}.get(
            name.removeprefix("highlight-"), name.removeprefix("highlight-")
        )
        text = code.get_text().rstrip("\n")
        block = soup.new_tag("pre", attrs={"class": language} if language else {})
        block.append(soup.new_tag("code", string=text))
        code.replace_with(block)
    for cell in article.select(".cell"):
        if "tag_hide-input" in cell.get("class", []):  # how a figure is drawn is read on the screen
            for hidden in cell.select(".cell_input"):
                hidden.decompose()
    for picture in article.select("img"):
        picture.attrs.pop("style", None)
        if not picture.find_parent(class_="cell_output"):  # a screenshot; figures have their size
            picture["width"] = "45%"
        picture["alt"] = ""
    for letters in article.select("ol.loweralpha"):
        letters["type"] = "a"
    # Chapters are sections of a section of the first page here, two levels too low.
    for heading in article.select(".toctree-wrapper :is(h3, h4, h5, h6)"):
        heading.name = f"h{int(heading.name[1]) - 2}"
    for start in article.select("span[id^=document-]"):
        if heading := start.find_next("h1"):
            heading["id"] = start["id"]
    for link in article.select("a[href^='#']"):
        if not article.find(["h1", "h2", "h3"], id=str(link["href"])[1:]):
            link.unwrap()


if __name__ == "__main__":
    main()
